"""What an opcode is: its operands with types, the modifiers it takes, its effects. The rows are in the files table_*.py.

A row reads `v_fma_f32  f32 = f32 f32 f32  n7a7coD  1cb 1cb 14b 213 213  effects`:

Operands: destinations = sources, in the order of the assembler. A type is f, bf, fp, i, u or b with its bits, `x4` if a
register (tuple) holds four of them, or: mask (a bit per lane, one SGPR in wave32, two in wave64; VCC in the short encodings),
exec, mix (f32, or f16 by op_sel_hi), addr (a vector memory address), rsrc (a buffer descriptor), off (a scalar memory offset),
and immediates (simm16, uimm16, imm16, hex16, opt16, rel, msg, hwreg, waitcnt, depctr, delay, bar). Before a type: + read as
well as written, ? only written if the return bit is set, s: scalars only, v: vector registers only, vc: vector registers or an
inline constant, K: the literal.

Modifiers: n, a, h, N, H, each with a hex mask of operands (bit 0 = src0, bit 3 of h = vdst): neg, abs, op_sel, neg_hi,
op_sel_hi; c clamp, o omod, d DPP in the short encoding, D DPP in the long one, w SDWA; MAI: z cbsz, i abid, b blgp, A
accumulation registers as sources 0 and 1, C as source 2 and result.

Effects: X reads, X! writes something beside the operands (scc, exec, vcc, m0, mode); noexec: lanes do not matter; e32: no VOP3
form; load, store, atomic with `2` (two addresses), `2st64` (in units of 64 elements), lo or hi (a half of the register), and
the type in memory; addtid, tolds, smem, lds.cross, cache; branch, cbranch, setpc, swappc, call, end, trap, barrier, wait.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from enum import Flag, auto

from devrt.virtual.amd.isa import table_compare, table_memory, table_scalar, table_vector, table_vop3
from devrt.virtual.amd.isa.formats import GENS, Gen


class Effect(Flag):
    """What an instruction does beside its operands."""

    NONE = 0
    READS_SCC = auto()
    WRITES_SCC = auto()
    READS_VCC = auto()       # as no operand says: v_div_fmas, s_cbranch_vccz
    WRITES_VCC = auto()
    READS_EXEC = auto()      # as data, or as the mask of lanes (every vector instruction that is not IGNORES_EXEC)
    WRITES_EXEC = auto()
    READS_M0 = auto()
    WRITES_MODE = auto()
    IGNORES_EXEC = auto()
    LOAD = auto()
    STORE = auto()
    ATOMIC = auto()
    CACHE = auto()           # writes back or invalidates caches
    CROSS_LANE = auto()      # through the LDS crossbar: ds_swizzle, ds_permute, ds_bpermute
    BRANCH = auto()          # goes to `target`
    CONDITIONAL = auto()     # .. or to the next instruction
    INDIRECT = auto()        # goes to the address in a register
    CALL = auto()            # writes the return address
    END = auto()
    TRAP = auto()
    BARRIER = auto()
    WAIT = auto()


_EFFECTS = {
    "scc": Effect.READS_SCC, "scc!": Effect.WRITES_SCC, "vcc": Effect.READS_VCC, "vcc!": Effect.WRITES_VCC,
    "exec": Effect.READS_EXEC, "exec!": Effect.WRITES_EXEC, "m0": Effect.READS_M0, "mode!": Effect.WRITES_MODE,
    "noexec": Effect.IGNORES_EXEC, "cache": Effect.CACHE, "lds.cross": Effect.CROSS_LANE, "smem": Effect.NONE, "e32": Effect.NONE,
    "addtid": Effect.NONE, "tolds": Effect.NONE, "branch": Effect.BRANCH, "cbranch": Effect.BRANCH | Effect.CONDITIONAL,
    "setpc": Effect.INDIRECT, "swappc": Effect.INDIRECT | Effect.CALL, "call": Effect.BRANCH | Effect.CALL, "end": Effect.END,
    "trap": Effect.TRAP, "barrier": Effect.BARRIER, "wait": Effect.WAIT,
}
_ACTIONS = {"load": Effect.LOAD, "store": Effect.STORE, "atomic": Effect.ATOMIC}


@functools.cache
def bits(type: str) -> int:
    """Bits of one value of `type`; 0 for what has no fixed size (mask, exec, addr, immediates)."""
    found = re.fullmatch(r"(?:bf|fp|[fiub])(\d+)(?:x(\d+))?", type)
    return int(found[1]) * int(found[2] or 1) if found else {"mix": 32, "rsrc": 128}.get(type, 0)


@dataclass(frozen=True, slots=True)
class Slot:
    """An operand as the table has it."""

    type: str
    kinds: str = ""         # "" as the encoding allows, "s", "v", "vc", "K"
    written: bool = False
    read: bool = False
    optional: bool = False  # written only if the instruction returns a value

    @property
    def dwords(self) -> int:
        return max(1, bits(self.type) // 32)


@dataclass(frozen=True, slots=True)
class Op:
    """One opcode of one generation."""

    mnemonic: str
    family: str
    code: int
    slots: tuple[Slot, ...]      # destinations first
    neg: int = 0
    abs: int = 0
    op_sel: int = 0
    neg_hi: int = 0
    op_sel_hi: int = 0
    clamp: bool = False
    omod: bool = False
    dpp: bool = False
    dpp64: bool = False
    sdwa: bool = False
    cbsz: bool = False
    abid: bool = False
    blgp: bool = False
    acc: int = 0
    acc_cd: bool = False
    effects: Effect = Effect.NONE
    memory: str = ""             # "load.hi.u8"
    words: frozenset[str] = frozenset()

    @property
    def destinations(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.written)


def _slot(text: str, written: bool) -> Slot:
    found = re.fullmatch(r"([+?]?)(?:(s|v|vc|K):)?(\w+)", text)
    assert found, text
    return Slot(found[3], found[2] or "", written or found[1] == "+", not written or found[1] == "+", found[1] == "?")


def _op(family: str, code: int, mnemonic: str, operands: str, modifiers: str, effects: list[str]) -> Op:
    written, _, read = operands.partition("=")
    slots = tuple([_slot(text, True) for text in written.split()] + [_slot(text, False) for text in read.split()])
    mods = dict(re.findall(r"([nahNHzibA])([0-9a-f])", modifiers))
    flags = set(re.sub(r"[nahNHzibA][0-9a-f]", "", modifiers))
    effect, memory = Effect.NONE, ""
    for word in effects:
        if action := _ACTIONS.get(word.partition(".")[0]):
            effect, memory = effect | action, word
        else:
            effect |= _EFFECTS[word]
    if (family.startswith("V") or family in ("DS", "FLAT", "SCRATCH", "GLOBAL", "MUBUF")) and Effect.IGNORES_EXEC not in effect \
            and Effect.CACHE not in effect:
        effect |= Effect.READS_EXEC
    neg, absolute, op_sel, neg_hi, op_sel_hi, acc = (int(mods.get(key, "0"), 16) for key in "nahNHA")
    return Op(mnemonic, family, code, slots, neg, absolute, op_sel, neg_hi, op_sel_hi, clamp="c" in flags, omod="o" in flags,
              dpp="d" in flags, dpp64="D" in flags, sdwa="w" in flags, cbsz="z" in mods, abid="i" in mods, blgp="b" in mods,
              acc=acc, acc_cd="C" in flags, effects=effect, memory=memory, words=frozenset(effects))


FAMILIES = {
    "SOP2": table_scalar.SOP2, "SOP1": table_scalar.SOP1, "SOPC": table_scalar.SOPC, "SOPK": table_scalar.SOPK,
    "SOPP": table_scalar.SOPP, "SMEM": table_scalar.SMEM, "VOP2": table_vector.VOP2, "VOP1": table_vector.VOP1,
    "VOPC": table_compare.VOPC, "VOP3": table_vop3.VOP3, "VOP3SD": table_vop3.VOP3SD, "VOP3P": table_vop3.VOP3P,
    "MAI": table_vop3.MAI, "DS": table_memory.DS, "FLAT": table_memory.FLAT, "SCRATCH": table_memory.SCRATCH,
    "GLOBAL": table_memory.GLOBAL, "MUBUF": table_memory.MUBUF,
}

# Opcodes of VOPC, VOP2 and VOP1 in VOP3: where each family starts.
_LONG: dict[Gen, dict[str, int]] = {
    gen: {"VOPC": 0, "VOP2": 0x100, "VOP1": 0x140 if gen in ("gfx90a", "gfx942") else 0x180} for gen in GENS}

# Halves of VOPD, opcode -> the VOP2 or VOP1 instruction it is; the Y half alone has those from 16 on.
# Source: "RDNA 3 ISA", VOPD; RDNA 4 renames max and min.
DUAL = {
    0: "v_fmac_f32", 1: "v_fmaak_f32", 2: "v_fmamk_f32", 3: "v_mul_f32", 4: "v_add_f32", 5: "v_sub_f32", 6: "v_subrev_f32",
    7: "v_mul_dx9_zero_f32", 8: "v_mov_b32", 9: "v_cndmask_b32", 10: "v_max_f32", 11: "v_min_f32", 12: "v_dot2acc_f32_f16",
    13: "v_dot2acc_f32_bf16", 16: "v_add_nc_u32", 17: "v_lshlrev_b32", 18: "v_and_b32",
}


@functools.cache
def opcodes(gen: Gen) -> dict[str, dict[int, Op]]:
    """The opcodes of `gen`: family -> number -> Op.

    VOP3 holds the long forms of VOPC, VOP2 and VOP1, and VOP3SD; VOP3P holds MAI.
    """
    column = GENS.index(gen)
    found: dict[str, dict[int, Op]] = {family: {} for family in FAMILIES}
    for family, table in FAMILIES.items():
        for line in table.strip().splitlines():
            mnemonic, operands, modifiers, *numbers = _cells(line)
            if numbers[column] != ".":
                code = int(numbers[column], 16)
                effects = numbers[5].split() if len(numbers) > 5 else []
                found[family][code] = _op(family, code, mnemonic, operands, "" if modifiers == "-" else modifiers, effects)
    for family, start in _LONG[gen].items():
        found["VOP3"].update({start + code: op for code, op in found[family].items() if "e32" not in op.words})
    found["VOP3"].update(found["VOP3SD"])
    found["VOP3P"].update(found["MAI"])
    return found


def _cells(line: str) -> list[str]:
    """A row as mnemonic, operands, modifiers, five opcodes, and effects if there are any."""
    found = re.fullmatch(r"(\S+)\s+((?:\S+ )*=(?: \S+)*?)\s{2,}(.*)", line)
    assert found, line
    return [found[1], found[2], *found[3].split(None, 6)]
