"""How AMD's GPUs are: firmware, power, temperatures, clocks, throttling, memory errors, resets.

Each check looks at one card; cards of which it says the same share a finding. Sources: Linux drivers/gpu/drm/amd,
pm/amdgpu_pm.c (hwmon, clocks), amdgpu/amdgpu_ras.c (errors), amdgpu/amdgpu_kms.c (resets); amd_tables.py names its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from devrt.doctor.amd import Amd
from devrt.doctor.amd_tables import BAD_PAGES, FIRMWARE, LEVELS, METRICS, THROTTLER_BITS, THROTTLERS, metrics
from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader
from devrt.doctor.gpus import Gpu
from devrt.doctor.verdicts import Verdict, gather
from devrt.ioctl import amdgpu

NEAR_C = 5.0  # below a limit: worth a word
_RETIRE = "stop the work on it and reset it (reboot); if errors come back, replace the card"


def check(reader: Reader, amd: Amd) -> Iterator[Finding]:
    cards = [gpu for gpu in amd.gpus if amd.used(gpu)]
    for name, look in CHECKS.items():
        yield from gather(name, "AMD", [(gpu, verdict) for gpu in cards for verdict in look(reader, gpu)])
    yield from _uneven_firmware(reader, cards)


# ---------------------------------------------------------------------------------------------------------------------
# Firmware


def _firmware(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    found = _versions(reader, gpu)
    if found:
        yield Verdict(OK, "firmware is loaded", ", ".join(f"{name} {version}" for name, version in found.items()))


def _versions(reader: Reader, gpu: Gpu) -> dict[str, str]:
    """Those of fw_version/ that are not 0 (which the card does not have), and the VBIOS."""
    found = {}
    for name in FIRMWARE:
        number = _number(reader, f"{gpu.path}/fw_version/{name}_fw_version", 16)
        if number:
            found[name] = f"{number:#x}"
    vbios = reader.text(f"{gpu.path}/vbios_version")
    return found | ({"vbios": vbios[:40]} if vbios else {})


def _uneven_firmware(reader: Reader, gpus: list[Gpu]) -> Iterator[Finding]:
    """Cards of one model that run different firmware compute alike, but fail and slow down apart."""
    for model in sorted({gpu.device for gpu in gpus}):
        alike = [gpu for gpu in gpus if gpu.device == model]
        versions = {gpu.address: _versions(reader, gpu) for gpu in alike}
        for part in (*FIRMWARE, "vbios"):
            seen = {address: found[part] for address, found in versions.items() if part in found}
            if len(set(seen.values())) > 1:
                yield Finding("amd-firmware", NOTE, f"{len(alike)} GPUs of one model run different versions of {part}",
                              ", ".join(f"{address} {version}" for address, version in seen.items()),
                              "flash the same VBIOS to all" if part == "vbios" else "power off fully, so that all load anew")


# ---------------------------------------------------------------------------------------------------------------------
# Power, temperatures, clocks


def _hwmon(reader: Reader, gpu: Gpu) -> str | None:
    names = [name for name in reader.names(f"{gpu.path}/hwmon") if name.startswith("hwmon")]
    return f"{gpu.path}/hwmon/{names[0]}" if names else None


def _power(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    base = _hwmon(reader, gpu)
    draws, draws_now, cap, normal = (_number(reader, f"{base}/power1_{name}") if base else None
                                     for name in ("average", "input", "cap", "cap_default"))
    draws = draws_now if draws is None else draws
    if not cap:
        return
    evidence = f"{'unknown' if draws is None else draws // 1000000} of {cap // 1000000} W"
    if normal and cap < normal:
        yield Verdict(WARNING, "the power limit is below the default, so it is slower under load",
                      f"{evidence}, default {normal // 1000000} W", f"echo {normal} | sudo tee {base}/power1_cap")
    else:
        yield Verdict(OK, "the power limit is not lowered", evidence)


def _temperature(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    """The sensor that is closest to its limit, or beyond."""
    base = _hwmon(reader, gpu)
    shown, worst = [], (OK, "")
    for name in reader.names(base) if base else ():
        sensor = name.removesuffix("_input")
        now = _number(reader, f"{base}/{name}") if re.fullmatch(r"temp\d+_input", name) else None
        if now is None:
            continue
        crit, emergency = (_number(reader, f"{base}/{sensor}_{limit}") or 0 for limit in ("crit", "emergency"))
        label = (reader.text(f"{base}/{sensor}_label") or sensor)[:20]
        shown.append(f"{label} {now / 1000:g}{f' of {crit / 1000:g}' if crit > 0 else ''} °C")
        limits = ((ERROR, emergency), (WARNING, crit), (NOTE, crit - NEAR_C * 1000))
        reached = next((severity for severity, limit in limits if limit > 0 and now >= limit), OK)
        worst = max(worst, (reached, label), key=lambda row: row[0])
    severity, label = worst
    what = {OK: "no sensor is near its limit", NOTE: f"{label} is close to its limit",
            WARNING: f"{label} is at its limit, and the clocks go down for it",
            ERROR: f"{label} is so hot that it will be switched off"}[severity]
    if shown:
        yield Verdict(severity, what, ", ".join(shown),
                      "" if severity is OK else "check fans, air flow and dust; look again when it is at rest")


def _clocks(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    path = f"{gpu.path}/power_dpm_force_performance_level"
    level = reader.text(path)
    if not level:
        return
    clocks = []
    for name, label in (("sclk", "engine"), ("mclk", "memory")):
        rows = re.findall(r"^(?:\d+|S): *(\d+)Mhz( \*)?", reader.text(f"{gpu.path}/pp_dpm_{name}") or "", re.MULTILINE | re.I)
        now = next((mhz for mhz, star in rows if star), None)
        if rows:
            clocks.append(f"{label} {now or 'unknown'} of {max(int(mhz) for mhz, _ in rows)} MHz")
    evidence = ", ".join([f"level {level[:40]}", *clocks])
    if level in LEVELS:
        yield Verdict(LEVELS[level].severity, LEVELS[level].what, evidence, f"echo auto | sudo tee {path}")
    elif level == "auto":
        yield Verdict(OK, "clocks follow the load", evidence)
    else:
        yield Verdict(NOTE, "the performance level is one that devrt does not know", evidence, f"echo auto | sudo tee {path}")


def _throttling(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    version, found = metrics(reader.bytes(f"{gpu.path}/gpu_metrics") or b"")
    if version is None:
        return
    named = f"gpu_metrics v{version[0]}.{version[1]}"
    status, raw = found.get("indep_throttle_status"), found.get("throttle_status")
    if version not in METRICS:
        known = ", ".join(f"v{form}.{content}" for form, content in METRICS)
        yield Verdict(NOTE, "whether a limit slows it down is unknown", f"{named}; devrt reads {known}")
    elif status is None and not raw:
        yield Verdict(OK, "no sign of being slowed down", named)
    elif not status and not raw:
        yield Verdict(OK, "not slowed down by any limit", named)
    elif not status:
        yield Verdict(WARNING, "slowed down, for a reason that the driver does not name", f"{named}, throttle_status "
                      f"{raw:#x}", "check power and cooling")
    for first, last, severity, cause, remedy in THROTTLERS:
        bits = [bit for bit in range(first, last + 1) if (status or 0) >> bit & 1]
        if bits:
            names = ", ".join(THROTTLER_BITS.get(bit, f"bit {bit}") for bit in bits)
            yield Verdict(severity, f"slowed down to stay within the limit of {cause}", f"{names} in {named}", remedy)


# ---------------------------------------------------------------------------------------------------------------------
# Errors and resets


def _errors(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    """Counters of errors that were corrected (ce) and that were not (ue), by block of the chip, and pages given up."""
    base, counts = f"{gpu.path}/ras", {}
    for name in reader.names(base):
        text = reader.text(f"{base}/{name}") or "" if name.endswith("_err_count") else ""
        pair = re.search(r"ue: *(\d{1,18})\s+ce: *(\d{1,18})", text)
        if pair:
            counts[name.removesuffix("_err_count")] = int(pair[1]), int(pair[2])
    for column, severity, what, remedy in (
            (0, ERROR, "errors that could not be corrected: results may be wrong", _RETIRE),
            (1, NOTE, "errors that were corrected", "harmless while the count stands still; look again tomorrow")):
        found = [f"{block} {pair[column]}" for block, pair in counts.items() if pair[column]]
        if found:
            yield Verdict(severity, what, ", ".join(found), remedy)
    if counts and not any(sum(pair) for pair in counts.values()):
        yield Verdict(OK, "error counters stand at zero", ", ".join(counts))
    rows = re.findall(r"^0x[0-9a-f]+ : 0x[0-9a-f]+ : ([RPF])$", reader.text(f"{base}/gpu_vram_bad_pages") or "", re.MULTILINE)
    pages = ", ".join(f"{rows.count(letter)} {word}" for letter, word in BAD_PAGES.items() if letter in rows)
    if "F" in rows:
        yield Verdict(ERROR, "pages of memory are bad and can't be kept out of use", pages, _RETIRE)
    elif "P" in rows:
        yield Verdict(WARNING, "pages of memory are bad, and some are still in use", pages, "reboot, so that they are kept "
                      "out of use")
    elif rows:
        yield Verdict(NOTE, "pages of memory are bad, and kept out of use", pages, "replace the card when the number grows")


def _resets(reader: Reader, gpu: Gpu) -> Iterator[Verdict]:
    """How often a reset has cost this card its memory since the driver was loaded."""
    node = next((name for name in reader.names(f"{gpu.path}/drm") if name.startswith("renderD")), None)
    system = reader.system
    try:
        if node is None or not system.access(f"/dev/dri/{node}", os.R_OK | os.W_OK):
            return  # what keeps it from opening is the node's finding
        fd = system.open(f"/dev/dri/{node}", os.O_RDWR)
        try:
            lost = amdgpu.info(system, fd, amdgpu.Query.VRAM_LOST_COUNTER)
        finally:
            system.close(fd)
    except OSError:
        return
    if lost:
        yield Verdict(WARNING, "resets have cost its memory", f"{lost} since the driver was loaded",
                      "read what hung: sudo dmesg | grep -iE 'timeout|reset|fault'")
    else:
        yield Verdict(OK, "no reset has cost its memory", "AMDGPU_INFO_VRAM_LOST_COUNTER 0")


def _number(reader: Reader, path: str, base: int = 10) -> int | None:
    text = reader.text(path) or ""
    try:
        return int(text, base) if len(text) <= 20 else None
    except ValueError:
        return None


CHECKS: dict[str, Callable[[Reader, Gpu], Iterator[Verdict]]] = {
    "amd-firmware": _firmware, "amd-power": _power, "amd-temperature": _temperature, "amd-clocks": _clocks,
    "amd-throttling": _throttling, "amd-errors": _errors, "amd-resets": _resets,
}
