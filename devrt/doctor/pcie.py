"""The way from the host to a GPU: link width and speed, error counters, and how much memory the host can see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader
from devrt.doctor.gpus import PCI, Gpu

_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class _Link(NamedTuple):
    """Lanes and GT/s of one PCIe function; 0 where sysfs does not know."""

    width: int
    speed: float
    most_width: int
    most_speed: float


def check(reader: Reader, gpus: list[Gpu]) -> Iterator[Finding]:
    for gpu in gpus:
        if gpu.driven:
            yield from _link(reader, gpu)
            yield from _errors(reader, gpu)
            yield from _host_window(reader, gpu)


def _link(reader: Reader, gpu: Gpu) -> Iterator[Finding]:
    """The worst link on the way: a GPU with a switch of its own reports the link inside its card at full width."""
    worst: tuple[float, str, _Link, _Link] | None = None
    for parent, child in _hops(reader, gpu):
        here = _read(reader, child)
        above = _read(reader, parent) if parent else here
        if not here.width or not here.most_width:
            continue
        width = min(here.most_width, above.most_width or here.most_width)
        speed = min(here.most_speed, above.most_speed or here.most_speed)
        possible = _Link(width, speed, here.most_width, here.most_speed)
        share = here.width / width
        if worst is None or (share, here.width * here.speed) < (worst[0], worst[2].width * worst[2].speed):
            worst = (share, f"{parent} -> {child}" if parent else child, here, possible)
    if worst is None:
        return
    share, where, now, possible = worst
    runs, could = f"x{now.width} at {now.speed:g} GT/s", f"x{possible.width} at {possible.speed:g} GT/s"
    evidence = f"{where}: {runs} of {could}"
    if now.width < possible.width:
        yield Finding("pcie-link", WARNING, f"{gpu}: the link uses {now.width} of {possible.width} lanes, so copies run at "
                      f"{share:.0%} of the speed they could", evidence,
                      "power off, reseat the card and its riser, and try another slot")
    elif now.speed < possible.speed:
        yield Finding("pcie-link", NOTE, f"{gpu}: the link is at {now.speed:g} of {possible.speed:g} GT/s", evidence,
                      "normal while the GPU is idle; look again under load, then at the slot's speed in the firmware set-up")
    elif possible.width < now.most_width or possible.speed < now.most_speed:
        yield Finding("pcie-link", NOTE, f"{gpu}: the slot gives {could}, the GPU could do x{now.most_width} at "
                      f"{now.most_speed:g} GT/s", evidence, "use a faster slot if the machine has one")
    else:
        yield Finding("pcie-link", OK, f"{gpu}: PCIe {runs}", evidence)


def _errors(reader: Reader, gpu: Gpu) -> Iterator[Finding]:
    counts = {}
    for kind, total in (("correctable", "TOTAL_ERR_COR"), ("nonfatal", "TOTAL_ERR_NONFATAL"), ("fatal", "TOTAL_ERR_FATAL")):
        match = re.search(rf"^{total} (\d+)", reader.text(f"{gpu.path}/aer_dev_{kind}") or "", re.MULTILINE)
        counts[kind] = int(match[1]) if match else 0
    replays = reader.text(f"{gpu.path}/pcie_replay_count") or ""  # amdgpu's: packets that were sent again
    if replays.isdecimal() and 0 < len(replays) < 19:
        counts["sent again"] = int(replays)
    if not any(counts.values()):
        return
    severity = ERROR if counts["fatal"] else WARNING if counts["nonfatal"] else NOTE
    yield Finding("pcie-errors", severity, f"{gpu}: the link had errors since boot",
                  ", ".join(f"{kind} {count}" for kind, count in counts.items()),
                  "reseat the card and its riser; if the count grows, set the slot to a lower PCIe generation in the firmware")


def _host_window(reader: Reader, gpu: Gpu) -> Iterator[Finding]:
    """AMD tells how much of its memory the host can see; without resizable BAR that is 256 MiB."""
    total, visible = (reader.text(f"{gpu.path}/mem_info_{name}_total") or "" for name in ("vram", "vis_vram"))
    if total.isdigit() and visible.isdigit() and int(visible) < int(total):
        yield Finding("host-window", WARNING, f"{gpu}: the host sees {int(visible) >> 20} of {int(total) >> 20} MiB of its "
                      "memory, so GPUs can't copy to each other directly", "mem_info_vis_vram_total < mem_info_vram_total",
                      "turn on resizable BAR and above-4G decoding in the firmware set-up")


def _hops(reader: Reader, gpu: Gpu) -> list[tuple[str, str]]:
    """(upstream, downstream) address of every link from the root port to the GPU."""
    chain = _ADDRESS.findall(reader.link(gpu.path) or "") or [gpu.address]
    return list(zip(["", *chain], chain, strict=False))[1:] or [("", gpu.address)]


def _read(reader: Reader, address: str) -> _Link:
    def number(name: str) -> float:
        match = re.match(r"(\d{1,6}(?:\.\d{1,6})?)(?!\d)", reader.text(f"{PCI}/{address}/{name}") or "")
        return float(match[1]) if match else 0.0
    # 255 lanes is what the kernel prints for a link it can't read.
    width, most = (int(number(f"{which}_link_width")) % 255 for which in ("current", "max"))
    return _Link(width, number("current_link_speed"), most, number("max_link_speed"))
