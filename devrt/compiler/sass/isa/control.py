"""Branches, calls, barriers, fences: what steers a warp and orders its memory."""

from __future__ import annotations

from devrt.compiler.sass.instruction import File
from devrt.compiler.sass.isa.fields import Bits, Group, bits, choice, flag
from devrt.compiler.sass.isa.form import BLACKWELL, SINCE_80, SINCE_90, TO_89, TO_90, Row, row
from devrt.compiler.sass.isa.slots import AddressSlot, ImmSlot, LabelSlot, RegSlot

NEAR = {"to": LabelSlot(at=Bits(((34, 48),)))}               # a branch's distance: to sm_89
SPLIT = {"to": LabelSlot(at=Bits(((16, 8), (34, 48))))}      # from sm_90 on
SHORT = {"to": LabelSlot(at=bits(34, 30))}                   # of BSSY
ALWAYS = {87: 7}                                             # a predicate that stands beside the guard, unused
HOW = choice(72, 2, "", "RELIABLE", "RECONVERGENT")          # of convergence barriers on Blackwell


def _branches(sms: tuple[int, ...], where: dict[str, LabelSlot]) -> tuple[Row, ...]:
    noinc, nodec = flag("NOINC", 86), flag("NODEC", 86)
    return (
        row("BRA", 0x947, "", "[Pp] to", choice(32, 2, "", "U", "DIV"), sms=sms, where=where),
        row("BRA.CONV", 0x947, "", "[Pp] to", sms=tuple(sm for sm in sms if sm == 75), fixed={32: 3}, where=where),
        row("BRA", 0x947, "", "[Pp] 30~UR24 to", choice(32, 2, None, None, "DIV", "CONV"),
            sms=tuple(sm for sm in sms if 75 < sm < 100), fixed={91: 1}, where=where),
        row("BRX", 0x949, "", "Ra*2 to", sms=sms, fixed=ALWAYS, where=where),
        row("BRXU", 0x958, "", "[Pp] URa*2 to", sms=sms, fixed={91: 1}, where=where),
        row("CALL.REL", 0x944, "", "to", noinc, sms=sms, fixed=ALWAYS, where=where),
        row("CALL.REL", 0x344, "", "Ra*2 to", noinc, sms=sms, fixed=ALWAYS, where=where),
        row("RET.REL", 0x950, "", "Ra*2 to", nodec, sms=sms, fixed=ALWAYS, where=where),
    )


CONVERGENCE = (
    row("BSSY", 0x945, "B16", "to", sms=TO_90, fixed=ALWAYS, where=SHORT),
    row("BSYNC", 0x941, "", "B16", sms=TO_90, fixed=ALWAYS),
    row("BREAK", 0x942, "", "[Pp] B16", sms=TO_90),
    row("BSSY", 0x945, "B16", "to", HOW, sms=BLACKWELL, fixed=ALWAYS, where=SHORT),
    row("BSYNC", 0x941, "", "B16", HOW, sms=BLACKWELL, fixed=ALWAYS),
    row("BREAK", 0x942, "", "[Pp] B16", flag("RELIABLE", 72), sms=BLACKWELL),
    row("BMOV.32", 0x355, "Rd", "B24", flag("CLEAR", 84)),
    row("BMOV.32", 0x356, "B24", "Rb"),
    row("WARPSYNC", 0x948, "", "mask", sms=TO_89, fixed=ALWAYS, where={"mask": ImmSlot(at=bits(32, 32))}),
    row("WARPSYNC", 0x348, "", "Rb", sms=(75,), fixed=ALWAYS),
    row("WARPSYNC", 0x348, "", "Rb", flag("EXCLUSIVE", 86), sms=(80, 86, 89), fixed=ALWAYS),
    row("WARPSYNC.ALL", 0x948, sms=SINCE_90, fixed=ALWAYS),
    row("WARPSYNC", 0x348, "", "Ra", flag("EXCLUSIVE", 85), sms=SINCE_90, fixed=ALWAYS),
    row("WARPSYNC.COLLECTIVE.ALL", 0x948, "", "to", sms=SINCE_90, fixed={**ALWAYS, 86: 1}, where=SPLIT),
    row("WARPSYNC.COLLECTIVE", 0x348, "", "Ra to", sms=SINCE_90, fixed={**ALWAYS, 86: 1}, where=SPLIT),
    row("ENDCOLLECTIVE", 0x91B, sms=SINCE_90, fixed=ALWAYS),
    row("YIELD", 0x946, fixed=ALWAYS),
)

