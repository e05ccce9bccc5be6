"""What `devrt bench` measures: named pieces of work with the FLOPs and bytes they need, on any device.

FLOPs count multiplications and additions of contractions (an fma is two); bytes count every input and output once. Costs
of the named operations' exponentials are in neither: those rows are judged by bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import devrt
from devrt.array import Array
from devrt.benchmark.measure import Run
from devrt.compiler.dtypes import DType
from devrt.device import Device, Placement
from devrt.scheduler import run
from devrt.scheduler.plan import schedule
from devrt.scheduler.simplify import resolve

nn = devrt.nn
REPLAYED = 1000  # kernels in one list
Formula = Callable[..., Array | tuple[Array, ...]]


@dataclass(frozen=True)
class Case:
    """`build` prepares the work once and returns what does it and blocks. A run does it `each` times."""

    group: str
    name: str
    build: Callable[[Device], Run]
    flops: float = 0.0
    nbytes: float = 0.0
    each: int = 1

    @property
    def title(self) -> str:
        return f"{self.group}: {self.name}"


def cases(quick: bool) -> list[Case]:
    """Everything there is to measure, in the order of the report."""
    return [*launches(), *copies(quick), *streams(quick), *products(quick), *operations(quick)]


# ---------------------------------------------------------------------------------------------------------------------
# Launches


def _tiny(device: Device) -> run.Bound:
    return _bound(device, lambda x: x + 1, _normal(device, (16,)))


def _launch(device: Device) -> Run:
    bound = _tiny(device)
    return lambda: device.compute.wait(bound.submit())


def _replay(device: Device) -> Run:
    bound = _tiny(device)
    (launch,) = bound.schedule.launches
    assert launch.compiled is not None
    commands, program = device.command_list(), run.program(device, launch)
    for _ in range(REPLAYED):
        commands.dispatch(program, [bound.argument(p) for p in launch.places], launch.compiled.groups)

    def replay() -> Any:
        device.compute.wait(device.compute.submit(commands))
        return bound  # whose buffers the list uses
    return replay


def _captured(device: Device) -> Run:
    step, x = devrt.capture(lambda x: x + 1), _normal(device, (16,))
    return lambda: step(x).wait()


def _lazy(device: Device) -> Run:
    x = _normal(device, (16,))
    return lambda: (x + 1).wait()


def launches() -> Iterator[Case]:
    yield Case("launch", "submit and wait", _launch)
    yield Case("launch", f"kernel of a list of {REPLAYED}", _replay, each=REPLAYED)
    yield Case("launch", "captured call and wait", _captured)
    yield Case("launch", "lazy expression and wait", _lazy)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def copies(quick: bool) -> Iterator[Case]:
    for size in (64 << 10, 16 << 20) if quick else (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20):
        yield Case("copy", _size(size), _copy(size), nbytes=2.0 * size)


def _copy(nbytes: int) -> Callable[[Device], Run]:
    def build(device: Device) -> Run:
        src, dst, zeros = device.alloc(nbytes), device.alloc(nbytes), device.alloc(nbytes, Placement.HOST)
        zeros.host()[:nbytes] = bytes(nbytes)
        commands = device.command_list()
        commands.copy(src, zeros, nbytes)
        device.transfer.wait(device.transfer.submit(commands))
        device.free(zeros)
        commands = device.command_list()
        commands.copy(dst, src, nbytes)
        return lambda: device.transfer.wait(device.transfer.submit(commands))
    return build


def streams(quick: bool) -> Iterator[Case]:
    """Element-wise kernels in the manner of STREAM."""
    n = (4 if quick else 16) << 20
    for name, arrays, formula in (("add scalar", 2, lambda a, b: a + 1.0), ("add", 3, lambda a, b: a + b),
                                  ("triad", 3, lambda a, b: a + b * 3.0)):
        yield Case("stream", f"{name} {_size(4 * n)}", _work(formula, (n,), (n,)), nbytes=4.0 * n * arrays)
    yield Case("stream", f"sum {_size(4 * n)}", _work(lambda a: devrt.sum(a), (n,)), nbytes=4.0 * n)
    yield Case("stream", f"sin(a)*b+a {_size(4 * n)}", _work(lambda a, b: devrt.sin(a) * b + a, (n,), (n,)), nbytes=12.0 * n)


# ---------------------------------------------------------------------------------------------------------------------
# Contractions


def products(quick: bool) -> Iterator[Case]:
    types = (devrt.float32, devrt.bfloat16) if quick else (devrt.float32, devrt.float16, devrt.bfloat16)
    for t in types:
        large = ((1024, 1024, 1024), (2048, 2048, 2048), (64, 4096, 4096))
        for m, n, k in ((512, 512, 512), *(() if quick else large)):
            yield Case("gemm", f"{t} {m}x{n}x{k}", _work(lambda a, b: devrt.matmul(a, b), (m, k), (k, n), dtype=t),
                       2.0 * m * n * k, t.nbytes(m * k + k * n + m * n))
        for n, k in ((2048, 2048),) if quick else ((4096, 4096), (11008, 2048)):
            yield Case("gemv", f"{t} {n}x{k}", _work(lambda a, b: devrt.matmul(a, b), (n, k), (k,), dtype=t),
                       2.0 * n * k, t.nbytes(n * k + k + n))
    # Where a product pays off depends on what surrounds it: the kernel alone is above, with both transfers here.
    for m in (64, 512) if quick else (64, 512, 2048):
        yield Case("gemm", f"float32 {m}x{m}x{m} from and to host", _host_to_host(m), 2.0 * m**3, 4.0 * 3 * m * m)
    n, k = (2048, 2048) if quick else (11008, 2048)
    for bits in (8, 4):
        yield Case("gemv", f"int{bits} weights {n}x{k}", _quantised(n, k, bits),
                   2.0 * n * k, n * k * bits / 8 + 4.0 * (2 * n + k))


def _host_to_host(m: int) -> Callable[[Device], Run]:
    def build(device: Device) -> Run:
        a, b = (np.array(_normal(device, (m, m)).numpy()) for _ in range(2))
        product = devrt.capture(lambda x, y: x @ y)

        def run() -> object:
            x, y = (devrt.asarray(h, device=device.uri, copy=True) for h in (a, b))
            return np.array(product(x, y).numpy())
        return run
    return build


def _quantised(n: int, k: int, bits: int) -> Callable[[Device], Run]:
    def build(device: Device) -> Run:
        codes, scales = nn.quantise(_normal(device, (n, k)), 8 if bits == 8 else 4)
        codes, scales = codes.wait(), scales.wait()
        return _run(nn.quantised_linear, _normal(device, (k,)), codes, scales)
    return build


# ---------------------------------------------------------------------------------------------------------------------
# Operations of language models


def operations(quick: bool) -> Iterator[Case]:
    rows, wide, depth, vocabulary = (64, 1024, 2048, 8000) if quick else (512, 5504, 2048, 32000)

    def row(name: str, formula: Formula, *shapes: tuple[int, ...], nbytes: float) -> Case:
        return Case("op", name, _work(formula, *shapes), nbytes=nbytes)
    yield row(f"softmax {rows}x{vocabulary}", nn.softmax, (rows, vocabulary), nbytes=8.0 * rows * vocabulary)
    yield row(f"rms_norm {rows}x{depth}", nn.rms_norm, (rows, depth), (depth,), nbytes=8.0 * rows * depth)
    yield row(f"rms_norm backward {rows}x{depth}", nn.rms_norm_backward, (rows, depth), (rows, depth), (depth,),
              nbytes=12.0 * rows * depth)
    yield row(f"layer_norm {rows}x{depth}", nn.layer_norm, (rows, depth), (depth,), (depth,), nbytes=8.0 * rows * depth)
    yield row(f"gelu {rows}x{wide}", lambda x: nn.gelu(x), (rows, wide), nbytes=8.0 * rows * wide)
    yield row(f"gelu tanh {rows}x{wide}", lambda x: nn.gelu(x, approximate="tanh"), (rows, wide), nbytes=8.0 * rows * wide)
    yield row(f"squared_relu {rows}x{wide}", nn.squared_relu, (rows, wide), nbytes=8.0 * rows * wide)
    yield row(f"swiglu {rows}x{wide}", nn.swiglu, (rows, wide), (rows, wide), nbytes=12.0 * rows * wide)
    heads, tokens, head = (4, 128, 64) if quick else (16, 512, 128)
    yield row(f"rope {heads}x{tokens}x{head}", nn.rope, (heads, tokens, head), (tokens, head // 2), (tokens, head // 2),
              nbytes=8.0 * heads * tokens * head)
    qkv = (heads, tokens, head)
    yield Case("op", f"attention causal {heads}x{tokens}x{head}",
               _work(lambda q, k, v: nn.attention(q, k, v, causal=True), qkv, qkv, qkv),
               2.0 * heads * tokens * tokens * head, 16.0 * heads * tokens * head)
    kv = (heads // 4, tokens, head)
    yield Case("op", f"attention grouped {heads}/{heads // 4}x{tokens}x{head}",
               _work(lambda q, k, v: nn.attention(q, k, v, causal=True), qkv, kv, kv),
               2.0 * heads * tokens * tokens * head, 10.0 * heads * tokens * head)
    window = tokens // 4
    seen = window * (tokens - window) + window * window / 2  # pairs of a query and a key
    yield Case("op", f"attention window {window} {heads}x{tokens}x{head}",
               _work(lambda q, k, v: nn.attention(q, k, v, causal=True, window=window), qkv, qkv, qkv),
               4.0 * heads * seen * head, 16.0 * heads * tokens * head)
    past = 512 if quick else 2048
    yield Case("op", f"attention decode {heads}x{past}x{head}",
               _work(nn.attention, (heads, 1, head), (heads, past, head), (heads, past, head)),
               4.0 * heads * past * head, 8.0 * heads * past * head)
    yield Case("op", f"cross_entropy {rows}x{vocabulary}", _labelled(nn.cross_entropy, (rows, vocabulary), rows, vocabulary),
               nbytes=4.0 * rows * vocabulary)
    chunks = 4
    yield Case("op", f"cross_entropy in {chunks} chunks {rows}x{vocabulary}",
               _labelled(lambda x, labels: nn.cross_entropy(x, labels, chunks=chunks), (rows, vocabulary), rows, vocabulary),
               nbytes=4.0 * rows * vocabulary)
    yield row(f"soft_cap {rows}x{vocabulary}", lambda x: nn.soft_cap(x), (rows, vocabulary), nbytes=8.0 * rows * vocabulary)
    yield Case("op", f"lm_head {vocabulary}x{depth}", _work(nn.linear, (1, depth), (vocabulary, depth)),
               2.0 * vocabulary * depth, 4.0 * (vocabulary * depth + vocabulary + depth))
    yield Case("op", f"embedding {vocabulary}x{depth}", _labelled(nn.embedding, (vocabulary, depth), rows, vocabulary),
               nbytes=8.0 * rows * depth)
    yield row(f"sample 8x{vocabulary}", lambda x: nn.sample(x, seed=1), (8, vocabulary), nbytes=32.0 * vocabulary)


    yield from _rwkv(256 if quick else 768)


def _rwkv(dim: int) -> Iterator[Case]:
    """RWKV-4's two halves of a layer for one token: what mixes, four or three products, and what comes out."""
    v, square, up, down = (dim,), (dim, dim), (4 * dim, dim), (dim, 4 * dim)

    def mixed(x: Array, before: Array, mix: Array) -> Array:
        return x * mix + before * (1 - mix)

    def time_mix(x: Array, before: Array, mix: Array, w: Array, u: Array, numerator: Array, denominator: Array, exponent: Array,
                 r: Array, k: Array, value: Array, out: Array) -> tuple[Array, ...]:
        h = mixed(x, before, mix)
        key, new, gate = (nn.linear(h, m) for m in (k, value, r))
        decay = -devrt.exp(w)
        top = devrt.maximum(exponent, u + key)
        old, now = devrt.exp(exponent - top), devrt.exp(u + key - top)
        mean = (old * numerator + now * new) / (old * denominator + now)
        top = devrt.maximum(exponent + decay, key)
        old, now = devrt.exp(exponent + decay - top), devrt.exp(key - top)
        return nn.linear(devrt.sigmoid(gate) * mean, out), old * numerator + now * new, old * denominator + now, top

    def channel_mix(x: Array, before: Array, mix: Array, r: Array, k: Array, value: Array) -> Array:
        h = mixed(x, before, mix)
        out: Array = devrt.sigmoid(nn.linear(h, r)) * nn.linear(nn.squared_relu(nn.linear(h, k)), value)
        return out
    yield Case("op", f"rwkv time mix {dim}", _work(time_mix, *[v] * 8, *[square] * 4), 8.0 * dim * dim,
               4.0 * (4 * dim * dim + 12 * dim))
    yield Case("op", f"rwkv channel mix {dim}", _work(channel_mix, *[v] * 3, square, up, down), 18.0 * dim * dim,
               4.0 * (9 * dim * dim + 4 * dim))


