"""devrt on an NVIDIA GPU beside CUDA, PyTorch (cuBLAS) and Triton, in one run.

    python bench/nvidia.py                     every row on nvidia:0
    python bench/nvidia.py --only gemm         rows whose name contains it (may be given several times)
    python bench/nvidia.py --quick             fewer rounds, smaller arrays
    python bench/nvidia.py --mib 4 --side 256  sizes of arrays and of square matrices
    python bench/nvidia.py --write [FOLDER]    bench/results/<the GPU's name>.md and .json, or in FOLDER; after every row

In each round every peer has one turn, so that noise hits all alike; results are compared before anything is timed. Every call
waits for its result. Peers that are not here are named with the reason; devrt itself needs none of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from report import RESULTS, Progress, environment, heading, load, record, write

# isort: split
import numpy as np
from cuda_driver import Cuda, CudaError
from tabulate import tabulate

import devrt
from devrt.benchmark.measure import duration, interleave, rate
from devrt.compiler.lir import Builder
from devrt.compiler.sass import backend, target
from devrt.device import Device, Placement
from devrt.ioctl.nv_versions import VERSION_FILE
from devrt.nvidia.device import NvidiaDevice

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]
try:
    import triton
    import triton_kernels
except ImportError:
    triton = None

Row = dict[str, Any]
Call = Callable[[], Any]
PEERS = ("devrt", "CUDA", "PyTorch", "Triton")


@dataclass(frozen=True)
class Case:
    """build(device): {peer: a call that does the work once and waits}, and what to compare: {peer: its result as NumPy}.
    `bound`: devrt's share of the peer's speed that is asked for; `flops`, `nbytes` of one call."""

    name: str
    peer: str
    bound: float
    build: Callable[[Device], tuple[dict[str, Call], Mapping[str, Any]]]
    flops: float = 0.0
    nbytes: float = 0.0
    error: float = 0.0  # relative L2 between results that is right: 0 is equal bits


def cases(size: int, side: int) -> list[Case]:
    """`size`: bytes of large arrays; `side`: of square matrices."""
    copies = [Case(f"copy {kind} {_size(nbytes)}", "CUDA", 0.95, lambda d, k=kind, n=nbytes: copy(d, k, n),
                   nbytes=nbytes * (2.0 if kind == "DtoD" else 1.0))
              for kind in ("DtoD", "HtoD", "DtoH") for nbytes in (1 << 20, size)]
    count = size // 4
    return [
        Case("empty kernel, launch to completion", "CUDA", 1 / 0.8, launch),
        *copies,
        Case(f"x*2 + y, {_size(size)} each", "PyTorch", 0.95, lambda d: stream(d, count), nbytes=3.0 * size),
        Case(f"softmax of rows of 4096, {_size(size)}", "PyTorch", 0.95, lambda d: softmax(d, count // 4096), nbytes=2.0 * size,
             error=1e-6),
        Case(f"sum of all, {_size(size)}", "PyTorch", 0.95, lambda d: total(d, count), nbytes=1.0 * size, error=1e-5),
        Case(f"f32 GEMM {side}, exact", "PyTorch", 0.8, lambda d: gemm(d, side, "float32"), flops=2.0 * side**3, error=1e-5),
        Case(f"bf16 GEMM {side}, fast", "PyTorch", 0.4, lambda d: gemm(d, side, "bfloat16"), flops=2.0 * side**3, error=1e-2),
        Case(f"f16 GEMM {side}, fast", "PyTorch", 0.4, lambda d: gemm(d, side, "float16"), flops=2.0 * side**3, error=1e-2),
    ]


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes < 1 << 30 else f"{nbytes >> 30} GiB"


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def launch(device: Device) -> tuple[dict[str, Call], dict[str, Any]]:
    t = target.target(device.properties.isa)
    program = device.load(backend.compile_program(Builder("empty", lanes=32, groups=1).finish(), t), "empty")
    commands = device.command_list()
    commands.dispatch(program, [], 1)
    queue = device.compute
    calls: dict[str, Call] = {"devrt": lambda: queue.wait(queue.submit(commands))}
    if _cuda() is not None:
        calls["CUDA"] = _cuda().empty_launch()
    if torch is not None and torch.cuda.is_available():
        x = torch.zeros(1, device="cuda")
        calls["PyTorch"] = lambda: (x.add_(1), torch.cuda.synchronize())
    return calls, {}


def copy(device: Device, kind: str, nbytes: int) -> tuple[dict[str, Call], dict[str, Any]]:
    far = device.alloc(nbytes)
    other = device.alloc(nbytes, Placement.DEVICE if kind == "DtoD" else Placement.HOST)
    commands = device.command_list()
    if kind == "DtoH":
        commands.copy(other, far, nbytes)
    else:
        commands.copy(far, other, nbytes)
    queue = device.transfer
    calls: dict[str, Call] = {"devrt": lambda: queue.wait(queue.submit(commands))}
    if _cuda() is not None:
        calls["CUDA"] = _cuda().copy(kind, nbytes)
    return calls, {}


def _arrays(*shape: int, count: int, dtype: str = "float32") -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape, np.float32) for _ in range(count)]


def _work(device: Device, formula: Callable[..., Any], arrays: list[np.ndarray[Any, Any]], dtype: str = "float32", *,
          fast: bool = False, peer: Callable[..., Any] | None = None, kernel: str = "") \
        -> tuple[dict[str, Call], dict[str, Any]]:
    """A formula of arrays on devrt (captured), the same on PyTorch, and a Triton kernel where there is one."""
    ours = [devrt.asarray(a, device=device.uri).astype(getattr(devrt, dtype)) for a in arrays]
    for x in ours:
        x.wait()
    step = devrt.capture(formula)

    def run() -> Any:
        if not fast:
            return step(*ours).wait()
        with devrt.fast():
            return step(*ours).wait()
    calls: dict[str, Call] = {"devrt": run}
    results = {"devrt": run().astype(devrt.float32).numpy()}
    if torch is not None and torch.cuda.is_available():
        theirs = [torch.from_numpy(a).cuda().to(getattr(torch, dtype)) for a in arrays]

        def torch_run() -> Any:
            made = (peer or formula)(*theirs)
            torch.cuda.synchronize()
            return made
        calls["PyTorch"] = torch_run
        results["PyTorch"] = torch_run().float().cpu().numpy()
        if triton is not None and kernel:
            made = getattr(triton_kernels, kernel)

            def triton_run() -> Any:
                out = made(*theirs)
                torch.cuda.synchronize()
                return out
            calls["Triton"] = triton_run
            results["Triton"] = triton_run().float().cpu().numpy()
    return calls, results


def stream(device: Device, count: int) -> tuple[dict[str, Call], dict[str, Any]]:
    return _work(device, lambda x, y: x * 2 + y, _arrays(count, count=2), peer=lambda x, y: torch.add(y, x, alpha=2),
                 kernel="scaled_sum")


def softmax(device: Device, rows: int) -> tuple[dict[str, Call], dict[str, Any]]:
    return _work(device, lambda x: devrt.nn.softmax(x, axis=-1), _arrays(rows, 4096, count=1),
                 peer=lambda x: torch.softmax(x, -1), kernel="softmax")


def total(device: Device, count: int) -> tuple[dict[str, Call], dict[str, Any]]:
    return _work(device, lambda x: x.sum(), _arrays(count, count=1), peer=lambda x: x.sum())


def gemm(device: Device, side: int, dtype: str) -> tuple[dict[str, Call], dict[str, Any]]:
    return _work(device, lambda x, y: x @ y, _arrays(side, side, count=2), dtype, fast=dtype != "float32",
                 kernel="" if dtype == "float32" else "matmul")


_peers: dict[str, Any] = {}


def _cuda() -> Any:
    """libcuda, None where it isn't."""
    if "cuda" not in _peers:
        try:
            _peers["cuda"] = Cuda()
        except CudaError as error:
            _peers["cuda"], _peers["no cuda"] = None, str(error)
    return _peers["cuda"]


