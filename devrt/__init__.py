"""devrt: ML kernels on any GPU with nothing of the vendor's user space.

    import devrt
    x = devrt.asarray([[1.0, 2.0], [3.0, 4.0]])
    y = devrt.nn.softmax(x @ x.T)
    print(y.numpy())

Names are resolved on first use, so that importing devrt costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = ("nn", "doctor", "device", "registry", "safetensors", "compare")
_FROM = {
    "devrt.registry": ("open", "devices"),
    "devrt.device": ("DevrtError", "DeviceNotFound", "PermissionDenied", "DriverMismatch", "OutOfMemory", "InvalidArgument",
                     "Unsupported", "CompileError", "DeviceFault", "DeviceHang", "DeviceLost", "parse_uri"),
    "devrt.scheduler.capture": ("capture", "Captured"),
    "devrt.scheduler.explain": ("explain",),
    "devrt.tier": ("fast",),
    "devrt.array": ("Array", "asarray", "from_dlpack", "realize"),
    "devrt.compiler.dtypes": ("int4", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
                              "float8_e4m3", "float8_e5m2", "float16", "bfloat16", "float32", "float64", "DType"),
}
_WHERE = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"devrt.{name}")
    elif name == "bool":
        from devrt.compiler.dtypes import bool_ as value
    elif not name.startswith("_"):
        functions = importlib.import_module("devrt.functions")
        if name not in functions.__all__:
            raise AttributeError(f"module 'devrt' has no attribute {name!r}")
        value = getattr(functions, name)
    else:
        raise AttributeError(f"module 'devrt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    functions = importlib.import_module("devrt.functions")
    return sorted({*_WHERE, *_MODULES, *functions.__all__, "__version__", "bool"})
