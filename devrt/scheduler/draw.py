"""The graph that really ran, as SVG: one box a kernel, arrows for the arrays between them."""

from __future__ import annotations

from html import escape

from devrt.scheduler.report import Report, duration, graph_edges, quantity

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 270, 84, 40, 56, 30
COLOURS = {"map": "#dcebf7", "rows": "#e2f2dc", "contract": "#fbe6cf", "attention": "#f6dbe4", "copy": "#eeeeee"}


def svg(report: Report) -> str:
    """A drawing of the report: kernels in layers by dependency, with their work, traffic and time."""
    edges = graph_edges(report.kernels)
    layer: list[int] = []
    for n in range(len(report.kernels)):
        layer.append(1 + max((layer[a] for a, b in edges if b == n and a is not None), default=0))
    place: list[tuple[int, int]] = []
    filled: dict[int, int] = {}
    for l in layer:
        place.append((filled.get(l, 0), l))
        filled[l] = filled.get(l, 0) + 1
    columns = max(filled.values(), default=1)
    width = 2 * MARGIN + columns * (WIDTH + GAP_X) - GAP_X
    inputs = sorted({p.at for k in report.kernels for p in k.reads if p.kind == "input"})
    width = max(width + WIDTH // 3, 2 * MARGIN + len(inputs) * 90)
    height = 2 * MARGIN + 40 + (max(layer, default=0)) * (HEIGHT + GAP_Y)

    def corner(n: int) -> tuple[float, float]:
        column, l = place[n]
        shift = (width - 2 * MARGIN - (filled[l] * (WIDTH + GAP_X) - GAP_X)) / 2
        return MARGIN + shift + column * (WIDTH + GAP_X), MARGIN + 40 + (l - 1) * (HEIGHT + GAP_Y) + GAP_Y / 2

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
           f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12">',
           '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
           '<path d="M0,0 L8,4 L0,8 z" fill="#667"/></marker></defs>',
           f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>']
    step = (width - 2 * MARGIN) / max(len(inputs), 1)
    for column, number in enumerate(inputs):
        cx = MARGIN + step * (column + 0.5)
        out.append(f'<rect x="{cx - 36:.0f}" y="{MARGIN}" width="72" height="24" rx="12" fill="#f4f4f0" stroke="#bbb"/>'
                   f'<text x="{cx:.0f}" y="{MARGIN + 16}" text-anchor="middle">input {number}</text>')
    for n, k in enumerate(report.kernels):
        x, y = corner(n)
        start: tuple[float, float]
        for p in dict.fromkeys(k.reads):
            source = next((m for m in range(n - 1, -1, -1) if report.kernels[m].writes == p), None)
            if source is not None:
                sx, sy = corner(source)
                start = (sx + WIDTH / 2, sy + HEIGHT)
            elif p.kind == "input":
                start = (MARGIN + step * (inputs.index(p.at) + 0.5), MARGIN + 24)
            else:
                continue
            end = (x + WIDTH / 2, y)
            above = layer[source] if source is not None else 0
            aside = WIDTH * 0.75 if layer[n] - above > 1 else 0  # go around the boxes between
            bend = (start[1] + end[1]) / 2
            out.append(f'<path d="M{start[0]:.0f},{start[1]:.0f} C{start[0] + aside:.0f},{bend:.0f} '
                       f'{end[0] + aside:.0f},{bend:.0f} {end[0]:.0f},{end[1]:.0f}" '
                       f'fill="none" stroke="#667" marker-end="url(#a)"/>')
    for n, k in enumerate(report.kernels):
        x, y = corner(n)
        shape = "x".join(map(str, k.shape)) or "1"
        ops = k.ops if len(k.ops) <= 38 else k.ops[:36] + ".."
        lines = (f"<tspan font-weight='bold'>{escape(k.kind)}</tspan> {shape}", escape(ops),
                 f"{quantity(k.flops)} FLOP  {quantity(k.bytes)}B  {duration(k.measured_s)}",
                 f"{k.gflops:.1f} GFLOP/s  {k.gbytes:.1f} GB/s  {k.limit:.0%} of limit")
        out.append(f'<g><title>{escape(k.name)}: {escape(k.tiling)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" '
                   f'height="{HEIGHT}" rx="6" fill="{COLOURS[k.kind]}" stroke="#889"/>')
        out += [f'<text x="{x + 10:.0f}" y="{y + 19 + 18 * i:.0f}">{line}</text>' for i, line in enumerate(lines)]
        out.append("</g>")
    out.append("</svg>")
    return "\n".join(out) + "\n"
