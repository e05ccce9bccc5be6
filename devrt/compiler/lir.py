"""LIR: the one linear IR between the kernel compiler and every ISA.

A program is run by `groups` groups of `lanes` lanes. Every lane runs the same straight-line code and structured loops; a
register holds one scalar a lane. There is no branch on data: loop bounds are the same in all lanes of a group, and a
`when` block is a select whose taken side may be skipped where no lane needs it, which changes time and never bits.

Registers are SSA. Types are the arithmetic types (bool, int8..uint64, float32, float64) and, between a load or a cast
and a store or a cast, the storage types. There are no registers and arrays of int4: it lies two to a byte in arrays of
uint8, where `nibble` reads it as int8. The semantics below are what `interpreter.py` executes; each backend is
tested against it bit for bit.

    float add sub mul div fma sqrt   IEEE 754 round to nearest even, denormals kept, fma fused, never contracted
    float max min                    IEEE 754-2019 maximum/minimum: NaN if either is, -0 < +0
    lt le eq ne                      ordered, except ne (true on NaN)
    canon                            any NaN becomes 0x7fc00000 / 0x7ff8000000000000. What moves a value (load, store,
                                     select, bitcast, lanes, loops) keeps NaN bits; arithmetic leaves them unspecified
    int add sub mul neg abs          wrap; mulhi: high half of the full product
    int div rem                      truncate towards zero; x/0 = 0, x rem 0 = x; MIN/-1 wraps to MIN, MIN rem -1 = 0
    shl shr                          amount taken as unsigned; amount >= bits gives 0 (or all sign bits, signed shr)
    cast float->int                  truncates, saturates, NaN -> 0;   int->float rounds once, to nearest even
    cast int->int                    wraps;   bool->x gives 0 or 1
    cast float->float                rounds once, to nearest even; overflow gives infinity; the canonical NaN gives the
                                     canonical NaN of the type: 0x7e00, 0x7fc0, 0x7f (e4m3), 0x7e (e5m2)
    cast float->float8_e4m3          beyond 448 (after rounding) becomes NaN: the format has no infinity, OCP OFP8 2023
    cast x->bool                     x != 0
    load/store                       of a parameter or shared array by element index; a lane whose mask is false touches
                                     nothing and reads 0; an unmasked index must lie inside the array
    nibble                           of an array of uint8 by int4 element, sign-extended to int8: element i is in byte i/2,
                                     in the low half where i is even; masks and bounds as for load. `pairs` promises that
                                     lane 0 has an even index and the others count on from it
    table                            constant array lookup; the index must lie inside
    lane_xor                         the value of lane (lane ^ mask), mask a constant below `lanes`
    lane_get                         the value of one lane, a constant, in all lanes
    mma                              a matrix product by a matrix unit, C += A x B^T: tiles of 16 rows of 16 float16 or bfloat16,
                                     or of 32 int8 or uint8, in one shared array, A[i][k] at a + i*lda + k and B[j][k] at
                                     b + j*ldb + k, or, of the operands that `turned` names, A[i][k] at a + k*lda + i, B[j][k] at
                                     b + k*ldb + j. Lanes work in waves, as many as `layout` has (Layout): a and b are the same in
                                     all lanes of a wave; they, lda and ldb are multiples of 16 bytes. C is spread over the wave's
                                     registers. Of bytes it is int32, and sums wrap; else it is float32, and here the sum runs
                                     over k in order, by fma: a device chooses its order and how it rounds in between, so that
                                     only programs of the fast tier hold it
    when                             its body may run in every lane, so indexes must lie inside whatever the condition

Lanes run in no order between barriers, and groups in none: what one lane stores no other lane may load or store before
the next barrier, nor ever in a parameter, which barriers do not order. Lanes may store to one place in one instruction
if they store the same bits. Shared memory is undefined until stored to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import CompileError

UNARY = ("neg", "abs", "sqrt", "floor", "not", "canon")
BINARY = ("add", "sub", "mul", "mulhi", "div", "rem", "max", "min", "and", "or", "xor", "shl", "shr")
COMPARE = ("lt", "le", "eq", "ne")

_FLOAT, _INT, _BOOL = "float", "int", "bool"
# op -> kinds of type it takes
KINDS: dict[str, tuple[str, ...]] = {
    "neg": (_FLOAT, _INT), "abs": (_FLOAT, _INT), "sqrt": (_FLOAT,), "floor": (_FLOAT,), "not": (_INT, _BOOL),
    "canon": (_FLOAT,), "add": (_FLOAT, _INT), "sub": (_FLOAT, _INT), "mul": (_FLOAT, _INT), "mulhi": (_INT,),
    "div": (_FLOAT, _INT), "rem": (_INT,), "max": (_FLOAT, _INT, _BOOL), "min": (_FLOAT, _INT, _BOOL),
    "and": (_INT, _BOOL), "or": (_INT, _BOOL), "xor": (_INT, _BOOL), "shl": (_INT,), "shr": (_INT,),
    "lt": (_FLOAT, _INT), "le": (_FLOAT, _INT), "eq": (_FLOAT, _INT, _BOOL), "ne": (_FLOAT, _INT, _BOOL),
    "fma": (_FLOAT,),
}


def _kind(d: DType) -> str:
    return _FLOAT if d.is_float else _BOOL if d.kind == "bool" else _INT


@dataclass(frozen=True, eq=False)
class Reg:
    """A virtual register: one scalar of `dtype` in each lane."""

    id: int
    dtype: DType

    def __repr__(self) -> str:
        return f"%{self.id}"


@dataclass(frozen=True)
class Part:
    """A summand of a row or column: `of` // divided % modulo * times; no modulus where it would change nothing."""

    of: str  # "register" or "lane"
    times: int
    divided: int = 1
    modulo: int | None = None


