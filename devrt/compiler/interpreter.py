"""The reference semantics of LIR: a NumPy interpreter, slow and strict.

A register is an element array (see convert.py) whose shape broadcasts to (groups, lanes); what is uniform stays (1, 1)
or (groups, 1). Groups run at once, as far as memory allows. A loop whose trip count differs among the groups runs to
the longest, with the groups that are done switched off.

Beyond computing, it finds what no backend has to survive, and raises CompileError naming instruction, group and lane:

    an index outside a parameter, shared array or table, unless masked off (in a `when`, also where its
    condition is false: a backend may run the block in every lane);
    a read of shared memory that nothing has written;
    a loop bound that differs among the lanes of a group;
    a streamed store of consecutive elements, not masked, that does not start at a multiple of `lanes`;
    an mma whose tiles start at other than multiples of 16 bytes, or not at the same place in all lanes of a wave;
    a nibble of pairs whose indexes do not count on from an even one;
    a race: lanes run in no order between barriers and groups in none at all, so what one lane stores no other lane may
    load or store before the next barrier, nor ever in a parameter, which barriers do not order. Only lanes that store
    the same bits in the same instruction may meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from devrt.compiler import arithmetic, convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.convert import Array
from devrt.compiler.lir import Inst, Param, Program, Reg, Shared, Table
from devrt.device import CompileError, InvalidArgument

_LANES_AT_ONCE = 1 << 18  # registers of 2 MiB at most
_NOBODY, _SEVERAL = -1, -2  # beside lane numbers, in the books of who touched an element


def run(program: Program, arrays: Mapping[str, Array], *, groups_at_once: int | None = None) -> None:
    """Run all groups of `program`; what it stores lands in `arrays`.

    arrays: for each parameter, by name, a contiguous raw array (convert.storage_numpy) of at least `count` elements.
    Raises InvalidArgument where they do not match the parameters, CompileError where the program breaks LIR's
    rules; the arrays are then partly written.
    """
    lir.verify(program)
    params = {p.name: _param_memory(p, arrays) for p in program.params}
    if extra := set(arrays) - set(params):
        raise InvalidArgument(f"{program.name} has no parameter {', '.join(sorted(extra))}")
    _check_overlap(program, arrays)
    step = groups_at_once or max(_LANES_AT_ONCE // program.lanes, 1)
    for first in range(0, program.groups, step):
        _Run(program, params, first, min(step, program.groups - first)).block(program.body)


def _param_memory(p: Param, arrays: Mapping[str, Array]) -> _Memory:
    if p.name not in arrays:
        raise InvalidArgument(f"no array for parameter {p.name}")
    raw = arrays[p.name]
    if p.writable and not raw.flags.writeable:
        raise InvalidArgument(f"parameter {p.name} is written, its array is read-only")
    return _Memory(convert.unpack(raw, p.dtype, p.count), tracked=p.writable)


def _check_overlap(program: Program, arrays: Mapping[str, Array]) -> None:
    for written in (p for p in program.params if p.writable):
        for other in program.params:
            if other is not written and np.may_share_memory(arrays[written.name], arrays[other.name]):
                raise InvalidArgument(f"parameter {written.name} is written and overlaps {other.name}")


class _Memory:
    """Elements and, where they can be written, the books of who touched each: a lane's number, nobody or several."""

    def __init__(self, data: Array, *, tracked: bool) -> None:
        self.data = data
        self.tracked = tracked
        size = data.size if tracked else 0
        self.writer = np.full(size, _NOBODY, np.int64)
        self.reader = np.full(size, _NOBODY, np.int64)
        self.defined: Array | None = None  # shared memory: which elements were ever written

    def load(self, at: Array, who: Array) -> Array:
        """Note that lanes `who` read elements `at`; returns which of them race with a writer."""
        if not self.tracked:
            return np.zeros(at.shape, np.bool_)
        race: Array = (self.writer[at] != _NOBODY) & (self.writer[at] != who)
        self.reader[at] = _joined(self.reader[at], who)
        met = self.reader[at] != who
        self.reader[at[met]] = _SEVERAL
        return race

    def store(self, at: Array, who: Array, values: Array) -> Array:
        """Write; returns which lanes race: with a lane that touched the element before, or now with other bits."""
        race = np.zeros(at.shape, np.bool_)
        for book in (self.writer, self.reader):
            race |= (book[at] != _NOBODY) & (book[at] != who)
        self.writer[at] = who
        self.writer[at[self.writer[at] != who]] = _SEVERAL
        self.data[at] = values
        bits = f"u{values.dtype.itemsize}"
        race |= self.data[at].view(bits) != values.view(bits)
        if self.defined is not None:
            self.defined[at] = True
        return race


