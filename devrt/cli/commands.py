"""The commands that only ask another part of devrt and print what it says."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tabulate

import devrt
from devrt.cli.exit_codes import FINDINGS, OK
from devrt.cli.paint import paint
from devrt.device import InvalidArgument, parse_uri
from devrt.doctor import Finding, Severity, diagnose
from devrt.doctor.compute import compute
from devrt.ioctl.errors import reported_as
from devrt.ioctl.recording import RecordingSystem
from devrt.ioctl.replaying import ReplayingSystem
from devrt.ioctl.system import LinuxSystem, System
from devrt.virtual import open_system

_COLOURS = {Severity.OK: "green", Severity.NOTE: "blue", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_VERDICTS = {Severity.OK: "this machine is in order", Severity.NOTE: "nothing stands in the way",
             Severity.WARNING: "everything works, some of it slower or at risk", Severity.ERROR: "mend the errors first"}


@dataclass(frozen=True)
class _Patient:
    """A machine to examine, and which of its devices to use (None: none). `name` is "" for the machine that this runs on."""

    name: str
    system: System
    uris: Callable[[], Sequence[str]] | None


def run_doctor(arguments: argparse.Namespace) -> int:
    patients = _patients(arguments)
    if arguments.record and len(patients) > 1:
        raise InvalidArgument("a recording is of one machine", evidence=f"{len(patients)} were named by --device",
                              remedy="record one at a time")
    found: dict[str, list[Finding]] = {}
    for patient in patients:
        system = RecordingSystem(patient.system)
        found[patient.name] = diagnose(system, uris=patient.uris, opener=devrt.open, compute=compute)
        if arguments.record:
            with reported_as(f"{arguments.record} can't be written", remedy="name a file in a folder you may write to"):
                system.save(arguments.record)
    findings = [finding for rows in found.values() for finding in rows]
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        heads = [f"{paint(name or 'this machine', 'bold')}\n" if len(found) > 1 else "" for name in found]
        print("\n\n".join(head + report(rows) for head, rows in zip(heads, found.values(), strict=True)))
    return FINDINGS if any(finding.severity is Severity.ERROR for finding in findings) else OK


def _patients(arguments: argparse.Namespace) -> list[_Patient]:
    """The machines that the devices named stand on: this one, and each virtual one."""
    if arguments.replay:
        with reported_as(f"{arguments.replay} can't be read", remedy="name a file that `devrt doctor --record` wrote"):
            return [_Patient("", ReplayingSystem(arguments.replay), None)]
    named: dict[str, list[str]] = {}
    for text in arguments.device or ():
        uri = parse_uri(text)
        named.setdefault(str(dataclasses.replace(uri, index=0)) if uri.virtual else "", []).append(text)

    def use(uris: Sequence[str]) -> Callable[[], Sequence[str]] | None:
        return None if arguments.no_devices else lambda: uris or [device.uri for device in devrt.devices()]
    if not named:
        return [_Patient("", LinuxSystem(), use(()))]
    return [_Patient(name, open_system(parse_uri(name)) if name else LinuxSystem(), use(uris)) for name, uris in named.items()]


def run_devices(arguments: argparse.Namespace) -> int:
    rows = [{"uri": device.uri, "name": device.name, "vendor": device.vendor, "isa": device.isa,
             "memory_bytes": device.memory_bytes} for device in devrt.devices()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        # "-": not known without opening the device.
        table = [[row["uri"], row["name"], row["isa"], f"{int(row['memory_bytes']) / (1 << 30):.1f} GiB" if row["memory_bytes"]
                  else "-"] for row in rows]
        print(tabulate.tabulate(table, headers=["uri", "name", "isa", "memory"], colalign=("left", "left", "left", "right")))
    return OK


def report(findings: list[Finding]) -> str:
    """Findings for a person, in the order of the checks: what, the evidence, and what to do about it."""
    width = max(60, min(120, shutil.get_terminal_size().columns)) if "COLUMNS" in os.environ or os.isatty(1) else 120
    label = max(len(finding.check) for finding in findings)
    indent = " " * (11 + label)

    def wrapped(text: str, first: str = "") -> list[str]:
        return textwrap.wrap(text, width - len(indent), initial_indent=first, subsequent_indent=" " * len(first),
                             break_on_hyphens=False, break_long_words=False)

    lines = []
    for finding in findings:
        head = f"{paint(f'{finding.severity!s:7}', _COLOURS[finding.severity])}  {paint(f'{finding.check:{label}}', 'bold')}  "
        what, *more = wrapped(finding.what)
        lines += [head + what, *(indent + row for row in more)]
        lines += [paint(indent + row, "dim") for row in wrapped(finding.evidence)]
        # A command is copied into a shell, so it is never broken into lines.
        is_command = finding.remedy.startswith(("sudo ", "echo "))
        rows = [f"do: {finding.remedy}"] if is_command else wrapped(finding.remedy, "do: ")
        lines += [indent + row.replace("do:", paint("do:", "bold"), 1) for row in rows]
    worst = max(finding.severity for finding in findings)
    return "\n".join([*lines, "", f"{_counts(findings)}: {_VERDICTS[worst]}"])


def _counts(findings: list[Finding]) -> str:
    """`2 errors, 1 note, 8 ok`."""
    counts = [(severity, sum(finding.severity is severity for finding in findings)) for severity in reversed(Severity)]
    return ", ".join(f"{count} {severity}{'s' if count > 1 and severity is not Severity.OK else ''}"
                     for severity, count in counts if count)
