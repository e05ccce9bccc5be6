"""The compute engine: launches by QMD, inline uploads, caches, semaphores (clc5c0.h to clcec0.h).

Launches of a channel run one after another here, but count as running at once until the channel waits: see ledger.py. Those of
several channels take turns.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence

from devrt.nvidia import qmd
from devrt.nvidia.fields import HOPPER
from devrt.nvidia.methods import COMPUTE, Pcas
from devrt.virtual.nvidia import qmd_check
from devrt.virtual.nvidia.channel import ChannelError
from devrt.virtual.nvidia.dispatch import Launch
from devrt.virtual.nvidia.engine import Engine, Port, Refused, Step
from devrt.virtual.nvidia.faults import class_error, launch_error
from devrt.virtual.nvidia.running import Running
from devrt.virtual.pieces import pieces

_SCHEDULES = (Pcas.SCHEDULE, Pcas.INVALIDATE_COPY_SCHEDULE, Pcas.PREFETCH_SCHEDULE, Pcas.INVALIDATE_PREFETCH_COPY_SCHEDULE)
_IGNORED = (Pcas.NOP, Pcas.INVALIDATE, Pcas.PREFETCH)
_REDUCTIONS = "IADD", "IMIN", "IMAX", "INC", "DEC", "IAND", "IOR", "IXOR"  # RED_ADD and on
_FOUR_WORDS, _TWO_WORDS = 0, 2
_RELEASE_SEMAPHORE = 2  # LAUNCH_DMA.completion_type
_WINDOW = 1 << 24       # bytes of the shared and of the local window
_HIGH_WORD = 1 << 32    # what code of Hopper reads of the shared window's address: SR_SWINHI
_QMD_DATA = COMPUTE["LOAD_INLINE_QMD_DATA"].offset
_INLINE_DATA = COMPUTE["LOAD_INLINE_DATA"].offset
_LAUNCHES = ("SEND_SIGNALING_PCAS_B", "SEND_SIGNALING_PCAS2_B")
_SM_COUNT = 0x1FF  # SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_C.max_sm_count
_GPC_CLIENT = "GPCCLIENT_T1_0"


class Compute(Engine):
    """The compute engine of one channel."""

    def __init__(self, port: Port, class_id: int) -> None:
        super().__init__(port, COMPUTE, class_id)
        self._upload_va = self._upload_left = 0
        self.actions = {
            "WAIT_FOR_IDLE": self._wait_for_idle,
            "INVALIDATE_SHADER_CACHES": self._invalidate, "INVALIDATE_SHADER_CACHES_NO_WFI": self._invalidate_no_wfi,
            "SEND_SIGNALING_PCAS_B": self._pcas, "SEND_SIGNALING_PCAS2_B": self._pcas2,
            "LAUNCH_DMA": self._upload, "SET_REPORT_SEMAPHORE_D": self._report, "REPORT_SEMAPHORE_EXECUTE": self._report_execute,
        }

    def refused(self, offset: int, data: int, why: str) -> ChannelError:
        if self.name(offset) in _LAUNCHES:
            return launch_error(self.port.channel, self.class_id, offset, data, why)
        return class_error(self.port.channel, self.class_id, offset, data, why)

    def method(self, offset: int, data: int) -> Iterator[Step] | None:
        if offset == _INLINE_DATA:
            self._inline((data,))
            return None
        if self._upload_left:
            raise Refused(f"{self._upload_left} bytes of an inline upload are missing")
        if _QMD_DATA <= offset < _QMD_DATA + 4 * COMPUTE["LOAD_INLINE_QMD_DATA"].count:
            self._inline_qmd(offset, (data,))
            return None
        row = self.rows.get(offset)
        if row is not None and row.name.startswith("SET_SHADER_LOCAL_MEMORY") and self._running():
            raise Refused("local memory is moved while launches may run")
        return super().method(offset, data)

    def block(self, offset: int, words: Sequence[int], increment: bool) -> bool:
        if offset == _INLINE_DATA and not increment:
            self._inline(words)
            return True
        if offset == _QMD_DATA and increment and not self._upload_left:
            self._inline_qmd(offset, words)
            return True
        return False

    def _running(self) -> bool:
        track = self.port.track
        return track.count > track.known.get(track.key, 0)

    # --- waiting and caches ---

    def _wait_for_idle(self, f: Mapping[str, int]) -> None:
        self.port.track.idle()

    def _invalidate(self, f: Mapping[str, int]) -> None:
        self.port.track.idle()
        self._invalidate_no_wfi(f)

    def _invalidate_no_wfi(self, f: Mapping[str, int]) -> None:
        if f["constant"]:
            self.port.constants.invalidate(self.port.space)
        if f["instruction"]:
            self.port.code.invalidate(self.port.space)

    # --- inline uploads ---

    def _upload(self, f: Mapping[str, int]) -> None:
        """LAUNCH_DMA: the dwords of LOAD_INLINE_DATA go to memory."""
        if not f["dst_memory_layout_pitch"]:
            raise Refused("block-linear layouts are not modelled")
        if f["reduction_enable"] or f["completion_type"] >= _RELEASE_SEMAPHORE or f["interrupt_type"]:
            raise Refused("reductions, semaphores and interrupts of inline uploads are not modelled")
        length = self.get("LINE_LENGTH_IN")
        if self.get("LINE_COUNT") != 1 or not length:
            raise Refused(f"an upload of {self.get('LINE_COUNT')} lines of {length} bytes: one line of some is modelled")
        self._upload_va, self._upload_left = self.wide("OFFSET_OUT_UPPER", "OFFSET_OUT"), length

    def _inline(self, words: Sequence[int]) -> None:
        if not self._upload_left:
            raise Refused("LOAD_INLINE_DATA without LAUNCH_DMA before it, or with more data than LINE_LENGTH_IN says")
        data = b"".join(word.to_bytes(4, "little") for word in words)
        if len(data) >= self._upload_left + 4:
            raise Refused(f"{len(data)} bytes of inline data, {self._upload_left} are left")
        data = data[:self._upload_left]
        self._put(self._upload_va, data)
        self._upload_va += len(data)
        self._upload_left -= len(data)

    def _inline_qmd(self, offset: int, words: Sequence[int]) -> None:
        """LOAD_INLINE_QMD_DATA: dword n of the descriptor at SET_INLINE_QMD_ADDRESS."""
        first = (offset - _QMD_DATA) // 4
        upper = COMPUTE["SET_INLINE_QMD_ADDRESS_A"].of(self.port.sm).unpack(self.get("SET_INLINE_QMD_ADDRESS_A"))
        size = 384 if upper.get("inline_size_384") else 256
        if 4 * (first + len(words)) > size:
            raise Refused(f"dword {first + len(words) - 1} of an inline QMD of {size} bytes")
        va = (upper["qmd_address_shifted8_upper"] << 32 | self.get("SET_INLINE_QMD_ADDRESS_B")) << 8
        self._put(va + 4 * first, b"".join(word.to_bytes(4, "little") for word in words))

    def _put(self, va: int, data: bytes) -> None:
        """Write in the midst of the channel: launches that may still run must not touch it, later ones see it."""
        port = self.port
        port.client, port.who = "GPCCLIENT_FE", f"inline upload to {va:#x} in channel {port.channel.id:#x}"
        port.put(port.who, va, data)

    # --- launches ---

    def _pcas(self, f: Mapping[str, int]) -> Iterator[Step] | None:
        return self._schedule(self.get("SEND_PCAS_A") << 8) if f["schedule"] else None

    def _pcas2(self, f: Mapping[str, int]) -> Iterator[Step] | None:
        action = f["pcas_action"]
        if action in _SCHEDULES:
            return self._schedule(self.get("SEND_PCAS_A") << 8)
        if action not in _IGNORED:
            raise Refused(f"{Pcas(action).name} is not modelled")
        return None

    def _schedule(self, va: int) -> Iterator[Step]:
        """Launch a descriptor, and those that it schedules when it has ended."""
        chain: list[int] = []
        while True:
            fields = yield from self._launch(va, chain)
            yield Step.DONE
            if not fields["dependent_qmd0_enable"]:
                return
            va = fields["dependent_qmd0_pointer"]

    def _launch(self, va: int, chain: list[int]) -> Generator[Step, None, Mapping[str, int]]:
        """Run one descriptor, after the works of `chain`, to which it adds its own. Returns its fields."""
        port = self.port
        port.client, port.who = "GPCCLIENT_SKED", f"QMD at {va:#x} in channel {port.channel.id:#x}"
        judged = qmd_check.judge(port.sm, port.read(va, qmd.nbytes(port.sm)), self._local_memory(), self._windows())
        fields, launch = judged.fields, judged.launch
        for at, nbytes, access in judged.needs:
            pieces(port.space, at, nbytes, access)
        port.client, port.who = _GPC_CLIENT, f"kernel {launch.entry:#x} (QMD at {va:#x}, channel {port.channel.id:#x})"
        port.inject(launch.entry, "SM (0x1)")
        self._caches(fields, launch)
        running = Running(port, launch, chain)
        yield from running.turns()
        chain.append(running.work.number)
        for n in range(3):
            if fields.get(f"release_enable_{n}"):
                self._release(fields, n, chain[-1])
        return fields

    def _windows(self) -> tuple[int, int]:
        shared, local = (self.wide(f"SET_SHADER_{kind}_MEMORY_WINDOW_A", f"SET_SHADER_{kind}_MEMORY_WINDOW_B")
                         for kind in ("SHARED", "LOCAL"))
        for kind, window in (("SHARED", shared), ("LOCAL", local)):
            unit = _HIGH_WORD if kind == "SHARED" and self.port.sm >= HOPPER else _WINDOW
            if not window or window % unit:
                raise Refused(f"SET_SHADER_{kind}_MEMORY_WINDOW is {window:#x}: not set, or not a multiple of {unit:#x}")
            if self.port.space.entry(window):
                raise Refused(f"SET_SHADER_{kind}_MEMORY_WINDOW is {window:#x}, where memory is mapped")
        if shared == local:
            raise Refused(f"SET_SHADER_SHARED_MEMORY_WINDOW and SET_SHADER_LOCAL_MEMORY_WINDOW are both {shared:#x}")
        return shared, local

    def _local_memory(self) -> qmd_check.LocalMemory:
        return qmd_check.LocalMemory(
            self.wide("SET_SHADER_LOCAL_MEMORY_A", "SET_SHADER_LOCAL_MEMORY_B"),
            self.wide("SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_A", "SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_B"),
            self.get("SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_C") & _SM_COUNT, self.port.tpcs)

    def _caches(self, f: Mapping[str, int], launch: Launch) -> None:
        """A constant bank or code that changed since a launch read it is stale, unless somebody invalidated it."""
        port = self.port
        if f["invalidate_shader_constant_cache"]:
            port.constants.invalidate(port.space)
        if f["invalidate_instruction_cache"]:
            port.code.invalidate(port.space)
        for bank, (va, size) in launch.constants.items():
            if f[f"constant_buffer_invalidate_{bank}"]:
                port.constants.invalidate(port.space, va)
            if not port.constants.read(port.space, va, port.read(va, size)):
                raise Refused(f"{port.who} reads constant bank {bank} at {va:#x}, which changed since a launch before: nothing "
                              "invalidated the constant cache")
        for va, code in port.executor.code(launch, port.space):
            if not port.code.read(port.space, va, code):
                raise Refused(f"{port.who} runs code at {va:#x}, which changed since a launch before: nothing invalidated the "
                              "instruction cache")

    # --- semaphores ---

    def _release(self, f: Mapping[str, int], n: int, number: int) -> None:
        """Semaphore n of a descriptor, when its grid has ended."""
        visible = f["cwd_membar_type"] != qmd.Membar.L1_NONE or f.get(f"release_membar_type_{n}", 1)
        structure = f[f"release_structure_size_{n}"]
        wide = bool(f.get(f"release_payload64b_{n}", 0)) or structure == _TWO_WORDS
        self.port.who = f"release_address_{n} of {self.port.who}"
        self.port.semaphore(f[f"release_address_{n}"], f[f"release_payload_{n}"], wide=wide, timestamp=structure == _FOUR_WORDS,
                            up_to=number if visible else 0)

    def _report(self, f: Mapping[str, int]) -> None:
        if f["operation"] or f["conditional_trap"]:
            raise Refused("only releases are modelled")
        self._write_report(self.wide("SET_REPORT_SEMAPHORE_A", "SET_REPORT_SEMAPHORE_B"), self.get("SET_REPORT_SEMAPHORE_C"), f,
                           wide=False, timestamp=not f["structure_size_one_word"])

    def _report_execute(self, f: Mapping[str, int]) -> None:
        if f["operation"] or f["trap_type"]:
            raise Refused("only releases are modelled")
        va = self.wide("SET_REPORT_SEMAPHORE_ADDRESS_UPPER", "SET_REPORT_SEMAPHORE_ADDRESS_LOWER")
        payload = self.wide("SET_REPORT_SEMAPHORE_PAYLOAD_UPPER", "SET_REPORT_SEMAPHORE_PAYLOAD_LOWER")
        self._write_report(va, payload, f, wide=bool(f["payload_size64"]) or f["structure_size"] == _TWO_WORDS,
                           timestamp=f["structure_size"] == _FOUR_WORDS)

    def _write_report(self, va: int, payload: int, f: Mapping[str, int], *, wide: bool, timestamp: bool) -> None:
        """A report comes when what was launched has ended; without a flush nobody else can count on what it wrote."""
        port = self.port
        port.client, port.who = "GPCCLIENT_FE", f"the report semaphore at {va:#x}"
        up_to = 0 if f["flush_disable"] else port.track.count
        if f["reduction_enable"]:
            port.reduce(va, _REDUCTIONS[f["reduction_op"]], payload, wide=wide, signed=bool(f["reduction_format"]),
                        timestamp=timestamp, up_to=up_to)
        else:
            port.semaphore(va, payload, wide=wide, timestamp=timestamp, up_to=up_to)
        if f["awaken_enable"]:
            port.interrupt()
