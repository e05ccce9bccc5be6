"""Memory that translated code and an executor share, as far as it is the same for every GPU: the start of a launch's context.

Offsets in bytes. What a vendor's waves need besides lies behind it, in the vendor's translate/layout.py.
"""

from __future__ import annotations

PAGE_TABLE = 0       # u64: root of the address space
CACHED_PAGE = 8      # u64: number of the page looked up last, all ones for none
CACHED_ENTRY = 16    # u64: its entry
BUDGET = 56          # i64: branches backwards before the block counts as hung
FAULT_VA = 64        # u64
FAULT_KIND = 72      # u32: of KINDS
FAULT_LANE = 76      # u32
FAULT_PC = 80        # u64: virtual address of the instruction
SHARE = 88           # i64: branches backwards and blocks until the launch gives way
CLOCK = 96           # u64: host address of the GPU's counter
MATH = 104           # u64: host address of a table of C functions
CODE = 112           # u64: virtual address of byte 0 of the code that was translated
MARKS = 120          # u64: bits of memory.Access that an access leaves in its page's entry, beside its own

DONE, BARRIER, FAULT, READY = 0, 1, 2, 3  # what a wave function returns; READY: it gave way
GOOD, BAD, PAUSED = 0, 1, 2               # what `run` returns

KINDS = {1: "not mapped", 2: "read-only", 3: "not executable", 4: "hang", 6: "outside LDS", 7: "outside scratch",
         8: "misaligned", 9: "trap", 10: "missing wait", 11: "unsupported", 12: "outside shared memory",
         13: "outside local memory", 14: "outside constant bank", 15: "register out of range", 16: "illegal instruction",
         17: "deadlock", 18: "bad address", 19: "bad barrier", 20: "of another process"}
MEMORY = ("not mapped", "read-only", "of another process")  # kinds that are faults of an access
KIND = {name: number for number, name in KINDS.items()}
