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
    """Findings for a person: in the order of the checks, evidence and remedy under what is not as it should be."""
    width = max(60, min(120, shutil.get_terminal_size().columns)) if "COLUMNS" in os.environ or os.isatty(1) else 120
    label = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        head = f"{paint(f'{finding.severity!s:7}', _COLOURS[finding.severity])}  {paint(f'{finding.check:{label}}', 'bold')}  "
        indent = " " * (11 + label)
        body = textwrap.wrap(finding.what, width - len(indent))
        lines += [head + body[0], *(indent + row for row in body[1:])]
        if finding.evidence:
            lines += [paint(indent + row, "dim") for row in textwrap.wrap(finding.evidence, width - len(indent))]
        if finding.remedy:
            # A remedy is copied to a shell, so it is never broken into lines.
            lines.append(f"{indent}{paint('do:', 'bold')} {finding.remedy}")
    counts = [(severity, sum(finding.severity is severity for finding in findings)) for severity in reversed(Severity)]
    worst = max(finding.severity for finding in findings)
    lines += ["", f"{', '.join(f'{count} {severity}' for severity, count in counts if count)}: {_VERDICTS[worst]}"]
    return "\n".join(lines)
