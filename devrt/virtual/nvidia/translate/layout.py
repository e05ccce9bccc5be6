"""Memory that translated code and the executor share: a warp's state, a block's barriers, the context of a launch.

Offsets in bytes. Registers lie in the state while a warp waits at a barrier of its block; between barriers they are variables of
the warp function.
"""

from __future__ import annotations

from devrt.virtual.context import *  # noqa: F403

# ----- a warp's state

RESUME = 0           # u32: byte offset of the code where the warp goes on; SCHEDULE: where its lanes say
LIVE = 4             # u32: lanes that have not ended
STATUS = 8           # u32: DONE, BARRIER, FAULT as the warp function returned last, or READY
NUMBER = 12          # u32: the warp's number in its block
RESULT = 16          # u32: of the last BAR.RED
HELD = 20            # u32: lanes that wait at a barrier of the block
BLOCKED = 24         # u32: lanes that wait at a convergence barrier
TURN = 28            # u32: how often the scheduler has chosen
SYNC = 32            # 17 u32: lanes that wait at each barrier of the block; the last one is the cluster's
ARRIVED = 100        # 17 u32: lanes that arrived at each and went on
WAITS = 168          # 17 u32: lanes that wait at each convergence barrier; the last one is WARPSYNC's
GROUPS = 236         # u32: groups of copies to shared memory that the warp has ended
LANDED = 240         # u32: how many of them it has waited for
SAVED = 244          # u32: whether the warp has run: its registers lie here
FRESH_BYTES = 256    # what lies up to here is 0 in a new warp, but for RESUME, LIVE, STATUS and NUMBER
UPREDICATES = 264    # 8 u8: UP0 to UP6
PREDICATES = 288     # 8 u32: P0 to P6, a bit a lane
NEXT = 320           # 32 u32: byte offset of the code where each lane goes on
THREADS = 448        # 32 u32 three times: tid.x, .y, .z of each lane
UNIFORM = 832        # 256 u32: UR0 to UR62, from sm_100 on to UR254
BARRIERS = 1856      # 17 times 32 u32: B0 to B15 and WARPSYNC's: the lanes that each lane meets
REGISTERS = 4096     # 256 registers of 32 u32

STATE_BYTES = REGISTERS + 256 * 128

SCHEDULE = 0xFFFFFFFF    # RESUME: the lanes' own places
WARPSYNC = 16            # the convergence barrier of WARPSYNC
CLUSTER = 16             # the barrier of a cluster, which is one block

# ----- the context

SHARED = 24          # u64: host address of the block's shared memory
SHARED_BYTES = 32    # u64
LOCAL = 40           # u64: host address of the warp's local memory: the first word of all lanes, the second ..
LOCAL_LANE = 48      # u64: bytes of one lane: what lies from 0 up, behind it what lies below LOCAL_END
STATES = 128         # u64: host address of the warps' states, one behind another
LIVE_MASKS = 136     # u64: host address of a mask of lanes for each warp
WARPS = 144          # u32: of a block
FAULT_WARP = 148     # u32
LOCAL_WARP = 152     # u64: bytes of local memory of a warp
GRID_X = 160         # u32
GRID_Y = 164         # u32
CTA_X = 168          # u32: the block that runs
CTA_Y = 172          # u32
CTA_Z = 176          # u32
GRID_Z = 180         # u32
SHARED_WINDOW = 184  # u64: where shared memory lies for generic addresses
LOCAL_WINDOW = 192   # u64
LOCAL_LOW = 200      # u64: bytes of a lane from 0 up
ENTRY = 208          # u32: byte offset of the kernel's first instruction
SM = 212             # u32: number of the multiprocessor that runs the block
BANKS = 256          # 32 u64: host address of each constant bank
BANK_BYTES = 512     # 32 u32
EXPECTED = 640       # 17 u32: threads that each barrier waits for, 0 for the whole block
VOTES = 708          # 17 u32: threads with a true predicate so far in BAR.RED
HOW = 776            # 17 u32: how each barrier's BAR.RED counts
SLICE = 844          # u32: branches backwards since a warp began to run; a new block finds 0 from EXPECTED to here
BLOCK = 904          # u64: the block that goes on when it runs again
BLOCK_BUDGET = 912   # i64: BUDGET of a block that begins
MIDST = 920          # u32: whether that block has begun
CONTEXT_BYTES = 1024

WINDOW = 1 << 24     # bytes of the shared and the local window
LOCAL_END = 1 << 24  # compiled code keeps its stack below this address
FUNCTIONS = ("exp2f", "log2f", "sinf", "cosf", "tanhf")  # of the C library, in MATH
