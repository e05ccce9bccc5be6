"""Loops and `when`: what is carried lives in registers that are written in several places; a bool is carried as 0 or 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.lir import Inst, Param, Reg, Shared
from devrt.compiler.sass import select_index, select_number
from devrt.compiler.sass.instruction import TRUE, File, Operand
from devrt.compiler.sass.instruction import Reg as MachineReg
from devrt.compiler.sass.select_emit import ZERO, Pair
from devrt.compiler.sass.select_index import Int

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector

_PRODUCTS, _REGISTERS = 32, 232  # fma of a loop that is repeated; words that it may carry and load


def _words(s: Selector, r: Reg) -> list[Operand]:
    """A register's words as they are carried through a loop; a bool is 0 or 1."""
    if r.dtype is dt.bool_:
        return [s.bit(s.truth(r))]
    if r.dtype.bits == 64:
        pair = s.wide(r)
        return [pair.lo, s.hi(pair)]
    return [s.word(r)]


def _holder(s: Selector, r: Reg) -> Operand:
    return s.new(2 if r.dtype.bits == 64 else 1)


def _held(s: Selector, r: Reg, holder: Operand) -> None:
    """Define `r` as what `holder` has from here on."""
    seen = s.known(Operand(holder.value), s.here)
    s.define(r, s.test(seen) if r.dtype is dt.bool_ else s.pair(seen) if r.dtype.bits == 64 else seen)


def _parts(s: Selector, holder: Operand) -> list[Operand]:
    assert isinstance(holder.value, MachineReg)
    return [holder] if holder.value.words == 1 else [s.part(holder, 0), s.part(holder, 1)]


def _move(s: Selector, holders: list[Operand], values: list[list[Operand]], guard: Operand = TRUE) -> None:
    """Set all holders at once."""
    targets = [part for holder in holders for part in _parts(s, holder)]
    sources = [word for words in values for word in words]
    written = {part.value for part in targets}
    for n, word in enumerate(sources):
        if word.value in written and word.value != targets[n].value:
            saved = s.new()
            s.put("MOV", (), (saved,), (word,))
            sources[n] = saved
    for part, word in zip(targets, sources, strict=True):
        if part.value != word.value:
            s.put("MOV", (), (part,), (word,), guard)


