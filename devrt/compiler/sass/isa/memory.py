"""Loads and stores: global, generic, shared, local, constant."""

from __future__ import annotations

from collections.abc import Callable

from devrt.compiler.sass.instruction import File
from devrt.compiler.sass.isa.fields import Bits, Group, bits, choice, flag
from devrt.compiler.sass.isa.form import BLACKWELL, SINCE_80, SINCE_90, TO_89, Row, Slots, row, uniform_slot
from devrt.compiler.sass.isa.slots import AddressSlot, CbufSlot, RegSlot, Slot

SIZE = choice(73, 3, "U8", "S8", "U16", "S16", "", "64", "128")
WORDS = {"size": {"64": 2, "128": 4}}
EXTENDED = flag("E", 72)         # the address is 64 bits
PREFETCH = choice(68, 2, "", "LTC64B", "LTC128B")
EVICT = choice(84, 3, "EF", "", "EL", "LU", "EU", "NA")
# How strong a load or store is, and for whom. sm_75 always says for whom; from sm_80 on only STRONG and MMIO (volatile) do.
SCOPES = ("CTA", "SM", "GPU", "SYS")
WEAK_75 = (*SCOPES, *(f"STRONG.{s}" for s in SCOPES), *(f"MMIO.{s}" for s in SCOPES))
LOADS_75 = choice(77, 4, *(f"CONSTANT.{s}" for s in SCOPES), *WEAK_75)
STORES_75 = choice(77, 4, None, None, None, None, *WEAK_75)
STRONG = ("STRONG.SM", None, "STRONG.GPU", "MMIO.GPU", None, "STRONG.SYS", None, "MMIO.SYS")
LOADS = choice(77, 4, "", None, None, None, "CONSTANT", *STRONG)
STORES = choice(77, 4, "", None, None, None, None, *STRONG)
NONE = {81: 7}                   # no predicate is written

BASE = RegSlot(file=File.R, lo=24)
OFFSET = Bits(((40, 24),))
PLAIN = AddressSlot(base=BASE, offset=OFFSET, wide="E")


def summed(lo: int) -> Callable[[int], Slot]:
    """[R + UR + offset], 64 bits where bit 90 is set; without a base [UR + offset] is printed, with RZ in its place."""
    return lambda sm: AddressSlot(base=BASE, offset=OFFSET, uniform=uniform_slot(lo, sm), wide=90)


def _described(lo: int) -> Callable[[int], Slot]:
    """desc[UR][R + offset]."""
    return lambda sm: AddressSlot(base=BASE, offset=OFFSET, descriptor=uniform_slot(lo, sm, words=2), wide=True)


def shared(lo: int, scaled: bool, unsigned: str = "alone") -> Callable[[int], Slot]:
    """[R.X4 + UR + offset] of shared memory."""
    return lambda sm: AddressSlot(base=BASE, offset=OFFSET, uniform=uniform_slot(lo, sm) if lo else None,
                                  scale=bits(78, 2) if scaled else None, unsigned=unsigned)


def _global(sms: tuple[int, ...], loads: Group, stores: Group) -> tuple[Row, ...]:
    load, store = (EVICT, PREFETCH, SIZE, loads), (EVICT, SIZE, stores)
    rows = (
        row("LDG", 0x381, "Rd*size", "at", EXTENDED, *load, sms=sms, fixed=NONE, where={"at": PLAIN}, words=WORDS),
        row("LDG.E", 0x981, "Rd*size", "at", *load, sms=sms, fixed={72: 1, 91: 1, **NONE}, where={"at": summed(32)},
            words=WORDS),
        row("STG", 0x386, "", "at Rb*size", EXTENDED, *store, sms=sms, where={"at": PLAIN}, words=WORDS),
        row("STG.E", 0x986, "", "at Rb*size", *store, sms=sms, fixed={72: 1, 91: 1}, where={"at": summed(64)}, words=WORDS),
    )
    if 75 in sms:
        return rows
    described = {72: 1, 76: 1, 90: 1, 91: 1}
    return (
        *rows,
        row("LDG.E", 0x981, "Rd*size", "at", *load, sms=sms, fixed={**described, **NONE}, where={"at": _described(32)},
            words=WORDS),
        row("STG.E", 0x986, "", "at Rb*size", *store, sms=sms, fixed=described, where={"at": _described(64)}, words=WORDS),
    )


# Copies from global to shared memory that nothing waits for (LDGDEPBAR); nothing is copied where the predicate says so
ASYNC: Slots = {"to": AddressSlot(base=RegSlot(file=File.R, lo=16), offset=bits(44, 20), unsigned="never"),
         "at": lambda sm: AddressSlot(base=BASE, offset=bits(32, 12), descriptor=uniform_slot(64, sm, words=2), wide=True)}
BYPASS, ZFILL = choice(81, 1, "BYPASS", ""), flag("ZFILL", 82)
TRANSPOSED = choice(78, 1, "M88", "MT88")
COUNT = choice(72, 2, "", "2", "4")
COUNTS = {"count": {"2": 2, "4": 4}}

# Through generic addresses, the offset of 32 bits where there is no descriptor
GENERIC = {"at": AddressSlot(base=BASE, offset=bits(32, 32), wide="E")}


