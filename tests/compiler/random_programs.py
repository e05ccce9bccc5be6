"""Random LIR programs, and their comparison with the interpreter, bit for bit.

    python -m tests.compiler.random_programs --count 5000 --seed 1     a long run; failures are shrunk and printed

A program is valid by construction: indexes are clamped, masked or affine and in range; each lane writes elements of its
own; shared memory is fenced by barriers; loop bounds come from constants, the group and outer counters. NaN bits that
LIR leaves open are made canonical before they can be seen (a store, a bitcast): each float register is known to be
CANONICAL (no NaN but the canonical one), RAW (its bits came from memory and were only moved) or LOOSE.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from devrt import registry
from devrt.compiler import convert, interpreter, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Param, Program, Reg, Shared
from devrt.compiler.llvm import backend, target
from devrt.device import CompileError, DevrtError
from tests.compiler.shrink import shrink

Arrays = dict[str, np.ndarray]
TYPES = tuple(d for d in dt.ALL if d is not dt.int4)
INTS = tuple(d for d in TYPES if d.is_int)
WIDE = (dt.float32, dt.float64)
CANONICAL, RAW, LOOSE = range(3)
LANES = (1, 2, 4, 8, 16, 32)
SPECIAL_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.0, 3.0, 127.0, 255.0, 448.0, 464.0, 480.0, 65504.0, 65520.0,
                  -65536.0, 2.0**-149, 2.0**-140, 2.0**-126, -2.0**-127, 2.0**-24, 2.0**-9, 2.0**-10, 2.0**-1074,
                  3.4e38, -1e300, 2.0**31, -2.0**31, 2.0**32, 2.0**63, -2.0**63, 2.0**64,
                  float("inf"), float("-inf"), float("nan"))


def special_data(dtype: DType, count: int, rng: np.random.Generator) -> np.ndarray:
    """A raw array: any bits, small numbers, and the values at which arithmetic turns."""
    storage = convert.storage_numpy(dtype)
    if dtype.kind == "bool":
        return rng.integers(0, 2, count).astype(storage)
    anywhere = rng.integers(0, 1 << dtype.bits, count, f"u{dtype.bits // 8}").view(storage)
    small = convert.encode(rng.integers(-9, 10, count), dtype)
    if dtype.is_float:
        edges = convert.encode(rng.choice(np.array(SPECIAL_FLOATS), count), dtype)
        small = np.where(rng.random(count) < 0.5, small, convert.encode(rng.uniform(-4, 4, count), dtype))
    else:
        powers = [1 << k for k in (0, 1, 2, dtype.bits // 2, dtype.bits - 1, dtype.bits)]
        near = [v for p in powers for v in (p - 1, p, -p)]
        near = [v for v in (*near, dtype.min, dtype.max, 0) if dtype.min <= v <= dtype.max]
        edges = rng.choice(np.array(near, storage), count)
    kind = rng.integers(0, 3, count)
    return np.where(kind == 0, anywhere, np.where(kind == 1, small, edges)).astype(storage)


class Generator:
    """Writes one program. `program` and `arrays` (its arguments) are the result."""

    def __init__(self, seed: int, *, lanes: int | None = None, size: int = 40) -> None:
        self.rng = random.Random(seed)
        self.data = np.random.default_rng(seed)
        self.lanes = lanes or self.rng.choice(LANES)
        self.groups = self.rng.randint(1, 5)
        index = dt.int32 if self.rng.random() < 0.25 else dt.int64
        self.b = Builder("random_program", lanes=self.lanes, groups=self.groups, index=index)
        self.index = index
        self.own = self.lanes * self.groups  # elements of an array in which each lane has one
        self.count = 1 << (2 * self.own + 16).bit_length()  # of an input: room for offsets, a power of two to clamp by
        self.arrays: Arrays = {}
        self.bits: dict[Reg, int] = {}  # what is known of the NaN bits of a float register
        self.visible: list[list[Reg]] = [[]]
        self.counters: list[tuple[Reg, int]] = []  # loop counters in scope and their greatest value
        self.pure = 0  # depth of when blocks
        self.inputs = [self.input(d) for d in self.rng.sample(TYPES, 6)]
        self.bytes = self.input(dt.uint8)
        self.statements(size)
        for r in [r for block in self.visible for r in block][-12:]:
            self.store_own(r)
        self.program = self.b.finish()

    # ----- values

    def input(self, dtype: DType) -> Param:
        p = self.b.param(f"in{len(self.arrays)}", dtype, self.count)
        self.arrays[p.name] = aligned(special_data(dtype, self.count, self.data))
        return p

    def keep(self, r: Reg, bits: int = LOOSE) -> Reg:
        """Note a new register; `bits` matters for floats alone."""
        self.bits[r] = bits if r.dtype.is_float else CANONICAL
        self.visible[-1].append(r)
        return r

    def constant(self, dtype: DType) -> Reg:
        raw = special_data(dtype, 1, self.data)
        value = convert.decode(raw, dtype, 1)[0].item()
        return self.keep(self.b.const(dtype, value), CANONICAL if value == value else LOOSE)

    def pick(self, dtype: DType) -> Reg:
        """A register of `dtype` in scope, preferably recent, or a new one."""
        found = [r for block in self.visible for r in block if r.dtype is dtype]
        if found and self.rng.random() < 0.85:
            return found[-1 - min(int(self.rng.expovariate(0.4)), len(found) - 1)]
        kind = self.rng.random()
        if kind < 0.3:
            return self.constant(dtype)
        if kind < 0.6:
            p = self.rng.choice(self.inputs)
            return self.cast(self.load(p), dtype)
        source = self.rng.choice([r for block in self.visible for r in block] or [self.constant(dt.int32)])
        return self.cast(source, dtype)

    def cast(self, r: Reg, dtype: DType) -> Reg:
        if r.dtype is dtype:
            return r
        kept = self.bits[r] == CANONICAL and dtype is not dt.float8_e4m3  # which overflows to some NaN
        return self.keep(self.b.cast(r, dtype), CANONICAL if kept else LOOSE)

    def settled(self, r: Reg) -> Reg:
        """`r` with NaN bits that are the same everywhere."""
        if self.bits[r] != LOOSE:
            return r
        if r.dtype in WIDE:
            return self.keep(self.b.canon(r), CANONICAL)
        wide = self.keep(self.b.canon(self.b.cast(r, dt.float32)), CANONICAL)
        return self.keep(self.b.cast(wide, r.dtype), CANONICAL)

    # ----- indexes

    def uniform_index(self) -> tuple[Reg, int]:
        """An index register that is the same in all lanes, at least 0, and its greatest value."""
        b = self.b
        kind = self.rng.randrange(4)
        if kind == 0:
            return b.group(), self.groups - 1
        if kind == 1 and self.counters:
            return self.rng.choice(self.counters)
        if kind == 2:
            return b.mul(b.group(), b.idx(self.lanes)), (self.groups - 1) * self.lanes
        value = self.rng.randrange(8)
        return b.idx(value), value

    def affine_index(self) -> Reg:
        """base + stride*lane, in range of an input."""
        b = self.b
        base, most = self.uniform_index()
        if self.rng.random() < 0.4 and self.counters:
            counter, top = self.rng.choice(self.counters)
            base, most = b.add(base, counter), most + top
        choices = [s for s in (-1, 0, 1, 1, 1, 2, 3) if most + abs(s) * (self.lanes - 1) < self.count]
        stride = self.rng.choice(choices)
        if stride < 0:
            return b.add(base, b.sub(b.idx(self.lanes - 1), b.lane()))
        return b.add(base, b.mul(b.lane(), b.idx(stride)))

    def any_index(self, count: int) -> Reg:
        """Data as an index below `count`, a power of two."""
        index = self.rng.choice((dt.int32, dt.int64))
        r = self.cast(self.pick(self.rng.choice(INTS)), index)
        return self.keep(self.b.and_(r, self.b.const(index, count - 1)))

    def own_index(self) -> Reg:
        """A permutation of the lanes of all groups."""
        b = self.b
        lane = b.lane()
        kind = self.rng.randrange(5)
        if kind == 0 and self.lanes > 1:
            lane = b.xor(lane, b.idx(self.rng.randrange(1, self.lanes)))
        elif kind == 1:
            lane = b.sub(b.idx(self.lanes - 1), lane)
        elif kind == 2:
            return b.add(b.mul(lane, b.idx(self.groups)), b.group())
        return b.add(b.mul(b.group(), b.idx(self.lanes)), lane)

    # ----- statements

    def statements(self, count: int) -> None:
        choices: list[tuple[Callable[[], object], int]] = [
            (self.arithmetic, 16), (self.cast_any, 5), (self.select, 2), (self.bitcast, 2), (self.load_any, 4),
            (self.table, 1), (self.lane_op, 2), (self.canon, 1), (self.ids, 1),
            (self.nibble, 1),
        ]
        if len(self.visible) < 3:
            choices += [(self.loop, 1), (self.when, 1)]
        if not self.pure:
            choices += [(self.store_any, 1), (self.shared, 1), (self.update, 1)]
        for action in self.rng.choices([c for c, _ in choices], [w for _, w in choices], k=count):
            action()

    def arithmetic(self) -> None:
        op = self.rng.choice(sorted(lir.KINDS))
        kinds = lir.KINDS[op]
        types = [d for d in (*INTS, *WIDE, dt.float32, dt.float32, dt.bool_)
                 if ("float" if d.is_float else "bool" if d.kind == "bool" else "int") in kinds]
        d = self.rng.choice(types)
        arity = 1 if op in lir.UNARY else 3 if op == "fma" else 2
        args = [self.pick(d) for _ in range(arity)]
        if op in lir.COMPARE:
            self.keep(self.b.emit(op, dt.bool_, *args))
        elif op == "fma":
            self.keep(self.b.fma(*args))
        else:
            r = self.b.unary(op, args[0]) if arity == 1 else self.b.binary(op, *args)
            self.keep(r, CANONICAL if op == "canon" else LOOSE)

    def cast_any(self) -> None:
        self.cast(self.pick(self.rng.choice(TYPES)), self.rng.choice(TYPES))

    def canon(self) -> None:
        self.keep(self.b.canon(self.pick(self.rng.choice(WIDE))), CANONICAL)

    def select(self) -> None:
        d = self.rng.choice(TYPES)
        a, b = self.pick(d), self.pick(d)
        self.keep(self.b.select(self.pick(dt.bool_), a, b), max(self.bits[a], self.bits[b]))

    def bitcast(self) -> None:
        d = self.rng.choice([d for d in TYPES if d is not dt.bool_])
        to = self.rng.choice([t for t in TYPES if t.bits == d.bits and t is not dt.bool_])
        r = self.settled(self.pick(d))
        self.keep(self.b.bitcast(r, to), RAW)

    def ids(self) -> None:
        r = self.rng.choice((self.b.lane, self.b.group))()
        self.keep(self.cast(self.keep(r), self.rng.choice(TYPES)))

    def lane_op(self) -> None:
        r = self.pick(self.rng.choice(TYPES))
        if self.lanes > 1 and self.rng.random() < 0.6:
            self.keep(self.b.lane_xor(r, self.rng.randrange(1, self.lanes)), self.bits[r])
        else:
            self.keep(self.b.lane_get(r, self.rng.randrange(self.lanes)), self.bits[r])

    def table(self) -> None:
        d = self.rng.choice(TYPES)
        values = convert.decode(special_data(d, 8, self.data), d, 8).tolist()
        values = [0.0 if v != v else v for v in values]
        at = self.any_index(8) if self.rng.random() < 0.6 else self.b.rem(self.b.lane(), self.b.idx(8))
        self.keep(self.b.table(d, values, at), CANONICAL)

    def inside(self, at: Reg, count: int) -> Reg:
        """0 <= at < count."""
        b = self.b
        return b.and_(b.le(b.const(at.dtype, 0), at), b.lt(at, b.const(at.dtype, count)))

    def load(self, p: Param | Shared) -> Reg:
        kind = self.rng.random()
        if kind < 0.5:
            return self.keep(self.b.load(p, self.affine_index(), self.maybe_mask()), RAW)
        if kind < 0.7:
            return self.keep(self.b.load(p, self.uniform_index()[0], self.maybe_mask()), RAW)
        if kind < 0.9:
            return self.keep(self.b.load(p, self.any_index(p.count), self.maybe_mask()), RAW)
        if kind < 0.95:  # a window that hangs over an edge of the array
            offset = self.rng.choice((-1, -self.lanes // 2, p.count - self.lanes))
            at = self.b.add(self.affine_index(), self.b.idx(offset))
        else:
            at = self.cast(self.pick(self.rng.choice(INTS)), self.rng.choice((dt.int32, dt.int64)))
        return self.keep(self.b.load(p, at, self.inside(at, p.count)), RAW)

    def load_any(self) -> None:
        self.load(self.rng.choice(self.inputs))

    def nibble(self) -> None:
        """An int4 element: neighbours, pairs, the same in all lanes, or any."""
        b, p = self.b, self.bytes
        kind = self.rng.randrange(4)
        if kind == 0 and self.lanes > 1:
            at = b.add(b.mul(self.uniform_index()[0], b.idx(2)), b.lane())
        else:
            at = self.affine_index() if kind < 2 else self.uniform_index()[0] if kind == 2 else self.any_index(2 * p.count)
        self.keep(b.nibble(p, at, self.maybe_mask(), self.rng.choice((0, 64)), pairs=kind == 0 and self.lanes > 1))

    def maybe_mask(self) -> Reg | None:
        kind = self.rng.random()
        if kind < 0.6:
            return None
        if kind < 0.8:  # a tail
            return self.b.lt(self.b.lane(), self.b.idx(self.rng.randint(0, self.lanes)))
        return self.pick(dt.bool_)

    def output(self, dtype: DType) -> Param:
        p = self.b.param(f"out{len(self.arrays)}", dtype, self.own, writable=True)
        self.arrays[p.name] = special_data(dtype, self.own, self.data)
        return p

    def store_own(self, r: Reg) -> None:
        r = self.settled(r)
        at = self.own_index()
        mask = self.maybe_mask()
        if mask is not None and self.rng.random() < 0.5:  # masked-off lanes may point anywhere
            at = self.b.select(mask, at, self.b.idx(self.rng.choice((-1, self.own, 1 << 30, -(1 << 30)))))
        elif mask is not None and self.rng.random() < 0.5:  # hanging over an edge
            at = self.b.add(at, self.b.idx(self.rng.choice((-1, 1, -self.lanes // 2, self.own - 1))))
            mask = self.inside(at, self.own)
        self.b.store(self.output(r.dtype), at, r, mask, stream=self.rng.random() < 0.2)

    def store_any(self) -> None:
        self.store_own(self.pick(self.rng.choice(TYPES)))

    def update(self) -> None:
        """Read, change and write elements of the lane's own."""
        d = self.rng.choice((*WIDE, *INTS))
        p, at = self.output(d), self.own_index()
        old = self.keep(self.b.load(p, at), RAW)
        new = self.keep(self.b.binary(self.rng.choice(("add", "max", "mul")), old, self.pick(d)))
        self.b.store(p, at, self.settled(new), self.maybe_mask())

    def shared(self) -> None:
        """Lanes of a group exchange values through shared memory."""
        b, d = self.b, self.rng.choice(TYPES)
        width = self.rng.choice((1, 2))
        s = b.shared(f"s{len(b.shared_arrays)}", d, width * self.lanes)
        for n in range(width):
            r = self.settled(self.pick(d))
            at = b.xor(b.lane(), b.idx(self.rng.randrange(self.lanes)))
            at = b.add(b.mul(at, b.idx(width)), b.idx(n))
            b.store(s, at, r)
            if self.rng.random() < 0.3:
                b.store(s, at, self.settled(self.pick(d)), self.maybe_mask())
        b.barrier()
        for _ in range(2):
            if self.rng.random() < 0.5:
                self.keep(b.load(s, self.any_index(s.count), self.maybe_mask()), RAW)
            else:
                start = self.rng.randint(0, (width - 1) * self.lanes)
                self.keep(b.load(s, b.add(b.lane(), b.idx(start)), self.maybe_mask()), RAW)
        b.barrier()

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.visible.append([])
        try:
            yield
        finally:
            self.visible.pop()

    def results(self, like: Sequence[Reg]) -> list[Reg]:
        return [self.pick(r.dtype) for r in like]

    def loop(self) -> None:
        b = self.b
        carried = [self.pick(self.rng.choice(TYPES)) for _ in range(self.rng.randint(0, 4))]
        kind = self.rng.randrange(4)
        lo = self.rng.randrange(3)
        if kind == 0:
            hi, top = b.add(b.rem(b.group(), b.idx(3)), b.idx(1)), 3
        elif kind == 1 and self.counters:
            hi, top = self.rng.choice(self.counters)
        else:
            top = self.rng.randrange(6)
            hi = b.idx(top)

        def body(i: Reg, inner: list[Reg]) -> list[Reg]:
            with self.scope():
                self.keep(i)
                for r in inner:
                    self.keep(r)
                self.counters.append((i, max(top - 1, 0)))
                self.statements(self.rng.randint(1, 8))
                out = self.results(carried)
                self.counters.pop()
            return out

        step = self.rng.choice((1, 1, 2, 3))
        for r in b.loop(lo, hi, carried, body, step=step):
            self.keep(r)

    def when(self) -> None:
        otherwise = [self.pick(self.rng.choice(TYPES)) for _ in range(self.rng.randint(1, 3))]
        condition = self.pick(dt.bool_)

        def body() -> list[Reg]:
            with self.scope():
                self.pure += 1
                self.statements(self.rng.randint(1, 6))
                out = self.results(otherwise)
                self.pure -= 1
            return out

        for r in self.b.when(condition, otherwise, body):
            self.keep(r)


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 64 bytes, as LIR wants of arrays."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    out = room[start:start + array.nbytes].view(array.dtype)
    out[:] = array
    return out


