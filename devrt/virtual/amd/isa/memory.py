"""What memory instructions do, from the words in the opcode tables: `load.hi.u8`, `store.2st64.b32`, `atomic.add.u32`."""

from __future__ import annotations

from typing import Literal

from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.instruction import Memory
from devrt.virtual.amd.isa.opcodes import Op, bits

Space = Literal["constant", "global", "flat", "scratch", "lds", "buffer"]

# gfx12 temporal hints by action; 3 is BYPASS where the scope is the system, atomics from 4 on need a scope of a device or more.
_TH = {
    "load": ("", "NT", "HT", "LU", "NT_RT", "RT_NT", "NT_HT", ""),
    "store": ("", "NT", "HT", "WB", "NT_RT", "RT_NT", "NT_HT", "NT_WB"),
    "atomic": ("", "RETURN", "NT", "NT_RETURN", "CASCADE_RT", "CASCADE_RT", "CASCADE_NT", "CASCADE_NT"),
}
_SCOPES = ("", "SCOPE_SE", "SCOPE_DEV", "SCOPE_SYS")
_BITS = ("sc0", "nt", "glc", "slc", "dlc", "scc", "sc1")  # in the assembler's order


def cache(fields: dict[str, int], action: str) -> tuple[str, ...]:
    """The cache modifiers as LLVM writes them."""
    if "scope" not in fields:
        return tuple(name for name in _BITS if fields.get(name))
    hint, scope = fields["th"], fields["scope"]
    name = "BYPASS" if hint == 3 and scope == 3 and action != "atomic" else _TH[action][hint]
    text = f"th:TH_{action.upper()}_{name}" if name else f"th:0x{hint:x}"
    if action == "atomic" and hint > 3 and scope < 2:
        text = f"th:TH_ATOMIC_0x{hint:x}"
    return ((text,) if hint else ()) + ((f"scope:{_SCOPES[scope]}",) if scope else ())


def returns(op: Op, fields: dict[str, int]) -> bool:
    """Whether the old value of an atomic is written to a register: by the opcode, or by the bit that asks for it."""
    if any(slot.optional for slot in op.slots):
        return bool(fields.get("glc") or fields.get("sc0") or fields.get("th", 0) & 1)
    return bool(op.destinations)


def counters(gen: Gen, space: Space, action: str, returned: bool) -> tuple[str, ...]:
    """What s_waitcnt (gfx12: s_wait_*) waits for until the instruction is done."""
    kept = action == "store" or action == "atomic" and not returned
    if gen == "gfx1201":
        first = {"constant": "kmcnt", "lds": "dscnt"}.get(space, "storecnt" if kept else "loadcnt")
        return (first, "dscnt") if space == "flat" else (first,)
    if space in ("constant", "lds"):
        return ("lgkmcnt",)
    vector = "vscnt" if kept and gen in ("gfx1030", "gfx1100") else "vmcnt"
    return (vector, "lgkmcnt") if space == "flat" else (vector,)


def describe(op: Op, fields: dict[str, int], gen: Gen, space: Space, offset: int) -> Memory:
    """The Memory of `op`, whose row has a word like `load.hi.u8`; `offset` in bytes, or both offsets of a two-address DS."""
    action, *words, type = op.memory.split(".")
    half: Literal["", "lo", "hi"] = "hi" if "hi" in words else "lo" if "lo" in words else ""
    atomic = words[0] if action == "atomic" else ""
    offsets: tuple[int, ...] = ()
    if "2" in words or "2st64" in words:
        unit = bits(type) // 8 * (64 if "2st64" in words else 1)
        offsets, offset = (fields["offset0"] * unit, fields["offset1"] * unit), 0
    returned = action == "load" or action == "atomic" and returns(op, fields)
    transpose = type == "tr"
    if transpose:
        type = op.slots[0].type
    to_lds = "tolds" in op.words or space == "buffer" and bool(fields.get("lds"))
    return Memory(space, action, type, atomic, half, offset, offsets, returned, "addtid" in op.words,  # type: ignore[arg-type]
                  to_lds, transpose, bool(fields.get("gds")), cache(fields, action), counters(gen, space, action, returned))
