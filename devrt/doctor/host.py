"""The host: kernel, processors, memory limits, IOMMU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from devrt.doctor.findings import NOTE, OK, WARNING, Finding, Reader
from devrt.doctor.gpus import Gpu
from devrt.doctor.hardware import CPU_FEATURES, VENDORS

MEMLOCK_BYTES = 64 << 20  # pinned staging buffers of one device; below this large host copies are split


def kernel(reader: Reader) -> Finding:
    host = reader.system.host()
    return Finding("kernel", OK, f"{host.sysname} {host.release} on {host.machine}",
                   f"user {host.user}, uid {host.uid}")


def cpu(reader: Reader) -> Iterator[Finding]:
    text = reader.text("/proc/cpuinfo") or ""
    fields = re.findall(r"^([^\t:\n]+?)\s*:[ \t]*(.*)$", text, re.MULTILINE)
    flags = {flag for key, value in fields if key in ("flags", "Features") for flag in value.split()}
    online = sum(key == "processor" for key, _ in fields)
    model = next((value for key, value in fields if key in ("model name", "Model")), "unknown model")
    features = [feature.name for feature in CPU_FEATURES if feature.flag in flags]
    if not online:
        yield Finding("cpu", WARNING, "the processors can't be described", "/proc/cpuinfo names none",
                      "make /proc/cpuinfo readable: mount -t proc proc /proc")
        return
    cores = len({(package, core) for package, core in _cores(text)}) or online
    what = f"{model}: {_count(cores, 'core')}, {_count(online, 'thread')}"
    listed = ", ".join(features) or "no vector extension that devrt uses"
    if reader.system.host().machine == "x86_64" and not {"avx2", "fma"} <= flags:
        yield Finding("cpu", WARNING, f"{what}, without AVX2 and FMA: exact arithmetic emulates fma, many times slower",
                      listed, "use a processor from 2013 or later; in a virtual machine pass the host's CPU model through")
    else:
        yield Finding("cpu", OK, what, listed)
    yield from _affinity(reader, online)


def _affinity(reader: Reader, online: int) -> Iterator[Finding]:
    allowed = len(reader.system.host().affinity)
    if allowed < online:
        yield Finding("cpu-affinity", NOTE, f"this process may use {allowed} of {_count(online, 'thread')}",
                      "sched_getaffinity", "start devrt without taskset or a cpuset to use all")
    # cpu.max: "quota period" in microseconds, or "max period".
    quota = re.fullmatch(r"(\d+) (\d+)", reader.text("/sys/fs/cgroup/cpu.max") or "")
    if quota and int(quota[1]) < int(quota[2]) * allowed:
        share = int(quota[1]) / int(quota[2])
        yield Finding("cpu-affinity", NOTE, f"the container may use the time of {share:.1f} threads, so more stall",
                      f"/sys/fs/cgroup/cpu.max: {quota[0]}", "raise the container's CPU limit")


def memory(reader: Reader, gpus: list[Gpu]) -> Iterator[Finding]:
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    thp = reader.text(path) or ""
    chosen = re.search(r"\[(\w+)\]", thp)
    reserved = re.search(r"^HugePages_Total:\s*(\d+)", reader.text("/proc/meminfo") or "", re.MULTILINE)
    pages = f"HugePages_Total: {reserved[1] if reserved else 'unknown'}"
    if path in reader.unreadable:
        yield Finding("huge-pages", NOTE, "whether transparent huge pages are on is unknown", f"{path} could not be read")
    elif chosen is None:
        yield Finding("huge-pages", NOTE, "this kernel has no transparent huge pages", pages)
    elif chosen[1] == "never":
        yield Finding("huge-pages", WARNING, "transparent huge pages are off, so large arrays miss the TLB more often",
                      f"{path}: {thp}, {pages}", f"echo madvise | sudo tee {path}")
    else:
        yield Finding("huge-pages", OK, f"transparent huge pages: {chosen[1]}", pages)
    limit = reader.system.host().memlock_bytes
    if 0 <= limit < MEMLOCK_BYTES and any(gpu.vendor in VENDORS for gpu in gpus):
        user = reader.system.host().user
        yield Finding("memlock", NOTE, f"this process may lock {limit >> 10} KiB of memory; pinned host buffers want "
                      f"{MEMLOCK_BYTES >> 20} MiB", "RLIMIT_MEMLOCK",
                      f"echo '{user} - memlock unlimited' | sudo tee /etc/security/limits.d/90-devrt.conf, then log in again")
    else:
        most = "as much memory as it likes" if limit < 0 else f"{limit >> 10} KiB of memory"
        yield Finding("memlock", OK, f"this process may lock {most}", "RLIMIT_MEMLOCK")


def iommu(reader: Reader, gpus: list[Gpu]) -> Iterator[Finding]:
    """Whether DMA addresses are translated: it isolates devices, and it sends copies between GPUs through the root."""
    driven = [gpu for gpu in gpus if gpu.vendor in VENDORS]
    path = "/sys/kernel/iommu_groups"
    groups = reader.names(path)
    asked = " ".join(word for word in (reader.text("/proc/cmdline") or "").split() if "iommu" in word) or "no iommu option"
    evidence = f"{_count(len(groups), 'group')} in {path}, kernel command line: {asked}"
    if path in reader.unreadable:
        yield Finding("iommu", NOTE, "whether an IOMMU translates DMA is unknown",
                      f"{path} could not be read, kernel command line: {asked}")
        return
    if not groups:
        yield Finding("iommu", OK, "no IOMMU translates DMA", evidence)
        return
    types = {reader.text(f"{gpu.path}/iommu_group/type") or "unknown" for gpu in driven}
    kinds = ", ".join(sorted(types))
    if len(driven) > 1 and any(kind.startswith("DMA") for kind in types):
        yield Finding("iommu", WARNING, f"the IOMMU translates the DMA of {len(driven)} GPUs, so copies between them "
                      "detour through the root complex", f"{evidence}, type of the GPUs' groups: {kinds}",
                      "boot with iommu=pt: add it to GRUB_CMDLINE_LINUX in /etc/default/grub, sudo update-grub, reboot")
    else:
        yield Finding("iommu", OK, "the IOMMU is on" + (f", the GPU's group is of type {kinds}" if driven else ""), evidence)


def _cores(cpuinfo: str) -> Iterator[tuple[str, str]]:
    for block in cpuinfo.split("\n\n"):
        package, core = (re.search(rf"^{key}\s*: (\d+)", block, re.MULTILINE) for key in ("physical id", "core id"))
        if package and core:
            yield package[1], core[1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
