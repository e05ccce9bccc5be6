"""The vendor's driver API by ctypes, as a peer that is timed: launches on a stream, copies, and nothing else."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

EMPTY_KERNEL = b""".version 7.0
.target sm_75
.address_size 64
.visible .entry empty() { ret; }
"""


class CudaError(RuntimeError):
    """What libcuda answered."""


class Cuda:
    """The primary context of one GPU, which PyTorch uses as well."""

    def __init__(self, index: int = 0) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"no CUDA driver library: {error}") from error
        self("cuInit", 0)
        device = ctypes.c_int()
        self("cuDeviceGet", ctypes.byref(device), index)
        context = ctypes.c_void_p()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        self._stream = ctypes.c_void_p()
        self("cuStreamCreate", ctypes.byref(self._stream), 1)  # CU_STREAM_NON_BLOCKING

    def __call__(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(f"{name}: CUDA error {code}")

    def synchronize(self) -> None:
        self("cuStreamSynchronize", self._stream)

    def empty_launch(self) -> Callable[[], None]:
        """Launch a kernel that does nothing on a stream, and wait for it."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoadData", ctypes.byref(module), EMPTY_KERNEL)
        self("cuModuleGetFunction", ctypes.byref(function), module, b"empty")
        launch, wait, stream = self._library.cuLaunchKernel, self._library.cuStreamSynchronize, self._stream

        def run() -> None:
            launch(function, 1, 1, 1, 32, 1, 1, 0, stream, None, None)
            wait(stream)
        return run

    def copy(self, kind: str, nbytes: int) -> Callable[[], None]:
        """An asynchronous copy and the wait for it: "DtoD", "HtoD" or "DtoH", host memory pinned."""
        far, other = ctypes.c_uint64(), ctypes.c_uint64()
        near = ctypes.c_void_p()
        self("cuMemAlloc_v2", ctypes.byref(far), ctypes.c_size_t(nbytes))
        if kind == "DtoD":
            self("cuMemAlloc_v2", ctypes.byref(other), ctypes.c_size_t(nbytes))
            arguments: tuple[Any, Any] = (other, far)
        else:
            self("cuMemHostAlloc", ctypes.byref(near), ctypes.c_size_t(nbytes), 0)
            arguments = (far, near) if kind == "HtoD" else (near, far)
        start, wait, stream = getattr(self._library, f"cuMemcpy{kind}Async_v2"), self._library.cuStreamSynchronize, self._stream
        size = ctypes.c_size_t(nbytes)

        def run() -> None:
            start(*arguments, size, stream)
            wait(stream)
        return run
