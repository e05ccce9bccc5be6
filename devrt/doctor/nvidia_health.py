"""How NVIDIA's GPUs are: firmware, persistence, modes, memory, power, temperatures, clocks, throttling, errors, links.

What is judged was read by nvidia.py through the kernel driver's own calls; a value that a driver or a GPU does not give is None,
and no check says anything of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from devrt.doctor import nvidia_modes as modes
from devrt.doctor import nvidia_tables as tables
from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader
from devrt.doctor.nvidia import Card, Nvidia
from devrt.doctor.verdicts import Verdict, gather

_PERSIST = "sudo systemctl enable --now nvidia-persistenced"


def check(reader: Reader, nvidia: Nvidia) -> Iterator[Finding]:
    for name, look in CHECKS.items():
        yield from gather(name, "NVIDIA", [(card.gpu, verdict) for card in nvidia.cards for verdict in look(card)])
    yield from _uneven(nvidia)
    yield from _reach(nvidia)


# ---------------------------------------------------------------------------------------------------------------------
# Firmware, persistence, modes


def _firmware(card: Card) -> Iterator[Verdict]:
    gsp = card.about.get("GPU Firmware", "")
    shown = [f"VBIOS {card.about['Video BIOS']}"] if card.about.get("Video BIOS") else []
    if gsp and gsp != "N/A":
        yield Verdict(OK, "the driver runs on its system processor (GSP)", ", ".join([f"GSP firmware {gsp}", *shown]))
    elif shown:
        yield Verdict(NOTE, "the driver runs on the host, not on the system processor (GSP)", ", ".join(shown),
                      "NVIDIA's open kernel modules need GSP: load nvidia with NVreg_EnableGpuFirmware=1")


def _uneven(nvidia: Nvidia) -> Iterator[Finding]:
    """Cards of one model with different VBIOS compute alike, but boost and fail apart."""
    for model in sorted({card.gpu.device for card in nvidia.cards}):
        seen = {card.gpu.address: card.about["Video BIOS"] for card in nvidia.cards
                if card.gpu.device == model and card.about.get("Video BIOS")}
        if len(set(seen.values())) > 1:
            yield Finding("nvidia-firmware", NOTE, f"{len(seen)} GPUs of one model run different VBIOS versions",
                          ", ".join(f"{address} {version}" for address, version in seen.items()), "flash the same VBIOS to all")


def _persistence(card: Card) -> Iterator[Verdict]:
    if card.persistent:
        yield Verdict(OK, "the driver keeps it ready while nobody uses it", "persistence is on")
    elif card.persistent is not None:
        yield Verdict(NOTE, "the driver shuts it down when its last user leaves, so the next one waits seconds for it",
                      "persistence is off", _PERSIST)


def _mode(card: Card) -> Iterator[Verdict]:
    if card.compute_mode is None:
        return
    found = tables.COMPUTE_MODES.get(card.compute_mode)
    if found is None:
        yield Verdict(OK, "any program may compute on it", f"compute mode {card.compute_mode}")
    else:
        yield Verdict(found.severity, found.what, f"compute mode {found.name}", found.remedy)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def _memory(card: Card) -> Iterator[Verdict]:
    if not card.memory_kib:
        return
    free, window = card.memory_free_kib, card.bar1_kib
    shown = [f"{card.memory_kib >> 10} MiB"]
    shown += [f"{free >> 10} MiB free"] if free is not None else []
    shown += [f"BAR1 {window >> 10} MiB"] if window is not None else []
    evidence = ", ".join(shown)
    if free is not None and free < card.memory_kib // 20:
        yield Verdict(WARNING, "its memory is nearly full", evidence, "end the programs that hold it: sudo fuser -v /dev/nvidia*")
    elif window is not None and window < card.memory_kib // 2:
        yield Verdict(NOTE, "the host sees a small part of its memory at a time", evidence,
                      "turn on resizable BAR and above-4G decoding in the firmware set-up, if the card has it")
    else:
        yield Verdict(OK, "memory is free, and the host sees it", evidence)


def _ecc(card: Card) -> Iterator[Verdict]:
    if card.ecc is None:
        return
    bad = {name: count for name, count in card.ecc.items() if count and not name.endswith("corrected")}
    mended = {name: count for name, count in card.ecc.items() if count and name.endswith("corrected")}
    if card.poisoned:
        yield Verdict(ERROR, "an uncorrectable memory error has made it unusable", "fatal poison error", tables.REPLACE)
    if bad:
        yield Verdict(ERROR, "memory errors that could not be corrected: results may be wrong", _counts(bad), tables.REPLACE)
    if mended:
        yield Verdict(NOTE, "memory errors that were corrected", _counts(mended),
                      "harmless while the count stands still; look again tomorrow")
    if not bad and not mended and not card.poisoned:
        yield Verdict(OK, "error counters stand at zero", "DRAM and SRAM, since the driver was loaded")


def _rows(card: Card) -> Iterator[Verdict]:
    rows = card.rows
    if rows is None:
        return
    used = rows.correctable + rows.uncorrectable
    evidence = f"{used} rows remapped, {rows.uncorrectable} for uncorrectable errors"
    if rows.failed:
        yield Verdict(ERROR, "a bad memory row could not be replaced", evidence, "replace the card")
    elif rows.pending:
        yield Verdict(WARNING, "a bad memory row waits to be replaced", evidence, tables.RESET.format(path=card.gpu.path))
    elif rows.exhausted:
        yield Verdict(WARNING, "a memory bank has no spare row left", f"{evidence}, {rows.exhausted} banks",
                      "replace the card soon")
    elif used:
        yield Verdict(NOTE, "bad memory rows were replaced", evidence, "replace the card when the number grows")
    else:
        yield Verdict(OK, "no memory row had to be replaced", evidence)


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items())


# ---------------------------------------------------------------------------------------------------------------------
# Power, temperatures, clocks


def _power(card: Card) -> Iterator[Verdict]:
    if not card.power_limit_mw:
        return
    requested, enforced = card.power_limit_mw
    draws = "unknown" if card.power_mw is None else card.power_mw // 1000
    evidence = f"{draws} of {enforced // 1000} W"
    if requested and enforced < requested:
        yield Verdict(WARNING, "its power limit is lower than the one that was asked for, so it is slower under load",
                      f"{evidence}, asked for {requested // 1000} W", "check the supply and other cards on it")
    else:
        yield Verdict(OK, "its power limit is the one that was asked for", evidence)


def _temperature(card: Card) -> Iterator[Verdict]:
    if not card.temperatures_c:
        return
    evidence = ", ".join(f"{name} {value:.0f} °C" for name, value in card.temperatures_c.items())
    hot = [name for name, value in card.temperatures_c.items() if value >= tables.HOT_C]
    if hot:
        yield Verdict(WARNING, f"{' and '.join(hot)} so hot that its clocks may go down", evidence, tables.COOL)
    else:
        yield Verdict(OK, "no sensor is hot", evidence)


def _clocks(card: Card) -> Iterator[Verdict]:
    if card.clocks_mhz:
        state = "" if card.pstate is None else f", P{card.pstate}"
        shown = ", ".join(f"{name} {mhz} MHz" for name, mhz in card.clocks_mhz.items())
        yield Verdict(OK, "its clocks can be read", shown + state)


def _throttling(card: Card) -> Iterator[Verdict]:
    if card.throttle is None:
        return
    reasons = [meaning for bit, meaning in tables.THROTTLERS.items() if card.throttle >> bit & 1]
    for meaning in reasons:
        yield Verdict(meaning.severity, meaning.what, f"{meaning.name} in reasons {card.throttle:#x}", meaning.remedy)
    if not reasons:
        rest = " (at rest)" if card.throttle & tables.AT_REST else ""
        yield Verdict(OK, "not slowed down by any limit", f"reasons {card.throttle:#x}{rest}")


# ---------------------------------------------------------------------------------------------------------------------
# Recovery and links


def _recovery(card: Card) -> Iterator[Verdict]:
    action = card.recovery
    if not action:
        return
    found = tables.RECOVERY.get(action)
    if found is None:
        yield Verdict(ERROR, "the driver asks for a recovery that devrt does not know", f"action {action}", "reboot the machine")
    else:
        yield Verdict(found.severity, found.what, f"the driver asks for: {found.name}", found.remedy.format(path=card.gpu.path))


def _nvlink(card: Card) -> Iterator[Verdict]:
    if not card.links:
        return
    down = {number: state for number, state in card.links.items() if state not in (tables.LINK_ACTIVE, tables.LINK_SLEEP)}
    if down:
        shown = ", ".join(f"link {number} {tables.LINK_STATES.get(state, f'in state {state}')}"
                          for number, state in down.items())
        good = len(card.links) - len(down)
        yield Verdict(WARNING, "some of its NVLinks do not work", f"{good} of {len(card.links)} do; {shown}",
                      "look at both ends: sudo dmesg | grep -i nvlink; reseat the bridge")
    else:
        yield Verdict(OK, "its NVLinks work", f"{len(card.links)} links")


def _fabric(card: Card) -> Iterator[Verdict]:
    if not card.fabric or not card.fabric[0]:
        return
    state, status, health = card.fabric
    troubles = [what for bit, what in tables.FABRIC_HEALTH.items() if health >> bit & 3 == 1]
    if state != tables.FABRIC_COMPLETE or status:
        yield Verdict(ERROR, "the NVSwitch fabric is not ready, so no kernel runs on it",
                      f"registration {tables.FABRIC_STATES.get(state, 'complete')}, status {status:#x}",
                      "sudo systemctl restart nvidia-fabricmanager, then look at its log")
    elif troubles:
        yield Verdict(WARNING, "the NVSwitch fabric reports trouble", ", ".join(troubles), "look at nvidia-fabricmanager's log")
    else:
        yield Verdict(OK, "registered with the NVSwitch fabric", "fabric probe complete")


def _reach(nvidia: Nvidia) -> Iterator[Finding]:
    """Which GPU reaches whose memory: a finding for each reason why not, and the whole as a matrix."""
    cards, pairs = nvidia.cards, nvidia.p2p
    if len(cards) < 2 or not pairs:
        return
    rows = ["".join("-" if a is b else _letter(pairs.get((a.gpu.address, b.gpu.address))) for b in cards) for a in cards]
    matrix = f"{' '.join(rows)} (N NVLink, P PCIe, . not, ? unknown)"
    missing: dict[int, list[str]] = {}
    for (a, b), (caps, status) in pairs.items():
        if not caps & tables.P2P_READS or not caps & tables.P2P_WRITES:
            missing.setdefault(status, []).append(f"{a}->{b}")
    for status, who in missing.items():
        why, remedy = tables.P2P_STATUS.get(status, ("the driver gives no reason", "look at the log: sudo dmesg | grep NVRM"))
        shown = f"{', '.join(who[:4])}{', ..' if len(who) > 4 else ''}"
        yield Finding("nvidia-links", NOTE, f"{len(who)} of {len(pairs)} pairs of GPUs do not reach each other's memory, so "
                      f"copies pass through the host: {why}", f"{shown}; {matrix}", remedy)
    if not missing:
        yield Finding("nvidia-links", OK, f"all {len(pairs)} pairs of GPUs reach each other's memory", matrix)


def _letter(found: tuple[int, int] | None) -> str:
    if found is None:
        return "?"
    caps = found[0]
    if not caps & tables.P2P_READS:
        return "."
    return "N" if caps & tables.P2P_NVLINK else "P"


CHECKS: dict[str, Callable[[Card], Iterator[Verdict]]] = {
    "nvidia-firmware": _firmware, "nvidia-persistence": _persistence, "nvidia-mode": _mode, "nvidia-mig": modes.split,
    "nvidia-confidential": modes.confidential, "nvidia-virtual": modes.virtual, "nvidia-memory": _memory,
    "nvidia-ecc": _ecc, "nvidia-rows": _rows, "nvidia-power": _power, "nvidia-temperature": _temperature,
    "nvidia-clocks": _clocks, "nvidia-throttling": _throttling, "nvidia-recovery": _recovery, "nvidia-nvlink": _nvlink,
    "nvidia-fabric": _fabric,
}
