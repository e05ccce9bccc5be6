"""Two runs tensor by tensor: where a port departs from its reference.

    from devrt import compare
    report = compare.report({"embed": x0, "layer.0": x1}, {"embed": t0, "layer.0": t1})
    print(report)                       # a table; report.json() for programs
    report.first_divergence             # the row where the error jumps, or None
    assert report.passed(log_l2=-4)

The measure is log-L2: log10(||a - b|| / ||b||) in float64 with b the reference. Equal tensors have -inf; float32 against float32
computed in another order lies near -6, bfloat16 near -2.5; 0 is an error as large as the tensor.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from devrt.array import Array, asarray
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Shape
from devrt.device import DevrtError, InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = -4.0  # log-L2 that counts as agreement unless told otherwise
JUMP = 1.5  # decades over what came before that count as a divergence
BLOCK = 1 << 18  # elements widened to float64 at a time
_ULP_SAMPLE = 1 << 18  # elements the median distance is taken over


@dataclass(frozen=True)
class Row:
    """One tensor on both sides; `theirs` is the reference.

    note:      why it could not be compared, or what makes log_l2 infinite; "" otherwise
    compared:  both sides are there, of one shape, and numbers
    log_l2:    log10 of the relative L2 error over the elements that are finite on both sides; -inf where all are equal; inf
               where the reference is zero and ours is not, or where NaN and infinities do not lie in the same places
    max_abs:   the largest |a - b| of those elements
    at:        its index; the first element where NaN and infinities differ, if they do
    cosine:    of the angle between the two, NaN where one is zero
    ulps:      median distance in units in the last place (of up to 2^18 elements), where both are one floating-point type
    nonfinite: how many elements are NaN or infinite, ours and theirs
    same_bits: the same type and the same bytes
    """

    name: str
    shape: Shape
    dtype: str
    note: str = ""
    compared: bool = False
    log_l2: float = math.nan
    max_abs: float = math.nan
    at: Shape = ()
    cosine: float = math.nan
    ulps: float | None = None
    nonfinite: tuple[int, int] = (0, 0)
    same_bits: bool = False
    floor: float = 0.0  # log10 of the rounding error of the coarser type

    def passed(self, log_l2: float = TOLERANCE) -> bool:
        return self.compared and self.log_l2 <= log_l2

    def json(self) -> dict[str, Any]:
        """Plain data; what is infinite or NaN is null, and `equal` tells an error of nothing from an infinite one."""
        fields = {key: value for key, value in asdict(self).items() if key != "floor"}
        for key in ("log_l2", "max_abs", "cosine"):
            fields[key] = fields[key] if math.isfinite(fields[key]) else None
        return {**fields, "equal": self.compared and self.log_l2 == -math.inf}


@dataclass(frozen=True)
class Report:
    """All rows: in the order of the reference, then what only ours has."""

    rows: tuple[Row, ...]
    tolerance: float = TOLERANCE

    @property
    def worst(self) -> Row | None:
        """The compared row of the largest error."""
        return max((row for row in self.rows if row.compared), key=lambda row: row.log_l2, default=None)

    @property
    def first_divergence(self) -> Row | None:
        """The first row whose shapes differ, whose error is above the tolerance, or more than 1.5 decades above both the
        largest error before it and the rounding error of its type."""
        level = -math.inf
        for row in self.rows:
            if not row.compared:
                if row.note.startswith("shape"):
                    return row
                continue
            if row.log_l2 > self.tolerance or row.log_l2 > max(level, row.floor) + JUMP:
                return row
            level = max(level, row.log_l2)
        return None

    def passed(self, log_l2: float | None = None) -> bool:
        """Whether every tensor of both sides could be compared and none is off by more; False where there is none at all."""
        limit = self.tolerance if log_l2 is None else log_l2
        return bool(self.rows) and all(row.passed(limit) for row in self.rows)

    def json(self) -> dict[str, Any]:
        first, worst = self.first_divergence, self.worst
        return {"passed": self.passed(), "tolerance": self.tolerance if math.isfinite(self.tolerance) else None,
                "first_divergence": first and first.name, "worst": worst and worst.name,
                "tensors": [row.json() for row in self.rows]}

    def __str__(self) -> str:
        from tabulate import tabulate
        rows = [(_printable(row.name), "x".join(map(str, row.shape)) or "1", row.dtype, *_cells(row), row.note)
                for row in self.rows]
        heads = ("tensor", "shape", "type", "log-L2", "max |a-b|", "at", "cosine", "ulps", "non-finite", "")
        table = tabulate(rows, headers=heads, disable_numparse=True, tablefmt="simple",
                         colalign=("left", "right", "left", *["right"] * 6, "left")) if rows else ""
        return "\n".join([table, *self._summary()] if rows else ["no tensors"])

    def _summary(self) -> Iterator[str]:
        off = sum(not row.passed(self.tolerance) for row in self.rows)
        yield f"{_counted(len(self.rows), 'tensor')}, {'all' if not off else f'{off} not'} within 10^{self.tolerance:g}"
        if (first := self.first_divergence) is not None:
            yield f"first divergence: {_printable(first.name)} ({first.note or f'log-L2 {_error(first)}'})"
        if (worst := self.worst) is not None and worst.log_l2 > -math.inf:
            yield f"largest error: {_printable(worst.name)} (log-L2 {_error(worst)})"


def report(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, tolerance: float = TOLERANCE,
           progress: Callable[[int, int, str], object] = lambda done, total, name: None) -> Report:
    """Compare two mappings of names to arrays: devrt's, NumPy's, PyTorch's (any type, with gradients, on any device), and
    whatever exports DLPack or has __array__. Integers are compared as float64.

    `progress` is told before each tensor how many are done, how many there are, and its name; then (total, total, "").

    What is missing on a side, of another shape, or no array of numbers is a row with a note, not an error. Raises
    InvalidArgument where `ours` or `theirs` is no mapping or the tolerance is NaN.
    """
    for side in (ours, theirs):
        if not isinstance(side, Mapping):
            raise InvalidArgument(f"report() compares mappings of names to arrays, not a {type(side).__name__}",
                                  remedy="pass {name: array}, or what safetensors.open_file() returns")
    if math.isnan(tolerance):
        raise InvalidArgument("the tolerance is NaN", remedy="pass a number such as -4")
    names = [*theirs, *(name for name in ours if name not in theirs)]
    rows = []
    for done, name in enumerate(names):
        progress(done, len(names), name)
        rows.append(_row(name, ours, theirs))
    progress(len(names), len(names), "")
    return Report(tuple(rows), float(tolerance))


def _row(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
    sides: list[Array] = []
    for side, whose in ((ours, "ours"), (theirs, "theirs")):
        if name not in side:
            other = _shape_of(theirs if side is ours else ours, name)
            return Row(name, other, "", f"missing in {whose}")
        try:
            sides.append(_array(side[name]))
        except (DevrtError, TypeError, ValueError, RuntimeError) as e:  # whatever a foreign array refuses with
            return Row(name, (), "", f"{whose}: {e.what if isinstance(e, DevrtError) else e}")
    a, b = sides
    dtype = b.dtype.name if a.dtype is b.dtype else f"{a.dtype}, {b.dtype}"
    if a.shape != b.shape:
        return Row(name, b.shape, dtype, f"shape {list(a.shape)} against {list(b.shape)}")
    return _compared(name, a, b, dtype)


def _array(x: Any) -> Array:
    """`x` as an Array of the same values, without a copy where there is a way."""
    import numpy as np
    if isinstance(x, Array):
        return x
    for step in ("detach", "cpu"):  # a PyTorch tensor: without its gradient, in host memory
        if hasattr(x, step):
            x = getattr(x, step)()
    return asarray(x if hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray) else np.asarray(x))


def _shape_of(side: Mapping[str, Any], name: str) -> Shape:
    return tuple(getattr(side[name], "shape", ()))


# ---------------------------------------------------------------------------------------------------------------------
# Measures


class _Elements:
    """An array's elements: as stored, and block by block in float64."""

    def __init__(self, x: Array) -> None:
        from devrt.compiler import convert
        self.dtype, self.stored = x.dtype, convert.unpack(x._raw(), x.dtype, x.size)
        self._widen = convert.widen

    def bytes(self, start: int) -> bytes:
        return self.stored[start:start + BLOCK].tobytes()

    def block(self, start: int) -> NDArray[Any]:
        import numpy as np
        wide: NDArray[Any] = self._widen(self.stored[start:start + BLOCK], self.dtype).astype(np.float64)
        return wide


