"""The rows of bench/peers.py: the same work for devrt and its peers, with a check that they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from devrt.benchmark.measure import Measurement, Run

Value = Callable[[], "np.ndarray[Any, Any]"]
Found = Mapping[str, Measurement]
PEERS = ("devrt", "devrt lazy", "numpy", "torch", "torch out=", "torch.compile", "tinygrad")


@dataclass(frozen=True)
class Target:
    """What devrt is to reach: `value` of the row's measurements at least `bound`."""

    text: str
    bound: float
    value: Callable[[Found], float | None]


@dataclass
class Case:
    """One row. `runs` by peer do the work once and block; `results` give what a peer computed, for the check;
    `references` are other work measured in the same rounds (copies); `missing` says why a peer is not there."""

    name: str
    targets: list[Target]
    runs: dict[str, Run] = field(default_factory=dict)
    results: dict[str, Value] = field(default_factory=dict)
    references: dict[str, Run] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rtol: float = 1e-5
    atol: float = 1e-5
    flops: float = 0.0
    nbytes: float = 0.0

    def agree(self) -> str:
        """"" if every result is devrt's within the tolerance, else who differs and by how much."""
        want = np.asarray(self.results["devrt"](), np.float64)
        for peer, result in self.results.items():
            got = np.asarray(result(), np.float64).reshape(want.shape)
            if not np.allclose(got, want, rtol=self.rtol, atol=self.atol):
                return f"{peer} differs from devrt by up to {np.abs(got - want).max():.3g}"
        return ""


def faster_than(times: float, *peers: str) -> Target:
    """devrt at least `times` as fast as the fastest of `peers`, by medians."""
    def value(found: Found) -> float | None:
        others = [found[p].median for p in peers if p in found]
        return min(others) / found["devrt"].median if others else None
    return Target(f"{times:g} x {' | '.join(peers)}", times, value)


def bandwidth_share(share: float, arrays: int) -> Target:
    """Bytes a second of devrt's `arrays` arrays, against the best copy (two arrays) of the same size in the same rounds."""
    def value(found: Found) -> float | None:
        copies = [m.median for name, m in found.items() if name.startswith("copy ")]
        return arrays / found["devrt"].median / (2 / min(copies))
    return Target(f"{share:g} of copy bandwidth", share, value)


Formula = Callable[..., Any]


