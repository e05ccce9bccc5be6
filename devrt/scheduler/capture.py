"""Captured functions: traced once per signature, recorded as one command list, replayed by patching addresses.

    step = devrt.capture(lambda x, w: devrt.nn.softmax(x @ w))
    y = step(x, w)          # the first call traces, schedules, compiles and records
    y = step(x2, w)         # the next ones submit the same list: no per-kernel Python

Arrays that the function closes over are fixed at the first call. Results are fresh arrays every time; temporaries share one
arena that stays with the recording, so two calls never run at the same time (they queue up).

    step = devrt.capture(decode, donate=("cache",))

gives the memory of that argument's arrays to the call: `update_rows` of one then writes the new rows where it lies. What was
donated cannot be read afterwards. Memory that is not devrt's alone (a mapped file, an array that NumPy looks at) is copied
first.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from devrt import tier
from devrt.array import Array
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, Shape, make
from devrt.device import Device, InvalidArgument
from devrt.scheduler import run
from devrt.scheduler.plan import Schedule, schedule
from devrt.scheduler.simplify import resolve
from devrt.scheduler.storage import Storage, buffer_node

if TYPE_CHECKING:
    from devrt.scheduler.report import Report

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Formal:
    """Stands for an argument while a function is traced; it has no memory yet."""

    shape: Shape
    dtype: DType
    device: Device

    @property
    def buffer(self) -> Any:
        raise InvalidArgument("a value was asked for while its function is being captured",
                              remedy="return it from the function, or compute it outside")

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.shape))

    ready = 0


class Captured(Generic[P, R]):
    """A function whose kernels are recorded: see `capture`."""

    def __init__(self, function: Callable[P, R], donate: Sequence[str] = ()) -> None:
        self.function = function
        self.recordings: dict[Any, Recording] = {}
        self._lock = threading.Lock()
        if not callable(function):
            raise InvalidArgument(f"capture takes a function, not {function!r}", remedy="for example capture(lambda x: x + 1)")
        if isinstance(donate, str):
            raise InvalidArgument(f"donate is a sequence of names, not {donate!r}", remedy=f"donate=({donate!r},)")
        try:
            names = list(inspect.signature(function).parameters) if donate else []
        except ValueError:
            raise InvalidArgument("this function does not tell the names of its parameters, so none can be donated",
                                  remedy="wrap it: lambda cache, x: function(cache, x)") from None
        unknown = [n for n in donate if n not in names]
        if unknown:
            raise InvalidArgument(f"the function has no parameter {unknown[0]!r} to donate", evidence=f"it takes {names}")
        self._donated = frozenset([*donate, *(names.index(n) for n in donate)])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        leaves: list[Array] = []
        given: list[int] = []
        if self._donated:
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            key: Any = tuple([self._argument(at, value, leaves, given) for at, value in named])
        else:
            key = (_key(args, leaves), _key(kwargs, leaves))
        key = (key, tier.is_fast())
        with self._lock:
            recording = self.recordings.get(key)
            if recording is None:
                recording = self.recordings[key] = self._record(args, kwargs, leaves, given)
            result: R = recording.replay(leaves)
            return result

    def _argument(self, at: int | str, value: Any, leaves: list[Array], given: list[int]) -> Any:
        """The key of one argument; where it is donated, the numbers of its arrays are added to `given`."""
        first = len(leaves)
        key = (at, _key(value, leaves))
        if at in self._donated:
            given.extend(range(first, len(leaves)))
        return key

    def _record(self, args: Any, kwargs: Any, leaves: list[Array], given: list[int]) -> Recording:
        formals = [Array(make(Op.BUFFER, (), Formal(a.shape, a.dtype, run.device_of([a.node])))) for a in leaves]
        arrays = iter(formals)
        result = self.function(*_rebuild(args, arrays), **_rebuild(kwargs, arrays))
        outputs: list[Array] = []
        _key(result, outputs)
        return Recording(result, outputs, formals, given)

    def reports(self, repeats: int = 5) -> list[Report]:
        """What the kernels of each signature cost, measured by running its last call again (with the same results)."""
        from devrt.scheduler.report import measure
        with self._lock:
            return [measure(r.schedule, r.bound, r.device, repeats) for r in self.recordings.values()
                    if r.schedule is not None and r.bound is not None]

    def schedules(self) -> list[Schedule]:
        """What was recorded, one schedule a signature."""
        return [r.schedule for r in self.recordings.values() if r.schedule is not None]


class Recording:
    """One signature of a captured function: its command list, and where every argument and result is used in it."""

    def __init__(self, result: Any, outputs: list[Array], formals: list[Array], donated: Sequence[int] = ()) -> None:
        self.result, self.formals, self.donated = result, [f.node for f in formals], donated
        roots = resolve([o.node for o in outputs])
        self.sources = [self.formals.index(r) if r in self.formals else None for r in roots]
        self.fixed = [r if r.op is Op.BUFFER and r not in self.formals else None for r in roots]
        todo = list(dict.fromkeys(r for r in roots if r.op is not Op.BUFFER))
        self.order = [todo.index(r) if r in todo else None for r in roots]
        self.schedule: Schedule | None = None
        self.bound: run.Bound | None = None
        if todo:
            self.device = run.device_of(todo)
            self.schedule, inputs = schedule(todo, self.device.properties, {self.formals[i] for i in donated})
            self.inputs: list[int | Storage] = [self.formals.index(n) if n in self.formals else n.arg for n in inputs]

    def replay(self, leaves: list[Array]) -> Any:
        """Submit with `leaves` as the arguments; returns the function's result structure with fresh arrays."""
        todo = [a for a in leaves if a.node.op is not Op.BUFFER]
        if todo:
            for a, node in zip(todo, run.realize([a.node for a in todo]), strict=True):
                a.node = node
        given = [a.node.arg for a in leaves]
        for s in given:
            s.check()
        if self.donated:
            leaves = self._own(leaves)
        made: list[Storage] = []
        if self.schedule is not None:
            for i in self.inputs:
                if isinstance(i, Storage):
                    i.check()  # what the function closes over may have been donated to another one since
            storages = [leaves[i].node.arg if isinstance(i, int) else i for i in self.inputs]
            if self.bound is None:
                self.bound = run.Bound(self.schedule, self.device, storages)
            else:
                self.bound.rebind(storages)
            self.bound.submit()
            made = self.bound.outputs
        returned = {id(leaves[i].node.arg) for i in self.sources if i is not None}
        for i in self.donated:
            if id(given[i]) not in returned:
                given[i].donate()
        results = iter([Array(leaves[s].node if s is not None else f if f is not None else buffer_node(made[o or 0]))
                        for s, f, o in zip(self.sources, self.fixed, self.order, strict=True)])
        return _rebuild(self.result, results)

    def _own(self, leaves: list[Array]) -> list[Array]:
        """`leaves` where the donated ones have memory that nobody else reads: copies where they are shared or given for
        several arguments. Raises InvalidArgument for one that the function closes over."""
        fixed = {id(s) for s in self.inputs if isinstance(s, Storage)} if self.schedule is not None else set()
        seen = {id(a.node.arg) for i, a in enumerate(leaves) if i not in self.donated}
        out = list(leaves)
        for i in self.donated:
            s: Storage = leaves[i].node.arg
            if id(s) in fixed:
                raise InvalidArgument(f"this {s.dtype}{list(s.shape)} is donated, and the function closes over it as well",
                                      remedy="pass it as an argument only")
            if s.shared or s.buffer.borrowed or id(s) in seen:
                out[i] = Array(buffer_node(run.duplicate(s)))
            seen.add(id(s))
        return out


