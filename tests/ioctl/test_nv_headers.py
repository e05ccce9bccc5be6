"""NVIDIA's tables of every branch against tinygrad's modules, made from NVIDIA's headers, and against those headers through gcc.

DEVRT_NVIDIA_HEADERS names checkouts of github.com/NVIDIA/open-gpu-kernel-modules, separated by colons; their version.mk says
which branch each is judged by.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devrt.ioctl import nv_alloc, nv_controls, nv_health, nv_modes, uvm
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_status import Status
from devrt.ioctl.nv_versions import BRANCHES, SHARED_DATA, Tables, tables_for
from devrt.ioctl.uapi import Uapi

TREES = [Path(one) for one in os.environ.get("DEVRT_NVIDIA_HEADERS", "").split(":") if one]
NEEDS_HEADERS = pytest.mark.parametrize("tree", TREES or [pytest.param(Path(), id="none", marks=pytest.mark.skip(
    reason="not yet: DEVRT_NVIDIA_HEADERS names no checkout of open-gpu-kernel-modules"))], ids=lambda tree: tree.name)
AUTOGEN = {570: "nv_570", 580: "nv_580", 610: "nv_610"}  # the others have no module of tinygrad's

CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    **nv_alloc.CONSTANTS, **nv_controls.CONSTANTS, **nv_health.CONSTANTS, **nv_modes.CONSTANTS, **uvm.CONSTANTS, "": Class,
    " ": Status}
# Structs that a header has under another name than the oldest branch's.
RENAMED = {"NV2080_CTRL_FB_REMAP_ENTRY": "NV2080_CTRL_FB_ROW_REMAP_ENTRY"}

# The only number that changed: 595 put another code before it.
MOVED = {"NV_ERR_DMA_XFER_FAILED"}

# Name -> the first branch whose headers have it; the oldest one's have the others.
SINCE = {"NV00DE_RUSD_POLL_FAN": 580, "NV2080_NOTIFIERS_GPU_RC_RESET": 580, "NV_WARN_THRESHOLD_CROSSED": 580,
         "NV_ERR_THRESHOLD_CROSSED": 580, "NV_ERR_FABRIC_STATE_OUT_OF_SYNC": 580, "NV_ERR_BUFFER_FULL": 580,
         "NV_ERR_BUFFER_EMPTY": 580, "NV_ERR_MC_FLA_OFFSET_TABLE_FULL": 580, "NV_ERR_DMA_XFER_FAILED": 580,
         "NV_CONF_COMPUTE_SYSTEM_MULTI_GPU_MODE_NVLE": 580, "NV_ERR_OPERATION_ABORTED": 595,
         "NV_ERR_RESOURCE_ACCOUNTING_HARD_LIMIT_EXCEEDED": 610, "NV_WARN_RESOURCE_ACCOUNTING_SOFT_LIMIT_EXCEEDED": 610}


def constants(tables: Tables) -> dict[str, int]:
    """Header's name -> declared value, of everything that is a plain number there and did not move."""
    found = {prefix.strip() + member: int(value) for prefix, kind in CONSTANTS.items()
             for member, value in kind.__members__.items()}
    found.update({name: row.number for name, row in tables.controls.items()})
    return {name: value for name, value in found.items() if name not in MOVED}


def escapes(table: Uapi) -> dict[str, int]:
    return {name: row.number for name, row in table.ioctls.items()}


# ---------------------------------------------------------------------------------------------------------------------
# tinygrad


@functools.cache
def autogen(branch: int) -> Any:
    pytest.importorskip("tinygrad", reason="not yet: tinygrad is not installed (it is a test extra)")
    return importlib.import_module(f"tinygrad.runtime.autogen.{AUTOGEN[branch]}")


@pytest.mark.parametrize("branch", AUTOGEN)
def test_structs_as_tinygrad_has_them(branch: int) -> None:
    module, tables = autogen(branch), tables_for(f"{branch}.1")
    wrong, seen = [], 0
    for table in tables.uapis:
        for struct in table.struct_names:
            theirs = getattr(module, struct, None) or getattr(module, RENAMED.get(struct, ""), None)
            if theirs is None:
                continue
            seen += 1
            if ctypes.sizeof(theirs) != table.size(struct):
                wrong.append(f"{struct}: {table.size(struct)} bytes, tinygrad {ctypes.sizeof(theirs)}")
            ours = {field: offset for field, (offset, _) in table.layout(struct).items() if field}
            fields = {field[0]: field[2] for field in theirs._real_fields_}
            wrong += [f"{struct}.{field} @ {ours.get(field)}, tinygrad {fields[field]}" for field in fields
                      if ours.get(field) != fields[field]]
    assert not wrong
    assert seen >= 105  # the rest is of headers that tinygrad leaves out


