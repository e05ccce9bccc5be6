"""Running schedules: nodes become arrays in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from devrt import registry
from devrt.compiler.ops import Node, Op
from devrt.device import Buffer, CommandList, Device, InvalidArgument, Profile, Program
from devrt.scheduler.plan import Launch, Place, Schedule, schedule
from devrt.scheduler.simplify import resolve
from devrt.scheduler.storage import Storage, buffer_node, remember
from devrt.staging import move

_lock = threading.RLock()


def device_of(roots: Sequence[Node], default: str | None = None) -> Device:
    """The one device that a graph is computed on: that of its arrays, and of its copies, whose sources may be elsewhere. Raises
    InvalidArgument where they are on several."""
    return _survey(roots, default)[0]


def _survey(roots: Sequence[Node], default: str | None = None) -> tuple[Device, list[Node]]:
    """(device_of the graph, the COPY nodes that are met first from the roots)"""
    devices: dict[int, Device] = {}
    copies = []
    seen: set[Node] = set()
    todo = list(roots)
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op is Op.COPY:
            copies.append(n)
            device = registry.open(n.arg)
            devices[id(device)] = device
        elif n.op is Op.BUFFER:
            devices[id(n.arg.device)] = n.arg.device
        else:
            todo += n.src
    if len(devices) > 1:
        raise InvalidArgument("the arrays of one expression are on different devices",
                              evidence=", ".join(sorted(d.uri for d in devices.values())), remedy="use to_device()")
    return (next(iter(devices.values())) if devices else registry.open(default)), copies


class Bound:
    """A schedule with its arrays on a device, recorded as a command list."""

    def __init__(self, s: Schedule, device: Device, inputs: Sequence[Storage]) -> None:
        self.schedule, self.device, self.inputs = s, device, list(inputs)
        self.outputs = self._results(inputs)
        self.arena = device.alloc(s.arena_bytes) if s.arena_bytes else None
        self.commands: CommandList = device.command_list()
        self.indexes = [self._record(launch) for launch in s.launches]
        self.copied = frozenset(p for x in s.launches if x.compiled is None for p in x.places)
        self.uses: dict[Place, list[tuple[int, int]]] = {}
        for launch, index in zip(s.launches, self.indexes, strict=True):
            for position, place in enumerate(launch.places):
                self.uses.setdefault(place, []).append((index, position))

    def _results(self, inputs: Sequence[Storage]) -> list[Storage]:
        """Where the roots go: memory of their own, or an input's."""
        s = self.schedule
        return [inputs[s.passthrough[k]] if k in s.passthrough
                else Storage(shape, dtype, self.device, inputs[s.in_place[k]].buffer) if k in s.in_place
                else Storage.alloc(shape, dtype, self.device) for k, (shape, dtype) in enumerate(s.outputs)]

    def _record(self, launch: Launch) -> int:
        if launch.compiled is None:
            dst, src = (self.buffer(p) for p in launch.places)
            return self.commands.copy(dst[0], src[0], launch.nbytes, dst[1], src[1])
        arguments = [self.argument(p) for p in launch.places]
        return self.commands.dispatch(program(self.device, launch), arguments, launch.compiled.groups)

    def buffer(self, p: Place) -> tuple[Buffer, int]:
        """(buffer, byte offset)"""
        if p.kind == "temp":
            assert self.arena is not None
            return self.arena, p.at
        return (self.inputs if p.kind == "input" else self.outputs)[p.at].buffer, 0

    def argument(self, p: Place) -> Buffer | int:
        buffer, offset = self.buffer(p)
        return buffer if p.kind != "temp" else buffer.address + offset

    def rebind(self, inputs: Sequence[Storage]) -> None:
        """Other inputs of the same shapes, and fresh outputs, in the recorded list."""
        outputs = self._results(inputs)
        moved = [Place("input", k) for k, (a, b) in enumerate(zip(self.inputs, inputs, strict=True)) if a is not b]
        moved += [Place("output", k) for k in range(len(outputs))]
        self.inputs, self.outputs = list(inputs), outputs
        if not self.copied.isdisjoint(moved):
            self.commands = self.device.command_list()  # a copy's buffers can't be patched
            self.indexes = [self._record(x) for x in self.schedule.launches]
            return
        for place in moved:
            uses = self.uses.get(place)
            if uses:
                value = self.argument(place)
                for index, position in uses:
                    self.commands.patch(index, position, value)

    def submit(self, profile: Profile | None = None) -> int:
        """Queue the list. The inputs must stay alive until it is done: the command list keeps their buffers."""
        value = self.device.compute.submit(self.commands, profile=profile)
        for s in self.outputs:
            s.ready = value
        return value

    def release(self) -> None:
        """Give the temporaries back."""
        if self.arena is not None:
            self.device.free(self.arena)
            self.arena = None


def program(device: Device, launch: Launch) -> Program:
    """The loaded program of a launch, loaded once a device."""
    compiled = launch.compiled
    assert compiled is not None
    with _lock:
        if compiled.entry not in device.loaded:
            device.loaded[compiled.entry] = device.load(compiled.image, compiled.entry)
        return device.loaded[compiled.entry]


def realize(nodes: Sequence[Node]) -> list[Node]:
    """The BUFFER nodes that hold `nodes`, computed if need be (asynchronously: see Storage.ready)."""
    with _lock:
        roots = resolve(nodes)
        todo = list(dict.fromkeys(r for r in roots if r.op is not Op.BUFFER))
        if todo:
            device, copies = _survey(todo)
            if copies and _cross(copies):
                return realize(nodes)
            s, inputs = schedule(todo, device.properties)
            bound = Bound(s, device, [n.arg for n in inputs])
            from devrt.scheduler import debug
            try:
                if debug.wanted():
                    debug.run(s, bound, device)
                else:
                    bound.submit()
            finally:
                bound.release()
            made = {r: remember(r, o) for r, o in zip(todo, bound.outputs, strict=True)}
            for n, r in zip(nodes, roots, strict=True):
                if r in made and n is not r:
                    remember(n, made[r].arg)
            roots = [made.get(r, r) for r in roots]
        return roots


def _cross(copies: Sequence[Node]) -> bool:
    """Compute what is copied from other devices, and copy it; whether there was any."""
    crossed = False
    for n in copies:
        target = registry.open(n.arg)
        device, inner = _survey(n.src, target.uri)
        if device is target:
            crossed |= _cross(inner)
        else:
            remember(n, to_device(realize(n.src)[0], target).arg)
            crossed = True
    return crossed


def duplicate(s: Storage) -> Storage:
    """A copy of `s` on its device, in memory of its own, queued behind what writes it."""
    out = Storage.alloc(s.shape, s.dtype, s.device)
    if s.nbytes:
        commands = s.device.command_list()
        commands.copy(out.buffer, s.buffer, s.nbytes)
        out.ready = s.device.compute.submit(commands)
    return out


def wait(s: Storage) -> None:
    """Block until what writes `s` is done."""
    if s.ready:
        s.device.compute.wait(s.ready)
        s.ready = 0


def to_device(node: Node, device: Device) -> Node:
    """The array `node` (a BUFFER) on `device`: itself where it is there, else a copy, which is done when it returns."""
    source: Storage = node.arg
    if source.device is device:
        return node
    wait(source)
    out = Storage.alloc(source.shape, source.dtype, device)
    if source.nbytes:
        move(device, out.buffer, source.buffer, source.nbytes)
    return buffer_node(out)


__all__ = ["Bound", "buffer_node", "device_of", "duplicate", "program", "realize", "to_device", "wait"]
