"""Atomic operations: on global memory (ATOMG, RED), through generic addresses (ATOM), on shared memory (ATOMS)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from devrt.compiler.sass.isa.fields import Bits, Group, always, bits, choice
from devrt.compiler.sass.isa.form import BLACKWELL, SINCE_80, SINCE_90, Row, row, uniform_slot
from devrt.compiler.sass.isa.memory import BASE, EXTENDED, OFFSET, PLAIN, SCOPES, shared, summed
from devrt.compiler.sass.isa.slots import AddressSlot, Slot, Words

OP = choice(87, 4, "ADD", "MIN", "MAX", "INC", "DEC", "AND", "OR", "XOR", "EXCH")
RED_OP = choice(87, 3, "ADD", "MIN", "MAX", "INC", "DEC", "AND", "OR", "XOR")
TYPE_89 = choice(73, 3, "", "S32", "64", "F32.FTZ.RN", "F16x2.RN", "S64", "F64.RN")
TYPE_90 = choice(73, 3, "", "S32", "64", "S64")
FLOAT_90 = Group(Bits(((73, 4),)), ("F16x2.RN", None, None, "BF16x2.RN", None, None, None, None, None, "F32.FTZ.RN", None, None,
                                    "F32.RN", None, None, "F64.RN"))
CAS_TYPE = choice(73, 3, "", None, "64")
SHARED_CAS_TYPE = choice(73, 3, "", None, "64")
CAS = Group(bits(87, 2), ("CAS", "CAST", None, "CAST.SPIN"))
SHARED_TYPE = choice(73, 3, "", "S32", "64")
ORDER_75 = choice(77, 4, *(None,) * 8, *(f"STRONG.{scope}" for scope in SCOPES))
ORDER = choice(77, 4, None, None, None, None, None, "STRONG.SM", None, "STRONG.GPU", None, None, "STRONG.SYS")
WORDS: dict[str, Words] = {"size": {"64": 2, "S64": 2, "F64": 2}}
NORMAL = {84: 1}     # eviction
NO_C = {64: 255}     # sm_75 names a third source that is not there


def _described(sm: int) -> Slot:
    """desc[UR][R.64 + offset], until sm_89 not RZ; Blackwell's offset is a bit shorter."""
    offset = bits(40, 23) if sm >= 100 else OFFSET
    return AddressSlot(base=replace(BASE, present=sm < 90), offset=offset, descriptor=uniform_slot(64, sm, words=2), wide=True)


def _described_red(sm: int) -> Slot:
    return AddressSlot(base=BASE, offset=OFFSET, descriptor=uniform_slot(64, sm, words=2), wide=True)


def _sum(sm: int) -> Slot:
    """[R.64 + UR + offset] of sm_75."""
    return AddressSlot(base=BASE, offset=OFFSET, uniform=uniform_slot(64, sm), wide=True)


SUM_75: dict[str, Slot | Callable[[int], Slot]] = {"at": _sum}
DESCRIBED_RED: dict[str, Slot | Callable[[int], Slot]] = {"at": _described_red}
DESCRIBED: dict[str, Slot | Callable[[int], Slot]] = {"at": _described}
PLAIN_AT: dict[str, Slot | Callable[[int], Slot]] = {"at": PLAIN}
AMPERE, HOPPER = (80, 86, 89), (90,)


def _atom(name: str, plain: int, described: int) -> list[Row]:
    """An operation that returns what was there; Pu is where it goes wrong."""
    rows = []
    plain_forms: tuple[tuple[tuple[int, ...], Group, Group, dict[int, int]], ...] = (
        ((75,), TYPE_89, ORDER_75, NO_C), (AMPERE, TYPE_89, ORDER, {}), (SINCE_90, TYPE_90, ORDER, {}))
    for sms, types, order, fixed in plain_forms:
        rows.append(row(name, plain, "Pu Rd*size", "at Rb*size", EXTENDED, OP, types, order, sms=sms, fixed={**NORMAL, **fixed},
                        where=PLAIN_AT, words=WORDS))
    rows.append(row(f"{name}.E", described, "Pu Rd*size", "at Rb*size", OP, TYPE_89, ORDER_75, sms=(75,),
                    fixed={70: 1, 72: 1, 91: 1, **NORMAL}, where=SUM_75, words=WORDS))
    for sms, types, fixed in ((AMPERE, TYPE_89, {70: 3, 91: 1}), (HOPPER, TYPE_90, {70: 3, 91: 1}),
                              (BLACKWELL, TYPE_90, {63: 1, 76: 1, 91: 1})):
        rows.append(row(f"{name}.E", described, "Pu Rd*size", "at Rb*size", OP, types, ORDER, sms=sms,
                        fixed={72: 1, **NORMAL, **fixed}, where=DESCRIBED, words=WORDS))
    return rows


def _cas(name: str, code: int) -> list[Row]:
    """at, what is expected, what is put there."""
    return [row(name, code, "Pu Rd*size", "at Rb*size Rc*size", EXTENDED, always("CAS"), CAS_TYPE, order, sms=sms, fixed=NORMAL,
                where=PLAIN_AT, words=WORDS) for sms, order in (((75,), ORDER_75), ((*AMPERE, *SINCE_90), ORDER))]