def _joined(before: Array, who: Array) -> Array:
    return np.where((before == _NOBODY) | (before == who), who, _SEVERAL)


@dataclass
class _Run:
    """One pass over `count` groups from `first` on. `active` (groups, 1): those that the current block runs in."""

    program: Program
    params: dict[str, _Memory]
    first: int
    count: int

    def __post_init__(self) -> None:
        p = self.program
        self.registers: dict[Reg, Array] = {}
        self.active = np.ones((self.count, 1), np.bool_)
        self.rows = np.arange(self.count, dtype=np.int64)[:, None]
        self.groups = self.rows + self.first
        self.lanes = np.arange(p.lanes, dtype=np.int64)[None, :]
        self.shared = {s.name: self._shared_memory(s) for s in p.shared}
        self.tables = {t.name: _constants(t.dtype, *t.values) for t in p.tables}
        self.handlers: dict[str, Callable[[Inst], None]] = {
            "const": self._const, "group": self._ids, "lane": self._ids, "cast": self._cast, "bitcast": self._bitcast,
            "load": self._load, "nibble": self._load, "store": self._store, "table": self._table, "lane_xor": self._lane_xor,
            "lane_get": self._lane_get, "barrier": self._barrier, "mma": self._mma, "loop": self._loop, "when": self._when,
            "yield": lambda i: None,
        }

    def _shared_memory(self, s: Shared) -> _Memory:
        memory = _Memory(np.zeros(self.count * s.count, convert.element_numpy(s.dtype)), tracked=True)
        memory.defined = np.zeros(memory.data.size, np.bool_)
        return memory

    def block(self, block: list[Inst]) -> None:
        for i in block:
            handler = self.handlers.get(i.op)
            if handler:
                handler(i)
            else:
                self._set(i.out[0], arithmetic.evaluate(i.op, *self._args(i)))

    # ----- registers

    def _args(self, i: Inst) -> list[Array]:
        return [self.registers[r] for r in i.args]

    def _set(self, r: Reg, value: Array) -> None:
        if value.dtype != convert.element_numpy(r.dtype):
            raise CompileError(f"{self.program.name}: {r} is {r.dtype}, computed as {value.dtype}")
        self.registers[r] = value

    def _all(self, value: Array) -> Array:
        return np.broadcast_to(value, (self.count, self.program.lanes))

    def _fail(self, i: Inst, why: str, where: Array) -> NoReturn:
        """Raise for the first group and lane of the (groups, lanes) mask `where`."""
        row, lane = np.argwhere(where)[0]
        raise CompileError(f"{self.program.name}: {why}",
                           evidence=f"{lir.line(i)}, group {row + self.first}, lane {lane}")

    # ----- values

    def _const(self, i: Inst) -> None:
        self._set(i.out[0], _constants(i.out[0].dtype, i.attrs["value"])[None, :])

    def _ids(self, i: Inst) -> None:
        ids = self.groups if i.op == "group" else self.lanes
        self._set(i.out[0], ids.astype(convert.element_numpy(i.out[0].dtype)))

    def _cast(self, i: Inst) -> None:
        self._set(i.out[0], convert.cast(self.registers[i.args[0]], i.args[0].dtype, i.out[0].dtype))

    def _bitcast(self, i: Inst) -> None:
        self._set(i.out[0], self.registers[i.args[0]].view(convert.element_numpy(i.out[0].dtype)))

    def _lane_xor(self, i: Inst) -> None:
        self._set(i.out[0], self._all(self.registers[i.args[0]])[:, self.lanes[0] ^ i.attrs["mask"]])

    def _lane_get(self, i: Inst) -> None:
        lane = i.attrs["lane"]
        self._set(i.out[0], self._all(self.registers[i.args[0]])[:, lane:lane + 1])

    # ----- memory

    def _where(self, i: Inst, mask: Array | None) -> Array:
        """The lanes (groups, lanes) that run `i`."""
        return self._all(self.active if mask is None else self.active & mask)

    def _inside(self, i: Inst, on: Array, name: str, count: int) -> Array:
        """The index of each lane, int64, 0 where `on` is false. Raises CompileError where one is out of range."""
        index = self._all(self.registers[i.args[0]]).astype(np.int64)
        outside = on & ((index < 0) | (index >= count))
        if outside.any():
            self._fail(i, f"index {index[outside][0]} is outside {name}[{count}]", outside)
        return np.where(on, index, 0)

    def _place(self, i: Inst, on: Array) -> tuple[_Memory, Array, Array]:
        """The memory of a load or store, the flat places of the lanes in `on`, and those lanes' numbers."""
        mem = i.mem
        assert isinstance(mem, (Param, Shared))
        per_element = 2 if i.op == "nibble" else 1
        index = self._inside(i, on, mem.name, mem.count * per_element) // per_element
        who = (self.groups * self.program.lanes + self.lanes)[on]
        if isinstance(mem, Param):
            return self.params[mem.name], index[on], who
        return self.shared[mem.name], (self.rows * mem.count + index)[on], who

    def _load(self, i: Inst) -> None:
        on = self._where(i, self.registers[i.args[1]] if len(i.args) > 1 else None)
        memory, at, who = self._place(i, on)
        if i.attrs.get("pairs"):
            index = self._all(self.registers[i.args[0]])
            if (odd := on & ((index != index[:, :1] + self.lanes) | (index[:, :1] % 2 == 1))).any():
                self._fail(i, "pairs start at an even index and count on from lane to lane", odd)
        out = np.zeros(on.shape, memory.data.dtype)
        flags = np.zeros(on.shape, np.bool_)
        if memory.defined is not None and not memory.defined[at].all():
            flags[on] = ~memory.defined[at]
            self._fail(i, "read of shared memory that nothing has written", flags)
        race = memory.load(at, who)
        if race.any():
            flags[on] = race
            self._fail(i, "race: another lane stored here, with no barrier in between", flags)
        out[on] = memory.data[at]
        if i.op == "nibble":
            high = self._all(self.registers[i.args[0]]) % 2 == 1
            out = (np.where(high, out, out << 4).view(np.int8) >> 4).astype(np.int8)
        self._set(i.out[0], out)

    def _store(self, i: Inst) -> None:
        on = self._where(i, self.registers[i.args[2]] if len(i.args) > 2 else None)
        memory, at, who = self._place(i, on)
        if i.attrs.get("stream") and len(i.args) == 2:
            index = self._all(self.registers[i.args[0]]).astype(np.int64)
            odd = on.all(1) & (index == index[:, :1] + self.lanes).all(1) & (index[:, 0] % self.program.lanes != 0)
            if odd.any():
                self._fail(i, "a streamed store of consecutive elements starts between vectors", odd[:, None] & on)
        race = memory.store(at, who, self._all(self.registers[i.args[1]])[on])
        if race.any():
            flags = np.zeros(on.shape, np.bool_)
            flags[on] = race
            self._fail(i, "race: another lane loads or stores here, with no barrier in between", flags)

    def _table(self, i: Inst) -> None:
        table = i.mem
        assert isinstance(table, Table)
        index = self._inside(i, self._where(i, None), table.name, len(table.values))
        self._set(i.out[0], self.tables[table.name][index])

    def _mma(self, i: Inst) -> None:
        assert isinstance(i.mem, Shared)
        layout, sums = lir.LAYOUTS[i.attrs["layout"]], self._args(i)[2:]
        a, b = (self._tile(i, n, i.attrs[f"ld{name}"], name in i.attrs["turned"]) for n, name in enumerate("ab"))
        wave, lane = np.divmod(self.lanes[0], layout.lanes)
        for v, (out, total) in enumerate(zip(i.out, sums, strict=True)):
            rows, columns = layout.place(v, lane)
            total = self._all(total)
            for k in range(layout.depth):
                x, y = a[:, wave, rows, k], b[:, wave, columns, k]
                if layout.sums.is_float:
                    total = arithmetic.evaluate("fma", x, y, total)
                else:
                    total = arithmetic.evaluate("add", arithmetic.evaluate("mul", x, y), total)
            self._set(out, total)

    def _tile(self, i: Inst, n: int, stride: int, turned: bool) -> Array:
        """The tiles of operand `n` of an mma in the type of its sums (groups, wave, row, k). Every lane of a wave reads its
        tile."""
        mem, layout = i.mem, lir.LAYOUTS[i.attrs["layout"]]
        side, depth, lanes = lir.MMA_SIDE, layout.depth, layout.lanes
        assert isinstance(mem, Shared)
        first = self._all(self.registers[i.args[n]]).astype(np.int64)
        waves = first[:, ::lanes]
        on = self._where(i, None)
        last = first + ((depth - 1) * stride + side - 1 if turned else (side - 1) * stride + depth - 1)
        if (odd := on & ((first != np.repeat(waves, lanes, axis=1)) | (first % layout.align != 0))).any():
            self._fail(i, f"a tile of mma starts at a multiple of {layout.align}, the same in all lanes of a wave", odd)
        if (outside := on & ((first < 0) | (last >= mem.count))).any():
            self._fail(i, f"a tile from {first[outside][0]} on is outside {mem.name}[{mem.count}]", outside)
        row, k = np.arange(side)[:, None], np.arange(depth)
        inside = k * stride + row if turned else row * stride + k
        start = np.where(self.active, waves + self.rows * mem.count, 0)
        at, memory = start[:, :, None, None] + inside, self.shared[mem.name]
        running = np.broadcast_to(self.active[:, :, None, None], at.shape)
        assert memory.defined is not None
        if (never := running & ~memory.defined[at]).any():
            self._fail(i, "read of shared memory that nothing has written", on & np.repeat(never.any((2, 3)), lanes, axis=1))
        if (race := running & (memory.writer[at] != _NOBODY)).any():
            self._fail(i, "race: a lane stored to a tile of mma, with no barrier in between",
                       on & np.repeat(race.any((2, 3)), lanes, axis=1))
        memory.reader[at[running]] = _SEVERAL
        return convert.cast(memory.data[at], mem.dtype, layout.sums)

    def _barrier(self, i: Inst) -> None:
        rows = self.active[:, 0]
        for memory in self.shared.values():
            for book in (memory.writer, memory.reader):
                book.reshape(self.count, -1)[rows] = _NOBODY

    # ----- structure

    def _bound(self, i: Inst, n: int) -> Array:
        """A loop bound, int64 of shape (groups, 1)."""
        value = self._all(self.registers[i.args[n]]).astype(np.int64)
        differs = self.active & (value != value[:, :1])
        if differs.any():
            self._fail(i, f"loop bound {i.args[n]} differs among the lanes of a group", differs)
        return value[:, :1]

    def _loop(self, i: Inst) -> None:
        low, high, step = self._bound(i, 0), self._bound(i, 1), int(i.attrs["step"])
        carried = [self.registers[r] for r in i.args[2:]]
        outer, counter = self.active, convert.element_numpy(i.inner[0].dtype)
        try:
            while (running := outer & (low < high)).any():
                self.active = running
                self._set(i.inner[0], low.astype(counter))
                for r, value in zip(i.inner[1:], carried, strict=True):
                    self._set(r, value)
                self.block(i.body)
                results = self._args(i.body[-1])
                if not np.array_equal(running, outer):
                    results = [np.where(running, new, old) for new, old in zip(results, carried, strict=True)]
                carried, low = results, low + step
        finally:
            self.active = outer
        for r, value in zip(i.out, carried, strict=True):
            self._set(r, value)

    def _when(self, i: Inst) -> None:
        self.block(i.body)
        condition, *otherwise = self._args(i)
        for r, taken, other in zip(i.out, self._args(i.body[-1]), otherwise, strict=True):
            self._set(r, np.where(condition, taken, other))


def _constants(dtype: dt.DType, *values: int | float | bool) -> Array:
    """Python numbers as a 1-D element array; floats rounded once from float64."""
    if dtype.is_float:
        return convert.cast(np.array(values, np.float64), dt.float64, dtype)
    return np.array(values, convert.element_numpy(dtype))