class Builder:
    """Makes cases from one formula a peer, all given the same arrays."""

    def __init__(self, peers: frozenset[str], tinygrad_missing: str) -> None:
        import devrt
        self.devrt, self.peers, self.tinygrad_missing = devrt, peers, tinygrad_missing
        self.rng = np.random.default_rng(1)

    def normal(self, *shape: int) -> np.ndarray[Any, Any]:
        """Standard normal float32, 64-byte aligned: what devrt may read in place."""
        flat = np.empty(int(np.prod(shape)) + 16, np.float32)
        start = -flat.ctypes.data % 64 // 4
        out = flat[start:start + int(np.prod(shape))].reshape(shape)
        out[...] = self.rng.standard_normal(shape, dtype=np.float32)
        return out

    def case(self, name: str, targets: list[Target], arrays: list[np.ndarray[Any, Any]], *, devrt: Formula,
             numpy: Formula | None = None, torch: Formula | None = None, torch_out: Formula | None = None,
             tinygrad: Formula | None = None, **more: Any) -> Case:
        c = Case(name, targets, **more)
        self._devrt(c, devrt, arrays)
        if numpy is not None and "numpy" in self.peers:
            self._add(c, "numpy", lambda: numpy(*arrays), lambda r: r)
        if torch is not None:
            self._torch(c, torch, torch_out, arrays)
        if tinygrad is not None and "tinygrad" in self.peers:
            self._tinygrad(c, tinygrad, arrays)
        return c

    def _add(self, c: Case, peer: str, run: Run, value: Callable[[Any], Any]) -> None:
        c.runs[peer] = run
        c.results[peer] = lambda: value(run())

    def _devrt(self, c: Case, formula: Formula, arrays: list[np.ndarray[Any, Any]]) -> None:
        inputs = [self.devrt.asarray(a) for a in arrays]
        captured = self.devrt.capture(formula)
        self._add(c, "devrt", lambda: captured(*inputs).wait(), lambda r: r.numpy())
        if "devrt lazy" in self.peers:
            self._add(c, "devrt lazy", lambda: formula(*inputs).wait(), lambda r: r.numpy())

    def _torch(self, c: Case, formula: Formula, out: Formula | None, arrays: list[np.ndarray[Any, Any]]) -> None:
        import torch
        inputs = [torch.from_numpy(a) for a in arrays]
        if "torch" in self.peers:
            self._add(c, "torch", lambda: formula(*inputs), lambda r: r.numpy())
        if out is not None and "torch out=" in self.peers:
            target = torch.empty_like(formula(*inputs))
            self._add(c, "torch out=", lambda: out(*inputs, out=target), lambda r: r.numpy())
        if "torch.compile" in self.peers:
            try:
                compiled = torch.compile(formula, dynamic=False)
                compiled(*inputs)
            except Exception as e:  # whatever its compiler says is the answer
                c.missing["torch.compile"] = f"{type(e).__name__}: {str(e).splitlines()[0]}"
            else:
                self._add(c, "torch.compile", lambda: compiled(*inputs), lambda r: r.numpy())

    def _tinygrad(self, c: Case, formula: Formula, arrays: list[np.ndarray[Any, Any]]) -> None:
        if self.tinygrad_missing:
            c.missing["tinygrad"] = self.tinygrad_missing
            return
        from tinygrad import Device, Tensor, TinyJit
        inputs = [Tensor(a).realize() for a in arrays]
        jitted = TinyJit(lambda *xs: formula(*xs).realize())
        device = Device[Device.DEFAULT]

        def run() -> Any:
            result = jitted(*inputs)
            device.synchronize()
            return result
        try:
            for _ in range(3):  # plain, recorded, replayed
                run()
        except Exception as e:  # whatever its compiler says is the answer
            c.missing["tinygrad"] = f"{type(e).__name__}: {str(e).splitlines()[0]}"
        else:
            self._add(c, "tinygrad", run, lambda r: r.numpy())


# ---------------------------------------------------------------------------------------------------------------------
# The rows


def gemm(b: Builder, n: int) -> Case:
    import torch
    small = n <= 1024
    c = b.case(f"gemm {n}", [faster_than(0.9, "numpy", "torch")], [b.normal(n, n), b.normal(n, n)],
               devrt=lambda x, y: x @ y, numpy=lambda x, y: x @ y, torch=lambda x, y: x @ y, torch_out=torch.matmul,
               tinygrad=(lambda x, y: x @ y) if small else None, rtol=1e-4, atol=1e-5 * n, flops=2.0 * n**3,
               nbytes=12.0 * n * n)
    if not small and "tinygrad" in b.peers:
        c.missing["tinygrad"] = "GEMMs above 1024 are left out, they take it seconds"
    return c


def sin(b: Builder) -> Case:
    import torch
    n = 1 << 24

    def out(x: Any, y: Any, out: Any) -> Any:
        return torch.sin(x, out=out).mul_(y).add_(x)
    x, y = b.normal(n), b.normal(n)
    c = b.case("sin(x)*y+x 2^24", [bandwidth_share(0.8, 3), faster_than(3, "torch.compile")], [x, y],
               devrt=lambda x, y: b.devrt.sin(x) * y + x, numpy=lambda x, y: np.sin(x) * y + x,
               torch=lambda x, y: torch.sin(x) * y + x, torch_out=out, tinygrad=lambda x, y: x.sin() * y + x, nbytes=12.0 * n)
    c.references = copies(b, x)
    return c


def copies(b: Builder, x: np.ndarray[Any, Any]) -> dict[str, Run]:
    """The ways to copy `x` into memory that exists."""
    import torch
    target = np.zeros_like(x)
    source, to = torch.from_numpy(x), torch.zeros(x.shape)
    device = b.devrt.open("cpu")
    src, dst = device.alloc(x.nbytes), device.alloc(x.nbytes)
    np.frombuffer(src.host(), np.float32)[:] = x
    commands = device.command_list()
    commands.copy(dst, src, x.nbytes)
    return {"copy numpy": lambda: np.copyto(target, x), "copy torch": lambda: to.copy_(source),
            "copy devrt": lambda: device.transfer.wait(device.transfer.submit(commands))}