RED_AMPERE = {71: 1, 72: 1, 90: 3, **NORMAL}
RED_BLACKWELL = {72: 1, 81: 1, 90: 3, **NORMAL}
REDUCTIONS = (
    row("RED", 0x98E, "", "at Rb*size", EXTENDED, RED_OP, TYPE_89, ORDER_75, sms=(75,), fixed=NORMAL, where=PLAIN_AT,
        words=WORDS),
    row("RED.E", 0x98E, "", "at Rb*size", RED_OP, TYPE_89, ORDER_75, sms=(75,), fixed={72: 1, 91: 1, **NORMAL},
        where={"at": summed(64)}, words=WORDS),
    row("RED.E", 0x98E, "", "at Rb*size", RED_OP, TYPE_89, ORDER, sms=AMPERE, fixed=RED_AMPERE, where=DESCRIBED_RED, words=WORDS),
    row("REDG.E", 0x98E, "", "at Rb*size", RED_OP, TYPE_90, ORDER, sms=HOPPER, fixed=RED_AMPERE, where=DESCRIBED_RED,
        words=WORDS),
    row("REDG.E", 0x98E, "", "at Rb*size", RED_OP, TYPE_90, ORDER, sms=BLACKWELL, fixed=RED_BLACKWELL, where=DESCRIBED_RED,
        words=WORDS),
    row("REDG.E.ADD", 0x9A6, "", "at Rb*size", FLOAT_90, ORDER, sms=HOPPER, fixed=RED_AMPERE, where=DESCRIBED_RED, words=WORDS),
    row("REDG.E.ADD", 0x9A6, "", "at Rb*size", FLOAT_90, ORDER, sms=BLACKWELL, fixed=RED_BLACKWELL, where=DESCRIBED_RED,
        words=WORDS),
)

SHARED = (
    row("ATOMS", 0x38C, "Rd*size", "at Rb*size", OP, SHARED_TYPE, where={"at": shared(0, True)}, words=WORDS, sms=(75,),
        fixed=NO_C),
    row("ATOMS", 0x38C, "Rd*size", "at Rb*size", OP, SHARED_TYPE, where={"at": shared(0, True)}, words=WORDS, sms=SINCE_80),
    row("ATOMS", 0x98C, "Rd*size", "at Rb*size", OP, SHARED_TYPE, fixed={91: 1}, where={"at": shared(64, True)}, words=WORDS),
    row("ATOMS", 0x38D, "Rd*size", "at Rb*size Rc*size", CAS, SHARED_CAS_TYPE, where={"at": shared(0, True)}, words=WORDS),
    row("ATOMS.CAST.SPIN", 0x58D, "Pu", "at Rb*size Rc*size", SHARED_CAS_TYPE, fixed={87: 3}, where={"at": shared(0, True)},
        words=WORDS, sms=BLACKWELL),
    row("ATOMS.POPC.INC.32", 0xF8C, "Rd", "at", fixed={88: 1, 90: 3}, where={"at": shared(64, True)}, sms=AMPERE),
    row("ATOMS.POPC.INC.32", 0xF8C, "Rd", "at", fixed={87: 3, 90: 3}, where={"at": shared(64, True)}, sms=SINCE_90),
)

ROWS: tuple[Row, ...] = (
    *_atom("ATOMG", 0x3A8, 0x9A8), *_atom("ATOM", 0x38A, 0x98A), *_cas("ATOMG", 0x3A9), *_cas("ATOM", 0x38B),
    row("ATOMG.E.ADD", 0x9A3, "Pu Rd*size", "at Rb*size", FLOAT_90, ORDER, sms=HOPPER, fixed={70: 3, 72: 1, 91: 1, **NORMAL},
        where=DESCRIBED, words=WORDS),
    row("ATOMG.E.ADD", 0x9A3, "Pu Rd*size", "at Rb*size", FLOAT_90, ORDER, sms=BLACKWELL, fixed={63: 1, 72: 1, 90: 3, **NORMAL},
        where=DESCRIBED, words=WORDS),
    row("ATOM.E.ADD", 0x9A2, "Pu Rd*size", "at Rb*size", FLOAT_90, ORDER, sms=HOPPER, fixed={70: 3, 72: 1, 91: 1, **NORMAL},
        where=DESCRIBED, words=WORDS),
    row("ATOM.E.ADD", 0x9A2, "Pu Rd*size", "at Rb*size", FLOAT_90, ORDER, sms=BLACKWELL, fixed={63: 1, 72: 1, 90: 3, **NORMAL},
        where=DESCRIBED, words=WORDS),
    row("ATOM", 0x38B, "Pu Rd*size", "at Rb*size Rc*size", EXTENDED, always("CAST.SPIN"), CAS_TYPE, ORDER, sms=SINCE_90,
        fixed={87: 3, **NORMAL}, where=PLAIN_AT, words=WORDS),
    *REDUCTIONS, *SHARED,
)
