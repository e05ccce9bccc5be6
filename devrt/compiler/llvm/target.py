"""What LLVM is asked to generate for: triple, CPU, features, lanes.

The host is detected at run time. `named()` gives fixed targets so that code generation for machines that are not here
can be checked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import llvmlite.binding as llvm

from devrt.device import Unsupported


@dataclass(frozen=True)
class Target:
    """triple, LLVM CPU name, feature string ("+avx2,-sse4a"), f32 lanes of a vector register, vector registers."""

    triple: str
    cpu: str
    features: str
    lanes: int
    vector_registers: int

    @property
    def isa(self) -> str:
        return self.triple.split("-")[0]

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")

    @property
    def key(self) -> str:
        """What a cached object depends on."""
        return f"{self.triple}/{self.cpu}/{self.features}/{self.lanes}/llvm{'.'.join(map(str, llvm.llvm_version_info))}"


_AVX2 = "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+movbe"
_AVX512 = _AVX2 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
_NAMED = {
    "x86-64-avx2": Target("x86_64-unknown-linux-gnu", "haswell", _AVX2, 8, 16),
    "x86-64-avx512": Target("x86_64-unknown-linux-gnu", "skylake-avx512", _AVX512, 16, 32),
    "x86-64-spr": Target("x86_64-unknown-linux-gnu", "sapphirerapids",
                         _AVX512 + ",+avx512vnni,+avx512bf16,+avx512fp16,+avx512vbmi2,+amx-tile,+amx-bf16,+amx-int8", 16, 32),
    "aarch64": Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+fullfp16,+dotprod", 4, 32),
}


def named(name: str) -> Target:
    """A fixed target: x86-64-avx2, x86-64-avx512, x86-64-spr, aarch64. Raises Unsupported."""
    if name not in _NAMED:
        raise Unsupported(f"no LLVM target called {name}", remedy=f"one of {', '.join(_NAMED)}")
    return _NAMED[name]


@functools.cache
def host() -> Target:
    """This machine, by what its CPU reports. Raises Unsupported below AVX2+FMA+F16C on x86-64, NEON on aarch64."""
    triple = llvm.get_process_triple()
    flags = llvm.get_host_cpu_features()
    features = ",".join(("+" if on else "-") + name for name, on in sorted(flags.items()))
    if triple.startswith("x86_64"):
        missing = [f for f in ("avx2", "fma", "f16c") if not flags.get(f)]
        if missing:
            raise Unsupported("this CPU is too old for the CPU device", evidence=f"it lacks {', '.join(missing)}",
                              remedy="x86-64 needs AVX2, FMA and F16C (Haswell or Zen and later)")
        wide = flags.get("avx512f") and flags.get("avx512dq") and flags.get("avx512bw") and flags.get("avx512vl")
        # A hypervisor may report a model number that LLVM maps to an older core; what it can do decides the cost model.
        cpu = "sapphirerapids" if flags.get("avx512fp16") else llvm.get_host_cpu_name()
        return Target(triple, cpu, features, 16 if wide else 8, 32 if wide else 16)
    if triple.startswith("aarch64"):
        return Target(triple, llvm.get_host_cpu_name(), features, 4, 32)
    raise Unsupported(f"the CPU device has no code generation for {triple}", remedy="x86-64 and aarch64 are supported")