@pytest.mark.parametrize("branch", AUTOGEN)
def test_numbers_as_tinygrad_has_them(branch: int) -> None:
    module, tables = autogen(branch), tables_for(f"{branch}.1")
    declared = {**constants(tables), **escapes(tables.nvrm)}
    theirs = {name: getattr(module, name) for name in declared if isinstance(getattr(module, name, None), int)}
    assert {name: declared[name] for name in theirs} == theirs
    assert len(theirs) >= 250


# ---------------------------------------------------------------------------------------------------------------------
# NVIDIA's headers

INCLUDES = ("src/common/sdk/nvidia/inc", "src/nvidia/arch/nvalloc/unix/include", "kernel-open/common/inc",
            "kernel-open/nvidia-uvm", "src/nvidia/inc/kernel")
HEADERS = (
    "stdio.h", "stdint.h", "stddef.h", "nvtypes.h", "nvos.h", "nvstatus.h", "nv_escape.h", "nv-ioctl.h", "nv-ioctl-numbers.h",
    "nv-unix-nvos-params-wrappers.h", "alloc/alloc_channel.h", "nverror.h",
    *(f"ctrl/ctrl0000/ctrl0000{part}.h" for part in ("gpu", "system", "client")),
    *(f"ctrl/ctrl0080/ctrl0080{part}.h" for part in ("gpu", "gr", "fifo")),
    *(f"ctrl/ctrl2080/ctrl2080{part}.h" for part in ("gpu", "gr", "fb", "mc", "bus", "ce", "event", "tmr", "perf", "rc", "nvlink",
                                                    "ecc", "gsp", "thermal")),
    "ctrl/ctrl83de/ctrl83dedebug.h", "ctrl/ctrl906f.h", "ctrl/ctrla06c.h", "ctrl/ctrla06f/ctrla06fgpfifo.h", "ctrl/ctrlc36f.h",
    "ctrl/ctrl00de.h", "ctrl/ctrlc637.h", "ctrl/ctrlc638.h", "ctrl/ctrlcb33.h")


def version_of(tree: Path) -> str:
    match = re.search(r"^NVIDIA_VERSION = (\S+)", (tree / "version.mk").read_text(), re.MULTILINE)
    assert match, f"{tree} is no checkout of open-gpu-kernel-modules"
    return match[1]


def measure(tree: Path, folder: Path, headers: tuple[str, ...], rows: Mapping[str, str]) -> dict[str, int]:
    """Expression's value by what it is, without those that the headers lack."""
    if shutil.which("gcc") is None:
        pytest.skip("not yet: no gcc here (Debian: gcc libc6-dev)")
    text = "".join(f"#include <{name}>\n" for name in headers)
    first = len(headers) + 2
    body = [f'printf("{what}=%lu\\n", (unsigned long)({expression}));' for what, expression in rows.items()]
    flags = ["-w", "-fmax-errors=0", *(f"-I{tree / path}" for path in INCLUDES)]
    lacks: set[int] = set()
    for _ in range(2):
        kept = "\n".join("" if number in lacks else line for number, line in enumerate(body))
        built = subprocess.run(["gcc", "-x", "c", "-", "-o", str(folder / "measure"), *flags], capture_output=True, text=True,
                               input=f"{text}int main(void) {{\n{kept}\nreturn 0;\n}}\n", env={**os.environ, "LC_ALL": "C"})
        if not built.returncode:
            break
        lacks = {int(line) - first for line in re.findall(r"^<stdin>:(\d+):\d+: error", built.stderr, re.MULTILINE)}
    assert built.returncode == 0, built.stderr[:2000]
    out = subprocess.run([folder / "measure"], capture_output=True, text=True, check=True).stdout
    return {what: int(value) for what, _, value in (line.rpartition("=") for line in out.splitlines())}


def struct_rows(table: Uapi) -> tuple[dict[str, str], dict[str, int]]:
    """(what -> C expression, what -> declared)"""
    rows, declared = {}, {}
    for struct in table.struct_names:
        rows[f"size {struct}"], declared[f"size {struct}"] = f"sizeof({struct})", table.size(struct)
        for field, (offset, size) in table.layout(struct).items():
            if field:
                rows[f"offset {struct}.{field}"] = f"offsetof({struct}, {field})"
                rows[f"size {struct}.{field}"] = f"sizeof((({struct} *)0)->{field})"
                declared[f"offset {struct}.{field}"], declared[f"size {struct}.{field}"] = offset, size
    return rows, declared


