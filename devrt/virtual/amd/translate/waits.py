"""Missing waits: registers that are used while a memory operation may still be at work on them.

A forward analysis over the blocks. A register that a load, a returning atomic or a scalar load will write is outstanding until a
wait on its counter releases it. A counter that falls in order releases what has at least as many newer operations behind it as
the wait allows to be left; scalar loads return in any order, and so does LDS beside them, so only a wait for 0 releases those. On
CDNA a pending flat operation, which may go to LDS, does the same to its two counters. What a flat load brings counts as there
when its memory counter says so: only its address tells whether it went to LDS, and AMD's runtime copies by code that knows that
it did not. Where ways join, the least released counts.
Sources: "RDNA 3 ISA" and "AMD Instinct MI300 ISA", data dependency resolution; "RDNA 4 ISA", the same with a counter a kind.
"""

from __future__ import annotations

from devrt.virtual.amd.isa import Block, Effect, Instruction, Operand
from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.immediates import waitcnt

Register = tuple[str, int]
# What is outstanding of one counter: (register, its operation returns in any order) -> number of the operation, the newest has 0.
Outstanding = dict[tuple[Register, bool], int]
State = dict[str, Outstanding]

_SCALAR_BASE = {"sgpr": 0, "flat_scratch": 102, "xnack_mask": 104, "vcc": 106, "ttmp": 108}
_SEPARATE = {"s_wait_loadcnt": "loadcnt", "s_wait_storecnt": "storecnt", "s_wait_dscnt": "dscnt", "s_wait_kmcnt": "kmcnt",
             "s_waitcnt_vscnt": "vscnt", "s_waitcnt_vmcnt": "vmcnt", "s_waitcnt_lgkmcnt": "lgkmcnt"}
_PAIRS = {"s_wait_loadcnt_dscnt": "loadcnt", "s_wait_storecnt_dscnt": "storecnt"}  # in bits 13:8, dscnt in bits 5:0
_SCALAR_CLOCKS = ("s_memtime", "s_memrealtime")
_NO_REGISTER: Register = ("message", 0)


def missing(blocks: dict[int, Block], entry: int, gen: Gen) -> set[int]:
    """Byte offsets of instructions that need a wait before them."""
    called, back = functions(blocks), returns(blocks)
    steps = {at: [_step(i, gen) for i in block.instructions] for at, block in blocks.items()}
    before: dict[int, State] = {entry: {}}
    waiting, found = {entry}, set()
    while waiting:
        at = min(waiting)
        waiting.remove(at)
        state, wrong = _through(steps[at], before[at])
        found |= wrong
        for target in _targets(blocks[at], called, back):
            known = before.get(target)
            if known is None:
                before[target] = {counter: dict(held) for counter, held in state.items()}
                waiting.add(target)
            elif _join(known, state):
                waiting.add(target)
    return found


def functions(blocks: dict[int, Block]) -> list[int]:
    """What calls go to, as far as they name it."""
    return sorted({b.calls for b in blocks.values() if b.calls is not None})


def returns(blocks: dict[int, Block]) -> list[int]:
    """The places behind calls."""
    return sorted({b.successors[0] for b in blocks.values() if Effect.CALL in b.instructions[-1].effects})


def _targets(block: Block, called: list[int], back: list[int]) -> list[int]:
    """Where a block's state goes: into a called function, or any where it is not known, and from its return behind every call."""
    if Effect.CALL in block.instructions[-1].effects:
        return [block.calls] if block.calls is not None else called
    return back if block.returns else block.successors


class _Step:
    """One instruction as the analysis sees it."""

    __slots__ = ("address", "bring", "in_order", "release", "results", "ticks", "touched", "unordered")

    def __init__(self, address: int) -> None:
        self.address = address
        self.release: tuple[tuple[str, int], ...] = ()  # counters that it waits for, and what may be left
        self.touched: frozenset[Register] = frozenset()
        self.ticks: tuple[str, ...] = ()                # counters that it raises
        self.results: tuple[Register, ...] = ()         # registers that arrive later
        self.bring: tuple[str, ...] = ()                # counters that say that they have
        self.unordered = False                          # it returns in any order
        self.in_order = ""                              # counter whose loads write the same register, or its halves, in order