@dataclass(frozen=True)
class Layout:
    """Where a wave of `lanes` keeps a 16x16 matrix: register v of lane l is the element whose row is the sum of
    `rows`, whose column that of `columns`. `types`: what its units multiply; `turns`: whether they take turned operands; `depth`:
    how many k at once; `sums`: their type."""

    lanes: int
    registers: int
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    types: tuple[str, ...] = ("float16", "bfloat16")
    turns: bool = False
    depth: int = 16
    sums: DType = dt.float32

    @property
    def align(self) -> int:
        """Elements of 16 bytes: what indexes and strides of mma are multiples of."""
        return self.depth // 2

    def place(self, register: Any, lane: Any) -> tuple[Any, Any]:
        """(row, column), of numbers or arrays of them."""
        number = {"register": register, "lane": lane}

        def total(parts: tuple[Part, ...]) -> Any:
            found: Any = 0
            for p in parts:
                part = number[p.of] // p.divided
                found = found + (part if p.modulo is None else part % p.modulo) * p.times
            return found
        return total(self.rows), total(self.columns)


_COLUMN_OF_LANE = (Part("lane", 1, modulo=16),)
# m16n8 fragments: a quarter of the lanes to a row, two columns each; the second pair of registers 8 rows further on.
_HMMA = ((Part("lane", 1, divided=4), Part("register", 8, divided=2, modulo=2)),
         (Part("lane", 2, modulo=4), Part("register", 1, modulo=2), Part("register", 8, divided=4)))
