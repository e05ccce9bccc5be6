"""The nouns every backend implements, the errors they raise, and the URIs that name them.

Nothing above this file names a vendor. A device is opened by URI (`devrt.open("cpu")`); it allocates Buffers, loads
Programs from an ELF image, and owns Queues that take CommandLists. Order between queues and with the host is kept by
Signals: 64-bit timelines that only ever grow.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

# ---------------------------------------------------------------------------------------------------------------------
# Errors: what happened, on what evidence, what to do.


class DevrtError(Exception):
    """Base of every failure devrt reports.

    what:     one sentence, what happened
    evidence: what was seen (an errno, a register, a path), or ""
    remedy:   what the reader can do about it; where the raiser knows nothing better, the class's own advice
    """

    code = "error"
    advice = "run `devrt doctor`"

    def __init__(self, what: str, *, evidence: str = "", remedy: str = "") -> None:
        self.what, self.evidence, self.remedy = what, evidence, remedy or self.advice
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.evidence:
            text += f" [{self.evidence}]"
        if self.remedy:
            text += f" -> {self.remedy}"
        return text


class DeviceNotFound(DevrtError):
    code = "device-not-found"
    advice = "`devrt devices` lists what can be opened; `devrt doctor` says what is in the way"


class PermissionDenied(DevrtError):
    code = "permission-denied"
    advice = "`devrt doctor` prints the command that gives access"


class DriverMismatch(DevrtError):
    code = "driver-mismatch"
    advice = "install a driver version that devrt knows; `devrt doctor` names the one that runs"


class OutOfMemory(DevrtError):
    code = "out-of-memory"
    advice = "free arrays or work in smaller pieces"


class InvalidArgument(DevrtError, ValueError):
    code = "invalid-argument"
    advice = "the docstring of the function called says what it takes"


class Unsupported(DevrtError):
    code = "unsupported"
    advice = "README.md says what this version can do"


class CompileError(DevrtError):
    code = "compile-error"
    advice = "this is a defect of devrt: please report it with the output of DEVRT_DEBUG=3"


class DeviceFault(DevrtError):
    """The device touched what it may not: `address`, `access` ("read", "write", "execute"), nearest allocation, kernel."""

    code = "device-fault"
    advice = "close and open the device again; `devrt doctor` reads the kernel's log"

    def __init__(self, what: str, *, address: int | None = None, access: str = "", nearest: str = "", kernel: str = "",
                 evidence: str = "", remedy: str = "") -> None:
        self.address, self.access, self.nearest, self.kernel = address, access, nearest, kernel
        super().__init__(what, evidence=evidence, remedy=remedy)


class DeviceHang(DevrtError):
    """The device stopped making progress: `completed` is the last signal value seen, `expected` the one waited for."""

    code = "device-hang"
    advice = "close and open the device again; `devrt doctor` reads the kernel's log"

    def __init__(self, what: str, *, completed: int | None = None, expected: int | None = None,
                 evidence: str = "", remedy: str = "") -> None:
        self.completed, self.expected = completed, expected
        super().__init__(what, evidence=evidence, remedy=remedy)


class DeviceLost(DevrtError):
    code = "device-lost"
    advice = "open the device again; `devrt doctor` reads the kernel's log"


# ---------------------------------------------------------------------------------------------------------------------
# URIs: `cpu`, `amd:0`, `nvidia:0`, `qualcomm:0`, `virtual:amd/gfx1100`, `virtual:amd/4xgfx942:3`, `virtual:amd/gfx1100?hang@2`.


@dataclass(frozen=True)
class URI:
    """A parsed device name. `vendor` selects the backend; `virtual` that it stands on a virtual driver, whose machine is
    `topology`, with the faults and sizes of `query` (devrt.virtual.faults)."""

    vendor: str
    index: int = 0
    virtual: bool = False
    topology: str = ""
    query: str = ""

    def __str__(self) -> str:
        if self.virtual:
            index, query = f":{self.index}" if self.index else "", f"?{self.query}" if self.query else ""
            return f"virtual:{self.vendor}/{self.topology}{index}{query}"
        return self.vendor if self.vendor == "cpu" else f"{self.vendor}:{self.index}"


_VENDORS = ("cpu", "amd", "nvidia", "qualcomm")
_REAL = re.compile(r"(?P<vendor>[a-z]+)(?::(?P<index>\d{1,3}))?")
_VIRTUAL = re.compile(r"virtual:(?P<vendor>[a-z]+)/(?P<topology>[A-Za-z0-9_.+-]+)(?::(?P<index>\d{1,3}))?"
                      r"(?:\?(?P<query>[A-Za-z0-9_.,:=@&+-]+))?")


def parse_uri(text: str) -> URI:
    """`text` as a URI. Raises InvalidArgument with the accepted forms when it is none."""
    match = _VIRTUAL.fullmatch(text) if isinstance(text, str) else None
    if match and match["vendor"] in _VENDORS[1:]:
        return URI(match["vendor"], int(match["index"] or 0), True, match["topology"], match["query"] or "")
    match = _REAL.fullmatch(text) if isinstance(text, str) else None
    if match and match["vendor"] in _VENDORS and not (match["vendor"] == "cpu" and int(match["index"] or 0)):
        return URI(match["vendor"], int(match["index"] or 0))
    raise InvalidArgument(f"{text!r} names no device", remedy="use cpu, amd:N, nvidia:N, qualcomm:N or virtual:VENDOR/TOPOLOGY")


# ---------------------------------------------------------------------------------------------------------------------
# Nouns.


class Placement(enum.Enum):
    """Where a buffer lives: device memory, device memory the host can see, or host memory the device can see."""

    DEVICE = "device"
    HOST_VISIBLE = "host-visible"
    HOST = "host"


@dataclass(frozen=True)
class Properties:
    """What a device is and what it can do; units in the names.

    `lanes` is the width the compiler generates for (SIMD lanes of f32 on a CPU, the wave on a GPU); `features` are
    ISA features by the names LLVM or the vendor gives them; `peak_*` and `memory_bytes_per_s` are the roofline that
    predicted times come from (0.0: not known).
    """

    name: str
    vendor: str
    isa: str
    compute_units: int
    lanes: int
    memory_bytes: int
    scratch_bytes: int
    features: frozenset[str] = field(default_factory=frozenset)
    peak_f32_flops_per_s: float = 0.0
    memory_bytes_per_s: float = 0.0


@runtime_checkable
class Buffer(Protocol):
    """A range of memory on one device. `address` is the device's; `host()` is a byte view where there is one.

    Given back by Device.free, or with its last reference. `borrowed`: made by Device.wrap, the memory belongs to someone
    else and may be read-only; nothing may write to it, so it is never donated to a result.
    """

    nbytes: int
    address: int
    placement: Placement
    borrowed: bool

    @property
    def device(self) -> Device: ...
    def host(self) -> memoryview:
        """The bytes as the host sees them, read-only where borrowed. Raises Unsupported where the host can't see them."""
        ...


