"""What third-party kernels use of PTX: one instruction a kernel, over random and hard numbers. Witness: NumPy and Python's
integers on what PTX's manual says of each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.virtual.nvidia.emulator import Emulator, cubin, module

SMS = (80, 86, 89, 90, 120)
THREADS = 64
M32, M64 = (1 << 32) - 1, (1 << 64) - 1
HARD = (0, 1, M32, 1 << 31, (1 << 31) - 1, 1 << 63, M64, 0x7F800000, 0xFFC00000, 0x00000001_00000003, 0x80008000_7FFF7FFF)

# %a, %b, %c: 64 bits each of a thread; %ra, %rb, %rc their low words; %y, or %y0 below %y1, is written.
_KERNEL = """
.visible .entry k{n}(.param .u64 in, .param .u64 out) {{
 .reg .pred %p<4>; .reg .b16 %h<8>; .reg .b32 %r<40>, %ra, %rb, %rc, %t, %y0, %y1; .reg .b64 %d<12>, %a, %b, %c, %y, %in, %out;
 .reg .f32 %f<24>; .reg .f64 %e<8>; .shared .align 16 .b8 room[4096];
 ld.param.u64 %in, [in]; ld.param.u64 %out, [out]; mov.u32 %t, %tid.x; mul.wide.u32 %d0, %t, 24; add.u64 %in, %in, %d0;
 mul.wide.u32 %d0, %t, 8; add.u64 %out, %out, %d0; ld.global.u64 %a, [%in]; ld.global.u64 %b, [%in+8];
 ld.global.u64 %c, [%in+16]; cvt.u32.u64 %ra, %a; cvt.u32.u64 %rb, %b; cvt.u32.u64 %rc, %c; mov.u32 %y0, 0; mov.u32 %y1, 0;
 {body}
 {end} st.global.u64 [%out], %y; ret; }}