def capture(function: Callable[P, R], *, donate: Sequence[str] = ()) -> Captured[P, R]:
    """`function` of Arrays (in any nesting of tuples, lists and dicts; other arguments must be hashable and are part of the
    signature), recorded once per signature and replayed without per-kernel Python. The arrays of the parameters named in
    `donate` give their memory to the call and cannot be read after it."""
    return Captured(function, donate)


def _key(value: Any, leaves: list[Array]) -> Any:
    """A hashable description of `value`; its arrays are appended to `leaves` in order."""
    if isinstance(value, Array):
        leaves.append(value)
        place = value.node.arg.device.uri if value.node.op is Op.BUFFER else ""
        return ("array", value.shape, value.dtype, place)
    if isinstance(value, (tuple, list)):
        return (type(value), *(_key(v, leaves) for v in value))
    if isinstance(value, dict):
        return ("dict", *((k, _key(v, leaves)) for k, v in value.items()))
    try:
        hash(value)
    except TypeError:
        raise InvalidArgument(f"a captured function can't take or return a {type(value).__name__}",
                              remedy="pass Arrays, or hashable constants") from None
    return (type(value), value)


def _rebuild(value: Any, arrays: Any) -> Any:
    """`value` with its arrays replaced by those of the iterator."""
    if isinstance(value, Array):
        return next(arrays)
    if isinstance(value, (tuple, list)):
        items = [_rebuild(v, arrays) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {k: _rebuild(v, arrays) for k, v in value.items()}
    return value
