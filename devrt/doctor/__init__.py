"""The doctor: checks that read a machine and say what is right, what is not, and which command mends it.

    for finding in devrt.doctor.diagnose(LinuxSystem()):
        print(finding.severity, finding.what, finding.remedy)

A check reads through a System and yields Findings; what it may not read is a finding too, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from devrt.doctor import amd, amd_health, exercise, gpus, host, log, nodes, nvidia, nvidia_health, pcie
from devrt.doctor.findings import Finding, Reader, Severity
from devrt.ioctl.system import System

__all__ = ["Finding", "Severity", "diagnose"]


def diagnose(system: System, *, uris: Callable[[], Sequence[str]] | None = None, opener: exercise.Opener | None = None,
             compute: exercise.Compute | None = None) -> list[Finding]:
    """Everything there is to say about a machine, from the kernel upwards.

    `uris` lists devices to use, each opened by `opener`; `compute` runs a computation on one and says what it ran.
    """
    reader = Reader(system)
    found = gpus.find(reader)
    ours = amd.find(reader, found)
    expected = nodes.expected(reader, found, ours)
    still = [
        host.kernel(reader),
        *host.cpu(reader),
        *host.memory(reader, found),
        *host.iommu(reader, found),
        *gpus.check(reader, found),
        *nodes.check(reader, expected),
        *amd.check(reader, ours),
        *pcie.check(reader, found),
    ]
    # Before counters and the log are read, which tell what went wrong if something does.
    used = list(exercise.check(uris, opener, compute)) if uris is not None and opener is not None else []
    cards = nvidia.find(reader, found)  # asking NVIDIA's driver wakes the GPU, which takes seconds: now it is awake
    findings = [*still, *amd_health.check(reader, ours), *nvidia.check(cards), *nvidia_health.check(reader, cards),
                *log.check(reader), *used]
    unreadable = reader.finding()
    return [*findings, unreadable] if unreadable else findings