def copies(program: Program, arrays: Arrays) -> Arrays:
    """Copies of what a run writes; the rest as it is."""
    return {p.name: aligned(arrays[p.name]) if p.writable else arrays[p.name] for p in program.params}


def interpreted(program: Program, arrays: Arrays, groups_at_once: int | None = None) -> Arrays:
    out = copies(program, arrays)
    interpreter.run(program, out, groups_at_once=groups_at_once)
    return out


def compiled(program: Program, arrays: Arrays, to: target.Target) -> Arrays:
    """What the CPU device makes of the machine code."""
    out = copies(program, arrays)
    device = registry.open("cpu")
    loaded = device.load(backend.compile_program(program, to), program.name)
    try:
        commands = device.command_list()
        buffers = [device.wrap(out[p.name].ctypes.data, out[p.name].nbytes, out[p.name]) for p in program.params]
        commands.dispatch(loaded, buffers, program.groups)
        device.compute.wait(device.compute.submit(commands), 10.0)
    finally:
        loaded.close()
    return out


def difference(program: Program, want: Arrays, got: Arrays) -> str:
    """The first element whose bits differ, as text, or ""."""
    for p in program.params:
        a, b = (x[p.name].view(f"u{x[p.name].dtype.itemsize}") for x in (want, got))
        if p.writable and (a != b).any():
            at = int(np.flatnonzero(a != b)[0])
            return (f"{p.name}[{at}] ({p.dtype}) should be {want[p.name][at]} = {a[at]:#x}, "
                    f"is {got[p.name][at]} = {b[at]:#x}")
    return ""