def _compared(name: str, x: Array, y: Array, dtype: str) -> Row:
    import numpy as np
    ours, theirs = _Elements(x), _Elements(y)
    exponent = max(_exponent(ours), _exponent(theirs))
    squares, bad, biggest, where, apart, first_apart = np.zeros(4), np.zeros(2, np.int64), 0.0, -1, 0, -1
    same = ours.dtype is theirs.dtype
    for start in range(0, x.size, BLOCK):
        same = same and ours.bytes(start) == theirs.bytes(start)
        a, b = ours.block(start), theirs.block(start)
        finite_a, finite_b = np.isfinite(a), np.isfinite(b)
        bad += (np.count_nonzero(~finite_a), np.count_nonzero(~finite_b))
        both = finite_a & finite_b
        differ = ~both & (a != b) & ~(np.isnan(a) & np.isnan(b))
        if differ.any():
            first_apart = start + int(differ.argmax()) if not apart else first_apart
            apart += np.count_nonzero(differ)
        a, b = (np.ldexp(np.where(both, side, 0.0), -exponent) for side in (a, b))
        d = np.abs(a - b)
        squares += (d @ d, a @ a, b @ b, a @ b)
        at = int(d.argmax())
        if d[at] > biggest or where < 0:
            biggest, where = float(d[at]), start + at
    error, size_a, size_b = (math.sqrt(s) for s in squares[:3])
    note, log_l2 = "", -math.inf
    if apart:
        note, log_l2, where = f"NaN and infinities differ in {_counted(apart, 'element')}", math.inf, first_apart
    elif error and not size_b:
        note, log_l2 = "the reference is zero", math.inf
    elif error:
        log_l2 = math.log10(error) - math.log10(size_b)
    with np.errstate(over="ignore"):
        max_abs = float(np.ldexp(biggest, exponent))
    return Row(
        name, x.shape, dtype, note, True, log_l2, max_abs,
        tuple(int(i) for i in np.unravel_index(where, x.shape)) if where >= 0 else (),
        max(-1.0, min(1.0, float(squares[3]) / size_a / size_b)) if size_a and size_b else math.nan,
        _ulps(ours, theirs), (int(bad[0]), int(bad[1])), same, max(_rounding(ours.dtype), _rounding(theirs.dtype)))