"""
Model = Callable[[int, int, int], int]


def s32(x: int) -> int:
    x &= M32
    return x - (1 << 32) if x >> 31 else x


def s64(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def clamp(x: int) -> int:
    return max(-(1 << 31), min(x, (1 << 31) - 1)) & M32


def pair(low: int, high: int) -> int:
    return low & M32 | (high & M32) << 32


def chosen(nibbles: int, a: int, b: int) -> int:
    both = pair(a, b)
    return sum((both >> 8 * (nibbles >> 4 * n & 7) & 255) << 8 * n for n in range(4))


def _modes() -> dict[str, Model]:
    def nibbles(place: Callable[[int, int], int]) -> Model:
        return lambda a, b, c: chosen(sum(place(n, c & 3) << 4 * n for n in range(4)), a & M32, b & M32)
    return {"f4e": nibbles(lambda n, s: n + s), "b4e": nibbles(lambda n, s: s - n & 7), "rc8": nibbles(lambda n, s: s),
            "ecl": nibbles(max), "ecr": nibbles(min), "rc16": nibbles(lambda n, s: n & 1 | (s & 1) << 1)}


def _dot(a: int, b: int, c: int, signs: tuple[bool, bool], width: int, high: bool = False) -> int:
    """dp4a, dp2a: bytes of b with bytes of a, or with halves of it."""
    total = c
    for n in range(4 if width == 8 else 2):
        x, y = a >> width * n & (1 << width) - 1, b >> 8 * (n + 2 * high) & 255
        x -= (1 << width) * (signs[0] and x >> width - 1)
        y -= 256 * (signs[1] and y >> 7)
        total += x * y
    return total & M32


def _bfe(a: int, b: int, c: int, width: int, signed: bool) -> int:
    at, count = b & 255, c & 255
    x = a & ((1 << width) - 1)
    sign = x >> min(at + count - 1, width - 1) & 1 if signed and count else 0
    field = x >> at & (1 << count) - 1
    known = max(0, min(count, width - at))
    return (field | -sign << known if count else 0) & ((1 << width) - 1)


def _bfi(a: int, b: int, c: int) -> int:
    at, count = c & 255, b & 255
    mask = (1 << count) - 1 << at & M32
    return b & M32 & ~mask | a << at & mask


INTEGERS: dict[str, Model] = {
    "add.sat.s32 %y0, %ra, %rb;": lambda a, b, c: clamp(s32(a) + s32(b)),
    "sub.sat.s32 %y0, %ra, %rb;": lambda a, b, c: clamp(s32(a) - s32(b)),
    "mad.hi.sat.s32 %y0, %ra, %rb, %rc;": lambda a, b, c: clamp((s32(a) * s32(b) >> 32) + s32(c)),
    "add.cc.u32 %y0, %ra, %rb; addc.u32 %y1, %rc, %ra;": lambda a, b, c: pair(a + b, c + a + ((a & M32) + (b & M32) >> 32)),
    "sub.cc.u32 %y0, %ra, %rb; subc.u32 %y1, %rc, %ra;": lambda a, b, c: pair(a - b, c - a - ((a & M32) < (b & M32))),
    "mad.lo.cc.u32 %y0, %ra, %rb, %rc; madc.hi.u32 %y1, %ra, %rb, %rb;": lambda a, b, c: pair(
        a * b + c, ((a & M32) * (b & M32) >> 32) + b + (((a * b & M32) + (c & M32)) >> 32)),
    "add.cc.u64 %d1, %a, %b; addc.u64 %y, %c, %a;": lambda a, b, c: c + a + (a + b >> 64) & M64,
    "sub.cc.u64 %d1, %a, %b; subc.u64 %y, %c, %a;": lambda a, b, c: c - a - (a < b) & M64,
    "mad.lo.cc.u64 %d1, %a, %b, %c; madc.hi.u64 %y, %a, %b, 0;": lambda a, b, c: a * b + c >> 64,
    "mul.hi.s64 %y, %a, %b;": lambda a, b, c: s64(a) * s64(b) >> 64 & M64,
    "or.b64 %d1, %b, 1; div.u64 %y, %a, %d1;": lambda a, b, c: a // (b | 1),
    "or.b64 %d1, %b, 1; rem.s64 %y, %a, %d1;": lambda a, b, c: abs(s64(a)) % abs(s64(b | 1)) * (-1 if a >> 63 else 1) & M64,
    **{f"prmt.b32.{mode} %y0, %ra, %rb, %rc;": model for mode, model in _modes().items()},
    **{f"dp4a.{x}.{y} %y0, %ra, %rb, %rc;": lambda a, b, c, x=x, y=y: _dot(a, b, c, (x == "s32", y == "s32"), 8)
       for x in ("u32", "s32") for y in ("u32", "s32")},
    **{f"dp2a.{h}.{x}.{y} %y0, %ra, %rb, %rc;": lambda a, b, c, h=h, x=x, y=y: _dot(
        a, b, c, (x == "s32", y == "s32"), 16, h == "hi") for h in ("lo", "hi") for x in ("u32", "s32") for y in ("u32", "s32")},
    "bfe.u32 %y0, %ra, %rb, %rc;": lambda a, b, c: _bfe(a, b, c, 32, False),
    "bfe.s32 %y0, %ra, %rb, %rc;": lambda a, b, c: _bfe(a, b, c, 32, True),
    "and.b32 %r1, %rb, 255; and.b32 %r2, %rc, 255; bfe.s64 %y, %a, %r1, %r2;": lambda a, b, c: _bfe(a, b, c, 64, True),
    "bfi.b32 %y0, %ra, %rb, %rc, %rb;": _bfi,
    "copysign.f32 %f3, %f1, %f2; mov.b32 %y0, %f3;": lambda a, b, c: b & 0x7FFFFFFF | a & 1 << 31,
    **{f"lop3.b32 %y0, %ra, %rb, %rc, {table};": lambda a, b, c, table=table: sum(
        (table >> ((a >> n & 1) << 2 | (b >> n & 1) << 1 | c >> n & 1) & 1) << n for n in range(32)) for table in range(256)},
}


def kernels(bodies: list[str]) -> str:
    """PTX of one kernel a body."""
    moves = "mov.b32 %f1, %ra; mov.b32 %f2, %rb; "
    return "".join(_KERNEL.format(n=n, body=(moves if "%f1" in body else "") + body,
                                  end="" if " %y," in body else "mov.b64 %y, {%y0, %y1};") for n, body in enumerate(bodies))


def numbers(seed: int) -> np.ndarray:
    """Three numbers a thread, hard ones among them."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 1 << 64, (THREADS, 3), dtype=np.uint64)
    for n in range(THREADS // 2):
        found[n, rng.integers(3)] = HARD[rng.integers(len(HARD))]
        found[n, rng.integers(3)] >>= np.uint64(rng.integers(64))
    return found


def outcomes(sm: int, bodies: list[str], data: np.ndarray) -> list[np.ndarray]:
    """What each kernel makes of the numbers."""
    gpu = Emulator(sm)
    text = module(sm, kernels(bodies)).replace(".version 8.0", ".version 8.7")
    image, given, found = cubin(text, sm), gpu.alloc(data), []
    for n in range(len(bodies)):
        out = gpu.alloc(8 * len(data))
        gpu.run(image, given.va, out.va, block=(len(data), 1, 1), name=f"k{n}")
        found.append(out.array(np.uint64).copy())
    gpu.close()
    return found


def compare(sm: int, table: dict[str, Model], bodies: list[str]) -> None:
    data = numbers(sm)
    for body, found in zip(bodies, outcomes(sm, bodies, data), strict=True):
        want = np.array([table[body](*map(int, row)) for row in data], np.uint64)
        wrong = np.flatnonzero(found != want)
        assert not len(wrong), (body, [hex(x) for x in data[wrong[0]]], hex(found[wrong[0]]), hex(want[wrong[0]]))


@pytest.mark.parametrize("n", range(len(SMS)))
def test_integers(n: int) -> None:
    """Each on one of the generations, some of the functions of three words; all on all where `slow`."""
    bodies = [body for k, body in enumerate(INTEGERS) if k % len(SMS) == n and ("lop3" not in body or k // len(SMS) % 32 == 0)]
    compare(SMS[n], INTEGERS, bodies)


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
def test_all_integers(sm: int) -> None:
    compare(sm, INTEGERS, list(INTEGERS))


# ---------------------------------------------------------------------------------------------------------------------
# Memory

def run(sm: int, body: str, data: np.ndarray) -> np.ndarray:
    return outcomes(sm, [body], data)[0]


@pytest.mark.parametrize(("sm", "size"), [(80, 4), (89, 8), (90, 16), (120, 16)])
def test_parts_of_copies(sm: int, size: int) -> None:
    """cp.async with fewer bytes than it writes: zeros behind them."""
    data = numbers(size)
    body = (f"mov.u32 %r1, room; mul.lo.u32 %r2, %t, {size}; add.u32 %r1, %r1, %r2; and.b32 %r3, %ra, 31;"
            f" min.u32 %r3, %r3, {size}; ld.param.u64 %d1, [in]; mul.wide.u32 %d2, %t, {size};"
            " add.u64 %d1, %d1, %d2; cvta.to.global.u64 %d1, %d1;"
            f" cp.async.c{'g' if size == 16 else 'a'}.shared.global [%r1], [%d1], {size}, %r3; cp.async.wait_all; bar.sync 0;"
            f" ld.shared.u32 %y0, [%r1]; ld.shared.u32 %y1, [%r1+{size - 4}];")
    raw, found = data.tobytes(), run(sm, body, data).view(np.uint32).reshape(-1, 2)
    for n in range(THREADS):
        count = min(int(data[n, 0]) & 31, size)
        words = np.frombuffer(raw[size * n:size * n + count].ljust(size, b"\0"), np.uint32)
        assert tuple(found[n]) == (words[0], words[-1]), n


@pytest.mark.parametrize(("sm", "kind"), [(80, "f64"), (90, "f32"), (90, "bf16x2"), (120, "u64"), (120, "f64")])
def test_atomics_through_generic_addresses(sm: int, kind: str) -> None:
    """Where ptxas asks whether an address is a global one, and what to do else: shared memory, then global."""
    width = "64" if "64" in kind else "32"
    value = {"u64": ("%y", "%a"), "f64": ("%e1", "%e0"), "f32": ("%f3", "%f4"), "bf16x2": ("%y0", "%r9")}[kind]
    start = {"u64": "5", "f64": "0d4008000000000000", "f32": "0f40400000", "bf16x2": "0x40404040"}[kind]  # 3.0
    result = {"u64": "", "f64": "mov.b64 %y, %e1;", "f32": "mov.b32 %y0, %f3; mov.b64 %y, {%y0, %y1};",
              "bf16x2": "mov.b64 %y, {%y0, %y1};"}[kind]
    body = ("mov.u64 %d1, room; cvta.shared.u64 %d1, %d1; setp.lt.u32 %p1, %t, 32; selp.b64 %d1, %d1, %out, %p1;"
            f" setp.eq.u32 %p2, %t, 0; mov.b{width} {value[0]}, {start}; mov.b64 %e0, 0d3FF0000000000000;"
            f" mov.b32 %f4, 0f3F800000; mov.b32 %r9, 0x3F803F80; mov.u32 %r1, room; @%p2 st.shared.b{width} [%r1], {value[0]};"
            f" @!%p1 st.b{width} [%d1], {value[0]}; bar.sync 0;"
            f" atom.add{'.noftz' if 'x2' in kind else ''}.{kind} {value[0]}, [%d1], {value[1]}; bar.sync 0;"
            f" ld.b{width} {value[0]}, [%d1]; {result} add.u64 %y, %y, 0;")
    data = numbers(3)
    found = run(sm, body, data)
    if kind == "u64":
        inside, outside = int(data[:32, 0].astype(object).sum()) + 5 & M64, [int(x) + 5 & M64 for x in data[32:, 0]]
    else:
        number = {"f64": lambda x: np.float64(x).view(np.uint64), "f32": lambda x: np.float32(x).view(np.uint32),
                  "bf16x2": lambda x: int(np.float32(x).view(np.uint32) >> 16) * 0x10001}[kind]
        inside, outside = int(number(35.0)), [int(number(4.0))] * 32
    assert [int(x) for x in found] == [inside] * 32 + outside


# ---------------------------------------------------------------------------------------------------------------------
# Floats of 8 bits

def eighths(kind: str, raw: np.ndarray) -> np.ndarray:
    """Floats of E4M3 or E5M2 as float64, by their definition."""
    digits, bias, top = (3, 7, 0x7F) if kind == "e4m3" else (2, 15, 0x7C)
    sign, x = np.where(raw >> 7, -1.0, 1.0), (raw & 127).astype(np.int64)
    exponent, part = x >> digits, x & (1 << digits) - 1
    value = np.where(exponent > 0, (1 + part / 2**digits) * 2.0**(exponent - bias), part / 2**digits * 2.0**(1 - bias))
    value = np.where(x == top, np.nan if kind == "e4m3" else np.inf, value)
    return sign * np.where((kind == "e5m2") & (x > 0x7C), np.nan, value)


@pytest.mark.parametrize(("sm", "depth", "a", "b"), [
    (89, 32, "e4m3", "e5m2"), (120, 32, "e5m2", "e5m2"), (89, 16, "e5m2", "e4m3"), (90, 32, "e4m3", "e5m2")])
def test_products_of_eighths(sm: int, depth: int, a: str, b: str) -> None:
    """Numbers whose sums are exact in any order."""
    rng = np.random.default_rng(depth)
    some = {"e4m3": [0, 0x38, 0x3C, 0x40, 0xB8, 0xC0], "e5m2": [0, 0x3C, 0x3E, 0x40, 0xBC, 0xC0]}
    x, y = (rng.choice(np.array(some[k], np.uint8), shape) for k, shape in ((a, (16, depth)), (b, (8, depth))))
    words = np.zeros((32, 6), np.uint32)
    for lane in range(32):
        row, at = lane // 4, lane % 4 * 4
        words[lane, :4] = [x[row + 8 * (n % 2), at + 16 * (n // 2):][:4].copy().view(np.uint32)[0] if 16 * (n // 2) < depth else 0
                           for n in range(4)]
        words[lane, 4:] = [y[row, at + 16 * n:][:4].copy().view(np.uint32)[0] if 16 * n < depth else 0 for n in range(2)]
    first, second = ("{%ra, %r1, %rb, %r2}", "{%rc, %r3}") if depth == 32 else ("{%ra, %r1}", "{%rc}")
    body = ("mov.b64 {%r8, %r1}, %a; mov.b64 {%r8, %r2}, %b; mov.b64 {%r8, %r3}, %c; mov.b32 %f8, 0f3F800000;"
            f" mma.sync.aligned.m16n8k{depth}.row.col.f32.{a}.{b}.f32 {{%f4, %f5, %f6, %f7}}, {first}, {second},"
            " {%f8, %f8, %f8, %f8}; mov.b32 %y0, %f4; mov.b32 %y1, %f7;")
    data = words.view(np.uint64).reshape(32, 3)
    found = run(sm, body, data).view(np.float32).reshape(32, 2)
    want = eighths(a, x) @ eighths(b, y).T + 1
    for lane in range(32):
        assert tuple(found[lane]) == (want[lane // 4, lane % 4 * 2], want[lane // 4 + 8, lane % 4 * 2 + 1]), lane
