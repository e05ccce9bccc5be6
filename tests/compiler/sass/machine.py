"""A NumPy machine for mir: what selection writes, run before registers are allocated, with MUFU off by as many units as a test
asks.

All groups run at once, as arrays (groups, lanes) of words; where a branch goes two ways they part. Only what selection emits is
known here.
"""

from __future__ import annotations

import numpy as np

from devrt.compiler import arithmetic, convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.sass.instruction import Address, Cbuf, File, Imm, Instruction, Label, Operand, Reg, Special
from devrt.compiler.sass.mir import Function
from devrt.compiler.sass.target import PARAMS

BASE = 1 << 32  # where global memory starts: addresses need both words
U32, U64, S64 = np.uint32, np.uint64, np.int64


class Machine:
    """Runs `f` on `arrays` (by parameter), which it writes to. `off`: units by which MUFU is wrong."""

    def __init__(self, f: Function, program: lir.Program, arrays: dict[str, np.ndarray], off: int = 0) -> None:
        self.f, self.lanes, self.off = f, program.lanes, off
        self.blocks = {b.label: n for n, b in enumerate(f.blocks)}
        places, size = {}, 0
        for p in program.params:
            places[p.name] = size
            size += -(-(arrays[p.name].nbytes + 64) // 64) * 64
        self.memory = np.zeros(size, np.uint8)
        for name, at in places.items():
            self.memory[at:at + arrays[name].nbytes] = arrays[name].view(np.uint8)
        self.bank = np.zeros(0x1000, np.uint8)
        for n, p in enumerate(program.params):
            self.bank[PARAMS[f.sm] + 8 * n:][:8] = np.array([BASE + places[p.name]], U64).view(np.uint8)
        self.constants = np.frombuffer(f.constants + bytes(64), np.uint8)
        work = [(0, np.arange(program.groups), {}, np.zeros((program.groups, f.shared_bytes + 64), np.uint8))]
        with np.errstate(all="ignore"):
            while work:
                work += self.run(*work.pop())
        for name, at in places.items():
            arrays[name].view(np.uint8)[:] = self.memory[at:at + arrays[name].nbytes]

    def run(self, block, groups, registers, shared):
        """Until the groups part or end; the parts."""
        self.groups, self.r, self.shared = groups, registers, shared
        while block < len(self.f.blocks):
            block += 1
            for i in self.f.blocks[block - 1].instructions:
                if i.op == "EXIT":
                    return []
                if i.op != "BRA":
                    self.step(i)
                    continue
                taken = self.guard(i)
                rows = taken.all(1)
                assert (rows == taken.any(1)).all(), "a branch within a warp"
                target = self.blocks[i.srcs[-1].value.target]
                if rows.all():
                    block = target
                elif rows.any():
                    return [(to, groups[keep], {k: v[keep] for k, v in registers.items()}, shared[keep])
                            for to, keep in ((target, rows), (block, ~rows))]
        raise AssertionError("ran over the end")

    # ----- operands

    def full(self, value):
        return np.broadcast_to(np.asarray(value), (len(self.groups), self.lanes))

    def guard(self, i):
        return self.predicate(i.guard)

    def predicate(self, o: Operand):
        r = o.value
        value = self.full(True) if r.zero else self.r[r.file, r.index, 0]
        return ~value if o.inv else value

    def word(self, o: Operand, n: int = 0):
        """Word n of an operand, uint32, modifiers of integers applied but for neg."""
        v = o.value
        if isinstance(v, Imm):
            return self.full(U32(v.value))
        if isinstance(v, Cbuf):
            value = self.full(U32(int.from_bytes(self.bank[v.offset + 4 * n:][:4].tobytes(), "little")))
        elif v.zero:
            value = self.full(U32(0))
        else:
            value = self.r[v.file, v.index, v.sub + n]
        return ~value if o.inv else value

    def long(self, o: Operand):
        return self.word(o).astype(U64) | self.word(o, 1).astype(U64) << U64(32)

    def single(self, o: Operand):
        value = self.word(o).copy().view(np.float32)
        value = np.abs(value) if o.abs else value
        return -value if o.neg else value

    def double(self, o: Operand):
        value = self.long(o).view(np.float64)
        value = np.abs(value) if o.abs else value
        return -value if o.neg else value

    def put(self, i: Instruction, o: Operand, value, n: int = 0):
        r = o.value
        if r.zero:
            return
        value = self.full(value)
        on = self.guard(i)
        key = (r.file, r.index, r.sub + n)
        if not on.all():
            value = np.where(on, value, self.r.get(key, self.full(value.dtype.type(0))))
        self.r[key] = value

    def put_words(self, i, o, value):
        """A uint32, or a uint64 in two words."""
        if value.dtype == np.float32:
            value = value.view(U32)
        if value.dtype == np.float64:
            value = value.view(U64)
        if value.dtype.itemsize == 8:
            value = value.astype(U64)
            self.put(i, o, (value & U64(0xFFFFFFFF)).astype(U32))
            self.put(i, o, (value >> U64(32)).astype(U32), 1)
        else:
            self.put(i, o, value.astype(U32))

    # ----- instructions

    def step(self, i: Instruction) -> None:
        getattr(self, f"op_{i.op.lower()}")(i, set(i.mods), *i.srcs)

    def op_mov(self, i, m, a):
        self.put_words(i, i.dsts[0], self.word(a))

    def op_ldc(self, i, m, a):
        c = a.value
        if c.bank == 0:
            self.put_words(i, i.dsts[0], self.full(int.from_bytes(self.bank[c.offset:][:8].tobytes(), "little")).astype(U64))
        else:
            at = c.offset + (self.word(Operand(c.index)).view(np.int32).astype(S64) if c.index else 0)
            self.loaded(i, m, self.full(at), lambda at: self.constants[at])

    def op_uldc(self, i, m, a):
        pass

    op_ldcu = op_uldc

    def op_s2r(self, i, m, a):
        value = self.groups[:, None] if a.value == Special(0x25) else np.arange(self.lanes)[None, :]
        self.put(i, i.dsts[0], self.full(value.astype(U32)))

    def op_iadd3(self, i, m, a, b, c, *carries):
        total = self.full(np.uint64(0))
        for o in (a, b, c):
            w = self.word(o).astype(U64)
            total = total + (((~self.word(o)).astype(U64) + U64(1)) if o.neg and not o.value.zero else w)
        for p in carries:
            total = total + self.predicate(p).astype(U64)
        self.put(i, i.dsts[0], total.astype(U32))
        if len(i.dsts) > 1:
            self.put(i, i.dsts[1], total >> U64(32) != 0)

    def op_imad(self, i, m, a, b, c):
        kind = U64 if "U32" in m else S64
        x, y = (self.word(o).view(np.int32).astype(S64) if kind is S64 else self.word(o).astype(U64) for o in (a, b))
        product = (x * y).astype(U64)
        if "HI" in m:
            assert c.value.zero
            self.put(i, i.dsts[0], (product >> U64(32)).astype(U32))
        elif "WIDE" in m:
            self.put_words(i, i.dsts[0], product + self.long(c))
        else:
            self.put(i, i.dsts[0], product.astype(U32) + self.word(c))

    def op_lea(self, i, m, a, b, n):
        self.put(i, i.dsts[0], (self.word(a) << U32(n.value.value)) + self.word(b))

    def op_iabs(self, i, m, a):
        x = self.word(a)
        self.put(i, i.dsts[0], np.where(x >> U32(31), U32(0) - x, x).astype(U32))

    def op_lop3(self, i, m, a, b, c, lut, _):
        x, y, z = (self.word(o) for o in (a, b, c))
        out = self.full(U32(0))
        for n in range(8):
            if lut.value.value >> n & 1:
                out = out | (x if n & 4 else ~x) & (y if n & 2 else ~y) & (z if n & 1 else ~z)
        self.put(i, i.dsts[0], out)

    def op_shf(self, i, m, a, b, c):
        wide = (self.word(a).astype(U64) | self.word(c).astype(U64) << U64(32))
        most = 64 if m & {"U64", "S64"} else 32
        n = np.minimum(self.word(b), most).astype(U64)
        gone = n >= 64
        n = np.where(gone, U64(63), n)
        if "L" in m:
            out = np.where(gone, U64(0), wide << n)
            assert "HI" in m or c.value.zero
        else:
            signed = m & {"S64", "S32"}
            out = (wide.view(S64) >> n.view(S64)).view(U64) if signed else wide >> n
            out = np.where(gone, (wide.view(S64) >> S64(63)).view(U64) if signed else U64(0), out)
        self.put(i, i.dsts[0], (out >> U64(32) if "HI" in m else out).astype(U32))

    def op_prmt(self, i, m, a, selector, c):
        wide, out = self.word(a).astype(U64) | self.word(c).astype(U64) << U64(32), self.full(U64(0))
        for n in range(4):
            taken = selector.value.value >> 4 * n
            byte = wide >> U64(8 * (taken & 7)) & U64(0xFF)
            if taken & 8:  # its sign
                byte = (byte >> U64(7)) * U64(0xFF)
            out = out | byte << U64(8 * n)
        self.put(i, i.dsts[0], out.astype(U32))

    def op_sgxt(self, i, m, a, n):
        left = U32(32 - n.value.value)
        self.put(i, i.dsts[0], ((self.word(a) << left).view(np.int32) >> np.int32(left)).view(U32))

    def op_sel(self, i, m, a, b, p):
        self.put(i, i.dsts[0], np.where(self.predicate(p), self.word(a), self.word(b)))

    def op_imnmx(self, i, m, a, b, p):
        x, y = (self.word(o) if "U32" in m else self.word(o).view(np.int32) for o in (a, b))
        self.put(i, i.dsts[0], np.where(self.predicate(p), np.minimum(x, y), np.maximum(x, y)).view(U32))

    op_vimnmx = op_imnmx

    def op_isetp(self, i, m, a, b, p, *low):
        x, y = (self.word(o) if "U32" in m else self.word(o).view(np.int32) for o in (a, b))
        test = self.compare(i.mods[0], x, y)
        if low:
            base = i.mods[0]
            below = self.predicate(low[0])
            strict = {"LT": x < y, "LE": x < y, "GT": x > y, "GE": x > y, "EQ": x != x, "NE": x != y}[base]
            test = strict | (x == y) & below
        self.setp(i, m, test, p)

    def compare(self, name, x, y):
        nan = (x != x) | (y != y)
        if name in ("NAN", "NUM"):
            return nan == (name == "NAN")
        tests = {"LT": x < y, "LE": x <= y, "GT": x > y, "GE": x >= y, "EQ": x == y, "NE": (x != y) & ~nan}
        plain = tests[name.removesuffix("U")]
        return plain | nan if name.endswith("U") else plain

    def setp(self, i, m, test, p):
        other = self.predicate(p)
        self.put(i, i.dsts[0], test & other if "AND" in m else test | other if "OR" in m else test ^ other)

    def op_fsetp(self, i, m, a, b, p):
        self.setp(i, m, self.compare(i.mods[0], self.single(a), self.single(b)), p)

    def op_dsetp(self, i, m, a, b, p):
        self.setp(i, m, self.compare(i.mods[0], self.double(a), self.double(b)), p)

    def op_vote(self, i, m, p):
        self.put(i, i.dsts[0], self.full(self.predicate(p).any(1)[:, None]))

    # ----- floats

    def op_fadd(self, i, m, a, b):
        self.put_words(i, i.dsts[0], self.nan(self.single(a) + self.single(b)))

    def op_fmul(self, i, m, a, b):
        self.put_words(i, i.dsts[0], self.nan(self.single(a) * self.single(b)))

    def op_ffma(self, i, m, a, b, c):
        self.put_words(i, i.dsts[0], self.nan(arithmetic.evaluate("fma", *(np.array(self.single(o)) for o in (a, b, c)))))

    def op_dadd(self, i, m, a, b):
        self.put_words(i, i.dsts[0], self.double(a) + self.double(b))

    def op_dmul(self, i, m, a, b):
        self.put_words(i, i.dsts[0], self.double(a) * self.double(b))

    def op_dfma(self, i, m, a, b, c):
        self.put_words(i, i.dsts[0], arithmetic.evaluate("fma", *(np.array(self.double(o)) for o in (a, b, c))))

    def nan(self, x):
        """NVIDIA's NaN."""
        return np.where(np.isnan(x), U32(0x7FFFFFFF), x.view(U32)).astype(U32)

    def op_fmnmx(self, i, m, a, b, p):
        x, y = self.single(a), self.single(b)
        least = np.where(self.predicate(p), arithmetic.evaluate("min", x, y), arithmetic.evaluate("max", x, y))
        if "NAN" not in m:
            least = np.where(np.isnan(x), y, np.where(np.isnan(y), x, least))
        self.put_words(i, i.dsts[0], self.nan(least))

    def op_frnd(self, i, m, a):
        value = np.floor(self.double(a) if "F64" in m else self.single(a))
        self.put_words(i, i.dsts[0], value)

    def op_mufu(self, i, m, a):
        (kind,) = m
        if kind.endswith("64H"):
            x = (self.word(a).astype(U64) << U64(32)).view(np.float64)
            y = 1 / x if kind == "RCP64H" else 1 / np.sqrt(x)
            bits = (y.view(U64) >> U64(32)).astype(U32)
            odd = ~np.isfinite(y) | (y == 0)
        else:
            x = self.single(a).astype(np.float64)
            y = (1 / x if kind == "RCP" else 1 / np.sqrt(x)).astype(np.float32)
            bits = y.view(U32)
            odd = ~np.isfinite(y) | (y == 0)
        self.put(i, i.dsts[0], np.where(odd, bits, bits + U32(self.off & 0xFFFFFFFF)).astype(U32))

    def op_f2f(self, i, m, a):
        first = i.mods[0]
        if first == "F64":
            self.put_words(i, i.dsts[0], self.single(a).astype(np.float64))
        elif first == "F16":
            self.half(i, self.single(a), dt.float16)
        else:
            x = self.double(a)
            y = x.astype(np.float32)
            if "RZ" in m:
                away = np.abs(y.astype(np.float64)) > np.abs(x)
                y = np.where(away, (y.view(U32) - U32(1)).view(np.float32), y)
            self.put_words(i, i.dsts[0], self.nan(y))

    def half(self, i, x, d):
        bits = convert.cast(np.array(x), dt.float32, d).view(np.uint16).astype(U32)
        self.put(i, i.dsts[0], np.where(np.isnan(x), U32(0x7FFF), bits))

    def op_f2fp(self, i, m, high, a):
        self.put_halves(i, dt.bfloat16 if "BF16" in m else dt.float16, [self.single(o).astype(np.float64) for o in (a, high)])

    # ----- pairs of halves: sums, products and their sums in float64, where they are exact or, of bfloat16, rounded to odd

    def halves(self, o: Operand, d):
        """Both numbers of an operand as float64."""
        v, word = o.value, self.word(o)
        raw = [word & U32(0xFFFF), word >> U32(16)]
        raw = {"": raw, "H0_H0": raw[:1] * 2, "H1_H1": raw[1:] * 2}[o.select]
        found = []
        for x in raw:
            x = x.astype(np.uint16)
            value = convert.widen(x if d is dt.bfloat16 else x.view(np.float16), d).astype(np.float64)
            value = np.abs(value) if o.abs else value
            found.append(-value if o.neg and not isinstance(v, Imm) else value)
        return found

    def put_halves(self, i, d, values):
        """Each rounded once; NVIDIA's NaN."""
        low, high = (np.where(np.isnan(x), U32(0x7FFF), convert.cast(np.array(x), dt.float64, d).view(np.uint16)).astype(U32)
                     for x in values)
        self.put(i, i.dsts[0], low | high << U32(16))

    def packed(self, i, m, compute, *operands):
        d = dt.bfloat16 if "BF16_V2" in m else dt.float16
        self.put_halves(i, d, [compute(*row) for row in zip(*(self.halves(o, d) for o in operands), strict=True)])

    def op_hadd2(self, i, m, a, b):
        if "F32" in m:
            assert a.value.zero and a.neg
            which = U32(16 if b.select == "H1_H1" else 0)
            x = (self.word(b) >> which & U32(0xFFFF)).astype(np.uint16).view(np.float16).astype(np.float32)
            self.put_words(i, i.dsts[0], self.nan(x))
        else:
            self.packed(i, m, odd_sum, a, b)

    def op_hmul2(self, i, m, a, b):
        self.packed(i, m, np.multiply, a, b)

    def op_hfma2(self, i, m, a, b, c):
        self.packed(i, m, lambda x, y, z: odd_sum(x * y, z), a, b, c)

    def op_hmnmx2(self, i, m, a, b, p):
        least, number = self.predicate(p), "NAN" not in m

        def extreme(x, y):
            best = np.where(least, arithmetic.evaluate("min", x, y), arithmetic.evaluate("max", x, y))
            return np.where(np.isnan(x), y, np.where(np.isnan(y), x, best)) if number else best
        self.packed(i, m, extreme, a, b)

    def op_hset2(self, i, m, a, b, p):
        assert p.value.zero and "AND" in m and "BF" not in m
        low, high = (self.compare(i.mods[0], x, y) for x, y in zip(*(self.halves(o, dt.float16) for o in (a, b)), strict=True))
        self.put(i, i.dsts[0], low * U32(0xFFFF) | high * U32(0xFFFF0000))

    def op_f2i(self, i, m, a):
        x = self.double(a) if "F64" in m else self.single(a)
        d = dt.int64 if "S64" in m else dt.uint64 if "U64" in m else dt.uint32 if "U32" in m else dt.int32
        y = convert.cast(np.array(x), dt.float64 if "F64" in m else dt.float32, d)
        if "NTZ" not in m:
            y = np.where(np.isnan(x), d.min if d.kind == "int" else 1 << d.bits - 1, y).astype(y.dtype)
        self.put_words(i, i.dsts[0], y.view(f"u{y.dtype.itemsize}"))

    def op_i2f(self, i, m, a):
        x = self.long(a) if "U64" in m else self.long(a).view(S64) if "S64" in m else \
            self.word(a) if "U32" in m else self.word(a).view(np.int32)
        self.put_words(i, i.dsts[0], x.astype(np.float64 if "F64" in m else np.float32))

    def op_i2fp(self, i, m, a):
        self.put_words(i, i.dsts[0], (self.word(a) if "U32" in m else self.word(a).view(np.int32)).astype(np.float32))

    # ----- memory and lanes

    def op_shfl(self, i, m, a, lane, _):
        x, lanes = self.word(a), np.arange(self.lanes)
        n = lane.value.value
        self.put(i, i.dsts[1], x[:, lanes ^ n] if "BFLY" in m else self.full(x[:, n:n + 1]))

    def op_bar(self, i, m, *_):
        pass

    def places(self, address: Address):
        base = address.base
        if base.words == 2:
            return self.long(Operand(base)).view(S64) + address.offset - BASE
        return self.word(Operand(base)).view(np.int32).astype(S64) + address.offset

    def width(self, m) -> int:
        return 16 if "128" in m else 8 if "64" in m else 1 if m & {"U8", "S8"} else 2 if m & {"U16", "S16"} else 4

    def loaded(self, i, m, at, fetch):
        """Bytes at the places of the lanes that are on."""
        size, on = self.width(m), self.guard(i)
        assert not (at[on] % size).any(), "misaligned"
        where = np.where(on, at, 0)
        data = np.stack([fetch(where + k) for k in range(max(size, 1))], -1)
        if size < 4:
            sign = m & {"S8", "S16"}
            value = np.ascontiguousarray(data).view(f"{'i' if sign else 'u'}{size}")[..., 0].astype(np.int32).view(U32)
            self.put(i, i.dsts[0], value)
            return
        words = np.ascontiguousarray(data).view(U32)
        for k in range(size // 4):
            self.put(i, i.dsts[0], words[..., k], k)

    def inside(self, i, at, memory_size, size):
        on = self.guard(i)
        assert ((at[on] >= 0) & (at[on] + size <= memory_size)).all(), "outside memory"

    def op_ldg(self, i, m, a):
        at = self.places(a.value)
        self.inside(i, at, len(self.memory), self.width(m))
        self.loaded(i, m, at, lambda at: self.memory[at])

    def op_lds(self, i, m, a):
        at = self.places(a.value)
        self.inside(i, at, self.shared.shape[1], self.width(m))
        rows = np.arange(len(self.groups))[:, None]
        self.loaded(i, m, at, lambda at: self.shared[rows, at])

    def op_ldsm(self, i, m, a):
        at, rows = self.places(a.value), np.arange(len(self.groups))[:, None]
        self.inside(i, at, self.shared.shape[1], 16)
        assert not (at % 16).any(), "misaligned"
        thread = np.arange(self.lanes)
        first, lane = thread // 32 * 32, thread % 32
        for n in range(4):  # lane l gets two halves of row l // 4 of the block whose rows lanes 8n.. name, or of column l // 4
            if "MT88" in m:
                where = [at[:, first + 8 * n + 2 * (lane % 4) + half] + 2 * (lane // 4) for half in range(2)]
            else:
                where = [at[:, first + 8 * n + lane // 4] + 4 * (lane % 4) + 2 * half for half in range(2)]
            data = np.stack([self.shared[rows, x + k] for x in where for k in range(2)], -1)
            self.put(i, i.dsts[0], np.ascontiguousarray(data).view(U32)[..., 0], n)

    def op_hmma(self, i, m, a, b, c):
        """Sums over k in order by fma, as the interpreter has them."""
        depth, (wave, lane) = 16 if "16816" in m else 8, np.divmod(np.arange(self.lanes), 32)
        tiles = []
        for o, rows, count in ((a, 16, depth // 4), (b, 8, depth // 8)):
            tile = np.zeros((len(self.groups), self.lanes // 32, rows, depth), np.uint16)
            for n in range(count):
                row = lane // 4 + (8 * (n % 2) if rows == 16 else 0)
                column = 2 * (lane % 4) + 8 * (n // 2 if rows == 16 else n)
                for half in range(2):
                    tile[:, wave, row, column + half] = (self.word(o, n) >> U32(16 * half)).astype(np.uint16)
            d = dt.bfloat16 if "BF16" in m else dt.float16
            tiles.append(convert.cast(tile if d is dt.bfloat16 else tile.view(np.float16), d, dt.float32))
        for n in range(4):
            total = self.word(c, n).copy().view(np.float32)
            row, column = lane // 4 + 8 * (n // 2), 2 * (lane % 4) + n % 2
            for k in range(depth):
                total = arithmetic.evaluate("fma", tiles[0][:, wave, row, k], tiles[1][:, wave, column, k], total)
            self.put(i, i.dsts[0], total.view(U32), n)

    def stored(self, i, m, a, value):
        """(lanes that store, places, bytes (lanes, size))"""
        size, on, at = self.width(m), self.guard(i), self.places(a.value)
        words = np.stack([self.word(value, k) for k in range(max(1, size // 4))], -1)
        assert not (at[on] % size).any(), "misaligned"
        return on, at, np.ascontiguousarray(words[on]).view(np.uint8)[:, :size]

    def op_stg(self, i, m, a, value):
        on, at, data = self.stored(i, m, a, value)
        self.inside(i, at, len(self.memory), data.shape[1] if data.size else 1)
        for k in range(data.shape[1]):
            self.memory[at[on] + k] = data[:, k]

    def op_sts(self, i, m, a, value):
        on, at, data = self.stored(i, m, a, value)
        self.inside(i, at, self.shared.shape[1], data.shape[1] if data.size else 1)
        rows = np.broadcast_to(np.arange(len(self.groups))[:, None], on.shape)[on]
        for k in range(data.shape[1]):
            self.shared[rows, at[on] + k] = data[:, k]


def odd_sum(x, y):
    """x + y, of what float64 loses the last bit set (arithmetic._fma)."""
    total = x + y
    back = total - x
    error = (x - (total - back)) + (y - back)
    lost = np.isfinite(total) & (error != 0) & (total.view(U64) & U64(1) == 0)
    return np.where(lost, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)


__all__ = ["File", "Label", "Machine", "Reg"]
