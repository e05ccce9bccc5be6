"""Every declared request number, size, offset and constant of AMD's drivers against the kernel's own headers, compiled by gcc.

What the installed header is too old for must be listed in the table's SINCE, and is compared with what is written down
here instead; DEVRT_LINUX_HEADERS names a folder with newer headers (usr/include of a linux-libc-dev package) to judge by.
"""

from __future__ import annotations

import enum
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from devrt.ioctl import amdgpu, kfd
from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.drm import DRM
from devrt.ioctl.kfd import KFD
from devrt.ioctl.uapi import Uapi

TABLES = (KFD, DRM, AMDGPU)
LIBDRM = Path("/usr/include/libdrm")
NEWER = os.environ.get("DEVRT_LINUX_HEADERS")

SINCE: Mapping[str, Mapping[str, object]] = {"kfd": kfd.SINCE, "amdgpu": amdgpu.SINCE, "drm": {}}
CONSTANTS: Mapping[str, Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]]] = {
    "kfd": kfd.CONSTANTS, "amdgpu": amdgpu.CONSTANTS}

# In the header of that release, though the interface's minor did not change for it.
WITHOUT_A_MINOR = {
    "KFD_IOC_ALLOC_MEM_FLAGS_EXT_COHERENT": "6.8", "KFD_IOCTL_SVM_FLAG_EXT_COHERENT": "6.8",
    "KFD_SMI_EVENT_PROCESS_START": "6.17", "KFD_SMI_EVENT_PROCESS_END": "6.17",
    "kfd_dbg_device_info_entry.capability2": "7.2",
}

# Some releases differ: 6.17 to 7.2 end this answer with a dword of padding, which takes 8 bytes.
OR_ELSE = {"size drm_amdgpu_info_device": 448}

# Sizes and request numbers of what Debian 12's headers lack, from the header of Linux 7.3.
WRITTEN_DOWN = {
    "request AMDKFD_IOC_CREATE_QUEUE": 0xC0604B02, "request AMDKFD_IOC_EXPORT_DMABUF": 0xC0104B24,
    "request AMDKFD_IOC_RUNTIME_ENABLE": 0xC0104B25, "request AMDKFD_IOC_DBG_TRAP": 0xC0204B26,
    "request AMDKFD_IOC_CREATE_PROCESS": 0x4B27, "request AMDKFD_IOC_PROFILER": 0xC0104B28,
    "size kfd_ioctl_create_queue_args": 96, "offset kfd_ioctl_create_queue_args.sdma_engine_id": 88,
    "offset kfd_ioctl_create_queue_args.metadata_ring_size": 92,
    "offset kfd_ioctl_set_memory_policy_args.misc_process_flag": 28,
    "size kfd_event_data": 48, "offset kfd_event_data.signal_event_data": 0,
    "size kfd_context_save_area_header": 40, "size kfd_queue_snapshot_entry": 64, "size kfd_dbg_device_info_entry": 128,
    "request DRM_IOCTL_AMDGPU_GEM_VA": 0x40406448, "request DRM_IOCTL_AMDGPU_GEM_OP": 0xC0186450,
    "size drm_amdgpu_info_device": 440, "offset drm_amdgpu_info_device.pcie_gen": 132,
    "offset drm_amdgpu_info_device.pcie_num_lanes": 268, "offset drm_amdgpu_info_device.tcp_cache_size": 384,
    "offset drm_amdgpu_info_device.mall_size": 408, "size drm_amdgpu_info_hw_ip": 40,
    "size drm_amdgpu_info_gpuvm_fault": 16,
}


def gcc(source: str, output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    # Debian moves the kernel's <drm/drm.h> to libdrm-dev as <libdrm/drm.h>, but <linux/kfd_ioctl.h> still includes the former.
    as_drm = output.parent / "drm"
    if LIBDRM.is_dir() and not as_drm.exists():
        as_drm.symlink_to(LIBDRM)
    newer = [f"-I{NEWER}", f"-I{NEWER}/drm", f"-I{NEWER}/x86_64-linux-gnu"] if NEWER else []
    return subprocess.run(["gcc", "-x", "c", "-", "-o", str(output), "-w", *flags, *newer, f"-I{output.parent}", f"-I{LIBDRM}"],
                          input=source, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})


