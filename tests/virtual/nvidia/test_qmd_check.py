"""The judge of launch descriptors: each wrong field is a fault that names it, and what is right passes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from devrt.nvidia import qmd
from devrt.virtual.nvidia.qmd_check import LIMITS
from tests.virtual.nvidia.rig import rig

# The version first, then fields in the order that they are judged; sm_90 unless said.
WRONG: list[tuple[Mapping[str, int], str]] = [
    ({"qmd_type": 0}, "qmd_type is 0x0: a grid of blocks is 2"),
    ({"qmd_type": 3}, "qmd_type is 0x3"),
    ({"gpc_cga_width": 2}, "gpc_cga_width is 0x2: clusters are not modelled"),
    ({"dependence_counter": 1}, "dependence_counter is 0x1"),
    ({"dependent_qmd0_enable": 1, "dependent_qmd0_action": 4}, "dependent_qmd0_action is 0x4"),
    ({"release_enable_1": 1, "release_structure_size_1": 3}, "release_structure_size_1 is 0x3"),
    ({"grid_width": 0}, "grid_width is 0x0: a grid of nothing"),
    ({"grid_height": 0}, "grid_height is 0x0"),
    ({"grid_depth": 0}, "grid_depth is 0x0"),
    ({"grid_width": 1 << 31}, "grid_width is 0x80000000: the most is 0x7fffffff"),
    ({"cta_thread_dimension1": 0}, "cta_thread_dimension1 is 0x0"),
    ({"cta_thread_dimension0": 1025}, "cta_thread_dimension0 is 0x401: the most is 1024"),
    ({"cta_thread_dimension0": 1, "cta_thread_dimension2": 65}, "cta_thread_dimension2 is 0x41: the most is 64"),
    ({"cta_thread_dimension0": 256, "cta_thread_dimension1": 5}, "256x5x1 threads, a block has at most 1024"),
    ({"sass_version": 0x89}, "sass_version is 0x89: this GPU's is 0x90"),
    ({"register_count": 0}, "register_count is 0x0: a thread has 1 to 255"),
    ({"register_count": 256}, "register_count is 0x100"),
    ({"register_count": 65, "cta_thread_dimension0": 1024}, "register_count is 0x41: 1024 threads take 73728 of 65536 registers"),
    ({"barrier_count": 17}, "barrier_count is 0x11: a block has 16"),
    ({"shared_memory_size": 0x101}, "shared_memory_size is 0x101: it counts in units of 128"),
    ({"shared_memory_size": 229 << 10}, "sm_90 has 228 KiB"),
    ({"min_sm_config_shared_mem_size": 2}, "min_sm_config_shared_mem_size is 0x2: sm_90 has the codes 0x1 0x3 0x5 0x9 0x11"),
    ({"max_sm_config_shared_mem_size": 0x3F}, "max_sm_config_shared_mem_size is 0x3f"),
    ({"target_sm_config_shared_mem_size": 3, "max_sm_config_shared_mem_size": 1}, "target_sm_config_shared_mem_size is 0x3"),
    ({"shared_memory_size": 0x2400, "min_sm_config_shared_mem_size": 3}, "8 KiB don't hold a block's 9216 bytes"),
    ({"shader_local_memory_low_size": 8}, "shader_local_memory_low_size is 0x8: it counts in units of 16"),
    ({"shader_local_memory_high_size": 16}, "NON_THROTTLED says 0x0 bytes of a TPC, 0 SMs"),
    ({"constant_buffer_valid_2": 1, "constant_buffer_size_2": 16}, "faulted @ 0x0_00000000"),
    ({"constant_buffer_valid_2": 1}, "constant_buffer_size_2 is 0x0: a valid bank has up to 65536 bytes"),
    ({"constant_buffer_valid_2": 1, "constant_buffer_size_2": 0x10010}, "constant_buffer_size_2 is 0x10010"),
    ({"program_prefetch_size": 0x100}, "faulted @ 0x0_00000000"),
]


@pytest.mark.parametrize("fields, why", WRONG, ids=[why.split(":")[0] for _, why in WRONG])
def test_a_wrong_field_is_named(fields: Mapping[str, int], why: str) -> None:
    with rig() as r:
        line = r.channel()
        text = line.send(line.launch(r.qmd(r.kernel(), **fields))).error()
        assert why in text and ("Xid 13" in text or "Xid 31" in text), text
        assert not r.player.seen


def test_entries_of_code() -> None:
    with rig() as r:
        entry = r.kernel()
        line = r.channel()
        text = line.send(line.launch(r.qmd(entry + 64))).error()
        assert "program_address is 0x" in text and "multiple of 128" in text
        line = r.channel()
        assert "Xid 31" in line.send(line.launch(r.qmd(0xF0_0000_0000))).error()


def test_addresses_of_constants_are_aligned() -> None:
    with rig(80) as r:
        line = r.channel()
        at = r.qmd(r.kernel(), constant_buffer_valid_0=1, constant_buffer_addr_0=r.memory() + 32, constant_buffer_size_0=32)
        assert "constant_buffer_addr_0 is 0x" in line.send(line.launch(at)).error()


@pytest.mark.parametrize("sm, major", [(80, 4), (86, 2), (90, 3), (120, 4)])
def test_another_version(sm: int, major: int) -> None:
    with rig(sm) as r:
        line, at = r.channel(), r.qmd(r.kernel(), sass_version=1)
        row = qmd.table(sm).place("qmd_major_version")
        number = int.from_bytes(r.space.read(at, qmd.nbytes(sm)), "little")
        number = number & ~(15 << row.lsb) | major << row.lsb
        r.space.write(at, number.to_bytes(qmd.nbytes(sm), "little"))
        wanted = f"{qmd.major_of(sm)}.0"
        assert f"qmd_major_version and qmd_version are {major}.0, this class takes {wanted}" in line.send(line.launch(at)).error()


@pytest.mark.parametrize("sm, bit", [(80, 0), (89, 700), (90, 26), (90, 2500), (120, 100)])
def test_reserved_bits(sm: int, bit: int) -> None:
    with rig(sm) as r:
        line, at = r.channel(), r.qmd(r.kernel())
        byte = r.space.read(at + bit // 8, 1)[0]
        r.space.write(at + bit // 8, bytes([byte | 1 << bit % 8]))
        assert f"reserved bit {bit} is set" in line.send(line.launch(at)).error()


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 120])
def test_every_carve_out_passes(sm: int) -> None:
    with rig(sm) as r:
        line, entry = r.channel(), r.kernel()
        for kib in LIMITS[sm].carve_outs:
            line.send(line.launch(r.qmd(entry, shared_memory_size=kib << 10))).drain()
        assert [launch.shared_bytes >> 10 for launch in r.player.seen] == list(LIMITS[sm].carve_outs)


def test_the_largest_of_everything_passes() -> None:
    with rig() as r:
        line, entry, bank = r.channel(), r.memory(1 << 17), r.memory(1 << 16)
        fields = {f"constant_buffer_{what}_{n}": value for n in range(8)
                  for what, value in (("valid", 1), ("addr", bank), ("size", 1 << 16))}
        fields |= {"program_prefetch_addr_lower": entry >> 8 & 0xFFFFFFFF, "program_prefetch_addr_upper": entry >> 40,
                   "program_prefetch_size": 0x1FF00}
        for x, y, z, registers in ((1024, 1, 1, 64), (1, 1024, 1, 64), (16, 1, 64, 64), (256, 1, 1, 255)):
            line.send(line.launch(r.qmd(entry, grid_width=(1 << 31) - 1, grid_height=65535, grid_depth=65535, barrier_count=16,
                                        cta_thread_dimension0=x, cta_thread_dimension1=y, cta_thread_dimension2=z,
                                        register_count=registers, **fields))).drain()
        assert len(r.player.seen) == 4