# ---------------------------------------------------------------------------------------------------------------------
# The run and its report


def relative_l2(result: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """The norm of the difference over that of `right`."""
    difference, size = (float(np.linalg.norm(np.ravel(x).astype(np.float64))) for x in (result - right, right))
    return difference / size if size else difference


def measure(case: Case, device: Device, rounds: int, progress: Callable[[], object]) -> Row:
    try:
        calls, results = case.build(device)
    except devrt.device.DevrtError as error:
        return {"name": case.name, "failed": str(error), "found": {}, "flops": case.flops, "nbytes": case.nbytes,
                "peer": case.peer, "bound": case.bound, "errors": {}}
    errors = {peer: relative_l2(result, results["devrt"]) for peer, result in results.items() if peer != "devrt"}
    found = interleave(calls, rounds=rounds, progress=progress)
    return {"name": case.name, "failed": "", "found": {peer: asdict(m) for peer, m in found.items()}, "flops": case.flops,
            "nbytes": case.nbytes, "peer": case.peer, "bound": case.bound, "errors": errors,
            "differs": [peer for peer, error in errors.items() if not error <= case.error]}


def table(rows: list[Row], style: str) -> str:
    shown = [peer for peer in PEERS if any(peer in row["found"] for row in rows)]
    return tabulate([[row["name"], *(_cell(row, peer) for peer in shown), *_verdict(row)] for row in rows],
                    ["", *shown, "asked", "reached", ""], tablefmt=style, disable_numparse=True)


def _cell(row: Row, peer: str) -> str:
    m = row["found"].get(peer)
    if m is None:
        return ""
    speed = rate(row["flops"] / m["median"], "FLOP/s") if row["flops"] else \
        rate(row["nbytes"] / m["median"], "B/s") if row["nbytes"] else ""
    return f"{duration(m['median'])}{f', {speed}' if speed else ''}{'*' if m['disturbed'] else ''}"


def _verdict(row: Row) -> list[str]:
    asked = f"{row['bound']:.2f} x {row['peer']}"
    if row["failed"]:
        return [asked, "", f"FAILED: {row['failed']}"]
    if row.get("differs"):
        return [asked, "", "WRONG: " + ", ".join(f"{peer} {row['errors'][peer]:.1e}" for peer in row["differs"])]
    theirs = row["found"].get(row["peer"])
    if theirs is None:
        return [asked, "", "no peer"]
    reached = theirs["median"] / row["found"]["devrt"]["median"]
    return [asked, f"{reached:.2f}", "ok" if reached >= row["bound"] else "short"]


def markdown(name: str, env: dict[str, Any], rows: list[Row], raw: str) -> str:
    notes = ["Speed is the peer's time over devrt's; medians of wall-clock time, each call waited for."]
    notes += [f"CUDA is missing: {_peers['no cuda']}"] if "no cuda" in _peers else []
    notes += ["PyTorch with CUDA is missing."] if torch is None or not torch.cuda.is_available() else []
    return (heading(f"devrt beside CUDA, PyTorch and Triton on {name}", env, "python bench/nvidia.py --write", raw)
            + f"{table(rows, 'pipe')}\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")


def simulated(device: NvidiaDevice) -> bool:
    """Whether a virtual GPU is measured: by its URI, or, under `devrt virtual exec`, by what its driver says."""
    try:
        return devrt.device.parse_uri(device.uri).virtual or "virtual@devrt" in device.system.read_text(VERSION_FILE)
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="nvidia:0")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--mib", type=int, help="size of large arrays")
    parser.add_argument("--side", type=int, help="of square matrices")
    parser.add_argument("--write", nargs="?", type=Path, const=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    if torch is not None and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    device: NvidiaDevice = devrt.open(args.device)  # type: ignore[assignment]
    name = device.properties.name
    env = environment(("numpy", "torch", "triton", "llvmlite")) | {"gpu": name, "isa": device.properties.isa,
                                                                  "driver": device.driver.version}
    size, side = (args.mib or (64 if args.quick else 1024)) << 20, args.side or (2048 if args.quick else 8192)
    wanted = [c for c in cases(size, side) if not args.only or any(o in c.name for o in args.only)]
    progress = Progress(len(wanted))
    stem = re.sub(r"[^a-z0-9]+", "-", name.partition(" (")[0].lower().removeprefix("nvidia ").strip()).strip("-")
    virtual = simulated(device)
    env |= {"simulated": "yes"} if virtual else {}
    rows: list[Row] = []
    for case in wanted:
        progress.begin(case.name)
        rows.append(measure(case, device, args.rounds or (5 if args.quick else 15), progress.tick))
        progress.end()
        env["load after"] = load()
        if args.write and not (virtual and args.write == RESULTS):
            write(stem, markdown(name, env, rows, f"{stem}.json"), record(env, rows), args.write)
    progress.clear()
    print(table(rows, "simple"))
    if virtual:
        print("SIMULATED: the times are of this host playing the GPU; nothing is written to bench/results")
    return 1 if any(row["failed"] or row.get("differs") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