class Signal(Protocol):
    """A 64-bit timeline. Its value never falls; a failed device makes every wait raise what failed."""

    @property
    def value(self) -> int: ...
    def signal(self, value: int) -> None:
        """Raise the timeline to `value` from the host. Raises InvalidArgument if it would fall."""
        ...

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the timeline reaches `value`. The timeout restarts on progress; DeviceHang when it runs out."""
        ...


class Program(Protocol):
    """Machine code loaded on a device, ready to dispatch."""

    name: str

    def close(self) -> None: ...


class CommandList(Protocol):
    """Commands in order, recorded once, submitted as often as wished. Commands of one list run one after another, each
    seeing what the ones before it wrote."""

    def dispatch(self, program: Program, arguments: Sequence[Buffer | int], groups: int) -> int:
        """Run groups 0..groups-1 of `program`. `arguments` are buffers (or raw addresses). Returns the command's index."""
        ...

    def copy(self, dst: Buffer, src: Buffer, nbytes: int, dst_offset: int = 0, src_offset: int = 0) -> int: ...
    def timestamp(self, dst: Buffer, offset: int) -> int:
        """Write the device's clock (u64, ns) to dst+offset when everything before it is done."""
        ...

    def patch(self, index: int, argument: int, value: Buffer | int) -> None:
        """Replace one argument of a recorded dispatch; takes effect at the next submission."""
        ...


class Profile(Protocol):
    """Measured time of every command of one submission, readable when it is done."""

    @property
    def durations_ns(self) -> list[int]: ...


class Queue(Protocol):
    """Takes command lists and runs them in order, asynchronously to the host and to other queues."""

    def submit(self, commands: CommandList, *, wait: Sequence[tuple[Signal, int]] = (),
               signal: Sequence[tuple[Signal, int]] = (), profile: Any = None) -> int:
        """Queue `commands` behind the waits; returns the value the queue's own timeline reaches when they are done.

        `profile` (made by Device.profile for this list) receives the time of every command.
        """
        ...

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the queue's own timeline reaches `value`."""
        ...


class Device(Protocol):
    """One device: a CPU, a GPU, or a virtual GPU."""

    uri: str
    properties: Properties
    loaded: dict[str, Program]  # what the scheduler keeps by name; dropped when the device is closed

    @property
    def compute(self) -> Queue: ...
    @property
    def transfer(self) -> Queue: ...
    def alloc(self, nbytes: int, placement: Placement = Placement.DEVICE) -> Buffer: ...
    def free(self, buffer: Buffer) -> None: ...
    def wrap(self, address: int, nbytes: int, owner: object) -> Buffer:
        """Host memory as a buffer without copying; `owner` is kept alive with it. Raises Unsupported where the device
        can't reach it as it lies."""
        ...

    def load(self, image: bytes, entry: str) -> Program: ...
    def signal(self, value: int = 0) -> Signal: ...
    @property
    def closed(self) -> bool: ...
    def command_list(self) -> CommandList: ...
    def profile(self, commands: CommandList) -> Profile: ...
    def calibrate(self, fresh: bool = False) -> Properties:
        """The properties with peak_f32_flops_per_s and memory_bytes_per_s measured: now if `fresh`, else once and kept."""
        ...

    def close(self) -> None: ...
