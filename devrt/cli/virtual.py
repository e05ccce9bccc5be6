"""`devrt virtual`: the machines that virtual devices stand on, and other people's programs on them."""

from __future__ import annotations

import argparse
import json

import tabulate

from devrt.cli.exit_codes import OK
from devrt.device import InvalidArgument
from devrt.virtual.amd.machine import MODELS
from devrt.virtual.exec.main import execute
from devrt.virtual.faults import KINDS


def run_virtual(arguments: argparse.Namespace) -> int:
    return run_exec(arguments) if arguments.action == "exec" else run_list(arguments)


def run_exec(arguments: argparse.Namespace) -> int:
    command = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not command:
        raise InvalidArgument("no program was named", remedy=f"devrt virtual exec {arguments.topology} -- PROGRAM")
    return execute(arguments.topology, command, trace=arguments.trace)


def run_list(arguments: argparse.Namespace) -> int:
    rows = [{"topology": f"amd/{model.gfx}", "name": model.name, "compute_units": model.compute_units, "wave": model.wave,
             "memory_bytes": model.vram_bytes, "hive": model.sdma_xgmi_engines > 0} for model in MODELS.values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return OK
    table = [[row["topology"], row["name"], row["compute_units"], row["wave"], "XGMI" if row["hive"] else "PCIe"] for row in rows]
    print(tabulate.tabulate(table, headers=["topology", "name", "compute units", "wave", "peers by"]))
    print("\nSeveral of one kind: amd/4xgfx942; over PCIe: amd/4xgfx942-pcie; that don't reach each other: amd/2xgfx1100-nop2p.")
    print(f"Faults: amd/gfx1100?hang@2, of {', '.join(KINDS)}.")
    return OK
