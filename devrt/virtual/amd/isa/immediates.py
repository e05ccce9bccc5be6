"""Immediates that have a syntax of their own: waits, delays, messages, hardware registers, swizzles.

Source: "RDNA 3 ISA", "RDNA 4 ISA", "AMD Instinct MI300 ISA", program control instructions; names as LLVM has them.
"""

from __future__ import annotations

from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.instruction import Instruction, Operand

# s_waitcnt: counter, pieces (lowest bit, width) from the least significant on.
WAITCNT: dict[Gen, tuple[tuple[str, tuple[tuple[int, int], ...]], ...]] = {
    "gfx90a":  (("vmcnt", ((0, 4), (14, 2))), ("expcnt", ((4, 3),)), ("lgkmcnt", ((8, 4),))),
    "gfx942":  (("vmcnt", ((0, 4), (14, 2))), ("expcnt", ((4, 3),)), ("lgkmcnt", ((8, 4),))),
    "gfx1030": (("vmcnt", ((0, 4), (14, 2))), ("expcnt", ((4, 3),)), ("lgkmcnt", ((8, 6),))),
    "gfx1100": (("vmcnt", ((10, 6),)), ("expcnt", ((0, 3),)), ("lgkmcnt", ((4, 6),))),
}

# s_waitcnt_depctr, s_wait_alu: field, lowest bit, width.
DEPCTR = (("hold_cnt", 7, 1), ("sa_sdst", 0, 1), ("va_vdst", 12, 4), ("va_sdst", 9, 3), ("va_ssrc", 8, 1), ("va_vcc", 1, 1),
          ("vm_vsrc", 2, 3))

_DELAYS = ("NO_DEP", *(f"VALU_DEP_{i}" for i in range(1, 5)), *(f"TRANS32_DEP_{i}" for i in range(1, 4)), "FMA_ACCUM_CYCLE_1",
           *(f"SALU_CYCLE_{i}" for i in range(1, 4)))
_SKIPS = ("SAME", "NEXT", "SKIP_1", "SKIP_2", "SKIP_3", "SKIP_4")

_MESSAGES: dict[str, dict[int, str]] = {
    "gfx9 gfx10": {1: "MSG_INTERRUPT", 4: "MSG_SAVEWAVE", 5: "MSG_STALL_WAVE_GEN", 6: "MSG_HALT_WAVES", 7: "MSG_ORDERED_PS_DONE",
                   8: "MSG_EARLY_PRIM_DEALLOC", 9: "MSG_GS_ALLOC_REQ", 10: "MSG_GET_DOORBELL"},
    "gfx11 gfx12": {1: "MSG_INTERRUPT", 2: "MSG_HS_TESSFACTOR", 3: "MSG_DEALLOC_VGPRS", 9: "MSG_GS_ALLOC_REQ",
                    128: "MSG_RTN_GET_DOORBELL", 129: "MSG_RTN_GET_DDID", 130: "MSG_RTN_GET_TMA", 131: "MSG_RTN_GET_REALTIME",
                    132: "MSG_RTN_SAVE_WAVE", 133: "MSG_RTN_GET_TBA", 134: "MSG_RTN_GET_TBA_TO_PC"},
}
_HWREGS: dict[Gen, dict[int, str]] = {
    "gfx90a":  {1: "MODE", 2: "STATUS", 3: "TRAPSTS", 4: "HW_ID", 5: "GPR_ALLOC", 6: "LDS_ALLOC", 7: "IB_STS", 15:
                "SH_MEM_BASES", 16: "TBA_LO", 17: "TBA_HI", 18: "TMA_LO", 19: "TMA_HI"},
    "gfx942":  {1: "MODE", 2: "STATUS", 3: "TRAPSTS", 4: "HW_ID", 5: "GPR_ALLOC", 6: "LDS_ALLOC", 7: "IB_STS", 15:
                "SH_MEM_BASES", 16: "TBA_LO", 17: "TBA_HI", 18: "TMA_LO", 19: "TMA_HI", 20: "XCC_ID", 21:
                "SQ_PERF_SNAPSHOT_DATA", 22: "SQ_PERF_SNAPSHOT_DATA1", 23: "SQ_PERF_SNAPSHOT_PC_LO", 24:
                "SQ_PERF_SNAPSHOT_PC_HI"},
    "gfx1030": {1: "MODE", 2: "STATUS", 3: "TRAPSTS", 5: "GPR_ALLOC", 6: "LDS_ALLOC", 7: "IB_STS", 15: "SH_MEM_BASES", 16:
                "TBA_LO", 17: "TBA_HI", 18: "TMA_LO", 19: "TMA_HI", 20: "FLAT_SCR_LO", 21: "FLAT_SCR_HI", 23: "HW_ID1", 24:
                "HW_ID2", 25: "POPS_PACKER", 29: "SHADER_CYCLES"},
    "gfx1100": {1: "MODE", 2: "STATUS", 3: "TRAPSTS", 5: "GPR_ALLOC", 6: "LDS_ALLOC", 7: "IB_STS", 15: "SH_MEM_BASES", 18:
                "PERF_SNAPSHOT_PC_LO", 19: "PERF_SNAPSHOT_PC_HI", 20: "FLAT_SCR_LO", 21: "FLAT_SCR_HI", 23: "HW_ID1", 24:
                "HW_ID2", 27: "PERF_SNAPSHOT_DATA", 29: "SHADER_CYCLES"},
    "gfx1201": {1: "WAVE_MODE", 2: "WAVE_STATUS", 4: "WAVE_STATE_PRIV", 5: "WAVE_GPR_ALLOC", 6: "WAVE_LDS_ALLOC", 7: "IB_STS",
                10: "PERF_SNAPSHOT_DATA", 11: "PERF_SNAPSHOT_PC_LO", 12: "PERF_SNAPSHOT_PC_HI", 15: "PERF_SNAPSHOT_DATA1", 16:
                "PERF_SNAPSHOT_DATA2", 17: "WAVE_EXCP_FLAG_PRIV", 18: "WAVE_EXCP_FLAG_USER", 19: "WAVE_TRAP_CTRL", 20:
                "WAVE_SCRATCH_BASE_LO", 21: "WAVE_SCRATCH_BASE_HI", 23: "WAVE_HW_ID1", 24: "WAVE_HW_ID2", 26: "WAVE_SCHED_MODE",
                29: "SHADER_CYCLES_LO", 30: "SHADER_CYCLES_HI", 31: "WAVE_DVGPR_ALLOC_LO", 32: "WAVE_DVGPR_ALLOC_HI"},
}