def softmax(b: Builder) -> Case:
    import torch

    def numpy(x: Any) -> Any:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)
    return b.case("softmax 512x32000", [faster_than(3, "torch")], [b.normal(512, 32000)], devrt=b.devrt.nn.softmax, numpy=numpy,
                  torch=lambda x: torch.softmax(x, -1), torch_out=lambda x, out: torch.softmax(x, -1, out=out),
                  tinygrad=lambda x: x.softmax(-1), atol=1e-9, rtol=1e-4, nbytes=8.0 * 512 * 32000)


def gelu(b: Builder) -> Case:
    import torch
    f = torch.nn.functional.gelu
    return b.case("gelu 512x32000", [faster_than(3, "torch")], [b.normal(512, 32000)], devrt=lambda x: b.devrt.nn.gelu(x),
                  torch=lambda x: f(x), torch_out=lambda x, out: torch._C._nn.gelu(x, out=out),
                  tinygrad=lambda x: x * 0.5 * (1 + (x * 0.5**0.5).erf()), nbytes=8.0 * 512 * 32000)


def rms_norm(b: Builder) -> Case:
    import torch
    return b.case("rms_norm 512x2048", [faster_than(1, "torch.compile")], [b.normal(512, 2048), b.normal(2048)],
                  devrt=lambda x, w: b.devrt.nn.rms_norm(x, w, eps=1e-6),
                  numpy=lambda x, w: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(1e-6)) * w,
                  torch=lambda x, w: torch.nn.functional.rms_norm(x, (2048,), w, 1e-6),
                  tinygrad=lambda x, w: x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w, nbytes=8.0 * 512 * 2048)


def cross_entropy(b: Builder) -> Case:
    import torch
    labels = b.rng.integers(0, 32000, 512)

    def numpy(x: Any, t: Any) -> Any:
        top = x.max(axis=-1, keepdims=True)
        return np.log(np.exp(x - top).sum(axis=-1)) + top[:, 0] - x[np.arange(512), t]
    return b.case("cross_entropy 512x32000", [faster_than(1, "torch.compile")], [b.normal(512, 32000), labels],
                  devrt=lambda x, t: b.devrt.nn.cross_entropy(x, t), numpy=numpy,
                  torch=lambda x, t: torch.nn.functional.cross_entropy(x, t, reduction="none"),
                  tinygrad=lambda x, t: x.sparse_categorical_crossentropy(t, reduction="none"), nbytes=4.0 * 512 * 32000)


def gemv(b: Builder) -> Case:
    import torch
    return b.case("gemv 11008x2048", [faster_than(1, "torch")], [b.normal(11008, 2048), b.normal(2048)],
                  devrt=lambda w, x: w @ x, numpy=lambda w, x: w @ x, torch=lambda w, x: w @ x, torch_out=torch.mv,
                  tinygrad=lambda w, x: w @ x, rtol=1e-4, atol=1e-3, flops=2.0 * 11008 * 2048, nbytes=4.0 * 11008 * 2048)


def attention(b: Builder) -> Case:
    import torch
    f = torch.nn.functional.scaled_dot_product_attention
    qkv = [b.normal(1, 16, 512, 128) for _ in range(3)]
    return b.case("attention 16x512x128", [faster_than(0.8, "torch")], qkv,
                  devrt=lambda q, k, v: b.devrt.nn.attention(q, k, v, causal=True),
                  torch=lambda q, k, v: f(q, k, v, is_causal=True),
                  tinygrad=lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True), rtol=1e-4, atol=1e-4,
                  flops=2.0 * 16 * 512 * 512 * 128, nbytes=16.0 * 16 * 512 * 128)


CASES: dict[str, Callable[[Builder], Case]] = {
    "gemm 1024": lambda b: gemm(b, 1024), "gemm 2048": lambda b: gemm(b, 2048), "gemm 4096": lambda b: gemm(b, 4096),
    "sin": sin, "softmax": softmax, "gelu": gelu, "rms_norm": rms_norm, "cross_entropy": cross_entropy, "gemv": gemv,
    "attention": attention,
}
