"""A roofline as SVG: FLOPs a byte to the right, FLOPs a second upwards, both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from devrt.benchmark.measure import rate

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1100, 560, 100, 380, 50, 60
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b5ea7", "#b8860b", "#3d5a80")

Point = tuple[str, float, float]  # name, FLOPs a byte, FLOPs a second


def draw(title: str, flops_per_s: float, bytes_per_s: float, points: Sequence[Point]) -> str:
    """The picture. Limits of 0 are not known and not drawn."""
    ridge = flops_per_s / bytes_per_s if flops_per_s and bytes_per_s else 1.0
    x = _Scale([ridge / 4, ridge * 4, *(p[1] for p in points)], LEFT, WIDTH - RIGHT)
    y = _Scale([flops_per_s or 1e9, (flops_per_s or 1e9) / 100, *(p[2] for p in points)], HEIGHT - BOTTOM, TOP)
    height = max(HEIGHT, TOP + 30 + 16 * len(points))  # the legend may be longer than the frame
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
           f'<text x="{LEFT}" y="28" font-size="16">{escape(title)}</text>']
    for v in x.decades():
        out += [_line(x(v), TOP, x(v), HEIGHT - BOTTOM, "#ddd"), _text(x(v), HEIGHT - BOTTOM + 18, f"{v:g}", "middle")]
    for v in y.decades():
        out += [_line(LEFT, y(v), WIDTH - RIGHT, y(v), "#ddd"), _text(LEFT - 8, y(v) + 4, rate(v, "FLOP/s"), "end")]
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "FLOPs a byte of memory traffic", "middle"))
    if flops_per_s and bytes_per_s:
        out += _roof(x, y, flops_per_s, bytes_per_s, ridge)
    for n, (name, intensity, speed) in enumerate(points):
        colour = COLOURS[n % len(COLOURS)]
        out.append(f'<circle cx="{x(intensity):.1f}" cy="{y(speed):.1f}" r="5" fill="{colour}"><title>{escape(name)}: '
                   f'{rate(speed, "FLOP/s")}</title></circle>')
        out.append(_text(x(intensity) + 7, y(speed) - 6, str(n + 1), "start", colour))
        out.append(_text(WIDTH - RIGHT + 16, TOP + 14 + 16 * n, f"{n + 1}  {name}", "start", colour))
    return "\n".join([*out, "</svg>", ""])


class _Scale:
    """Logarithmic, from whole decades around `values` to pixels lo..hi."""

    def __init__(self, values: Sequence[float], lo: float, hi: float) -> None:
        self.first, self.last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
        self.lo, self.hi = lo, hi

    def __call__(self, v: float) -> float:
        return self.lo + (math.log10(v) - self.first) / (self.last - self.first) * (self.hi - self.lo)

    def decades(self) -> list[float]:
        return [10.0**k for k in range(self.first, self.last + 1)]


def _roof(x: _Scale, y: _Scale, flops_per_s: float, bytes_per_s: float, ridge: float) -> list[str]:
    start = max(10.0**x.first, 10.0**y.first / bytes_per_s)
    path = f"{x(start):.1f},{y(start * bytes_per_s):.1f} {x(ridge):.1f},{y(flops_per_s):.1f} {x.hi:.1f},{y(flops_per_s):.1f}"
    return [f'<polyline points="{path}" fill="none" stroke="#333" stroke-width="2"/>',
            _text(x.hi - 4, y(flops_per_s) - 8, rate(flops_per_s, "FLOP/s"), "end"),
            _text(x(ridge) - 8, y(flops_per_s) - 8, rate(bytes_per_s, "B/s"), "end")]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
