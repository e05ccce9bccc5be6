"""explain(): what a computation really does. Every kernel with its ops, shape, tiling, FLOPs, bytes, predicted and measured
time; and the graph, drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from devrt.array import Array
from devrt.compiler.ops import Op
from devrt.device import DevrtError, InvalidArgument
from devrt.ioctl.errors import reported_as
from devrt.scheduler import draw, run
from devrt.scheduler.capture import Captured
from devrt.scheduler.plan import schedule
from devrt.scheduler.report import Report, measure
from devrt.scheduler.simplify import resolve


def explain(*what: Array | Captured[Any, Any], graph: str | Path | None = None, repeats: int = 5) -> Report:
    """Run what computes the arrays (or a captured function's last recording) and report it, kernel by kernel.

    `graph`: also draw it to this SVG file. The arrays themselves stay lazy. Print the report, or use its fields.
    """
    report = _captured(what[0], repeats) if len(what) == 1 and isinstance(what[0], Captured) else _arrays(what, repeats)
    if graph is not None:
        Path(graph).write_text(draw.svg(report))
    return report


def _arrays(what: tuple[Any, ...], repeats: int) -> Report:
    if not what or not all(isinstance(a, Array) for a in what):
        raise InvalidArgument("explain takes Arrays or one captured function")
    roots = list(dict.fromkeys(r for r in resolve([a.node for a in what]) if r.op is not Op.BUFFER))
    if not roots:
        raise InvalidArgument("these arrays are already in memory: nothing is left to explain",
                              remedy="explain the expression before it is realised")
    device = run.device_of(roots)
    s, inputs = schedule(roots, device.properties)
    bound = run.Bound(s, device, [n.arg for n in inputs])
    try:
        return measure(s, bound, device, repeats)
    finally:
        bound.release()


def _captured(function: Captured[Any, Any], repeats: int) -> Report:
    for r in reversed(list(function.recordings.values())):
        if r.bound is not None and r.schedule is not None:
            return measure(r.schedule, r.bound, r.device, repeats)
    raise InvalidArgument("nothing was recorded yet", remedy="call the captured function once")


def _namespace() -> dict[str, Any]:
    import devrt
    from devrt import functions, nn

    def randn(*shape: int) -> Array:
        return functions.random_normal(shape, seed=len(shape)).wait()
    names = {n: getattr(functions, n) for n in functions.__all__} | {n: getattr(nn, n) for n in nn.__all__}
    types = {d: getattr(devrt, d) for d in ("float16", "bfloat16", "float32", "float64", "int8", "int4", "int32", "int64")}
    return names | types | {"randn": randn, "nn": nn, "devrt": devrt}


def run_explain(args: Any) -> int:
    """`devrt explain EXPRESSION`: evaluate a Python expression over devrt's names (randn(*shape) makes inputs), report it."""
    try:
        value = eval(args.expression, {"__builtins__": {}}, _namespace())
    except DevrtError:
        raise
    except Exception as e:  # whatever the user's expression raises is the answer
        raise InvalidArgument(f"this expression can't be evaluated: {args.expression}", evidence=f"{type(e).__name__}: {e}",
                              remedy="for example: devrt explain 'softmax(randn(512, 32000))'") from e
    if not isinstance(value, Array):
        raise InvalidArgument(f"this expression gives no Array but {type(value).__name__}",
                              remedy="for example: devrt explain 'softmax(randn(512, 32000))'")
    if args.graph is not None:
        with reported_as(f"{args.graph} can't be written", remedy="name a file in a folder you may write to"):
            Path(args.graph).write_text("")
    report = explain(value, graph=args.graph)
    if args.json:
        print(json.dumps(report.json(), indent=2))
    else:
        print(report)
        if args.graph:
            print(f"graph drawn to {args.graph}", file=sys.stderr)
    return 0
