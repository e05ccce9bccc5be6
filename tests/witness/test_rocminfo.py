"""rocminfo, AMD's own, lists virtual GPUs as what they are and finds nothing amiss."""

from __future__ import annotations

import re

import pytest

from devrt.virtual.amd.machine import MODELS
from tests.witness.rocr import Rocr, runtime_for

CASES = [("gfx90a", 1), ("gfx1030", 1), ("gfx1100", 1), ("gfx942", 1), ("2xgfx1100", 2), ("4xgfx942", 4), ("2xgfx1100-nop2p", 2)]


def rocminfo(rocr: Rocr, topology: str) -> list[str]:
    """Its text agent by agent; what comes before the first is left out."""
    program = rocr.root / "usr/bin/rocminfo"
    if not program.exists():
        pytest.skip(f"no {program}: apt-get install rocminfo")
    done = rocr.run(f"amd/{topology}", program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ROCk module is loaded" in done.stdout
    assert not done.stderr
    return re.split(r"^Agent \d+", done.stdout, flags=re.MULTILINE)[1:]


def field(agent: str, name: str) -> str:
    match = re.search(rf"^\s*{re.escape(name)}: *(.*?)\s*$", agent, re.MULTILINE)
    assert match, f"no {name!r} in\n{agent}"
    return match[1]


def number(agent: str, name: str) -> int:
    return int(field(agent, name).split("(")[0])


def pools(agent: str) -> list[tuple[str, int]]:
    """(segment and flags, KiB)"""
    return [(kind, int(kib)) for kind, kib in re.findall(r"Segment: *(.*?)\s*\n\s*Size: *(\d+)\(", agent)]


@pytest.mark.parametrize(("topology", "count"), CASES)
def test_agents(topology: str, count: int) -> None:
    gfx = re.sub(r"^\d+x|-.*$", "", topology)
    rocr, why = runtime_for(gfx)
    if rocr is None:
        pytest.skip(why)
    host, *gpus = rocminfo(rocr, topology)
    model = MODELS[gfx]
    assert field(host, "Device Type") == "CPU"
    assert len(gpus) == count
    for agent in gpus:
        assert field(agent, "Name") == gfx
        assert field(agent, "Device Type") == "GPU"
        assert field(agent, "Vendor Name") == "AMD"
        assert number(agent, "Compute Unit") == model.compute_units
        assert number(agent, "SIMDs per CU") == model.simd_per_cu
        assert number(agent, "Wavefront Size") == model.wave
        assert number(agent, "Chip ID") == model.device_id
        assert number(agent, "Max Clock Freq. (MHz)") == model.clock_khz // 1000
        assert f"amdgcn-amd-amdhsa--{gfx}" in agent
        assert ("GROUP", model.lds_kib) in pools(agent)
        coarse = [kib for kind, kib in pools(agent) if kind == "GLOBAL; FLAGS: COARSE GRAINED"]
        assert coarse and 0.97 < coarse[0] * 1024 / model.vram_bytes <= 1
    assert len({field(agent, "Uuid") for agent in gpus}) == count
    assert len({field(agent, "BDFID") for agent in gpus}) == count


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx1030", "gfx1100", "gfx942"])
def test_marketing_name(gfx: str) -> None:
    """libdrm finds the name by device and revision in its list, where the list has the device."""
    rocr, why = runtime_for(gfx)
    if rocr is None:
        pytest.skip(why)
    model = MODELS[gfx]
    names = rocr.root / "usr/share/libdrm/amdgpu.ids"
    row = re.search(rf"^{model.device_id:X},\s*{model.revision:02X},\s*(.*?)\s*$", names.read_text(), re.MULTILINE)
    if row is None:
        pytest.skip(f"{names} has no {model.device_id:X}")
    assert field(rocminfo(rocr, gfx)[1], "Marketing Name") == row[1]