def _generic(sms: tuple[int, ...], loads: Group, stores: Group) -> tuple[Row, ...]:
    load, store = (EVICT, PREFETCH, SIZE, loads), (EVICT, SIZE, stores)
    rows = (
        row("LD", 0x980, "Rd*size", "at", EXTENDED, *load, sms=sms, where=GENERIC, words=WORDS),
        row("ST", 0x385, "", "at Rc*size", EXTENDED, *store, sms=sms, where=GENERIC, words=WORDS),
    )
    described = {72: 1, 76: 1, 90: 1, 91: 1}
    if 75 in sms:
        sums = {72: 1, 91: 1}
        return (
            *rows,
            row("LD.E", 0x980, "Rd*size", "at", *load, sms=sms, fixed=sums, where={"at": summed(32)}, words=WORDS),
            row("ST.E", 0x985, "", "at Rb*size", *store, sms=sms, fixed=sums, where={"at": summed(64)}, words=WORDS),
        )
    return (
        *rows,
        row("LD.E", 0x980, "Rd*size", "at", *load, sms=sms, fixed={72: 1, 91: 1}, where={"at": summed(32)}, words=WORDS),
        row("ST.E", 0x985, "", "at Rb*size", *store, sms=sms, fixed={72: 1, 91: 1}, where={"at": summed(64)}, words=WORDS),
        row("LD.E", 0x980, "Rd*size", "at", *load, sms=sms, fixed=described, where={"at": _described(32)}, words=WORDS),
        row("ST.E", 0x985, "", "at Rb*size", *store, sms=sms, fixed=described, where={"at": _described(64)}, words=WORDS),
    )


ROWS = (
    *_global((75,), LOADS_75, STORES_75),
    *_global(SINCE_80, LOADS, STORES),
    row("LDGSTS.E", 0xFAE, "", "to at [Pp]", BYPASS, Group(Bits(((71, 2),)), ("", "LTC64B", "LTC128B", None)),
        choice(73, 3, None, None, None, None, "", "64", "128"), ZFILL, sms=(80, 86, 89, 90), fixed={70: 1, 76: 1, 84: 1, 91: 1},
        where=ASYNC),
    row("LDGSTS.E", 0xFAE, "", "to at [Pp]", BYPASS, choice(72, 2, "", "LTC64B", "LTC128B"), choice(74, 2, "", "64", "128"),
        ZFILL, sms=BLACKWELL, fixed={76: 1, 83: 3, 91: 1}, where=ASYNC),
    *(row("QSPC", 0x3AA, "Pu Rd", "at", EXTENDED, choice(73, 2, "G", "L", "S", *more), sms=sms, where={"at": PLAIN})
      for sms, more in ((TO_89, ()), (SINCE_90, ("D",)))),
    *_generic((75,), LOADS_75, STORES_75),
    *_generic(SINCE_80, LOADS, STORES),
    row("LDS", 0x984, "Rd*size", "at", SIZE, where={"at": shared(0, True)}, words=WORDS),
    row("LDS", 0x984, "Rd*size", "at", SIZE, fixed={91: 1}, where={"at": shared(32, True)}, words=WORDS),
    row("STS", 0x388, "", "at Rb*size", SIZE, where={"at": shared(0, True)}, words=WORDS),
    row("STS", 0x988, "", "at Rb*size", SIZE, fixed={91: 1}, where={"at": shared(64, True)}, words=WORDS),
    row("LDS.U", 0x984, "Rd*size", "at", SIZE, fixed={76: 1}, where={"at": shared(0, True)}, words=WORDS, sms=(75,)),
    row("LDS.U", 0x984, "Rd*size", "at", SIZE, fixed={76: 1, 91: 1}, where={"at": shared(32, True)}, words=WORDS, sms=(75,)),
    *(row("LDSM.16", 0x83B, "Rd*count", "at", TRANSPOSED, COUNT, fixed=fixed, where={"at": shared(lo, False, unsigned)},
          words=COUNTS, sms=sms)
      for lo, fixed, turing in ((0, {}, "alone"), (32, {91: 1}, "uniform"))
      for sms, unsigned in (((75,), turing), (SINCE_80, "never"))),
    row("LDL", 0x983, "Rd*size", "at", EVICT, SIZE, where={"at": shared(0, False)}, words=WORDS),
    row("LDL", 0x983, "Rd*size", "at", EVICT, SIZE, fixed={91: 1}, where={"at": shared(32, False)}, words=WORDS),
    row("STL", 0x387, "", "at Rb*size", EVICT, SIZE, where={"at": shared(0, False)}, words=WORDS),
    row("STL", 0x987, "", "at Rb*size", EVICT, SIZE, fixed={91: 1}, where={"at": shared(64, False)}, words=WORDS),
    row("LDC", 0xB82, "Rd*size", "constant", choice(73, 3, "U8", "S8", "U16", "S16", "", "64"),
        choice(78, 2, "", "IL", "IS", "ISL"),
        where={"constant": CbufSlot(index=BASE, offset=bits(38, 16), unit=1, words=WORDS["size"])}, words=WORDS),
)
