"""`devrt virtual`: the machines that virtual devices stand on, and other people's programs on them."""

from __future__ import annotations

import argparse
import json

import tabulate

from devrt.cli.exit_codes import OK
from devrt.device import InvalidArgument
from devrt.virtual.amd import machine as amd
from devrt.virtual.exec.main import execute
from devrt.virtual.faults import KINDS
from devrt.virtual.nvidia import machine as nvidia


def run_virtual(arguments: argparse.Namespace) -> int:
    return run_exec(arguments) if arguments.action == "exec" else run_list(arguments)


def run_exec(arguments: argparse.Namespace) -> int:
    command = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not command:
        raise InvalidArgument("no program was named", remedy=f"devrt virtual exec {arguments.topology} -- PROGRAM")
    return execute(arguments.topology, command, trace=arguments.trace)


def run_list(arguments: argparse.Namespace) -> int:
    rows = [{"topology": f"amd/{model.gfx}", "name": model.name, "compute_units": model.compute_units, "wave": model.wave,
             "memory_bytes": model.vram_bytes, "peers": "XGMI" if model.sdma_xgmi_engines else "PCIe"}
            for model in amd.MODELS.values()]
    rows += [{"topology": f"nvidia/{key}", "name": model.name, "compute_units": model.sms, "wave": 32,
              "memory_bytes": model.vram_bytes, "peers": "NVLink" if model.nvlinks else "PCIe"}
             for key, model in [*((sm, nvidia.MODELS[key]) for sm, key in nvidia.OF_SM.items()), *nvidia.MODELS.items()]]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return OK
    table = [[row["topology"], row["name"], row["compute_units"], row["wave"], row["peers"]] for row in rows]
    print(tabulate.tabulate(table, headers=["topology", "name", "compute units", "wave", "peers by"]))
    print("\nSeveral of one kind: amd/4xgfx942; over PCIe: nvidia/2xsm_90-pcie; not reaching each other: amd/2xgfx1100-nop2p.")
    print("Another driver: nvidia/sm_90?driver=580.105.08.")
    print(f"Faults: amd/gfx1100?hang@2, of {', '.join(KINDS)}.")
    return OK