def waitcnt(value: int, gen: Gen) -> dict[str, tuple[int, int]]:
    """The counters of an s_waitcnt: name -> (wait until it is at most this, largest value = no wait)."""
    found = {}
    for name, pieces in WAITCNT[gen]:
        count = shift = 0
        for low, width in pieces:
            count |= (value >> low & (1 << width) - 1) << shift
            shift += width
        found[name] = (count, (1 << shift) - 1)
    return found


def depctr(value: int) -> dict[str, tuple[int, int]]:
    """The fields of an s_waitcnt_depctr or s_wait_alu: name -> (value, largest value = no wait)."""
    return {name: (value >> low & (1 << width) - 1, (1 << width) - 1) for name, low, width in DEPCTR}


def _waits(fields: dict[str, tuple[int, int]], prefix: str) -> str:
    waiting = [f"{prefix}{name}({count})" for name, (count, most) in fields.items() if count != most]
    return " ".join(waiting or [f"{prefix}{name}({count})" for name, (count, _) in fields.items()])


def _delay(value: int) -> str:
    first, skip, second = value & 15, value >> 4 & 7, value >> 7 & 15
    parts = [f"instid0({_name(_DELAYS, first)})"] if first else []
    parts += [f"instskip({_name(_SKIPS, skip)})"] if skip else []
    parts += [f"instid1({_name(_DELAYS, second)})"] if second else []
    return " | ".join(parts) or "0"


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index] if index < len(names) else f"0x{index:x}"


def _message(value: int, gen: Gen) -> str:
    name = _MESSAGES["gfx11 gfx12" if gen in ("gfx1100", "gfx1201") else "gfx9 gfx10"].get(value)
    return f"sendmsg({name})" if name else f"sendmsg({value}, 0, 0)"


def _hwreg(value: int, gen: Gen) -> str:
    number, offset, width = value & 63, value >> 6 & 31, (value >> 11 & 31) + 1
    name = f"HW_REG_{_HWREGS[gen][number]}" if number in _HWREGS[gen] else str(number)
    return f"hwreg({name})" if (offset, width) == (0, 32) else f"hwreg({name}, {offset}, {width})"


def _swizzle(value: int) -> str:
    """The pattern of a ds_swizzle_b32."""
    if value & 0xFF00 == 0x8000:
        return "swizzle(QUAD_PERM," + ",".join(str(value >> 2 * i & 3) for i in range(4)) + ")"
    if value >> 15:
        return str(value)
    keep, on, flip = value & 31, value >> 5 & 31, value >> 10 & 31
    if keep == 31 and on == 0 and flip and flip & flip - 1 == 0:
        return f"swizzle(SWAP,{flip})"
    if keep == 31 and on == 0 and flip and flip & flip + 1 == 0:
        return f"swizzle(REVERSE,{flip + 1})"
    group = 32 - keep
    if group > 1 and group & group - 1 == 0 and on < group and flip == 0:
        return f"swizzle(BROADCAST,{group},{on})"
    mask = "".join("01100010"[index] if index < 4 or index > 5 else "pi"[index - 4]
                   for index in ((keep >> i & 1) << 2 | (on >> i & 1) << 1 | flip >> i & 1 for i in (4, 3, 2, 1, 0)))
    return f'swizzle(BITMASK_PERM,"{mask}")'


def immediate(instruction: Instruction, operand: Operand, swizzle: int | None = None) -> str:
    """An immediate operand in the assembler's words; `swizzle`: the offset of a DS instead."""
    if swizzle is not None:
        return _swizzle(swizzle) if instruction.mnemonic == "ds_swizzle_b32" else str(swizzle)
    value, gen = operand.value, instruction.gen
    kinds = {
        "waitcnt": lambda: _waits(waitcnt(value, gen), ""), "depctr": lambda: _waits(depctr(value), "depctr_"),
        "delay": lambda: _delay(value), "msg": lambda: _message(value, gen), "hwreg": lambda: _hwreg(value, gen),
        "imm16": lambda: str(value) if value <= 64 else f"0x{value:x}",
        "opt16": lambda: str(value) if value else "", "rel": lambda: str(value & 0xFFFF),
        "bar": lambda: str(value) if -16 <= value <= 64 else f"0x{value & 0xFFFF:x}",
    }
    shown = kinds.get(operand.type)
    return shown() if shown else f"0x{value & 0xFFFF:x}"
