"""A schedule: kernels in order, where each operand lies, and how temporaries share one arena.

A schedule knows no buffers: operands are inputs, outputs or arena offsets by number, so one schedule serves every graph of
the same structure, and a captured one is replayed by patching addresses.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from devrt.compiler import dtypes as dt
from devrt.compiler.compile import Compiled, compile_kernel
from devrt.compiler.composite import updated_rows
from devrt.compiler.dtypes import DType
from devrt.compiler.kernel import Kernel
from devrt.compiler.ops import Node, Op, Shape, make, topological, users
from devrt.device import Properties
from devrt.scheduler.fusion import CopyStep, Step, partition
from devrt.scheduler.simplify import simplify

ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Where an operand lies: kind "input" or "output" with its number, or "temp" with its byte offset in the arena."""

    kind: str
    at: int


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel of a schedule, or (kernel None) a copy of `nbytes` from places[1] to places[0]; its result has `shape`.

    It holds no node: schedules are kept, and a node that is kept keeps its value.
    """

    shape: Shape
    kernel: Kernel | None
    compiled: Compiled | None
    places: tuple[Place, ...]
    nbytes: int


@dataclass(eq=False)
class Schedule:
    """Launches in order. `outputs` are the roots' shapes and types; `arena_bytes` the temporaries' memory, of
    `temporary_bytes` had each its own; `passthrough` maps a root that is an input to that input, `in_place` one that is
    written into an input's memory to that."""

    launches: list[Launch]
    outputs: list[tuple[Shape, DType]]
    inputs: int
    arena_bytes: int
    temporary_bytes: int
    passthrough: dict[int, int]
    in_place: dict[int, int]


def make_schedule(roots: Sequence[Node], inputs: Sequence[Node], p: Properties, donated: Collection[int] = ()) -> Schedule:
    """Schedule `roots` (already simplified), which read the BUFFER nodes `inputs`, for a device. The memory of the
    `donated` inputs, by number, may be overwritten."""
    unique = list(dict.fromkeys(roots))
    targets = _in_place(unique, inputs, donated)
    steps = partition([r for r in unique if r.op is not Op.BUFFER and r.size], p.compute_units, targets)
    place: dict[Node, Place] = {n: Place("input", k) for k, n in enumerate(inputs)}
    passthrough = {}
    for k, r in enumerate(roots):
        if r in place and place[r].kind == "input":
            passthrough[k] = place[r].at
        place.setdefault(r, Place("output", k))
    temporaries = _lifetimes(steps, place)
    offsets, arena = assign(temporaries)
    place |= {n: Place("temp", o) for n, o in zip((t.node for t in temporaries), offsets, strict=True)}
    launches = []
    for s in steps:
        if isinstance(s, CopyStep):
            launches.append(Launch(s.node.shape, None, None, (place[s.node], place[s.source]), s.node.dtype.nbytes(s.node.size)))
        else:
            launches.append(Launch(s.node.shape, s.kernel, _compile(s.kernel, p),
                                   (place[s.node], *(place[o] for o in s.operands)), 0))
    return Schedule(launches, [(r.shape, r.dtype) for r in roots], len(inputs), arena,
                    sum(t.nbytes for t in temporaries), passthrough,
                    {k: targets[r] for k, r in enumerate(roots) if r in targets and place[r].at == k})


def _in_place(roots: Sequence[Node], inputs: Sequence[Node], donated: Collection[int]) -> dict[Node, int]:
    """root -> the donated input whose rows it updates, where nothing else reads that input."""
    if not donated:
        return {}
    readers = users(roots)
    number = {n: k for k, n in enumerate(inputs) if k in donated}
    found = {}
    for r in roots:
        update = updated_rows(r) if r.dtype is not dt.int4 else None  # two int4 share a byte
        if update is not None and update[0] in number and set(readers[update[0]]) == {r} and update[0] not in roots:
            found[r] = number[update[0]]
    return found


_compiled: dict[object, Compiled] = {}


def _target(p: Properties) -> object:
    """What of a device's properties schedules and code depend on."""
    return (p.isa, p.lanes, p.compute_units, p.scratch_bytes)


def _compile(k: Kernel, p: Properties) -> Compiled:
    key = (str(k), _target(p))
    if key not in _compiled:
        _compiled[key] = compile_kernel(k, p)
    return _compiled[key]