def _exponent(x: _Elements) -> int:
    """A power of two to divide by, so that squares neither overflow nor vanish; 0 for all but extreme float64 values."""
    import numpy as np
    if x.dtype.bits < 64 or not x.dtype.is_float:
        return 0
    largest = max((float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) for b in map(x.block, range(0, x.stored.size, BLOCK))),
                  default=0.0)
    return math.frexp(largest)[1] if largest and not 1e-100 < largest < 1e100 else 0


def _rounding(d: DType) -> float:
    """log10 of half a unit in the last place of 1."""
    return -(d.mantissa + 1) * math.log10(2) if d.is_float else -16.0


def _ulps(ours: _Elements, theirs: _Elements) -> float | None:
    """The median distance of the elements that are no NaN, in steps from one number of their type to the next."""
    import numpy as np
    if ours.dtype is not theirs.dtype or not ours.dtype.is_float:
        return None
    step = -(-ours.stored.size // _ULP_SAMPLE) or 1
    signs, places = [], []
    numbers = np.ones(len(ours.stored[::step]), np.bool_)
    for side in (ours, theirs):
        sample = np.ascontiguousarray(side.stored[::step])
        numbers &= ~np.isnan(side._widen(sample, side.dtype))
        bits = sample.view(f"u{side.dtype.bits // 8}").astype(np.uint64)
        sign = np.uint64(1 << (side.dtype.bits - 1))
        signs.append(bits & sign)
        places.append((bits & (sign - np.uint64(1))).astype(np.int64))
    if not numbers.any():
        return None
    a, b = places
    apart = np.where(signs[0] == signs[1], np.abs(a - b), a.astype(np.float64) + b)  # across zero it may exceed int64
    return float(np.median(apart[numbers]))


# ---------------------------------------------------------------------------------------------------------------------
# Text


def _cells(row: Row) -> tuple[str, ...]:
    if not row.compared:
        return ("", "", "", "", "", "")
    shown = any(row.nonfinite)
    if row.log_l2 == -math.inf:
        return (_error(row), "0", "", "", "", f"{row.nonfinite[0]}, {row.nonfinite[1]}" if shown else "")
    return (_error(row), f"{row.max_abs:.3g}", str(list(row.at)), "" if math.isnan(row.cosine) else f"{row.cosine:.6f}",
            "" if row.ulps is None else f"{row.ulps:.3g}", f"{row.nonfinite[0]}, {row.nonfinite[1]}" if shown else "")


def _printable(name: str) -> str:
    """A terminal obeys what it is sent, and a file may name its tensors as it likes."""
    return name if name.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in name)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n != 1 else ''}"


def _error(row: Row) -> str:
    return "same bits" if row.same_bits else f"{row.log_l2:.2f}"


def run_compare(args: argparse.Namespace) -> int:
    """`devrt compare OURS THEIRS`: two safetensors files. Exit code 1 where they differ by more than the tolerance."""
    from devrt import safetensors
    from devrt.cli.exit_codes import FINDINGS, OK
    shown = sys.stderr.isatty() and not args.json

    def progress(done: int, total: int, name: str) -> None:
        if shown:
            print(f"\r\x1b[K{f'{done}/{total} {_printable(name)[:50]}' if name else ''}", end="", file=sys.stderr, flush=True)
    made = report(safetensors.open_file(args.ours), safetensors.open_file(args.theirs), tolerance=args.tolerance,
                  progress=progress)
    print(json.dumps(made.json(), indent=2) if args.json else made)
    return OK if made.passed() else FINDINGS


__all__ = ["Report", "Row", "report"]