def disagreement(program: Program, arrays: Arrays, to: target.Target) -> str:
    """How the machine code for `to` differs from the interpreter, or why there is none; "" if all is well.

    Raises CompileError where the program breaks LIR's rules.
    """
    want = interpreted(program, arrays)
    try:
        return difference(program, want, compiled(program, arrays, to))
    except DevrtError as e:
        return str(e)


def isolated(program: Program, arrays: Arrays, to: target.Target) -> str:
    """`disagreement` in a process of its own, so that code that crashes is a failure like any other."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = "=" + disagreement(program, arrays, to)
        except CompileError as e:
            answer = "!" + str(e)
        os.write(send, answer.encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if answer.startswith("!"):
        raise CompileError(answer[1:])
    return answer[1:] if answer else f"the code crashed: signal {os.WTERMSIG(status)}"


def targets() -> list[target.Target]:
    """What this machine can run: itself, and a narrower x86-64."""
    host = target.host()
    return [host, target.named("x86-64-avx2")] if host.isa == "x86_64" and host.lanes == 16 else [host]


def check(seed: int, compare: Callable[[Program, Arrays, target.Target], str] = disagreement, *,
          lanes: int | None = None, size: int = 40) -> tuple[Generator, target.Target, str]:
    """Compare one program on each target; returns it with the target and the difference, "" if there is none."""
    g = Generator(seed, lanes=lanes, size=size)
    for to in targets():
        if why := compare(g.program, g.arrays, to):
            break
    return g, to, why


def main() -> int:
    parser = argparse.ArgumentParser(description="Random LIR programs: the LLVM backend against the interpreter.")
    parser.add_argument("--count", type=int, default=1000, help="programs to run")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--lanes", type=int, choices=LANES, help="lanes of a group; random if not given")
    parser.add_argument("--size", type=int, default=40, help="statements a program")
    parser.add_argument("--verbose", action="store_true", help="print each seed before it runs")
    options = parser.parse_args()

    failures = 0
    for seed in range(options.seed, options.seed + options.count):
        if options.verbose:
            print("seed", seed, flush=True)
        g, to, why = check(seed, isolated, lanes=options.lanes, size=options.size)
        if not why:
            continue
        failures += 1

        def differs(program: Program, g: Generator = g, to: target.Target = to) -> bool:
            return bool(isolated(program, g.arrays, to))

        small = shrink(g.program, differs)
        print(f"seed {seed}, {to.cpu}: {isolated(small, g.arrays, to)}\n{small}", flush=True)
        for p in small.params:
            if not p.writable:
                print(f"  {p.name} = {g.arrays[p.name].tolist()[:64]}")
    print(f"{options.count} programs, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
