"""The error table of docs/numerics.md.

    python -m tests.numerics.error_table            print it, measured now
    python -m tests.numerics.error_table --write    put it into the document
    python -m tests.numerics.error_table --every    all 2^32 float32 arguments of each function (minutes each)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from devrt.compiler import dtypes as dt
from tests.numerics.functions import FUNCTIONS
from tests.numerics.measure import Measured, measure, measure_every_float32

DOCUMENT = Path(__file__).parents[2] / "docs" / "numerics.md"
BEGIN, END = "<!-- error table: begin -->", "<!-- error table: end -->"
TYPES = (dt.float16, dt.bfloat16, dt.float32, dt.float64)
HEAD = ("| function | type | arguments | largest error (ulp) | bound (ulp) | mean (ulp) | where | reference |\n"
        "|---|---|---|---|---|---|---|---|")
_ROW = re.compile(r"\| (\w+) \| (\w+) \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([^|]+) \| ([^|]+) \|")


def arguments(m: Measured, bits: int, operands: int) -> str:
    if bits == 16:
        return "all 65,536" if operands == 1 else "all x, 16 y"
    return f"{m.points:,}"


def row(name: str, d: dt.DType, m: Measured) -> str:
    f = FUNCTIONS[name]
    where = ", ".join(f"{x:.9g}" for x in m.at)
    return (f"| {name} | {d} | {arguments(m, d.bits, f.arguments)} | {m.largest:.3f} | {f.bounds[d]:.3f} | {m.mean:.3f} "
            f"| {where} | {m.reference} |")


def table() -> str:
    return "\n".join([HEAD, *(row(n, d, measure(n, d)) for n in FUNCTIONS for d in TYPES)])


def committed() -> dict[tuple[str, str], tuple[float, float]]:
    """(function, type) -> (largest error, bound), as the document says."""
    text = DOCUMENT.read_text()
    part = text[text.index(BEGIN):text.index(END)]
    return {(r[1], r[2]): (float(r[4]), float(r[5])) for r in _ROW.finditer(part)}


def main() -> None:
    if "--every" in sys.argv[1:]:
        for n, f in FUNCTIONS.items():
            if f.arguments == 1:
                print(row(n, dt.float32, measure_every_float32(n)), flush=True)
        return
    new = table()
    print(new)
    if "--write" in sys.argv[1:]:
        text = DOCUMENT.read_text()
        head, rest = text[:text.index(BEGIN) + len(BEGIN)], text[text.index(END):]
        DOCUMENT.write_text(f"{head}\n{new}\n{rest}")


if __name__ == "__main__":
    main()