def loop(s: Selector, i: Inst) -> None:
    """The test stands at the end; in front of the loop where it may not run at all."""
    lo, hi, step = s.ints[i.args[0]], s.ints[i.args[1]], i.attrs["step"]
    turns = -(-(hi.known - lo.known) // step) if lo.known is not None and hi.known is not None else None
    if turns is not None and turns <= 1:
        _straight(s, i, lo, turns)
        return
    times = _times(i, lo, hi, turns)
    most = max(hi.hi - 1, lo.lo)
    small = lo.small and hi.small and hi.hi + step * times < 1 << 31
    counter = s.new(1 if small or not lo.wide else 2)
    holders = [_holder(s, r) for r in i.inner[1:]]
    _move(s, holders, [_words(s, r) for r in i.args[2:]])
    _move(s, [counter], [[select_index.low(s, lo)] if _one(counter) else _words(s, i.args[0])])
    limit = select_index.low(s, hi) if small else None
    if limit is None:
        s.value(i.args[1])
    head, done = s.label("loop"), s.label("done")
    guarded = hi.lo <= lo.hi
    with s.region(fixed=False) as body:
        seen = s.known(Operand(counter.value), s.here)
        value: Operand | Pair = s.pair(seen) if not _one(counter) else Pair(seen, ZERO if lo.lo >= 0 else None) if lo.wide \
            else seen
        stride = select_index.power_of_two(step * times)
        s.ints[i.inner[0]] = select_index.atom(s, value, lo.lo, most, wide=lo.wide, aligned=min(stride, lo.aligned))
        for r, holder in zip(i.inner[1:], holders, strict=True):
            _held(s, r, holder)
        s.fragments.clear()
        s.block(i.body)
        first = s.ints[i.inner[0]]
        for turn in range(1, times):
            following = select_index.linear(s, first, 1, select_index.constant(s, turn * step, wide=lo.wide), 1)
            assert following is not None
            found = [s.ints.get(r) or s.values[r] for r in i.body[-1].args]
            s.ints[i.inner[0]] = following
            for r, x in zip(i.inner[1:], found, strict=True):
                if isinstance(x, Int):
                    s.ints[r] = x
                else:
                    s.values[r] = x
            s.block(i.body)
        step *= times
        s.fragments.clear()
        _move(s, holders, [_words(s, r) for r in i.body[-1].args])
        again = _advance(s, counter, step, i.args[1], limit)
        s.branch(head, again)
    if guarded:
        enter = select_number.compare(s, "lt", lo, hi)
        s.branch(done, s.inv(s.predicate(enter)))
    s.mark(head)
    s.regions[-1] += body
    s.mark(done)
    for r, holder in zip(i.out, holders, strict=True):
        _held(s, r, holder)


def _one(r: Operand) -> bool:
    return isinstance(r.value, MachineReg) and r.value.words == 1


def _advance(s: Selector, counter: Operand, step: int, hi: Reg, limit: Operand | None) -> Operand:
    """Count, and whether to go on."""
    p = s.new(file=File.P)
    if limit is not None:
        s.put("IADD3", (), (counter,), (counter, s.imm(step), ZERO))
        s.put("ISETP", ("LT", "AND"), (p, TRUE), (counter, limit, TRUE))
        return p
    if _one(counter):  # an int32 counter near the end of its range: it may pass it
        before = s.new()
        s.put("MOV", (), (before,), (counter,))
        s.put("IADD3", (), (counter,), (counter, s.imm(step), ZERO))
        s.put("ISETP", ("LT", "AND"), (p, TRUE), (counter, s.word(hi), TRUE))
        q = s.new(file=File.P)
        s.put("ISETP", ("LT", "AND"), (q, TRUE), (before, counter, p))
        return q
    end = s.wide(hi)
    lo, high = s.part(counter, 0), s.part(counter, 1)
    carry, below = s.new(file=File.P), s.new(file=File.P)
    s.put("IADD3", (), (lo, carry), (lo, s.imm(step), ZERO))
    s.put("IADD3", ("X",), (high,), (high, s.imm(step >> 32), ZERO, carry, s.inv(TRUE)))
    s.put("ISETP", ("LT", "U32", "AND"), (below, TRUE), (lo, end.lo, TRUE))
    s.put("ISETP", ("LT", "AND", "EX"), (p, TRUE), (high, s.hi(end), TRUE, below))
    return p


def _straight(s: Selector, i: Inst, lo: Int, turns: int) -> None:
    """A loop of one turn or none: no loop."""
    sources = i.args[2:]
    if turns == 1:
        _same(s, i.inner[0], i.args[0])
        for r, source in zip(i.inner[1:], sources, strict=True):
            _same(s, r, source)
        s.block(i.body)
        sources = i.body[-1].args
    for r, source in zip(i.out, sources, strict=True):
        _same(s, r, source)


def _same(s: Selector, r: Reg, source: Reg) -> None:
    if source in s.ints:
        s.ints[r] = s.ints[source]
    else:
        s.values[r] = s.values[source]


def when(s: Selector, i: Inst) -> None:
    """All lanes run the body if one wants to; those that do take what it yields."""
    c = s.truth(i.args[0])
    if not c.op:
        if not c.inv:
            s.block(i.body)
        for r, source in zip(i.out, i.args[1:] if c.inv else i.body[-1].args, strict=True):
            _same(s, r, source)
        return
    holders = [_holder(s, r) for r in i.out]
    _move(s, holders, [_words(s, r) for r in i.args[1:]])

    def body() -> None:
        s.fragments.clear()
        s.block(i.body)
        s.fragments.clear()
        values = [_words(s, r) for r in i.body[-1].args]
        _move(s, holders, values, s.predicate(c))
    s.when(c, body)
    for r, holder in zip(i.out, holders, strict=True):
        _held(s, r, holder)


def _times(i: Inst, lo: Int, hi: Int, turns: int | None) -> int:
    """How often a loop's body is repeated in one turn: where it is made of products, and the count and the registers allow it,
    four times. What all lanes read of one row then comes as vectors."""
    if sum(x.op == "fma" for x in i.body) < _PRODUCTS or any(x.op in ("loop", "when", "barrier", "store") for x in i.body):
        return 1
    near, far = (sum(x.op == "load" and isinstance(x.mem, kind) for x in i.body) for kind in (Shared, Param))
    for times in (4, 2):
        fits = len(i.args) + near + times * far <= _REGISTERS
        if fits and not (min(lo.aligned, hi.aligned) % (times * i.attrs["step"]) if turns is None else turns % times):
            return times
    return 1