_BYTES = ("int8", "uint8")
# AMD's matrix instruction calculator: WMMA of RDNA 3 in waves of 32 lanes, MFMA 16x16x16 of CDNA 2 and 3. PTX ISA, "Matrix
# fragments for mma.m16n8k16" and "..m16n8k8": HMMA, two side by side; Turing's multiplies float16 alone.
# "..m16n8k32" and "..m8n8k16": IMMA, as many as give the same tile.
LAYOUTS = {
    "wmma": Layout(32, 8, (Part("register", 2), Part("lane", 1, divided=16)), _COLUMN_OF_LANE),
    "mfma": Layout(64, 4, (Part("register", 1), Part("lane", 4, divided=16)), _COLUMN_OF_LANE),
    "hmma": Layout(32, 8, *_HMMA, turns=True),
    "hmma8": Layout(32, 8, *_HMMA, types=("float16",), turns=True),
    "imma": Layout(32, 8, *_HMMA, types=_BYTES, depth=32, sums=dt.int32),
    "imma8": Layout(32, 8, *_HMMA, types=_BYTES, depth=32, sums=dt.int32),
}
MMA_SIDE = 16  # rows and columns of one mma


@dataclass(frozen=True)
class Param:
    """A kernel argument: an array of `count` elements in device memory. `writable` where the kernel stores to it; it
    then overlaps no other parameter."""

    name: str
    dtype: DType
    count: int
    writable: bool = False


@dataclass(frozen=True)
class Shared:
    """`count` elements of memory shared by the lanes of one group, undefined at its start."""

    name: str
    dtype: DType
    count: int


@dataclass(frozen=True)
class Table:
    """A constant array of the program."""

    name: str
    dtype: DType
    values: tuple[int | float, ...]


