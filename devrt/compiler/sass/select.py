"""LIR -> mir: a walk over the program that writes each instruction's machine code.

A LIR register is an Operand (up to 32 bits, narrow types extended to a word), a Pair (64 bits), a Bool (select_emit.py) or an Int
(select_index.py).
"""

from __future__ import annotations

from collections import Counter

from devrt.compiler import dtypes as dt
from devrt.compiler import lir
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Inst, Reg
from devrt.compiler.sass import (
    halves,
    optimise,
    select_blocks,
    select_convert,
    select_float,
    select_half,
    select_index,
    select_integer,
    select_matrix,
    select_memory,
    select_number,
)
from devrt.compiler.sass import instruction as sass
from devrt.compiler.sass.instruction import TRUE, Cbuf, File, Operand, Special
from devrt.compiler.sass.mir import Function
from devrt.compiler.sass.select_emit import ZERO, Bool, Emitter, Pair
from devrt.compiler.sass.select_index import Int
from devrt.compiler.sass.target import DESCRIPTORS, LANES, SassTarget
from devrt.device import CompileError

_TID_X, _CTAID_X = 0x21, 0x25
_BITS_MATTER = ("store", "select", "bitcast", "lane_xor", "lane_get", "loop", "when", "yield")  # these keep the bits of a NaN
_ALIGN = 64  # of arrays

Value = Operand | Pair | Bool