# Barriers of a block: the id and the number of threads are constants or registers; one register may hold both
DEFER = flag("DEFER_BLOCKING", 80)
REDUCE = choice(74, 2, "POPC", "AND", "OR")
BARRIER = {"id": ImmSlot(at=bits(54, 4)), "threads": ImmSlot(at=bits(42, 12))}
BARRIERS = (
    row("BAR.SYNC", 0xB1D, "", "id [threads]", DEFER, where=BARRIER),
    row("BAR.ARV", 0xB1D, "", "id threads", fixed={77: 1}, where=BARRIER),
    row("BAR.RED", 0xB1D, "", "id [threads] Pp", REDUCE, DEFER, fixed={78: 1}, where=BARRIER),
    row("BAR.SYNC", 0x51D, "", "Rb [threads]", DEFER, where=BARRIER),
    row("BAR.ARV", 0x51D, "", "Rb threads", fixed={77: 1}, where=BARRIER),
    row("BAR.RED", 0x51D, "", "Rb [threads] Pp", REDUCE, DEFER, fixed={78: 1}, where=BARRIER),
    row("BAR.SYNC", 0x91D, "", "id count", DEFER, where={**BARRIER, "count": RegSlot(file=File.R, lo=32, present=True)}),
    row("BAR.SYNC", 0x31D, "", "Rb Rb", DEFER),
    row("B2R.RESULT", 0x31C, "Rd [Pu]", fixed={78: 1}),
)

SCOREBOARD = {"sb": RegSlot(file=File.SB, lo=44, width=3), "count": ImmSlot(at=bits(38, 6)),
              "empty": ImmSlot(at=bits(32, 6), style="set")}  # scoreboards that must be free as well
ADDRESS = {"at": AddressSlot(base=RegSlot(file=File.R, lo=24), offset=bits(32, 32), wide="E")}
FENCES = (
    row("MEMBAR", 0x992, "", "", choice(79, 2, "SC", "ALL"), choice(76, 3, "CTA", "SM", "GPU", "SYS")),
    row("ERRBAR", 0x9AB),
    row("CGAERRBAR", 0x5AB, sms=SINCE_90),
    row("UCGABAR_ARV", 0x9C7, sms=SINCE_90, fixed={91: 1}, uniform=True),
    row("UCGABAR_WAIT", 0xDC7, sms=SINCE_90, fixed={91: 1}, uniform=True),
    row("LDGDEPBAR", 0x9AF, sms=SINCE_80),
    row("DEPBAR.LE", 0x91A, "", "sb count [empty]", fixed={47: 1}, where=SCOREBOARD),
    row("CCTL.IVALL", 0x98F, fixed={24: 255, 87: 4}),
    row("CCTL", 0x98F, "", "at", Group(bits(72), (None, "E")), choice(87, 4, "PF1", "PF2", "WB", "IV"), where=ADDRESS),
)

ENDS = (
    row("EXIT", 0x94D, "", "[Pp]"),
    row("KILL", 0x95B, fixed=ALWAYS),
    row("BPT.TRAP", 0x95C, "", "[code]", fixed={84: 3}, where={"code": ImmSlot(at=bits(34, 3))}),
    row("NANOSLEEP", 0x95D, "", "time", sms=SINCE_80, fixed=ALWAYS, where={"time": ImmSlot(at=bits(32, 32))}),
    row("NANOSLEEP", 0x35D, "", "Rb", sms=SINCE_80, fixed=ALWAYS),
    row("NANOSLEEP.WARP", 0x95D, "", "time", fixed={**ALWAYS, 85: 1}, where={"time": ImmSlot(at=bits(32, 32))}),
    row("NANOSLEEP.WARP", 0x35D, "", "Rb", fixed={**ALWAYS, 85: 1}),
    row("NOP", 0x918),
)

ROWS = (
    *_branches(TO_89, NEAR), *_branches(SINCE_90, SPLIT),
    row("BRA.U", 0x547, "", "27!UP24 to", sms=BLACKWELL, fixed={**ALWAYS, 32: 1, 91: 1}, where=SPLIT),
    *CONVERGENCE, *BARRIERS, *FENCES, *ENDS,
)