# ---------------------------------------------------------------------------------------------------------------------
# Memory plan


@dataclass(frozen=True)
class Temporary:
    """An intermediate array: written by step `first`, last read by step `last`."""

    node: Node
    nbytes: int
    first: int
    last: int


def _lifetimes(steps: Sequence[Step | CopyStep], place: dict[Node, Place]) -> list[Temporary]:
    last: dict[Node, int] = {}
    for k, s in enumerate(steps):
        for n in ((s.source,) if isinstance(s, CopyStep) else s.operands):
            last[n] = k
    return [Temporary(s.node, s.node.dtype.nbytes(s.node.size), k, last.get(s.node, k))
            for k, s in enumerate(steps) if s.node not in place]


def assign(temporaries: Sequence[Temporary]) -> tuple[list[int], int]:
    """(offset of each, bytes in all): arrays whose lifetimes do not overlap share memory. Largest first, lowest gap."""
    offsets = [0] * len(temporaries)
    placed: list[tuple[int, int, Temporary]] = []
    total = 0
    for k in sorted(range(len(temporaries)), key=lambda i: (-temporaries[i].nbytes, i)):
        t = temporaries[k]
        size = (t.nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        at = 0
        alive = [p for p in placed if p[2].first <= t.last and t.first <= p[2].last]
        for lo, hi, _ in sorted(alive, key=lambda p: p[0]):
            if lo - at >= size:
                break
            at = max(at, hi)
        offsets[k] = at
        placed.append((at, at + size, t))
        total = max(total, at + size)
    return offsets, total


# ---------------------------------------------------------------------------------------------------------------------
# Structure


def structure(roots: Sequence[Node]) -> tuple[tuple[object, ...], list[Node]]:
    """(key, inputs): graphs with equal keys have equal schedules; inputs are their BUFFER nodes in order."""
    number: dict[Node, int] = {}
    inputs: list[Node] = []
    key: list[object] = []
    stack = [(r, False) for r in reversed(roots)]
    while stack:
        n, ready = stack.pop()
        if n in number:
            continue
        if not ready:
            stack.append((n, True))
            stack.extend((s, False) for s in reversed(n.src) if s not in number)
            continue
        number[n] = len(number)
        if n.op is Op.BUFFER:
            inputs.append(n)
            key.append((n.shape, n.dtype))
        else:
            key.append((n.op, tuple(number[s] for s in n.src), _plain(n.arg)))
    return (*key, tuple(number[r] for r in roots)), inputs


def _plain(arg: object) -> object:
    if isinstance(arg, tuple):
        return tuple(map(_plain, arg))
    return (type(arg), arg.hex()) if isinstance(arg, float) else (type(arg), arg) if isinstance(arg, (bool, int)) else arg


@dataclass(frozen=True)
class Placeholder:
    """Stands for an input array in a schedule, which must not keep the array itself alive."""

    number: int
    shape: Shape
    dtype: DType


_schedules: OrderedDict[object, Schedule] = OrderedDict()
_SCHEDULES = 1024
_lock = threading.Lock()


def schedule(roots: Sequence[Node], p: Properties, donated: Collection[Node] = ()) -> tuple[Schedule, list[Node]]:
    """(schedule, inputs) for `roots`, their BUFFER nodes in the schedule's order; known structures are not planned again.
    The memory of the `donated` BUFFER nodes may be overwritten by results."""
    key, inputs = structure(roots)
    numbers = tuple(k for k, n in enumerate(inputs) if n in donated)
    full = (key, numbers, _target(p))
    with _lock:
        found = _schedules.get(full)
        if found is not None:
            _schedules.move_to_end(full)
            return found, inputs
    new: dict[Node, Node] = {n: make(Op.BUFFER, (), Placeholder(k, n.shape, n.dtype)) for k, n in enumerate(inputs)}
    for n in topological(roots):
        if n not in new:
            new[n] = make(n.op, tuple(new[s] for s in n.src), n.arg)
    made = make_schedule(simplify([new[r] for r in roots], p.compute_units), [new[n] for n in inputs], p, numbers)
    with _lock:
        _schedules[full] = made
        while len(_schedules) > _SCHEDULES:
            _schedules.popitem(last=False)
    return made, inputs
