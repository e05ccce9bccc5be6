"""The wave itself: its program counter, clock and mode. Sources as in vector.py."""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.translate import layout
from devrt.virtual.amd.translate.writer import NotTranslated, Rule, Writer

NAMED: dict[str, Rule] = {}


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


@_named("s_getpc_b64")
def getpc(w: Writer, i: Instruction) -> None:
    w.set_scalar64(i.destinations[0], w.address(i.end))


@_named("s_memtime", "s_memrealtime")
def clock(w: Writer, i: Instruction) -> None:
    w.set_scalar64(i.destinations[0], _clock(w))


def _clock(w: Writer) -> str:
    place = w.op(f"inttoptr i64 {w.call('i64', 'get_clock', ('ptr', '%c'), declare=False)} to ptr")
    return w.op(f"load volatile i64, ptr {place}")


@_named("s_round_mode", "s_denorm_mode")
def mode(w: Writer, i: Instruction) -> None:
    """Rounding to nearest even and all denormals are what kernels run with; nothing else is modelled."""
    wanted = {"s_round_mode": 0, "s_denorm_mode": 15}[i.mnemonic]
    if i.sources[0].value != wanted:
        raise NotTranslated(f"{i.mnemonic} {i.sources[0].value}")


_FLAT_SCRATCH = (20, 21)  # where private memory lies: it has no address here
_CYCLES = {29: 0, 30: 32}  # SHADER_CYCLES: bits of the clock from which on it shows
_MODE_REGISTER = 1  # hwreg: id [5:0], offset [10:6], size-1 [15:11]


@_named("s_setreg_imm32_b32", "s_setreg_b32")
def setreg(w: Writer, i: Instruction) -> None:
    """MODE's rounding and denormal fields may be set to what they are."""
    hwreg = next(o for o in i.operands if o.type == "hwreg").value
    register, offset, size = hwreg & 63, hwreg >> 6 & 31, (hwreg >> 11 & 31) + 1
    value = next((o for o in i.sources if o.type != "hwreg"), None)
    if register in _FLAT_SCRATCH and i.gen == "gfx1030":
        return
    if register != _MODE_REGISTER or value is None or not value.constant:
        raise NotTranslated(f"s_setreg of register {register}")
    wanted = 0xF0 >> offset & (1 << min(size, 8)) - 1
    if offset < 8 and value.value & (1 << min(size, 8 - offset)) - 1 != wanted & (1 << min(size, 8 - offset)) - 1:
        raise NotTranslated(f"MODE bits {offset} to {offset + size - 1} set to {value.value}")


@_named("s_getreg_b32")
def getreg(w: Writer, i: Instruction) -> None:
    hwreg = next(o for o in i.operands if o.type == "hwreg").value
    register, offset, size = hwreg & 63, hwreg >> 6 & 31, (hwreg >> 11 & 31) + 1
    if register in _CYCLES:
        now = w.op(f"trunc i64 {w.op(f'lshr i64 {_clock(w)}, {_CYCLES[register] + offset}')} to i32")
        w.set_scalar(i.destinations[0], w.op(f"and i32 {now}, {(1 << size) - 1}"))
        return
    if register != _MODE_REGISTER:
        raise NotTranslated(f"s_getreg of register {register}")
    place = w.op(f"getelementptr i8, ptr %state, i64 {layout.MODE}")
    whole = w.op(f"lshr i32 {w.op(f'load i32, ptr {place}')}, {offset}")
    w.set_scalar(i.destinations[0], w.op(f"and i32 {whole}, {(1 << size) - 1}"))
