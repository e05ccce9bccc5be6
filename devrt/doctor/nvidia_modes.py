"""Modes of NVIDIA's GPUs that decide who may compute on them: split into instances (MIG), confidential, virtual.

Read by nvidia.py through the backend's own questions (devrt.nvidia.modes, instances); a mode that a driver does not tell is no
finding.
"""

from __future__ import annotations

from collections.abc import Iterator

from devrt.doctor.findings import ERROR, NOTE, OK, WARNING
from devrt.doctor.nvidia import Card
from devrt.doctor.verdicts import Verdict
from devrt.ioctl.nv_modes import MigMode, Virtualization
from devrt.nvidia.modes import VIRTUAL

_RESET = ("end every program on it, then: sudo nvidia-smi -i {pci} --gpu-reset; to leave it as it is: sudo nvidia-smi -i {pci} "
          "-mig {now}")


def split(card: Card) -> Iterator[Verdict]:
    """MIG mode now and after the next reset, and the instances."""
    modes, pci = card.modes, card.gpu.address
    if modes is None or modes.mig in (None, MigMode.UNSUPPORTED):
        return
    if modes.mig == MigMode.ENABLE_PENDING:
        yield Verdict(WARNING, "will be split into instances (MIG) from its next reset on", "MIG mode: off, pending on",
                      _RESET.format(pci=pci, now=0))
    if modes.mig == MigMode.DISABLE_PENDING:
        yield Verdict(WARNING, "will be one GPU again, without instances (MIG), from its next reset on",
                      "MIG mode: on, pending off", _RESET.format(pci=pci, now=1))
    if modes.mig == MigMode.DISABLED:
        yield Verdict(OK, "one GPU, not split into instances", "MIG mode: off")
    if modes.split:
        yield from _instances(card)


def _instances(card: Card) -> Iterator[Verdict]:
    assert card.modes is not None  # by the caller
    mine = [part for part in card.parts if part.usable]
    if card.closed is not None:
        yield Verdict(ERROR, card.closed.what, card.closed.evidence, card.closed.remedy)
    if mine:
        yield Verdict(OK, "split into instances, each of them a device", "; ".join(part.name for part in mine))
    others = [part for part in card.parts if not part.usable]
    if mine and others:
        yield Verdict(NOTE, "some of its instances are closed to this process",
                      "; ".join(f"{part.name} needs {part.needs}" for part in others),
                      f"if they are meant for it: sudo chmod a+r {others[0].needs}; in a container, pass them to it")
    empty = sorted(set(card.modes.gpu_instances or ()) - {part.gpu_instance for part in card.parts})
    if empty and card.parts:
        yield Verdict(NOTE, "some of its GPU instances have no compute instance that this process can see",
                      f"GPU instances: {', '.join(map(str, empty))}",
                      f"sudo nvidia-smi mig -i {card.gpu.address} -cci makes one in each")


def confidential(card: Card) -> Iterator[Verdict]:
    found = card.modes.confidential if card.modes is not None else None
    if found is None or not found.capable and not found.on:
        return
    if found.on:
        refusal = found.refusal(card.gpu.address)
        yield Verdict(ERROR, refusal.what, refusal.evidence, refusal.remedy)
    else:
        yield Verdict(OK, "confidential computing is off", found.evidence())


def virtual(card: Card) -> Iterator[Verdict]:
    mode = card.modes.virtualization if card.modes is not None else None
    if mode == Virtualization.NMOS:
        yield Verdict(OK, "passed to this virtual machine as a whole", "virtualization mode: passed through")
    elif mode is not None and mode in VIRTUAL:
        name, needs = VIRTUAL[mode]
        yield Verdict(NOTE, name, f"virtualization mode {mode}", needs)
