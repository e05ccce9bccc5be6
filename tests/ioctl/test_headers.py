"""Every declared request number, size and offset against the kernel's own headers, compiled by gcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from devrt.ioctl.tables import TABLES
from devrt.ioctl.uapi import Uapi

LIBDRM = Path("/usr/include/libdrm")


def gcc(source: str, output: Path) -> subprocess.CompletedProcess[str]:
    # Debian moves the kernel's <drm/drm.h> to libdrm-dev as <libdrm/drm.h>, but <linux/kfd_ioctl.h> still includes the former.
    as_drm = output.parent / "drm"
    if LIBDRM.is_dir() and not as_drm.exists():
        as_drm.symlink_to(LIBDRM)
    return subprocess.run(["gcc", "-x", "c", "-", "-o", str(output), "-w", "-I", str(output.parent), "-I", str(LIBDRM)],
                          input=source, capture_output=True, text=True)


def measured(table: Uapi, folder: Path) -> dict[str, int]:
    """What the header says of everything the table declares."""
    if shutil.which("gcc") is None:
        pytest.skip("not yet: no gcc here (Debian: gcc libc6-dev)")
    probe = gcc(f"#include <{table.header}>\nint main(void) {{ return 0; }}", folder / "probe")
    if probe.returncode:
        pytest.skip(f"not yet: <{table.header}> does not compile (Debian: linux-libc-dev, libdrm-dev): {probe.stderr[:200]}")
    rows = [(f"request {name}", name) for name in table.ioctls]
    for struct in table.struct_names:
        rows.append((f"size {struct}", f"sizeof(struct {struct})"))
        for field in table.layout(struct):
            rows.append((f"offset {struct}.{field}", f"offsetof(struct {struct}, {field})"))
            rows.append((f"size {struct}.{field}", f"sizeof(((struct {struct} *)0)->{field})"))
    body = "".join(f'  printf("{what}=%lu\\n", (unsigned long)({expression}));\n' for what, expression in rows)
    built = gcc(f"#include <stdio.h>\n#include <stdint.h>\n#include <stddef.h>\n#include <{table.header}>\n"
                f"int main(void) {{\n{body}  return 0;\n}}\n", folder / "measure")
    assert built.returncode == 0, built.stderr
    text = subprocess.run([folder / "measure"], capture_output=True, text=True, check=True).stdout
    return {what: int(value) for what, _, value in (line.rpartition("=") for line in text.splitlines())}


def declared(table: Uapi) -> dict[str, int]:
    found = {f"request {name}": table.request(name) for name in table.ioctls}
    for struct in table.struct_names:
        found[f"size {struct}"] = table.size(struct)
        for field, (offset, size) in table.layout(struct).items():
            found[f"offset {struct}.{field}"] = offset
            found[f"size {struct}.{field}"] = size
    return found


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_declared_as_in_the_header(table: Uapi, tmp_path: Path) -> None:
    assert declared(table) == measured(table, tmp_path)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_struct_and_field_a_row_names_is_declared(table: Uapi) -> None:
    for row in table.ioctls.values():
        layout = table.layout(row.struct) if row.struct else {}
        named = {*row.addresses, *(pointer.field for pointer in row.pointers), *(pointer.count for pointer in row.pointers)}
        assert named <= set(layout)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_source_header_is_named_on_line_1(table: Uapi) -> None:
    module = Path(__file__).parents[2] / "devrt" / "ioctl" / f"{table.name}.py"
    first = module.read_text().splitlines()[0]
    assert first.startswith("# Linux include/uapi/") and table.header in first
