"""What compiling typical kernels costs: prints a JSON list of [name, kernels, seconds a kernel, from the disk cache].

Run: DEVRT_CACHE=/some/empty/folder python bench/compile_times.py   (a second time for the warm cache)

A kernel's seconds reach from the graph to a program that is ready to run: planning, lowering, LLVM, loading. The last row is what
the compiler for NVIDIA GPUs needs for one, its tables' first use included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import devrt
from devrt.compiler.compile import backend_for, entry_name, lower
from devrt.device import Properties
from devrt.scheduler import run
from devrt.scheduler.plan import schedule
from devrt.scheduler.simplify import resolve

f32 = np.float32


def expressions() -> dict[str, Callable[[], Any]]:
    """Twenty kernels that networks are made of, with shapes of their own."""
    nn = devrt.nn

    def a(*shape: int, dtype: Any = f32) -> Any:
        return devrt.asarray(np.ones(shape, dtype))
    heads, tokens = a(8, 64, 64), a(16, dtype=np.int64)
    return {
        "add": lambda: a(1000) + a(1000),
        "scale and shift": lambda: a(64, 256) * a(256) + a(256),
        "sin": lambda: devrt.sin(a(4096)) * a(4096),
        "exp": lambda: devrt.exp(a(4096)),
        "gelu": lambda: nn.gelu(a(64, 1024)),
        "gelu tanh": lambda: nn.gelu(a(64, 1024), approximate="tanh"),
        "swiglu": lambda: nn.swiglu(a(64, 688), a(64, 688)),
        "sum": lambda: devrt.sum(a(128, 1024), axis=-1),
        "column sum": lambda: devrt.sum(a(1024, 128), axis=0),
        "argmax": lambda: devrt.argmax(a(16, 1000), axis=-1),
        "softmax": lambda: nn.softmax(a(64, 1000)),
        "rms_norm": lambda: nn.rms_norm(a(64, 512), a(512)),
        "layer_norm": lambda: nn.layer_norm(a(64, 512), a(512), a(512)),
        "cross entropy": lambda: nn.cross_entropy(a(16, 1000), tokens),
        "rope": lambda: nn.rope(a(8, 64, 64), *nn.rope_tables(devrt.arange(64), 64)),
        "embedding": lambda: nn.embedding(a(1000, 64), tokens),
        "transpose": lambda: a(300, 200).T + 1,
        "gemv": lambda: a(1024, 512) @ a(512),
        "gemm": lambda: a(256, 256) @ a(256, 256),
        "linear": lambda: nn.relu(nn.linear(a(64, 256), a(512, 256), a(512))),
        "attention": lambda: nn.attention(heads, heads, heads, causal=True),
        "int8 gemv": lambda: nn.quantised_linear(a(512), a(1024, 512, dtype=np.int8), a(1024, 1)),
    }


def for_nvidia() -> list[Any]:
    """The softmax kernel from kernel IR to a cubin, by devrt's own compiler; no such GPU is needed."""
    from devrt.compiler.sass import target
    gpu = Properties("H200", "nvidia", "sm_90", 132, 32, 1 << 37, target.SHARED_BYTES[90])
    s, _ = schedule(resolve([expressions()["softmax"]().node]), devrt.open("cpu").properties)
    kernels = [launch.kernel for launch in s.launches if launch.kernel is not None]
    backend = backend_for(gpu)
    start = time.perf_counter()
    for k in kernels:
        backend.compile(lower(k, entry_name(k), backend.tuning))
    return ["softmax for sm_90", len(kernels), (time.perf_counter() - start) / len(kernels), False]


def main() -> None:
    device = devrt.open("cpu")
    (devrt.asarray(np.ones(3, f32)) - 1).wait()  # LLVM's own start belongs to no kernel
    found = []
    for name, build in expressions().items():
        root = build().node
        start = time.perf_counter()
        s, _ = schedule(resolve([root]), device.properties)
        for launch in s.launches:
            if launch.compiled is not None:
                run.program(device, launch)
        seconds = time.perf_counter() - start
        kernels = [launch.compiled for launch in s.launches if launch.compiled is not None]
        found.append([name, len(kernels), seconds / max(len(kernels), 1), all(k.cached for k in kernels)])
    found.append(for_nvidia())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
