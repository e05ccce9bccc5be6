"""One launch of a grid: what the compute engine hands to the machine that runs warps."""

from __future__ import annotations

from dataclasses import dataclass, field

from devrt.virtual.memory import Touched


@dataclass(frozen=True)
class Launch:
    """`grid` blocks of `block` threads each. A lane's local memory: `local_low` bytes from address 0 up, `local_high` below
    1 << 24. Constant banks by number: (address, bytes). The windows are where generic addresses find shared and local memory,
    1 << 24 bytes each."""

    entry: int  # address of the first instruction
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int  # of a lane: R0 to R(registers - 1)
    shared_bytes: int = 0
    local_low: int = 0
    local_high: int = 0
    constants: dict[int, tuple[int, int]] = field(default_factory=dict)
    shared_window: int = 0
    local_window: int = 0
    touched: Touched | None = field(default=None, compare=False, repr=False)


class WarpFault(Exception):
    """What a warp did that hardware would punish. `kind` is one of context.KINDS; `warp` counts in its block, `lane` is -1 where
    it is of the whole warp; `block` is the block's id."""

    def __init__(self, kind: str, pc: int, warp: int, lane: int, detail: str, block: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__(f"{kind} at {pc:#x}, block {block}, warp {warp}, lane {lane}: {detail}")
        self.kind, self.pc, self.warp, self.lane, self.detail, self.block = kind, pc, warp, lane, detail, block