@NEEDS_HEADERS
def test_as_in_the_headers(tree: Path, tmp_path: Path) -> None:
    tables = tables_for(version_of(tree))
    classes = tuple(f"class/{path.name}" for path in sorted((tree / INCLUDES[0] / "class").glob("cl*.h")))
    rows, declared = struct_rows(tables.nvrm)
    numbers = {**constants(tables), **escapes(tables.nvrm)}
    ours = {name: value for name, value in numbers.items() if not name.startswith(("UVM_", "Uvm"))}
    rows.update({f"value {name}": name for name in ours})
    declared.update({f"value {name}": value for name, value in ours.items()})
    for prefix, fields in nv_alloc.FLAG_WORDS.items():
        for field, ((high, low), values) in fields.items():
            rows[f"high {prefix}{field}"], rows[f"low {prefix}{field}"] = f"1 ? {prefix}{field}", f"0 ? {prefix}{field}"
            declared[f"high {prefix}{field}"], declared[f"low {prefix}{field}"] = high, low
            rows.update({f"value {prefix}{field}_{value}": f"{prefix}{field}_{value}" for value in values})
            declared.update({f"value {prefix}{field}_{value}": number for value, number in values.items()})
    found = measure(tree, tmp_path, (*HEADERS, *classes), rows)
    assert {what: declared[what] for what in found} == found
    lacking = {what.partition(" ")[2].partition(".")[0] for what in set(rows) - set(found)}
    gone = RENAMED if tables.branch >= 595 else {}
    assert lacking <= {name for name, branch in SINCE.items() if branch > tables.branch} | set(gone)


@NEEDS_HEADERS
def test_unified_memory_as_in_the_headers(tree: Path, tmp_path: Path) -> None:
    tables = tables_for(version_of(tree))
    rows, declared = struct_rows(tables.uvm)
    numbers = {name: value for name, value in {**escapes(tables.uvm), **constants(tables)}.items()
               if name.startswith(("UVM_", "Uvm"))}
    rows.update({f"value {name}": name for name in numbers})
    declared.update({f"value {name}": value for name, value in numbers.items()})
    found = measure(tree, tmp_path, ("stdio.h", "stddef.h", "nvtypes.h", "nvstatus.h", "uvm_linux_ioctl.h"), rows)
    assert {what: declared[what] for what in found} == found
    assert set(rows) == set(found)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes written down from those headers, so that a change is seen without them

SIZES = {
    "NVOS46_PARAMETERS": (56, 64, 64, 64, 64), "NV_VASPACE_ALLOCATION_PARAMETERS": (48, 56, 56, 56, 56),
    "NV_CHANNEL_ALLOC_PARAMS": (368, 368, 368, 368, 376), "NV_MEMORY_ALLOCATION_PARAMS": (128,) * 5,
    "NVA06F_CTRL_GPFIFO_SCHEDULE_PARAMS": (2, 3, 3, 3, 3), "NV0000_CTRL_GPU_GET_PROBED_IDS_PARAMS": (256, 384, 384, 384, 384),
    "NV0080_CTRL_GPU_GET_CLASSLIST_V2_PARAMS": (404, 804, 804, 804, 804),
    "NV2080_CTRL_FB_GET_INFO_V2_PARAMS": (460, 1028, 1028, 1028, 1028),
    "NV2080_CTRL_GPU_GET_NAME_STRING_PARAMS": (132, 132, 132, 68, 68),
    "NV2080_CTRL_GPU_QUERY_ECC_STATUS_PARAMS": (1464, 1464, 1664, 1664, 1664),
    "NV0080_CTRL_GR_GET_INFO_V2_PARAMS": (488, 488, 496, 496, 528),
    "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS_PARAMS": (13320, 13344, 13864, 13864, 13864),
    "NV83DE_CTRL_DEBUG_READ_ALL_SM_ERROR_STATES_PARAMS": (4824,) * 5, "nv_ioctl_card_info_t": (72,) * 5,
    "NV00DE_SHARED_DATA": (464, 2600, 3144, 3144), "NV2080_CTRL_GPU_GET_PARTITIONS_PARAMS": (1864,) * 5,
    "NVC637_ALLOCATION_PARAMETERS": (16,) * 5, "NVC637_CTRL_EXEC_PARTITIONS_GET_PARAMS": (452,) * 5,
}


@pytest.mark.parametrize("struct", SIZES)
def test_sizes_written_down(struct: str) -> None:
    branches = SHARED_DATA if struct == "NV00DE_SHARED_DATA" else BRANCHES
    assert tuple(tables_for(f"{branch}.1").nvrm.size(struct) for branch in branches) == SIZES[struct]


def test_unified_memory_sizes_written_down() -> None:
    found = {branch: [tables_for(f"{branch}.1").uvm.size(name) for name in ("UVM_FREE_PARAMS", "UVM_UNREGISTER_CHANNEL_PARAMS",
                                                                           "UVM_MAP_EXTERNAL_ALLOCATION_PARAMS")]
             for branch in BRANCHES}
    assert found == {570: [24, 28, 9264], 580: [24, 28, 9264], 590: [16, 12, 9264], 595: [16, 12, 9264], 610: [16, 12, 9264]}
