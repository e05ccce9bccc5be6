"""What must stay in order within a block: a graph of instructions over registers, memory and barriers.

An edge says how many cycles after its producer an instruction can be issued. Registers may be virtual or real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from devrt.compiler.sass import latency
from devrt.compiler.sass.instruction import Address, Instruction, Reg
from devrt.compiler.sass.liveness import unconditional

# Memory by the space it lies in. Generic loads and stores may be anywhere.
_LOADS = {"LDG": "global", "LD": "any", "LDS": "shared", "LDSM": "shared", "LDL": "local"}
_STORES = {"STG": "global", "ST": "any", "STS": "shared", "STL": "local", "RED": "global", "REDG": "global", "ATOMG": "global",
           "ATOM": "any", "ATOMS": "shared", "STSM": "shared", "LDGSTS": "any"}
_FENCES = ("BAR", "MEMBAR", "ERRBAR", "CCTL", "DEPBAR", "LDGDEPBAR", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "YIELD", "NANOSLEEP",
           "BMOV", "CALL", "RET", "BPT", "KILL", "EXIT", "BRA", "BRX", "JMP", "SYNCS", "FENCE")
_WIDTHS = {"8": 1, "16": 2, "U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(eq=False)
class Node:
    """An instruction with its edges. `waits`: how many producers it has. `before`, `after`: (other, cycles)."""

    index: int
    instruction: Instruction
    reads: list[latency.Access]
    writes: list[latency.Access]
    before: dict[int, int] = field(default_factory=dict)
    after: list[tuple[int, int]] = field(default_factory=list)
    priority: int = 0


def graph(block: Sequence[Instruction], sm: int) -> list[Node]:
    """The nodes of a block in its order, with priorities: the cycles from an instruction to the block's end."""
    t = latency.tables(sm)
    nodes = []
    writers: dict[int, list[tuple[int, str, bool]]] = {}
    readers: dict[int, list[tuple[int, str]]] = {}
    expected = [0] * len(block)
    for n, i in enumerate(block):
        reads, writes = latency.accesses(i, sm)
        node = Node(n, i, reads, writes)
        nodes.append(node)
        expected[n] = latency.expected(i)
        before = node.before
        for register, role in reads:
            for w, made, _ in writers.get(register, ()):
                cycles = expected[w] if made in t.decoupled else latency.read_after_write(t, made, role)
                if before.get(w, 0) < cycles:
                    before[w] = cycles
            readers.setdefault(register, []).append((n, role))
        whole = unconditional(i)
        for register, role in writes:
            for r, seen in readers.get(register, ()):
                cycles = 8 if seen in t.decoupled else latency.write_after_read(t, seen, role)
                if r != n and before.get(r, 0) < cycles:
                    before[r] = cycles
            for w, made, guarded in writers.get(register, ()):
                cycles = expected[w] if made in t.decoupled else latency.write_after_write(t, made, role, guarded)
                if before.get(w, 0) < cycles:
                    before[w] = cycles
            if whole:
                writers[register], readers[register] = [(n, role, False)], []
            else:
                writers.setdefault(register, []).append((n, role, True))
    _order_memory(nodes)
    for node in reversed(nodes):
        node.priority += 1
        for w, cycles in node.before.items():
            producer = nodes[w]
            producer.after.append((node.index, cycles))
            if producer.priority < node.priority + cycles:
                producer.priority = node.priority + cycles
    return nodes


@dataclass
class _Touch:
    """A memory access: its space, its address where the base register's value is known to be the same elsewhere, and bytes."""

    node: int
    space: str
    key: tuple[object, ...] | None
    offset: int
    nbytes: int
    stores: bool


def _order_memory(nodes: list[Node]) -> None:
    """Edges between accesses that may touch the same bytes, and around what orders everything."""
    touches: list[_Touch] = []
    versions: dict[int, int] = {}  # how often a register was written
    fence = -1
    since: list[int] = []
    last = len(nodes) - 1
    for n, node in enumerate(nodes):
        i = node.instruction
        if i.op in _FENCES or n == last and i.op in ("EXIT", "BRA"):
            for k in since:
                node.before.setdefault(k, 1)
            if fence >= 0:
                node.before.setdefault(fence, 1)
            fence, since, touches = n, [], []
        else:
            if fence >= 0:
                node.before.setdefault(fence, 1)
            since.append(n)
            touch = _touch(n, i, versions)
            if touch is not None:
                for other in touches:
                    if (touch.stores or other.stores) and _may_meet(touch, other):
                        node.before.setdefault(other.node, 1)
                touches.append(touch)
        for register, _ in node.writes:
            versions[register] = versions.get(register, 0) + 1


def _touch(n: int, i: Instruction, versions: dict[int, int]) -> _Touch | None:
    if i.op in _LOADS:
        if "CONSTANT" in i.mods:
            return None  # nothing stores to it
        space, stores = _LOADS[i.op], False
    elif i.op in _STORES:
        space, stores = _STORES[i.op], True
    else:
        return None
    address = next((o.value for o in (*i.srcs, *i.dsts) if isinstance(o.value, Address)), None)
    if address is None or i.op == "LDSM":
        return _Touch(n, space, None, 0, 0, stores)
    key = tuple(_version(r, versions) for r in (address.base, address.uniform))
    nbytes = next((_WIDTHS[m] for m in i.mods if m in _WIDTHS), 4)
    return _Touch(n, space, (*key, address.scale), address.offset, nbytes, stores)


def _version(r: Reg | None, versions: dict[int, int]) -> tuple[int, ...]:
    if r is None or r.zero:
        return ()
    return tuple(x for number in latency.numbers(r) for x in (number, versions.get(number, 0)))


def _may_meet(a: _Touch, b: _Touch) -> bool:
    if a.space != b.space and "any" not in (a.space, b.space):
        return False
    return a.key is None or a.key != b.key or not (a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset)
