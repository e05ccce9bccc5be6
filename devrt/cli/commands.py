"""The commands that only ask another part of devrt and print what it says."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import textwrap

import tabulate

import devrt
from devrt.cli.exit_codes import FINDINGS, OK
from devrt.cli.paint import paint
from devrt.doctor import Finding, Severity, diagnose
from devrt.doctor.compute import compute
from devrt.ioctl.errors import reported_as
from devrt.ioctl.recording import RecordingSystem
from devrt.ioctl.replaying import ReplayingSystem
from devrt.ioctl.system import LinuxSystem, System

_COLOURS = {Severity.OK: "green", Severity.NOTE: "blue", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_VERDICTS = {Severity.OK: "this machine is in order", Severity.NOTE: "nothing stands in the way",
             Severity.WARNING: "everything works, some of it slower or at risk", Severity.ERROR: "mend the errors first"}


def run_doctor(arguments: argparse.Namespace) -> int:
    def uris() -> list[str]:
        return arguments.device or [device.uri for device in devrt.devices()]

    system = RecordingSystem(_system(arguments))
    use = None if arguments.no_devices or arguments.replay else uris
    findings = diagnose(system, uris=use, opener=devrt.open, compute=compute)
    if arguments.record:
        with reported_as(f"{arguments.record} can't be written", remedy="name a file in a folder you may write to"):
            system.save(arguments.record)
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        print(report(findings))
    return FINDINGS if any(finding.severity is Severity.ERROR for finding in findings) else OK


def _system(arguments: argparse.Namespace) -> System:
    if not arguments.replay:
        return LinuxSystem()
    with reported_as(f"{arguments.replay} can't be read", remedy="name a file that `devrt doctor --record` wrote"):
        return ReplayingSystem(arguments.replay)


def run_devices(arguments: argparse.Namespace) -> int:
    rows = [{"uri": device.uri, "name": device.name, "vendor": device.vendor, "isa": device.isa,
             "memory_bytes": device.memory_bytes} for device in devrt.devices()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        table = [[row["uri"], row["name"], row["isa"], f"{int(row['memory_bytes']) / (1 << 30):.1f} GiB"] for row in rows]
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