def rows_of(table: Uapi) -> dict[str, tuple[str, int, str]]:
    """What is measured -> (C expression, what is declared, the name under which SINCE would list it)."""
    rows = {f"request {name}": (name, table.request(name), name) for name in table.ioctls}
    for struct in table.struct_names:
        ctype = table.ctype(struct)
        rows[f"size {struct}"] = f"sizeof({ctype})", table.size(struct), struct
        for field, (offset, size) in table.layout(struct).items():
            member = f"{struct}.{field}"
            rows[f"offset {member}"] = f"offsetof({ctype}, {field})", offset, member
            rows[f"size {member}"] = f"sizeof((({ctype} *)0)->{field})", size, member
    for prefix, members in CONSTANTS.get(table.name, {}).items():
        for member in members.__members__.values():
            name = prefix.strip() + member.name
            rows[f"value {name}"] = name, member.value, name
    return rows


@functools.cache
def measured(name: str) -> Mapping[str, int | None]:
    """What the header says of everything the table declares; None of what it lacks."""
    table = next(table for table in TABLES if table.name == name)
    folder = Path(os.environ["DEVRT_TEST_FOLDER"]) / name
    folder.mkdir(exist_ok=True)
    if shutil.which("gcc") is None:
        pytest.skip("not yet: no gcc here (Debian: gcc libc6-dev)")
    includes = f"#include <stdio.h>\n#include <stdint.h>\n#include <stddef.h>\n#include <{table.header}>\n"
    probe = gcc(f"{includes}int main(void) {{ return 0; }}", folder / "probe")
    if probe.returncode:
        pytest.skip(f"not yet: <{table.header}> does not compile (Debian: linux-libc-dev, libdrm-dev): {probe.stderr[:200]}")
    rows = rows_of(table)
    # One row, one line: gcc names the line of what the header lacks.
    first = len(includes.splitlines()) + 2
    body = [f'printf("{what}=%lu\\n", (unsigned long)(uint32_t)({row[0]}));' for what, row in rows.items()]
    lacks: set[int] = set()
    for _ in range(2):
        kept = "\n".join("" if number in lacks else line for number, line in enumerate(body))
        built = gcc(f"{includes}int main(void) {{\n{kept}\nreturn 0;\n}}\n", folder / "measure", "-fmax-errors=0")
        if not built.returncode:
            break
        lacks = {int(line) - first for line in re.findall(r"^<stdin>:(\d+):\d+: error", built.stderr, re.MULTILINE)}
    assert built.returncode == 0, built.stderr
    text = subprocess.run([folder / "measure"], capture_output=True, text=True, check=True).stdout
    found = {what: int(value) for what, _, value in (line.rpartition("=") for line in text.splitlines())}
    return {what: found.get(what) for what in rows}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DEVRT_TEST_FOLDER"] = str(tmp_path_factory.mktemp("headers"))


def newer_than_the_header(table: Uapi) -> set[str]:
    """Names under which the table's rows are missing from the installed header."""
    rows = rows_of(table)
    return {rows[what][2] for what, value in measured(table.name).items() if value is None}


