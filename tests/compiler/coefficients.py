"""Derives the polynomial tables of devrt/compiler/coefficients.py, and checks them.

    python -m tests.compiler.coefficients           measure every table against its function, in many digits
    python -m tests.compiler.coefficients --write   derive every table again and rewrite the module
                                   --write NAME ..  derive these only

A table P approximates g on [lo, hi] so that max |w*(g - P)| is least, where w*(g - P) is the relative error that P
causes in the function it serves. An exchange algorithm (E. Remez, E. Stiefel) gives real coefficients. They are then
rounded one after the other from the lowest power up, the remaining ones being fitted again after each rounding, so that
the later ones take up what the earlier lost (N. Brisebarre, J.-M. Muller, A. Tisserand 2006 state the problem; this
greedy order is enough here).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp

from devrt.compiler import coefficients as module

Real = Any  # mpmath.mpf
mp.mp.prec = 200


@dataclass(frozen=True)
class Spec:
    """One table: what it approximates, where, and how its error counts."""

    name: str
    bits: int                       # 24 or 53: precision of the coefficients
    degree: int
    lo: Real
    hi: Real
    g: Callable[[Real], Real]
    w: Callable[[Real], Real]
    meaning: str
    first: tuple[float, ...] = ()   # coefficients fixed beforehand


def rounded(x: Real, bits: int) -> float:
    """x rounded to nearest in `bits` bits, as a Python float."""
    with mp.workprec(bits):
        y = +mp.mpf(x)
    return float(y)


def horner(coefficients: Any, t: Real) -> Real:
    p = mp.mpf(0)
    for c in reversed(coefficients):
        p = p * t + c
    return p


def grid(lo: Real, hi: Real, n: int) -> list[Real]:
    """Chebyshev points of [lo, hi], never its ends nor (where lo = -hi) its middle, at which g may be 0/0."""
    return [(lo + hi) / 2 - (hi - lo) / 2 * mp.cos(mp.pi * (k + mp.mpf(1) / 3) / n) for k in range(n)]


def minimax(s: Spec, fixed: list[float], samples: list[Real], gs: list[Real], ws: list[Real]) -> list[Real]:
    """The coefficients that continue `fixed` up to the degree with the least largest error on the samples.

    With low powers fixed the remaining ones are no Haar system on an interval around 0, so the signs of the reference
    are not alternating; they are those of the reference's linear dependency (E. Stiefel 1959, the exchange theorem).
    """
    k0, n = len(fixed), s.degree + 1 - len(fixed)
    rows = [[w * t ** (k0 + k) for k in range(n)] for w, t in zip(ws, samples, strict=True)]
    b = [w * (g - horner(fixed, t)) for w, g, t in zip(ws, gs, samples, strict=True)]
    m = len(samples)
    ref = [min(m - 1, (2 * i + 1) * m // (2 * (n + 1))) for i in range(n + 1)]

    def dependency(target: list[Real], among: list[int]) -> list[Real]:
        """x with sum x[i]*rows[among[i]] = target."""
        a = mp.matrix(n, n)
        for col, i in enumerate(among):
            for k in range(n):
                a[k, col] = rows[i][k]
        return list(mp.lu_solve(a, mp.matrix(target)))

    while True:
        lam = [mp.mpf(-1), *dependency(rows[ref[0]], ref[1:])]
        level = mp.fdot(lam, [b[i] for i in ref]) / sum(abs(x) for x in lam)
        if level < 0:
            lam, level = [-x for x in lam], -level
        a, rhs = mp.matrix(n, n), mp.matrix(n, 1)
        for row, i in enumerate(ref[1:]):
            for k in range(n):
                a[row, k] = rows[i][k]
            rhs[row] = b[i] - level * mp.sign(lam[row + 1])
        c = list(mp.lu_solve(a, rhs))
        residual = [y - mp.fdot(r, c) for y, r in zip(b, rows, strict=True)]
        worst = max(range(m), key=lambda i: abs(residual[i]))
        if abs(residual[worst]) <= level * mp.mpf("1.0005"):
            return c
        sign = mp.sign(residual[worst])
        mu = [mp.mpf(0), *dependency([-x for x in rows[worst]], ref[1:])]
        ref[min(range(n + 1), key=lambda i: sign * mu[i] / lam[i])] = worst


def derive(s: Spec) -> list[float]:
    samples = grid(s.lo, s.hi, 400 if s.bits == 24 else 600)
    gs, ws = [s.g(t) for t in samples], [abs(s.w(t)) for t in samples]
    fixed = list(s.first)
    while len(fixed) <= s.degree:
        fixed.append(rounded(minimax(s, fixed, samples, gs, ws)[0], s.bits))
    return fixed


def error(s: Spec, coefficients: Any) -> Real:
    """max |w*(g - P)| over a grid other than the one the table was derived on."""
    return max(abs(s.w(t) * (s.g(t) - horner(coefficients, t))) for t in grid(s.lo, s.hi, 1009))


SQ = mp.sqrt(mp.mpf(2))
LN2 = mp.log(2)
QUARTER = (mp.pi / 4 * (1 + mp.mpf(2) ** -8)) ** 2   # a little beyond pi/4: the rounded quotient may be off there
LOG2E = {24: rounded(1 / LN2, 24), 53: rounded(1 / LN2, 53)}
ERF1 = {bits: rounded(2 / mp.sqrt(mp.pi), bits) for bits in (24, 53)}
ATANH = ((SQ - 1) / (SQ + 1)) ** 2
END = {24: 15, 53: 39}     # where exp(-a^2/2) is 0
# The tail's variable is (a - K)/(a + K). Around K = 3 many do; these have first coefficients that are almost floats.
MIDDLE = {24: 2.6953125, 53: 3.9765625}
HALF = mp.mpf("0.5") + mp.mpf(2) ** -12


def tail(a: Real, k: Real) -> Real:
    """(a + k)*exp(a^2/2)*Phi(-a), of which M. Shepherd and J. Laframboise 1981 approximate a relative."""
    return (a + k) * mp.exp(a * a / 2) * mp.erfc(a / SQ) / 2


def atanh_tail(z: Real, k: int) -> Real:
    """(atanh(s)/s - the first k terms of its series)/z^k with z = s^2."""
    return mp.nsum(lambda n: z ** int(n) / (2 * int(n) + 2 * k + 1), [0, 60], method="d")


def specs() -> list[Spec]:
    out = []
    for bits in (24, 53):
        f32 = bits == 24
        tag = "F32" if f32 else "F64"
        out += [
            Spec(f"EXP2_{tag}", bits, 5 if f32 else 11, -HALF, HALF, lambda r: (2 ** r - 1) / r, lambda r: r / 2 ** r,
                 "2^r = 1 + r*P(r), |r| <= 1/2"),
            Spec(f"EXP_{tag}", bits, 5 if f32 else 11, -HALF * LN2, HALF * LN2, lambda r: mp.expm1(r) / r,
                 lambda r: r / mp.exp(r), "e^r = 1 + r*P(r), |r| <= ln(2)/2", (1.0,)),
            Spec(f"EXPM1_{tag}", bits, 5 if f32 else 10, -HALF * LN2, HALF * LN2, lambda r: (mp.expm1(r) - r) / r ** 2,
                 lambda r: r ** 2 / mp.expm1(r), "e^r - 1 = r + r^2*P(r), |r| <= ln(2)/2"),
            Spec(f"SIN_{tag}", bits, 2 if f32 else 5, mp.mpf(2) ** -60, QUARTER,
                 lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, lambda z: z * mp.sqrt(z) / mp.sin(mp.sqrt(z)),
                 "sin r = r + r^3*P(r^2), |r| <= pi/4"),
            Spec(f"COS_{tag}", bits, 2 if f32 else 5, mp.mpf(2) ** -60, QUARTER,
                 lambda z: ((mp.cos(mp.sqrt(z)) - 1) / z + 0.5) / z, lambda z: z * z / mp.cos(mp.sqrt(z)),
                 "cos r = 1 - r^2/2 + r^4*P(r^2), |r| <= pi/4"),
            Spec(f"LOG2_{tag}", bits, 9 if f32 else 20, 1 / SQ - 1, SQ - 1,
                 lambda f, c=LOG2E[bits]: mp.log1p(f) / LN2 / f - c, lambda f: f * LN2 / mp.log1p(f),
                 "log2(1+f) = LOG2E[0]*f + f*P(f), 1/sqrt(2) <= 1+f <= sqrt(2)"),
            Spec(f"LOG_{tag}", bits, 8 if f32 else 19, 1 / SQ - 1, SQ - 1, lambda f: (mp.log1p(f) - f) / f ** 2,
                 lambda f: f ** 2 / mp.log1p(f), "ln(1+f) = f + f^2*P(f), 1/sqrt(2) <= 1+f <= sqrt(2)"),
            Spec(f"ATANH_{tag}", bits, 2 if f32 else 6, mp.mpf(2) ** -40, ATANH,
                 lambda z, k=2 if f32 else 3: atanh_tail(z, k), lambda z, k=2 if f32 else 3: z ** k,
                 "atanh(s) = s*(1 + z/3 + z^2*P(z)), z = s^2, 1/sqrt(2) <= (1+s)/(1-s) <= sqrt(2)" if f32 else
                 "atanh(s) = s*(1 + z/3 + z^2/5 + z^3*P(z)), z = s^2, 1/sqrt(2) <= (1+s)/(1-s) <= sqrt(2)"),
            Spec(f"ERF_{tag}", bits, 6 if f32 else 11, mp.mpf(2) ** -60, mp.mpf(1),
                 lambda z, c=ERF1[bits]: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - c, lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
                 "erf(x) = x*(ERF_SLOPE[0] + P(x^2)), |x| <= 1"),
            Spec(f"TAIL_{tag}", bits, 11 if f32 else 27, mp.mpf(-1), 1 - 2 * MIDDLE[bits] / (MIDDLE[bits] + END[bits]),
                 lambda u, k=MIDDLE[bits]: tail(k * (1 + u) / (1 - u), k),
                 lambda u, k=MIDDLE[bits]: 1 / tail(k * (1 + u) / (1 - u), k),
                 f"Phi(-a) = exp(-a^2/2)*P(u)/(a + K), u = (a - K)/(a + K), K = {MIDDLE[bits]}, 0 <= a <= {END[bits]}"),
        ]
    return out


def constants() -> dict[str, tuple[float, ...]]:
    """Numbers split into parts, each the nearest to what the parts before it left."""
    def parts(x: Real, bits: int, n: int) -> tuple[float, ...]:
        out: list[float] = []
        for _ in range(n):
            out.append(rounded(x - sum(mp.mpf(p) for p in out), bits))
        return tuple(out)

    out = {}
    for bits, tag in ((24, "F32"), (53, "F64")):
        out[f"HALF_PI_{tag}"] = parts(mp.pi / 2, bits, 3)
        out[f"LN2_{tag}"] = parts(LN2, bits, 2)
        out[f"LOG2E_{tag}"] = parts(1 / LN2, bits, 2)
        out[f"ERF_SLOPE_{tag}"] = parts(2 / mp.sqrt(mp.pi), bits, 2)
        out[f"TAIL_MIDDLE_{tag}"] = (MIDDLE[bits],)
        out[f"SQRT2_{tag}"] = parts(SQ, bits, 1)
        out[f"TWO_LOG2E_{tag}"] = parts(2 / LN2, bits, 2)
        out[f"THIRD_{tag}"] = parts(mp.mpf(1) / 3, bits, 2)
        out[f"FIFTH_{tag}"] = parts(mp.mpf(1) / 5, bits, 2)
        out[f"GELU_LINEAR_{tag}"] = parts(2 * mp.sqrt(2 / mp.pi), bits, 2)
        out[f"GELU_CUBIC_{tag}"] = parts(2 * mp.sqrt(2 / mp.pi) * mp.mpf("0.044715"), bits, 2)
        out[f"TWO_OVER_PI_{tag}"] = parts(2 / mp.pi, bits, 1)
    return out


def two_over_pi(words: int) -> tuple[int, ...]:
    """A word of zeros, then the first 32*(words - 1) bits behind the binary point of 2/pi."""
    with mp.workprec(32 * words + 64):
        n = int(mp.floor(2 / mp.pi * mp.mpf(2) ** (32 * (words - 1))))
    return tuple((n >> 32 * (words - 1 - i)) & 0xffffffff for i in range(words))


def text(tables: dict[str, tuple[Spec, list[float], Real]]) -> str:
    """The module."""
    lines = ['"""Polynomials and split constants of the exact tier.', "",
             "Made by `python -m tests.compiler.coefficients --write`. P(t) = c[0] + c[1]*t + ...; the figure is the",
             "relative error that P causes in the function, rounding aside.",
             '"""', "", "# ----- generated below -----"]

    def assign(name: str, values: Any, note: str) -> None:
        head, items = f"{name} = (", [f"{v:#010x}" if isinstance(v, int) else repr(v) for v in values]
        lines.extend(["", f"# {note}"])
        line = head
        for item in items:
            if len(line) + len(item) + 2 > 119:
                lines.append(line.rstrip())
                line = "    "
            line += item + ", "
        lines.append(line.rstrip() if len(items) == 1 else line.rstrip(" ,"))
        lines[-1] += ")"

    for name, (s, c, e) in tables.items():
        assign(name, c, f"{s.meaning}: 2^{float(mp.log(e, 2)):.1f}")
    for name, values in constants().items():
        assign(name, values, "the number of that name as a sum of floats, the largest first")
    assign("TWO_OVER_PI_WORDS", two_over_pi(40), "32 zero bits, then the bits of 2/pi behind the binary point")
    return "\n".join(lines) + "\n"


def main() -> None:
    write, names = "--write" in sys.argv[1:], [a for a in sys.argv[1:] if a != "--write"]
    tables = {}
    for s in specs():
        again = write and (not names or s.name in names)
        c = derive(s) if again else list(getattr(module, s.name))
        tables[s.name] = s, c, error(s, c)
        print(f"{s.name:12} 2^{float(mp.log(tables[s.name][2], 2)):.2f}  {s.meaning}")
    if write:
        Path(__file__).parents[2].joinpath("devrt/compiler/coefficients.py").write_text(text(tables))


if __name__ == "__main__":
    main()