@dataclass(eq=False)
class Inst:
    """One instruction. `out` are the registers it defines, `args` those it reads, `attrs` its constants.

    `mem` names the Param/Shared/Table of a memory instruction; `body` holds the block of a loop or when, whose last
    instruction is a `yield`.
    """

    op: str
    out: tuple[Reg, ...]
    args: tuple[Reg, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    mem: Param | Shared | Table | None = None
    body: list[Inst] = field(default_factory=list)
    inner: tuple[Reg, ...] = ()  # loop: counter and carried registers as the body sees them


@dataclass(eq=False)
class Program:
    """A LIR program, ready for the verifier, the interpreter or a backend."""

    name: str
    lanes: int
    groups: int
    params: tuple[Param, ...]
    shared: tuple[Shared, ...]
    tables: tuple[Table, ...]
    body: list[Inst]
    index: DType = dt.int64

    def __str__(self) -> str:
        return dump(self)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory a group uses, each array starting at a multiple of 64."""
        return sum((s.dtype.nbytes(s.count) + 63) // 64 * 64 for s in self.shared)


class Builder:
    """Writes a Program. Methods are named after the instructions and return the register(s) they define.

    Equal constants and equal pure expressions in the same block are not merged here: that is the backend's work. The
    one rewriting done is constant folding of index arithmetic by 0 and 1, which keeps dumps readable.
    """

    def __init__(self, name: str, *, lanes: int, groups: int, index: DType = dt.int64) -> None:
        self.name, self.lanes, self.groups, self.index = name, lanes, groups, index
        self.params: list[Param] = []
        self.shared_arrays: list[Shared] = []
        self.tables: dict[tuple[DType, str], Table] = {}
        self._blocks: list[list[Inst]] = [[]]
        self._next = 0
        self._constants: list[dict[tuple[DType, str], Reg]] = [{}]
        self._value: dict[Reg, int | float | bool] = {}

    # ----- plumbing

    def reg(self, dtype: DType) -> Reg:
        self._next += 1
        return Reg(self._next - 1, dtype)

    def emit(self, op: str, dtype: DType | None, *args: Reg, mem: Param | Shared | Table | None = None, **attrs: Any) -> Reg:
        out = (self.reg(dtype),) if dtype is not None else ()
        self._blocks[-1].append(Inst(op, out, args, attrs, mem))
        return out[0] if out else Reg(-1, dt.bool_)

    def constant_value(self, r: Reg) -> int | float | bool | None:
        """The value of `r` where it is a constant, else None."""
        return self._value.get(r)

    # ----- sources

    def const(self, dtype: DType, value: int | float | bool) -> Reg:
        """A constant. Floats are rounded to `dtype`; integers must fit."""
        key = (dtype, value.hex() if isinstance(value, float) else repr(int(value)))
        for scope in self._constants:
            if key in scope:
                return scope[key]
        if dtype.is_int and not dtype.min <= int(value) <= dtype.max:
            raise CompileError(f"constant {value} does not fit {dtype}")
        value = bool(value) if dtype.kind == "bool" else float(value) if dtype.is_float else int(value)
        r = self.emit("const", dtype, value=value)
        self._constants[-1][key] = r
        self._value[r] = value
        return r

    def idx(self, value: int) -> Reg:
        return self.const(self.index, value)

    def group(self) -> Reg:
        return self.emit("group", self.index)

    def lane(self) -> Reg:
        return self.emit("lane", self.index)

    def param(self, name: str, dtype: DType, count: int, writable: bool = False) -> Param:
        p = Param(name, dtype, count, writable)
        self.params.append(p)
        return p

    def shared(self, name: str, dtype: DType, count: int) -> Shared:
        s = Shared(name, dtype, count)
        self.shared_arrays.append(s)
        return s

    # ----- arithmetic

    def unary(self, op: str, a: Reg) -> Reg:
        return self.emit(op, a.dtype, a)

    def binary(self, op: str, a: Reg, b: Reg) -> Reg:
        if a.dtype is self.index and (folded := self._fold(op, a, b)) is not None:
            return folded
        return self.emit(op, a.dtype, a, b)

    def _fold(self, op: str, a: Reg, b: Reg) -> Reg | None:
        va, vb = self._value.get(a), self._value.get(b)
        if va is not None and vb is not None and op in _INDEX_FOLD:
            folded = _INDEX_FOLD[op](int(va), int(vb))
            return self.idx(folded) if folded is not None and self.index.min <= folded <= self.index.max else None
        if op == "add" and (va == 0 or vb == 0):
            return b if va == 0 else a
        if op == "sub" and vb == 0:
            return a
        if op == "mul" and (va == 1 or vb == 1):
            return b if va == 1 else a
        if op == "mul" and (va == 0 or vb == 0):
            return self.idx(0)
        if op == "div" and vb == 1:
            return a
        if op == "rem" and vb == 1:
            return self.idx(0)
        return None

    def neg(self, a: Reg) -> Reg: return self.unary("neg", a)
    def abs(self, a: Reg) -> Reg: return self.unary("abs", a)
    def sqrt(self, a: Reg) -> Reg: return self.unary("sqrt", a)
    def floor(self, a: Reg) -> Reg: return self.unary("floor", a)
    def not_(self, a: Reg) -> Reg: return self.unary("not", a)
    def canon(self, a: Reg) -> Reg: return self.unary("canon", a)
    def add(self, a: Reg, b: Reg) -> Reg: return self.binary("add", a, b)
    def sub(self, a: Reg, b: Reg) -> Reg: return self.binary("sub", a, b)
    def mul(self, a: Reg, b: Reg) -> Reg: return self.binary("mul", a, b)
    def mulhi(self, a: Reg, b: Reg) -> Reg: return self.binary("mulhi", a, b)
    def div(self, a: Reg, b: Reg) -> Reg: return self.binary("div", a, b)
    def rem(self, a: Reg, b: Reg) -> Reg: return self.binary("rem", a, b)
    def max(self, a: Reg, b: Reg) -> Reg: return self.binary("max", a, b)
    def min(self, a: Reg, b: Reg) -> Reg: return self.binary("min", a, b)
    def and_(self, a: Reg, b: Reg) -> Reg: return self.binary("and", a, b)
    def or_(self, a: Reg, b: Reg) -> Reg: return self.binary("or", a, b)
    def xor(self, a: Reg, b: Reg) -> Reg: return self.binary("xor", a, b)
    def shl(self, a: Reg, b: Reg) -> Reg: return self.binary("shl", a, b)
    def shr(self, a: Reg, b: Reg) -> Reg: return self.binary("shr", a, b)
    def lt(self, a: Reg, b: Reg) -> Reg: return self.emit("lt", dt.bool_, a, b)
    def le(self, a: Reg, b: Reg) -> Reg: return self.emit("le", dt.bool_, a, b)
    def eq(self, a: Reg, b: Reg) -> Reg: return self.emit("eq", dt.bool_, a, b)
    def ne(self, a: Reg, b: Reg) -> Reg: return self.emit("ne", dt.bool_, a, b)

    def fma(self, a: Reg, b: Reg, c: Reg) -> Reg:
        """a*b + c rounded once."""
        return self.emit("fma", a.dtype, a, b, c)

    def select(self, c: Reg, a: Reg, b: Reg) -> Reg:
        """a where c, else b."""
        return self.emit("select", a.dtype, c, a, b)

    def cast(self, a: Reg, dtype: DType) -> Reg:
        """Convert the value (module docstring)."""
        return a if a.dtype is dtype else self.emit("cast", dtype, a)

    def bitcast(self, a: Reg, dtype: DType) -> Reg:
        """Keep the bits; both types have the same width."""
        return a if a.dtype is dtype else self.emit("bitcast", dtype, a)

    # ----- memory and lanes

    def load(self, mem: Param | Shared, index: Reg, mask: Reg | None = None, ahead: int = 0) -> Reg:
        """`ahead`: how many bytes further on memory is worth fetching now, if not 0. Only a hint."""
        return self.emit("load", mem.dtype, index, *((mask,) if mask is not None else ()), mem=mem, ahead=ahead)

    def nibble(self, mem: Param | Shared, index: Reg, mask: Reg | None = None, ahead: int = 0, pairs: bool = False) -> Reg:
        """Element `index` of int4s that lie in an array of uint8; `ahead` as for load."""
        return self.emit("nibble", dt.int8, index, *((mask,) if mask is not None else ()), mem=mem, ahead=ahead, pairs=pairs)

    def store(self, mem: Param | Shared, index: Reg, value: Reg, mask: Reg | None = None, stream: bool = False) -> None:
        """`stream` marks data that will not be read again soon (non-temporal where the device has it), and promises
        that where the lanes store to consecutive elements without a mask the first index is a multiple of `lanes`.
        Arrays start at a multiple of 64 bytes."""
        self.emit("store", None, index, value, *((mask,) if mask is not None else ()), mem=mem, stream=stream)

    def table(self, dtype: DType, values: Sequence[int | float], index: Reg) -> Reg:
        """values[index], from a constant array of the program."""
        key = (dtype, repr(tuple(values)))  # not the values: -0.0 == 0.0, and no NaN equals itself
        t = self.tables.get(key)
        if t is None:
            t = self.tables[key] = Table(f"table{len(self.tables)}", dtype, tuple(values))
        return self.emit("table", dtype, index, mem=t)

    def lane_xor(self, a: Reg, mask: int) -> Reg:
        return self.emit("lane_xor", a.dtype, a, mask=mask)

    def lane_get(self, a: Reg, lane: int) -> Reg:
        return self.emit("lane_get", a.dtype, a, lane=lane)

    def barrier(self) -> None:
        """All shared-memory accesses of the group before it happen before those after it."""
        self.emit("barrier", None)

    def mma(self, tiles: Shared, a: Reg, lda: int, b: Reg, ldb: int, acc: Sequence[Reg], layout: str,
            turned: str = "") -> list[Reg]:
        """acc + A x B^T of tiles in `tiles`, which start at elements a and b, next rows lda and ldb later; columns, where
        `turned` ("", "a", "b" or "ab") names the operand."""
        out = tuple(self.reg(r.dtype) for r in acc)
        attrs = {"lda": lda, "ldb": ldb, "layout": layout, "turned": turned}
        self._blocks[-1].append(Inst("mma", out, (a, b, *acc), attrs, tiles))
        return list(out)

    # ----- structure

    def loop(self, lo: Reg | int, hi: Reg | int, carried: Sequence[Reg],
             body: Callable[[Reg, list[Reg]], Sequence[Reg]], *, step: int = 1) -> list[Reg]:
        """`for i in range(lo, hi, step)`; body(i, carried) returns the next carried registers."""
        lo = self.idx(lo) if isinstance(lo, int) else lo
        hi = self.idx(hi) if isinstance(hi, int) else hi
        inner = (self.reg(self.index), *(self.reg(r.dtype) for r in carried))
        block = self._enter()
        results = list(body(inner[0], list(inner[1:])))
        self._blocks[-1].append(Inst("yield", (), tuple(results)))
        self._leave()
        out = tuple(self.reg(r.dtype) for r in carried)
        self._blocks[-1].append(Inst("loop", out, (lo, hi, *carried), {"step": step}, body=block, inner=inner))
        return list(out)

    def when(self, cond: Reg, otherwise: Sequence[Reg], body: Callable[[], Sequence[Reg]]) -> list[Reg]:
        """select(cond, body(), otherwise), where a backend may skip body if cond is false in all lanes. Pure: no stores."""
        block = self._enter()
        results = list(body())
        self._blocks[-1].append(Inst("yield", (), tuple(results)))
        self._leave()
        out = tuple(self.reg(r.dtype) for r in otherwise)
        self._blocks[-1].append(Inst("when", out, (cond, *otherwise), body=block))
        return list(out)

    def _enter(self) -> list[Inst]:
        self._blocks.append([])
        self._constants.append({})
        return self._blocks[-1]

    def _leave(self) -> None:
        self._blocks.pop()
        self._constants.pop()

    def finish(self) -> Program:
        """The program, verified."""
        program = Program(self.name, self.lanes, self.groups, tuple(self.params), tuple(self.shared_arrays),
                          tuple(self.tables.values()), self._blocks[0], self.index)
        verify(program)
        return program


# What gives None, or leaves the range of the type, is left to the device.
_INDEX_FOLD: dict[str, Callable[[int, int], int | None]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "max": max, "min": min,
    "div": lambda a, b: a // b if a >= 0 and b > 0 else None, "rem": lambda a, b: a % b if a >= 0 and b > 0 else None,
}


# ---------------------------------------------------------------------------------------------------------------------
# Verifier


def verify(program: Program) -> None:
    """Check a program: definitions before uses in scope, types, memory, structure. Raises CompileError naming the place."""
    mems = {id(m) for m in (*program.params, *program.shared, *program.tables)}
    if program.lanes < 1 or program.lanes & (program.lanes - 1):
        raise CompileError(f"{program.name}: lanes must be a power of two, not {program.lanes}")
    _verify_block(program, program.body, set(), mems, inside="program")


def _fail(program: Program, inst: Inst, why: str) -> None:
    raise CompileError(f"{program.name}: {why}", evidence=line(inst).strip())


def _verify_block(p: Program, block: list[Inst], defined: set[Reg], mems: set[int], inside: str) -> None:
    scope = set(defined)
    for n, i in enumerate(block):
        for r in i.args:
            if r not in scope:
                _fail(p, i, f"{r} is used before it is defined, or outside its block")
        if (i.op == "yield") != (n == len(block) - 1 and inside != "program"):
            _fail(p, i, "a block ends with its one yield")
        if inside == "when" and i.op in ("store", "barrier"):
            _fail(p, i, "a when block must be pure")
        if any(r.dtype is dt.int4 for r in i.out) or i.mem is not None and i.mem.dtype is dt.int4:
            _fail(p, i, "int4 does not exist in LIR: keep its bytes as uint8, read them by nibble")
        if i.mem is not None and id(i.mem) not in mems:
            _fail(p, i, f"{i.mem.name} is no array of this program")
        why = _type_error(p, i)
        if why:
            _fail(p, i, why)
        if i.op in ("loop", "when"):
            _verify_block(p, i.body, scope | set(i.inner), mems, i.op if inside != "when" else "when")
            carried = i.args[2:] if i.op == "loop" else i.args[1:]
            results = i.body[-1].args
            if [r.dtype for r in results] != [r.dtype for r in carried]:
                _fail(p, i, "what a block yields must have the types of what it carries")
        for r in i.out:
            if r in scope:
                _fail(p, i, f"{r} is defined twice")
            scope.add(r)


def _type_error(p: Program, i: Inst) -> str:
    types = [r.dtype for r in i.args]
    op = i.op
    if op in UNARY or op in BINARY or op in COMPARE or op == "fma":
        if len(set(types)) != 1 or len(types) != (1 if op in UNARY else 3 if op == "fma" else 2):
            return f"{op} takes operands of one type"
        if types[0].storage or types[0].bits == 16 and types[0].is_float or _kind(types[0]) not in KINDS[op]:
            return f"{op} is not defined on {types[0]}"
        if i.out[0].dtype is not (dt.bool_ if op in COMPARE else types[0]):
            return f"{op} gives the wrong type"
    elif op == "select":
        if len(types) != 3 or types[0] is not dt.bool_ or types[1] is not types[2] or i.out[0].dtype is not types[1]:
            return "select takes a bool and two values of its type"
    elif op == "bitcast":
        if types[0].bits != i.out[0].dtype.bits or dt.bool_ in (types[0], i.out[0].dtype):
            return "bitcast keeps the width, and a bool has no bits"
    elif op in ("load", "store", "table", "nibble"):
        if types[0] is not p.index and types[0] not in (dt.int32, dt.int64):
            return "an index is int32 or int64"
        if op == "nibble" and (i.mem is None or i.mem.dtype is not dt.uint8 or i.out[0].dtype is not dt.int8):
            return "nibble reads int8 from uint8"
        if op == "store" and types[1] is not (i.mem.dtype if i.mem else None):
            return "a stored value has the array's type"
        if op == "store" and isinstance(i.mem, Param) and not i.mem.writable:
            return f"{i.mem.name} is read-only"
        masks = types[2:] if op == "store" else types[1:]
        if masks and masks != [dt.bool_]:
            return "a mask is one bool"
    elif op == "mma":
        return _mma_error(p, i)
    elif op == "lane_xor" and not 0 < int(i.attrs["mask"]) < p.lanes:
        return "lane_xor mask out of range"
    elif op == "lane_get" and not 0 <= int(i.attrs["lane"]) < p.lanes:
        return "lane out of range"
    elif op == "loop" and (types[0] is not p.index or types[1] is not p.index or int(i.attrs["step"]) < 1):
        return "loop bounds are index registers, the step at least 1"
    elif op == "when" and types[0] is not dt.bool_:
        return "a when takes a bool"
    elif op not in ("const", "group", "lane", "cast", "barrier", "yield", "lane_xor", "lane_get", "loop", "when"):
        return f"no such instruction: {op}"
    return ""


def _mma_error(p: Program, i: Inst) -> str:
    layout = LAYOUTS.get(i.attrs["layout"])
    if layout is None or p.lanes % layout.lanes:
        return f"mma has the layouts {', '.join(f'{name} of {x.lanes} lanes' for name, x in LAYOUTS.items())}"
    if i.attrs["turned"] not in (("", "a", "b", "ab") if layout.turns else ("",)):
        return f"mma.{i.attrs['layout']} takes no operands turned as {i.attrs['turned']}"
    if not isinstance(i.mem, Shared) or i.mem.dtype.name not in layout.types:
        return f"mma multiplies {' or '.join(layout.types)} in a shared array"
    if any(r.dtype is not p.index for r in i.args[:2]):
        return "mma takes its tiles by two index registers"
    if any([r.dtype for r in sums] != [layout.sums] * layout.registers for sums in (i.args[2:], i.out)):
        return f"mma adds to {layout.registers} registers of {layout.sums}"
    if any(s < layout.depth or s % layout.align for s in (i.attrs["lda"], i.attrs["ldb"])):
        return f"rows of mma's tiles are a multiple of {layout.align} elements apart, at least {layout.depth}"
    return ""


def walk(block: list[Inst]) -> Iterator[Inst]:
    """Every instruction, blocks included, in program order."""
    for i in block:
        yield i
        yield from walk(i.body)


# ---------------------------------------------------------------------------------------------------------------------
# Text


def line(i: Inst) -> str:
    """One instruction as text, without its block."""
    outs = ", ".join(f"{r}:{r.dtype.short}" for r in i.out)
    args = ", ".join(map(str, i.args))
    if i.op == "const":
        v = i.attrs["value"]
        return f"{outs} = const {v!r}"
    if i.op in ("load", "nibble", "table"):
        assert i.mem is not None
        pairs = ".pairs" if i.attrs.get("pairs") else ""
        return (f"{outs} = {i.op}{pairs} {i.mem.name}[{i.args[0]}]" + (f" if {i.args[1]}" if len(i.args) > 1 else "")
                + (f" ahead {ahead}" if (ahead := i.attrs.get("ahead")) else ""))
    if i.op == "store":
        assert i.mem is not None
        return (f"store{'.stream' if i.attrs.get('stream') else ''} {i.mem.name}[{i.args[0]}] = {i.args[1]}"
                + (f" if {i.args[2]}" if len(i.args) > 2 else ""))
    if i.op == "mma":
        assert i.mem is not None
        a, b, *sums = i.args
        turned = i.attrs["turned"]
        left, right = (f"{i.mem.name}[{at} + 0..15*{i.attrs[f'ld{name}']}]{'.turned' * (name in turned)}"
                       for name, at in (("a", a), ("b", b)))
        return f"{outs} = mma.{i.attrs['layout']} {left} x {right} + {', '.join(map(str, sums))}"
    if i.op == "loop":
        carried = ", ".join(f"{a}:{a.dtype.short}={b}" for a, b in zip(i.inner[1:], i.args[2:], strict=True))
        step = f" step {i.attrs['step']}" if i.attrs["step"] != 1 else ""
        head = f"for {i.inner[0]} in {i.args[0]}..{i.args[1]}{step}" + (f" carry {carried}" if carried else "")
        return f"{outs} = {head}" if outs else head
    if i.op == "when":
        return f"{outs} = when {i.args[0]} else {', '.join(map(str, i.args[1:]))}"
    extra = "".join(f" {v}" for v in i.attrs.values())
    return f"{outs} = {i.op} {args}{extra}".rstrip() if outs else f"{i.op} {args}".rstrip()


def _dump_block(block: list[Inst], indent: str, lines: list[str]) -> None:
    for i in block:
        lines.append(indent + line(i) + (" {" if i.body else ""))
        if i.body:
            _dump_block(i.body, indent + "  ", lines)
            lines.append(indent + "}")


def dump(program: Program) -> str:
    """The program as text, one instruction a line."""
    lines = [f"program {program.name} groups={program.groups} lanes={program.lanes}"]
    lines += [f"  param {p.name}: {p.dtype.short}[{p.count}]{' out' if p.writable else ''}" for p in program.params]
    lines += [f"  shared {s.name}: {s.dtype.short}[{s.count}]" for s in program.shared]
    lines += [f"  const {t.name}: {t.dtype.short}[{len(t.values)}]" for t in program.tables]
    _dump_block(program.body, "  ", lines)
    return "\n".join(lines) + "\n"


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Name the kernel in any CompileError raised inside."""
    try:
        yield
    except CompileError as e:
        raise CompileError(f"{name}: {e.what}", evidence=e.evidence, remedy=e.remedy) from e