def shorter(table: Uapi, lacking: set[str]) -> dict[str, int]:
    """Sizes of the structs that the installed header knows without their last fields."""
    sizes = {}
    for struct in table.struct_names:
        ends = [offset + size for field, (offset, size) in table.layout(struct).items() if f"{struct}.{field}" not in lacking]
        if struct not in lacking and len(ends) < len(table.layout(struct)):
            sizes[struct] = -(-max(ends) // 8) * 8
    return sizes


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_declared_as_in_the_header(table: Uapi) -> None:
    found, lacking = measured(table.name), newer_than_the_header(table)
    short = shorter(table, lacking)
    wrong = {}
    for what, (_, value, _) in rows_of(table).items():
        kind, _, name = what.partition(" ")
        row = table.ioctls.get(name)
        if kind == "size":
            value = short.get(name, value)
        elif kind == "request" and row and row.struct in short:
            value = value & ~(0x3FFF << 16) | short[row.struct] << 16
        if found[what] not in (None, value & 0xFFFFFFFF, OR_ELSE.get(what)):
            wrong[what] = f"declared {value:#x}, header {found[what]:#x}"
    assert not wrong


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_what_the_header_lacks_is_listed_with_its_release(table: Uapi) -> None:
    structs = {name for name in SINCE[table.name] if name in table.struct_names}
    unlisted = {name for name in newer_than_the_header(table)
                if name not in SINCE[table.name] and name not in WITHOUT_A_MINOR and name.partition(".")[0] not in structs}
    assert not unlisted


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_listed_name_exists(table: Uapi) -> None:
    assert set(SINCE[table.name]) <= {name for _, _, name in rows_of(table).values()}


NEWER_NAMES: dict[tuple[str, str], list[str]] = {}
for listed, minor in kfd.SINCE.items():
    NEWER_NAMES.setdefault(("kfd", f"interface 1.{minor}"), []).append(listed)
for listed, release in WITHOUT_A_MINOR.items():
    NEWER_NAMES.setdefault(("kfd", f"Linux {release}"), []).append(listed)
for listed, release in amdgpu.SINCE.items():
    NEWER_NAMES.setdefault(("amdgpu", f"Linux {release}"), []).append(listed)


@pytest.mark.parametrize(("driver", "since"), NEWER_NAMES)
def test_newer_than_debian_12(driver: str, since: str) -> None:
    """What one release brought, as a test of its own: skipped in sight where the installed header is older."""
    table = next(table for table in TABLES if table.name == driver)
    absent = [name for name in NEWER_NAMES[driver, since] if name in newer_than_the_header(table)]
    if absent:
        pytest.skip(f"not yet: <{table.header}> here is older than {since}: {len(absent)} names, first {absent[0]}")


def test_sizes_and_requests_written_down() -> None:
    declared = {what: row[1] for table in TABLES for what, row in rows_of(table).items()}
    assert {what: declared[what] for what in WRITTEN_DOWN} == WRITTEN_DOWN


@pytest.mark.parametrize(("minor", "size"), [(11, 88), (14, 88), (17, 96), (23, 96)])
def test_create_queue_grew_with_the_interface(minor: int, size: int) -> None:
    assert kfd.size_at("kfd_ioctl_create_queue_args", minor) == size
    assert kfd.size_at("kfd_ioctl_set_memory_policy_args", minor) == 32
    assert kfd.size_at("kfd_event_data", minor) == 48
    assert kfd.size_at("kfd_ioctl_runtime_enable_args", minor) == (16 if minor >= 13 else 0)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_struct_and_field_a_row_names_is_declared(table: Uapi) -> None:
    for row in table.ioctls.values():
        layout = table.layout(row.struct) if row.struct else {}
        named = {*row.addresses, *(pointer.field for pointer in row.pointers), *(pointer.count for pointer in row.pointers)}
        assert named <= set(layout)


def test_pointers_count_the_elements_they_lead_to() -> None:
    for name, struct in (("AMDKFD_IOC_WAIT_EVENTS", "kfd_event_data"),
                         ("AMDKFD_IOC_GET_PROCESS_APERTURES_NEW", "kfd_process_device_apertures")):
        assert [pointer.element for pointer in kfd.KFD.ioctls[name].pointers] == [kfd.KFD.size(struct)]
    assert [pointer.element for pointer in kfd.KFD.ioctls["AMDKFD_IOC_CRIU_OP"].pointers] == [
        kfd.KFD.size("kfd_criu_device_bucket"), kfd.KFD.size("kfd_criu_bo_bucket"), 1]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_source_header_is_named_on_line_1(table: Uapi) -> None:
    module = Path(__file__).parents[2] / "devrt" / "ioctl" / f"{table.name}.py"
    first = module.read_text().splitlines()[0]
    assert first.startswith("# Linux include/uapi/") and table.header in first
