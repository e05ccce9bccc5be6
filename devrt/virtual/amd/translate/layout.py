"""Memory that translated code and the executor share: a wave's state, and the context of a dispatch.

Offsets in bytes. Registers lie in the state while a wave waits at a barrier; between barriers they are SSA values.
"""

from __future__ import annotations

from devrt.virtual.context import *  # noqa: F403

# ----- a wave's state

SGPR = 0             # 128 u32: s0-s105, 106 vcc, 108 ttmp0-15, 126 exec
SCC = 512
M0 = 516
MODE = 520
RESUME = 524         # where the wave goes on: 0 the entry, n the n-th place where it waits or gives way
STATUS = 528         # as of its last return; READY before its first
VGPR = 576           # registers of `wave` u32 each
VGPRS = 512          # with CDNA's accumulation registers as the upper half


def state_bytes(wave: int) -> int:
    """Bytes of one wave's state."""
    return VGPR + VGPRS * wave * 4


# ----- the context

LDS = 24             # u64: host address
LDS_BYTES = 32       # u64
SCRATCH = 40         # u64: host address of the wave's private memory, lane after lane
SCRATCH_LANE = 48    # u64: bytes of one lane
CONTEXT_BYTES = 256

# ----- a launch: what the loop over workgroups needs, behind the context

STATES = 128         # u64: host address of the waves' states, one behind another
TEMPLATES = 136      # u64: host address of their first SGPRs (512 bytes) and VGPRs v0-v2, one wave behind another
WAVES = 144          # u32: of a workgroup
SCRATCH_WAVE = 152   # u64: bytes of private memory of a wave
GROUPS_X = 160       # u32
GROUPS_Y = 164       # u32
ID_X = 168           # i32: index of the SGPR that takes the workgroup's id, -1 for none
ID_Y = 172
ID_Z = 176
ID_YZ = 180          # i32: of the one that takes y in its low and z in its high half
EXEC_AND_MODE = 184  # u32: MODE of a new wave
FIRST_X = 192        # u32: id of the first workgroup
FIRST_Y = 196
FIRST_Z = 200
GROUP = 208          # u64: the workgroup that goes on when the dispatch runs again
MIDST = 216          # u32: whether it has begun
SLICE = 220          # u32: branches backwards since a wave began to run
GROUP_BUDGET = 224   # i64: BUDGET of a workgroup that begins

FUNCTIONS = ("exp2f", "log2f", "sinf", "cosf")