class Selector(Emitter):
    """Writes one program."""

    def __init__(self, program: lir.Program, target: SassTarget) -> None:
        super().__init__(Function(program.name, target.sm, program.lanes))
        self.p, self.target = program, target
        self.values: dict[Reg, Value] = {}
        self.ints: dict[Reg, Int] = {}
        self.signed: dict[Reg, tuple[Reg, str]] = {}  # float32 and float64: what it is but for "neg", "abs" or "neg abs"
        self.renamed: dict[sass.Reg, sass.Reg] = {}
        self.aligned: dict[int, int] = {}  # id of an address -> power of two that divides it
        self.offsets: dict[str, int] = {}  # of arrays in shared memory, of tables in bank 3
        self.params: dict[str, Pair] = {}
        self.descriptor: sass.Reg | None = None
        self.system = ("SYS",) if target.sm == 75 else ()
        self.minus_zero = self.derived(ZERO, "minus", lambda: Operand(ZERO.value, neg=True))
        self.fragments: dict[tuple[int, int], Operand] = {}  # what LDSM brought, until memory changes
        self.parts: dict[sass.Reg, tuple[Operand, int, int]] = {}  # which of 2 halves or 4 bytes of a word loaded or computed
        self.joined: dict[tuple[int, int], Operand] = {}  # by ids of two halves, the word that has both
        self.quiet: set[int] = set()  # ids of words of two halves that are no signalling NaN
        self._order = 0
        self._halves: dict[tuple[object, ...], Int] = {}
        every = list(lir.walk(program.body))
        self.uses = Counter(r for i in every for r in i.args)
        self.writers = {r: i for i in every for r in i.out}
        self.written = {id(i.mem) for i in every if i.op == "store"}
        self.exposed: set[Reg] = set()
        for i in reversed(every):
            if i.op in _BITS_MATTER or i.op == "cast" and i.out[0] in self.exposed:
                self.exposed.update(i.args)
        self.narrowed = {r for i in every if i.op == "cast" and i.out[0].dtype.bits < 32 for r in i.args} - \
            {r for i in every if i.op != "cast" or i.out[0].dtype.bits >= 32 for r in i.args}
        self.plans: dict[int, list[halves.Step]] = {}

    def run(self) -> Function:
        p, f = self.p, self.f
        self._layout()
        self._enter()
        self.block(p.body)
        self.put("EXIT", (), (), ())
        code = optimise.without_dead(self.regions[0])
        code = optimise.renamed(select_memory.merge(self, code), self.renamed)
        if self.parts:
            code = optimise.without_dead(select_half.resolved(self, code))
        code = optimise.in_place(code, f.words)
        f.params = [(prm.name, 8 * n, 8) for n, prm in enumerate(p.params)]
        return self.finish(code)

    def _layout(self) -> None:
        """Places of shared arrays and tables."""
        shared = self.target.reserved_shared
        for array in self.p.shared:
            self.offsets[array.name] = shared
            shared += (array.dtype.nbytes(array.count) + _ALIGN - 1) // _ALIGN * _ALIGN
        self.f.shared_bytes = shared if self.p.shared else 0
        constants = b""
        for table in self.p.tables:
            self.offsets[table.name] = len(constants)
            constants += select_matrix.table_bytes(table)
            constants += bytes(-len(constants) % _ALIGN)
        self.f.constants = constants

    def _enter(self) -> None:
        """Addresses and numbers that a group is given."""
        p, target = self.p, self.target
        if target.sm >= 90:
            uniform = self.new(2, File.UR)
            place = Operand(Cbuf(0, DESCRIPTORS[target.sm], words=2))
            self.put("LDCU" if target.sm >= 100 else "ULDC", ("64",), (uniform,), (place,))
            assert isinstance(uniform.value, sass.Reg)
            self.descriptor = uniform.value
        for n, prm in enumerate(p.params):
            at, r = target.params + 8 * n, self.new(2)
            if target.sm >= 90:
                self.put("LDC", ("64",), (r,), (Operand(Cbuf(0, at, words=2)),))
            else:
                for word in range(2):
                    self.put("MOV", (), (self.part(r, word),), (Operand(Cbuf(0, at + 4 * word)),))
            self.params[prm.name] = self.pair(r)
        wide = p.index is dt.int64
        group, lane = self.new(), self.new()
        self.put("S2R", (), (group,), (Operand(Special(_CTAID_X)),))
        self.put("S2R", (), (lane,), (Operand(Special(_TID_X)),))
        self.group, self.lane = (
            select_index.atom(self, Pair(x, ZERO) if wide else x, 0, most, wide=wide)
            for x, most in ((group, max(p.groups, 1) - 1), (lane, p.lanes - 1)))

    # ----- registers

    def count(self) -> int:
        self._order += 1
        return self._order

    def define(self, r: Reg, value: Value) -> None:
        d = r.dtype
        if d in (dt.int32, dt.int64):
            assert not isinstance(value, Bool)
            known = self.constant(value.lo if isinstance(value, Pair) else value)
            high = 0 if known is None else self.constant(self.hi(value)) if isinstance(value, Pair) else -(known >> 31)
            if known is None or high is None:
                self.ints[r] = select_index.atom(self, value, d.min, d.max, wide=d is dt.int64)
            else:
                number = (known | high << 32) % (1 << 64)
                self.ints[r] = select_index.constant(self, number - (number >> 63 << 64), wide=d is dt.int64)
        else:
            self.values[r] = value

    def number(self, r: Reg) -> Int:
        return self.ints[r]

    def truth(self, r: Reg) -> Bool:
        value = self.values[r]
        assert isinstance(value, Bool)
        return value

    def word(self, r: Reg) -> Operand:
        if r in self.ints:
            return select_index.low(self, self.ints[r])
        value = self.values[r]
        assert isinstance(value, Operand)
        return value

    def wide(self, r: Reg) -> Pair:
        if r in self.ints:
            return select_index.pair(self, self.ints[r])
        value = self.values[r]
        assert isinstance(value, Pair)
        return value

    def value(self, r: Reg) -> Value:
        return self.values[r] if r not in self.ints else self.wide(r) if r.dtype is dt.int64 else self.word(r)

    def half(self, x: Int) -> Int:
        """x >> 1"""
        key = (x.const, x.terms)
        found = self._halves.get(key)
        if found is None:
            with self.unbound():
                if x.wide and not x.small:
                    pair = select_index.pair(self, x)
                    value: Operand | Pair = select_integer.shift64(self, "shr", pair, self.imm(1), signed=True)
                else:
                    word = select_integer.shift_right(self, select_index.low(self, x), self.imm(1), signed=True)
                    value = Pair(word, ZERO if x.lo >= 0 else None) if x.wide else word
            found = self._halves[key] = select_index.atom(self, value, x.lo >> 1, x.hi >> 1, wide=x.wide)
        return found

    # ----- instructions

    def block(self, block: list[Inst]) -> None:
        steps = self.plans.get(id(block))
        if steps is None:
            steps = self.plans[id(block)] = halves.plan(block, self.writers, self.uses, self.written, self._has_pairs)
        for i in steps:
            if isinstance(i, halves.Pair):
                select_half.pair(self, i)
                continue
            handler = getattr(self, f"do_{i.op}", None)
            if handler is not None:
                handler(i)
            elif i.args[0].dtype.is_float:
                self._float(i)
            elif i.args[0].dtype is dt.bool_:
                self._logic(i)
            else:
                select_number.arithmetic(self, i)

    def _has_pairs(self, d: DType) -> bool:
        return select_half.supported(self.target.sm, d)

    def do_const(self, i: Inst) -> None:
        r, value = i.out[0], i.attrs["value"]
        d = r.dtype
        if d in (dt.int32, dt.int64):
            self.ints[r] = select_index.constant(self, value, wide=d is dt.int64)
        elif d is dt.bool_:
            self.values[r] = Bool(inv=not value)
        elif d.is_int:
            self.values[r] = self.imm(value) if d.bits < 64 else self.pair_constant(value)
        elif d is dt.float64:
            self.values[r] = self.pair_constant(select_float.bits64(value))
        else:
            self.values[r] = self.imm(select_matrix.element_bits(d, value))

    def do_group(self, i: Inst) -> None:
        self.ints[i.out[0]] = self.group

    def do_lane(self, i: Inst) -> None:
        self.ints[i.out[0]] = self.lane

    def _float(self, i: Inst) -> None:
        if i.op in ("neg", "abs"):
            source, marks = self.signed.get(i.args[0], (i.args[0], ""))
            flipped = "abs" if i.op == "abs" else marks.replace("neg", "").strip() if "neg" in marks else f"neg {marks}".strip()
            self.signed[i.out[0]] = source, flipped
        if i.op == "canon" and i.out[0] in self.narrowed:  # by the cast that alone reads it
            self.values[i.out[0]] = self.value(i.args[0])
            return
        select_float.arithmetic(self, i)

    def _logic(self, i: Inst) -> None:
        """Instructions on bools."""
        a = self.truth(i.args[0])
        if i.op == "not":
            self.values[i.out[0]] = self._not(a)
            return
        b = self.truth(i.args[1])
        how = {"and": "AND", "min": "AND", "or": "OR", "max": "OR", "xor": "XOR", "ne": "XOR"}.get(i.op)
        if how is None:  # equal; less: !a and b; less or equal: !a or b
            if i.op == "eq":
                self.values[i.out[0]] = self._not(self._combined("XOR", a, b))
            else:
                self.values[i.out[0]] = self._combined("AND" if i.op == "lt" else "OR", self._not(a), b)
            return
        self.values[i.out[0]] = self._combined(how, a, b)

    def _not(self, a: Bool) -> Bool:
        return Bool(a.op, a.mods, a.srcs, a.how, a.other, not a.inv, a.low, a.depth, a.level)

    def _combined(self, how: str, a: Bool, b: Bool) -> Bool:
        for x, y in ((a, b), (b, a)):
            if not x.op:
                true = not x.inv
                if how == "XOR":
                    return self._not(y) if true else y
                return y if true == (how == "AND") else x
        if a.depth + b.depth > 6 or a.other is not None and b.other is not None or a.inv and b.inv:
            a = self.test(self.bit(a))
        if a.other is not None or a.inv:
            a, b = b, a
        if a.other is not None or a.inv:
            a = self.test(self.bit(a))
        return Bool(a.op, a.mods, a.srcs, how, b, False, a.low, a.depth + b.depth, max(a.level, b.level))

    def do_select(self, i: Inst) -> None:
        out, c = i.out[0], self.truth(i.args[0])
        if out.dtype in (dt.int32, dt.int64):
            a, b = self.ints[i.args[1]], self.ints[i.args[2]]
            if not c.op:
                self.ints[out] = b if c.inv else a
                return
            lo, hi = min(a.lo, b.lo), max(a.hi, b.hi)
            if out.dtype is dt.int32 or a.small and b.small:
                word = self.choose(c, select_index.low(self, a), select_index.low(self, b))
                value: Operand | Pair = Pair(word, ZERO if lo >= 0 else None) if a.wide else word
            else:
                value = self.choose_pair(c, select_index.pair(self, a), select_index.pair(self, b))
            self.ints[out] = select_index.atom(self, value, lo, hi, wide=a.wide, aligned=min(a.aligned, b.aligned))
        elif out.dtype is dt.bool_:
            x, y = self.truth(i.args[1]), self.truth(i.args[2])
            self.values[out] = self.test(self.choose(c, self.bit(x), self.bit(y)))
        elif out.dtype.bits == 64:
            self.values[out] = self.choose_pair(c, self.wide(i.args[1]), self.wide(i.args[2]))
        else:
            self.values[out] = self.choose(c, self.word(i.args[1]), self.word(i.args[2]))

    def do_bitcast(self, i: Inst) -> None:
        source, out = i.args[0].dtype, i.out[0]
        if out.dtype.bits == 64:
            self.define(out, self.wide(i.args[0]))
            return
        word = self.word(i.args[0])
        if out.dtype.bits < 32:
            integer = out.dtype if out.dtype.is_int else dt.unsigned_of(out.dtype.bits)
            if (source.kind == "int") != (integer.kind == "int"):
                word = select_integer.extend(self, integer, word)
        self.define(out, word)

    def do_cast(self, i: Inst) -> None:
        source, out = i.args[0], i.out[0]
        if source in self.ints and out.dtype in (dt.int32, dt.int64):
            x = self.ints[source]
            if out.dtype is dt.int64 or x.small:
                self.ints[out] = self._resized(x, wide=out.dtype is dt.int64)
                return
        found = select_convert.cast(self, source.dtype, out.dtype, self.value(source), exact_nan=out in self.exposed)
        if out.dtype in (dt.int32, dt.int64) and not source.dtype.is_float and source not in self.ints and source.dtype.bits < 32:
            lo, hi = select_integer.type_range(source.dtype)
            self.define(out, found)
            if self.ints[out].terms:
                self.ints[out].lo, self.ints[out].hi = lo, hi
        else:
            self.define(out, found)

    def _resized(self, x: Int, *, wide: bool) -> Int:
        """An Int that fits a word, with as many words as the other type."""
        if x.wide == wide:
            return x
        if x.known is not None:
            return select_index.constant(self, x.known, wide=wide)
        word = select_index.low(self, x)
        value: Operand | Pair = Pair(word, ZERO if x.lo >= 0 else None) if wide else word
        return select_index.atom(self, value, x.lo, x.hi, wide=wide, aligned=x.aligned)

    # ----- memory and lanes

    def do_load(self, i: Inst) -> None:
        select_memory.load(self, i)

    do_table = do_load

    def do_nibble(self, i: Inst) -> None:
        select_memory.nibble(self, i)

    def do_store(self, i: Inst) -> None:
        select_memory.store(self, i)

    def do_barrier(self, i: Inst) -> None:
        self.fragments.clear()
        self.put("BAR", ("SYNC",) if self.target.sm == 75 else ("SYNC", "DEFER_BLOCKING"), (), (self.byte(0),))

    def do_mma(self, i: Inst) -> None:
        select_matrix.multiply(self, i)

    def _shuffle(self, i: Inst, mode: str, lane: int) -> None:
        a, out = i.args[0], i.out[0]

        def exchanged(word: Operand) -> Operand:
            if self.constant(word) is not None:
                return word
            r = self.new()
            self.put("SHFL", (mode,), (TRUE, r), (word, self.byte(lane, 5), self.byte(31, 13)))
            return r
        if out.dtype is dt.bool_:
            self.values[out] = self.test(exchanged(self.bit(self.truth(a))))
        elif a in self.ints and self.ints[a].small:
            x = self.ints[a]
            word = exchanged(select_index.low(self, x))
            value: Operand | Pair = Pair(word, ZERO if x.lo >= 0 else None) if x.wide else word
            self.ints[out] = select_index.atom(self, value, x.lo, x.hi, wide=x.wide)
        elif out.dtype.bits == 64:
            pair = self.wide(a)
            self.define(out, Pair(exchanged(pair.lo), exchanged(self.hi(pair))))
        else:
            self.define(out, exchanged(self.word(a)))

    def do_lane_xor(self, i: Inst) -> None:
        self._shuffle(i, "BFLY", i.attrs["mask"])

    def do_lane_get(self, i: Inst) -> None:
        self._shuffle(i, "IDX", i.attrs["lane"])

    # ----- structure

    def do_yield(self, i: Inst) -> None:
        """Its block's instruction reads it."""

    def do_loop(self, i: Inst) -> None:
        select_blocks.loop(self, i)

    def do_when(self, i: Inst) -> None:
        select_blocks.when(self, i)


def select(program: lir.Program, target: SassTarget) -> Function:
    """The program as mir. Raises CompileError for a group of several warps whose lanes exchange values across them."""
    if program.lanes > LANES and any(i.op == "lane_get" or i.op == "lane_xor" and i.attrs["mask"] >= LANES
                                     for i in lir.walk(program.body)):
        raise CompileError(f"{program.name} exchanges values between {program.lanes} lanes", evidence=f"a warp has {LANES}",
                           remedy="this is a defect of devrt: please report it")
    return Selector(program, target).run()

