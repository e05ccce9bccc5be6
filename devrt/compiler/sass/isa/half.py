"""Arithmetic of pairs of 16-bit floats. A constant holds two, the high one printed first."""

from __future__ import annotations

from typing import Any

from devrt.compiler.sass.isa.fields import Group, bits, choice, flag
from devrt.compiler.sass.isa.floats import COMPARE, ZERO
from devrt.compiler.sass.isa.form import ALL, SINCE_80, SINCE_86, SINCE_90, Alu, Marks, alu

# Which halves of a register: both, the low one twice, the high one twice; F32 reads the register as one float
HALVES = ("", None, "H0_H0", "H1_H1")
PLACES = {24: Marks(72, 73, choice(74, 2, *HALVES)), 32: Marks(63, 62, choice(60, 2, *HALVES)),
          64: Marks(84, 83, choice(81, 2, *HALVES))}
WITH_F32 = {**PLACES, 24: Marks(72, 73, choice(74, 2, "", "F32", "H0_H0", "H1_H1"))}
THREE = {**PLACES, 64: Marks(84, 83, choice(76, 2, *HALVES))}
MMA_PLACES = {24: Marks(72, 73), 32: Marks(63, 62), 64: Marks(84, 83)}
COMBINE = choice(69, 2, "AND", "OR", "XOR")
SAT, FTZ = flag("SAT", 77), flag("FTZ", 80)
BF16 = {False: (), True: (Group(bits(85), (None, "BF16_V2")),)}


def _rows(bf16: bool) -> tuple[Alu, ...]:
    """Rows of one type."""
    sms: tuple[int, ...] = SINCE_90 if bf16 else ALL
    fma: tuple[int, ...] = SINCE_80 if bf16 else ALL
    matrix = (90,) if bf16 else (80, 90)  # where the matrix unit takes HFMA2
    mark = BF16[bf16]
    rest: dict[str, Any] = {"imm": "bf16" if bf16 else "f16", "places": PLACES}
    return (
        alu("HADD2", 0x030, "Rd", "-|A -|C", *mark, FTZ, SAT, register_c=32, sms=SINCE_90 if bf16 else SINCE_80, **rest),
        alu("HMUL2", 0x032, "Rd", "-|A -|B", *mark, FTZ, SAT, sms=sms, **rest),
        alu("HFMA2", 0x031, "Rd", "-|A -|B -|C", *mark, FTZ, SAT, sms=fma, **rest),
        alu("HFMA2", 0x031, "Rd", "-|A -|B -|C", *mark, FTZ, Group(bits(79), (None, "RELU")), fixed={87: 7}, sms=SINCE_80,
            **rest),
        alu("HFMA2.MMA", 0x035, "Rd", "-|A -|B -|C", *mark, FTZ, SAT, sms=matrix, **{**rest, "places": MMA_PLACES}),
        alu("HFMA2.MMA", 0x035, "Rd", "-|A -|B -|C", *mark, FTZ, Group(bits(79), (None, "RELU")), fixed={87: 7}, sms=matrix,
            **{**rest, "places": MMA_PLACES}),
        *(alu("HMNMX2", 0x040, "Rd", "-|A -|B Pp", *mark, FTZ, flag("NAN", 81), *more, sms=sms, **rest)
          for more, sms in (((), (80,)), ((flag("XORSIGN", 82),), SINCE_86))),
        alu("VHMNMX", 0x047, "Rd", "-|A -|B -|C Pp", *mark, FTZ, flag("NAN", 81), flag("XORSIGN", 82), kinds="145", sms=(90,),
            **{**rest, "places": THREE}),
    )


def _comparisons(bf16: bool) -> tuple[Alu, ...]:
    mark = (Group(bits(65), (None, "BF16_V2")),) if bf16 else ()
    sms: tuple[int, ...] = SINCE_90 if bf16 else ALL
    rest: dict[str, Any] = {"imm": "bf16" if bf16 else "f16", "places": PLACES, "register_c": 32, "sms": sms}
    return (
        alu("HSETP2", 0x034, "Pu Pv", "-|A -|C Pp", *mark, COMPARE, FTZ, COMBINE, **rest),
        alu("HSET2", 0x033, "Rd", "-|A -|C Pp", *mark, flag("BF", 71), COMPARE, FTZ, COMBINE, **rest),
    )


ROWS = (
    *_rows(False), *_rows(True),
    alu("HADD2.F32", 0x030, "Rd", "-|A -|C", FTZ, SAT, fixed={78: 1}, kinds="137", register_c=32, places=PLACES, sms=(75,)),
    alu("HADD2.F32", 0x030, "Rd", "-A -|C", FTZ, SAT, fixed={78: 1}, kinds="137", register_c=32, places=PLACES, sms=(80,)),
    alu("HADD2.F32", 0x030, "Rd", "-A -|C", FTZ, SAT, fixed={78: 1}, kinds="137", register_c=32, places=PLACES, sms=SINCE_86,
        reuse="C"),
    alu("HADD2", 0x030, "Rd", "-|A -|C", FTZ, SAT, imm="f16", register_c=32, places=WITH_F32, sms=(75,)),
    alu("HFMA2.F32", 0x031, "Rd", "-|A -|B -|C", ZERO, SAT, fixed={78: 1}, kinds="1", places=PLACES, sms=(75,)),
    alu("HMUL2.F32", 0x032, "Rd", "-|A -|B", ZERO, SAT, fixed={78: 1}, kinds="1", places=PLACES, sms=(75,)),
    *_comparisons(False), *_comparisons(True),
)
