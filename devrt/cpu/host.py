"""What the host CPU is: name, features, and the roofline that follows from them."""

from __future__ import annotations

from devrt.cpu import probe
from devrt.cpu.processor import Processor
from devrt.device import Properties
from devrt.ioctl.system import System

_AMX = {"amx-tile", "amx-bf16", "amx-int8", "amx-fp16", "amx-complex"}
_FMA_PER_CYCLE = 2  # vector FMA units of the server and desktop cores since Haswell (2013) and Zen 2 (2019)


def properties(system: System, processor: Processor, cores: int, memory_bytes: int, scratch_bytes: int) -> Properties:
    """`cores` is the number of cores this process may use. Measured peaks are used where probe.measure() left them."""
    features = set(processor.image.features)
    if features & _AMX and not processor.request_matrix_state():
        features -= _AMX
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    cpuinfo = _cpuinfo(system)
    measured = probe.load(system)
    estimate = estimated_peak(frequency_hz(system, cpuinfo), cores, lanes, features)
    return Properties(
        name=cpuinfo.get("model name", "CPU"), vendor="cpu", isa="x86-64", compute_units=cores, lanes=lanes,
        memory_bytes=memory_bytes, scratch_bytes=scratch_bytes, features=frozenset(features),
        peak_f32_flops_per_s=measured.f32_flops_per_s or estimate,
        memory_bytes_per_s=measured.memory_bytes_per_s)


def estimated_peak(hz: float, cores: int, lanes: int, features: set[str]) -> float:
    """f32 operations per second: clock x cores x lanes x FMA units x 2 operations each (one unit's worth of separate
    multiply and add without FMA). Optimistic where the clock falls under vector load."""
    per_cycle = 2 * _FMA_PER_CYCLE if "fma" in features else 2
    return hz * cores * lanes * per_cycle


def frequency_hz(system: System, cpuinfo: dict[str, str]) -> float:
    """The highest clock the kernel admits to; virtual machines only know the nominal one."""
    path = "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"
    if system.stat(path).exists:
        return float(system.read_text(path)) * 1e3
    return float(cpuinfo.get("cpu MHz", "0")) * 1e6


def _cpuinfo(system: System) -> dict[str, str]:
    rows = (line.partition(":") for line in system.read_text("/proc/cpuinfo").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in rows}