def _step(i: Instruction, gen: Gen) -> _Step:
    step = _Step(i.address)
    if Effect.WAIT in i.effects:
        step.release = _releases(i, gen)
        return step
    m = i.memory
    reads = {r for o in i.operands if o.src for r in _registers(o)}
    writes = {r for o in i.operands if o.dst for r in _registers(o)}
    if Effect.READS_VCC in i.effects:
        reads |= {("s", 106), ("s", 107)}
    step.touched = frozenset(reads | writes)
    shared = "dscnt" if gen == "gfx1201" else "lgkmcnt"
    if m is not None and m.counters:
        step.ticks, step.results = m.counters, tuple(sorted(writes)) if m.returns else ()
        step.bring = m.counters[:1] if m.space == "flat" else m.counters
        step.unordered = m.space == "constant" or m.space == "flat" and gen in ("gfx90a", "gfx942")
        if m.space != "constant" and m.space != "lds":
            step.in_order = m.counters[0]
            step.touched = frozenset(r for o in i.operands if not o.dst for r in _registers(o))
    elif Effect.CROSS_LANE in i.effects:
        step.ticks, step.bring, step.results = (shared,), (shared,), tuple(sorted(writes))
    elif i.mnemonic in _SCALAR_CLOCKS or i.mnemonic.startswith("s_sendmsg"):
        step.ticks, step.unordered = ("kmcnt" if gen == "gfx1201" else "lgkmcnt",), True
        step.bring = step.ticks
        step.results = tuple(sorted(writes)) or (_NO_REGISTER,)
    elif i.mnemonic == "global_inv":
        step.ticks = ("loadcnt",)
    elif i.mnemonic in ("global_wb", "global_wbinv"):
        step.ticks = ("storecnt",)
    elif i.mnemonic == "buffer_wbl2":
        step.ticks = ("vmcnt",)
    return step


def _registers(o: Operand) -> list[Register]:
    if o.kind in ("vgpr", "acc"):
        return [(o.kind, o.index + k) for k in range(o.dwords)]
    base = _SCALAR_BASE.get(o.kind)
    return [] if base is None else [("s", base + o.index + k) for k in range(o.dwords)]


def _releases(i: Instruction, gen: Gen) -> tuple[tuple[str, int], ...]:
    """(counter, operations that may be left) of a wait."""
    name = i.mnemonic
    value = next((o.value for o in i.operands if o.constant), 0)
    if name == "s_waitcnt":
        return tuple((counter, left) for counter, (left, most) in waitcnt(value, gen).items() if left != most)
    if name in _SEPARATE:
        return ((_SEPARATE[name], value & 63),)
    if name in _PAIRS:
        return (_PAIRS[name], value >> 8 & 63), ("dscnt", value & 63)
    if name == "s_wait_idle":
        return tuple((counter, 0) for counter in ("loadcnt", "storecnt", "dscnt", "kmcnt"))
    return ()


def _through(steps: list[_Step], before: State) -> tuple[State, set[int]]:
    """The state behind a block, and the instructions in it that use what is outstanding."""
    state = {counter: dict(held) for counter, held in before.items()}
    clock: dict[str, int] = {}
    wrong = set()
    for step in steps:
        for counter, left in step.release:
            _release(state.get(counter), clock.get(counter, 0), left)
        if _uses(step, state):
            wrong.add(step.address)
        for counter in step.ticks:
            now = clock[counter] = clock.get(counter, 0) + 1
            held = state.setdefault(counter, {})
            for register in step.results if counter in step.bring else ():
                held.pop((register, not step.unordered), None)
                held[register, step.unordered] = now
    for counter, ticks in clock.items():
        state[counter] = {key: number - ticks for key, number in state[counter].items()}
    return {counter: held for counter, held in state.items() if held}, wrong


def _release(held: Outstanding | None, now: int, left: int) -> None:
    if not held:
        return
    if left == 0:
        held.clear()
    elif not any(unordered for _, unordered in held):
        for key in [key for key, number in held.items() if now - number >= left]:
            del held[key]


def _uses(step: _Step, state: State) -> bool:
    """Whether the instruction uses an outstanding register; what it used counts as there from then on."""
    used = False
    for counter, held in state.items():
        if not held:
            continue
        touched = step.touched
        if step.in_order and counter != step.in_order:
            touched = touched | frozenset(step.results)
        for register in touched:
            for key in ((register, False), (register, True)):
                if key in held:
                    del held[key]
                    used = True
    return used


def _join(known: State, more: State) -> bool:
    """Add a state to another; whether that changed it."""
    changed = False
    for counter, held in more.items():
        mine = known.setdefault(counter, {})
        for key, number in held.items():
            if key not in mine or mine[key] < number:
                mine[key] = number
                changed = True
    return changed