def _labelled(formula: Callable[[Array, Array], Array], shape: tuple[int, ...], count: int,
              below: int) -> Callable[[Device], Run]:
    def build(device: Device) -> Run:
        labels = devrt.asarray(np.random.default_rng(2).integers(0, below, count), device=device.uri)
        return _run(formula, _normal(device, shape), labels)
    return build


# ---------------------------------------------------------------------------------------------------------------------
# From formulas to runs


def _normal(device: Device, shape: tuple[int, ...], dtype: DType = devrt.float32) -> Array:
    x: Array = devrt.asarray(np.random.default_rng(1).standard_normal(shape, dtype=np.float32), device=device.uri)
    return x.astype(dtype).wait()


def _work(formula: Formula, *shapes: tuple[int, ...], dtype: DType = devrt.float32) -> Callable[[Device], Run]:
    """The captured formula of arrays of these shapes; the formula may take fewer."""
    def build(device: Device) -> Run:
        return _run(formula, *(_normal(device, s, dtype) for s in shapes))
    return build


def _run(formula: Formula, *inputs: Array) -> Run:
    step = devrt.capture(formula)

    def call() -> object:
        made = step(*inputs)
        for a in made if isinstance(made, tuple) else (made,):
            a.wait()
        return made
    return call


def _bound(device: Device, formula: Callable[..., Array], *inputs: Array) -> run.Bound:
    s, nodes = schedule(resolve([formula(*inputs).node]), device.properties)
    return run.Bound(s, device, [n.arg for n in nodes])


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"
