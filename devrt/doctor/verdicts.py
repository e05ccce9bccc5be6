"""What a check says of one GPU, and GPUs of which it says the same in one finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from devrt.doctor.findings import Finding, Severity
from devrt.doctor.gpus import Gpu


class Verdict(NamedTuple):
    """`what` follows the GPU's name and holds no numbers, which are `evidence`."""

    severity: Severity
    what: str
    evidence: str
    remedy: str = ""


def gather(check: str, vendor: str, verdicts: Sequence[tuple[Gpu, Verdict]]) -> Iterator[Finding]:
    """The findings of a check, in the order of what is said first."""
    said: dict[tuple[Severity, str, str], list[tuple[Gpu, str]]] = {}
    for gpu, (severity, what, evidence, remedy) in verdicts:
        said.setdefault((severity, what, remedy), []).append((gpu, evidence))
    for (severity, what, remedy), rows in said.items():
        subject = str(rows[0][0]) if len(rows) == 1 else f"{len(rows)} of {vendor}'s GPUs"
        yield Finding(check, severity, f"{subject}: {what}", _shown(rows), remedy)


def _shown(rows: list[tuple[Gpu, str]]) -> str:
    texts = {evidence for _, evidence in rows}
    return texts.pop() if len(texts) == 1 else "; ".join(f"{gpu.address} {evidence}" for gpu, evidence in rows)
