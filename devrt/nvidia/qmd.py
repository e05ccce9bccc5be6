"""QMD: the launch descriptor of a kernel, 256 or 384 bytes that the compute scheduler reads.

One table a version; fields that mean the same have one name, so that the code which fills them knows no generation. An address
or a size that the header splits into LOWER and UPPER is one field where the halves adjoin, and is given in bytes: `shift` says
what the hardware keeps of it. Fields that only the hardware writes, queues of descriptors and graphics are left out, hence
reserved.
Sources: open-gpu-doc classes/compute/clc5c0qmd.h (2.3), clc6c0qmd.h (3.0; the same in C7C0, C9C0, CBC0), clcbc0qmd.h (4.0),
clcec0qmd.h (5.0; the same in CDC0). Which version a GPU takes: Mesa src/nouveau/compiler/nak/qmd.rs.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from devrt.nvidia.fields import BLACKWELL, HOPPER, TURING, Compiled, F, Field, Layout, array

CONSTANT_BANKS = 8
ALIGNMENT = 256


class Membar(enum.IntEnum):
    """CWD_MEMBAR_TYPE: what the scheduler waits for when the last group has ended."""

    L1_NONE = 0
    L1_SYSMEMBAR = 1
    L1_MEMBAR = 3


class CallLimit(enum.IntEnum):
    """API_VISIBLE_CALL_LIMIT."""

    DEPTH_32 = 0
    NO_CHECK = 1


class QmdType(enum.IntEnum):
    """From version 4: what the descriptor is."""

    QUEUE = 0
    GRID_NULL = 1
    GRID_CTA = 2
    GRID_GPC_CGA = 3
    GRID_GPU_CGA = 4


def _invalidate(first: int) -> tuple[Field, ...]:
    """Six bits in a row: caches that are emptied before the grid starts."""
    names = ("texture_header", "texture_sampler", "texture_data", "shader_data", "instruction", "shader_constant")
    return tuple(F(f"invalidate_{name}_cache", first + n, first + n) for n, name in enumerate(names))


_V2 = Layout("QMD 2.3", 2048, (
    F("qmd_group_id", 133, 128),
    F("sm_global_caching_enable", 134, 134),
    F("is_queue", 136, 136),
    F("release_enable_0", 138, 138),
    F("release_enable_1", 139, 139),
    F("dependent_qmd0_enable", 141, 141),
    *_invalidate(186),
    F("program_prefetch_addr_lower", 287, 256),
    F("cwd_membar_type", 369, 368, Membar),
    F("api_visible_call_limit", 378, 378, CallLimit),
    F("sampler_index", 382, 382),
    F("grid_width", 415, 384),
    F("grid_height", 431, 416),
    F("grid_depth", 463, 448),
    F("dependent_qmd0_pointer", 511, 480, shift=8),
    F("shared_memory_size", 561, 544),
    F("min_sm_config_shared_mem_size", 568, 562),
    F("max_sm_config_shared_mem_size", 575, 569),
    F("qmd_version", 579, 576),
    F("qmd_major_version", 583, 580),
    F("cta_thread_dimension0", 607, 592),
    F("cta_thread_dimension1", 623, 608),
    F("cta_thread_dimension2", 639, 624),
    *array("constant_buffer_valid", 640, 640, CONSTANT_BANKS, 1),
    F("register_count", 656, 648),
    F("target_sm_config_shared_mem_size", 663, 657),
    F("release_address_0", 775, 736),
    F("release_structure_size_0", 799, 799),
    F("release_payload_0", 831, 800),
    F("release_address_1", 871, 832),
    F("release_structure_size_1", 895, 895),
    F("release_payload_1", 927, 896),
    F("shader_local_memory_low_size", 951, 928),
    F("barrier_count", 959, 955),
    F("shader_local_memory_high_size", 983, 960),
    F("program_prefetch_addr_upper", 1000, 992),
    F("program_prefetch_size", 1009, 1001, shift=8),
    F("sass_version", 1023, 1016),
    *array("constant_buffer_addr", 1072, 1024, CONSTANT_BANKS, 64),
    *array("constant_buffer_invalidate", 1074, 1074, CONSTANT_BANKS, 64),
    *array("constant_buffer_size", 1087, 1075, CONSTANT_BANKS, 64, shift=4),
    F("program_address", 1584, 1536),
))


def _release3(n: int, first: int) -> tuple[Field, ...]:
    return (F(f"release_address_{n}", first + 39, first),
            F(f"release_membar_type_{n}", first + 51, first + 51),
            F(f"release_enable_{n}", first + 55, first + 55),
            F(f"release_payload64b_{n}", first + 61, first + 61),
            F(f"release_structure_size_{n}", first + 63, first + 62),
            F(f"release_payload_{n}", first + 127, first + 64))


_V3 = Layout("QMD 3.0", 2048, (
    F("qmd_group_id", 133, 128),
    F("sm_global_caching_enable", 134, 134),
    F("is_queue", 136, 136),
    F("dependence_counter", 157, 142),
    *_invalidate(186),
    F("program_prefetch_addr_lower", 287, 256),
    F("cwd_membar_type", 369, 368, Membar),
    F("api_visible_call_limit", 378, 378, CallLimit),
    F("sampler_index", 382, 382),
    F("grid_width", 415, 384),
    F("grid_height", 431, 416),
    F("grid_depth", 463, 448),
    F("dependent_qmd0_pointer", 511, 480, shift=8),
    F("dependent_qmd0_enable", 512, 512),
    F("dependent_qmd0_action", 515, 513),
    F("dependent_qmd0_prefetch", 516, 516),
    F("shared_memory_size", 561, 544),
    F("min_sm_config_shared_mem_size", 567, 562),
    F("max_sm_config_shared_mem_size", 574, 569),
    F("qmd_version", 579, 576),
    F("qmd_major_version", 583, 580),
    F("cta_thread_dimension0", 607, 592),
    F("cta_thread_dimension1", 623, 608),
    F("cta_thread_dimension2", 639, 624),
    *array("constant_buffer_valid", 640, 640, CONSTANT_BANKS, 1),
    F("register_count", 656, 648),
    F("target_sm_config_shared_mem_size", 662, 657),
    F("shared_allocation_enable", 663, 663),
    F("shader_local_memory_low_size", 759, 736),
    F("barrier_count", 767, 763),
    *_release3(0, 768),
    *_release3(1, 896),
    *array("constant_buffer_addr", 1072, 1024, CONSTANT_BANKS, 64),
    *array("constant_buffer_invalidate", 1074, 1074, CONSTANT_BANKS, 64),
    *array("constant_buffer_size", 1087, 1075, CONSTANT_BANKS, 64, shift=4),
    F("program_address", 1584, 1536),
    F("shader_local_memory_high_size", 1623, 1600),
    F("program_prefetch_addr_upper", 1640, 1632),
    F("program_prefetch_size", 1649, 1641, shift=8),
    F("sass_version", 1663, 1656),
    *_release3(2, 1664),
))


def _release4(enables: int, *semaphores: int) -> tuple[Field, ...]:
    rows: list[Field] = []
    for n, first in enumerate(semaphores):
        bit = enables + 16 * n
        rows += [F(f"release_enable_{n}", bit, bit),
                 F(f"release_structure_size_{n}", bit + 2, bit + 1),
                 F(f"release_membar_type_{n}", bit + 3, bit + 3),
                 F(f"release_payload64b_{n}", bit + 12, bit + 12),
                 F(f"release_address_{n}", first + 56, first),
                 F(f"release_payload_{n}", first + 127, first + 64)]
    return tuple(rows)


_V4 = Layout("QMD 4.0", 3072, (
    F("dependence_counter", 15, 0),
    F("qmd_group_id", 21, 16),
    F("qmd_type", 25, 23, QmdType),
    *_release4(320, 640, 768, 896),
    F("dependent_qmd0_enable", 368, 368),
    F("dependent_qmd0_action", 371, 369),
    F("dependent_qmd0_prefetch", 372, 372),
    *array("constant_buffer_valid", 416, 416, CONSTANT_BANKS, 4),
    *array("constant_buffer_prefetch", 418, 417, CONSTANT_BANKS, 4),
    *array("constant_buffer_invalidate", 419, 419, CONSTANT_BANKS, 4),
    F("dependent_qmd0_pointer", 479, 448, shift=8),
    F("shader_local_memory_low_size", 535, 512),
    F("sass_version", 543, 536),
    F("shader_local_memory_high_size", 567, 544),
    F("api_visible_call_limit", 568, 568, CallLimit),
    F("sampler_index", 569, 569),
    F("qmd_version", 579, 576),
    F("qmd_major_version", 583, 580),
    F("shared_memory_size", 601, 584),
    *_invalidate(602),
    F("min_sm_config_shared_mem_size", 613, 608),
    F("max_sm_config_shared_mem_size", 619, 614),
    F("target_sm_config_shared_mem_size", 625, 620),
    F("shared_allocation_enable", 626, 626),
    F("grid_width", 1055, 1024),
    F("grid_height", 1071, 1056),
    F("grid_depth", 1103, 1088),
    F("cwd_membar_type", 1137, 1136, Membar),
    F("cta_thread_dimension0", 1167, 1152),
    F("cta_thread_dimension1", 1183, 1168),
    F("cta_thread_dimension2", 1199, 1184),
    F("register_count", 1208, 1200),
    F("barrier_count", 1215, 1211),
    F("program_address", 1272, 1216),
    F("program_prefetch_addr_lower", 1375, 1344),
    F("program_prefetch_addr_upper", 1392, 1376),
    F("program_prefetch_size", 1401, 1393, shift=8),
    *array("constant_buffer_addr", 1586, 1536, CONSTANT_BANKS, 64, shift=6),
    *array("constant_buffer_size", 1599, 1587, CONSTANT_BANKS, 64, shift=4),
    F("gpc_cga_width", 2149, 2144),
    F("gpc_cga_height", 2157, 2152),
    F("gpc_cga_depth", 2165, 2160),
))
_V5 = Layout("QMD 5.0", 3072, (
    F("dependence_counter", 143, 128),
    F("qmd_group_id", 149, 144),
    F("qmd_type", 153, 151, QmdType),
    *_release4(288, 480, 768, 896),
    F("dependent_qmd0_enable", 336, 336),
    F("dependent_qmd0_action", 339, 337),
    F("dependent_qmd0_prefetch", 340, 340),
    F("shared_allocation_enable", 351, 351),
    F("dependent_qmd0_pointer", 415, 384, shift=8),
    F("sass_version", 455, 448),
    F("api_visible_call_limit", 456, 456, CallLimit),
    F("sampler_index", 457, 457),
    F("qmd_version", 467, 464),
    F("qmd_major_version", 471, 468),
    *_invalidate(472),
    F("cwd_membar_type", 625, 624, Membar),
    F("program_address", 1076, 1024, shift=4),
    F("program_prefetch_size", 1085, 1077, shift=8),
    F("cta_thread_dimension0", 1103, 1088),
    F("cta_thread_dimension1", 1119, 1104),
    F("cta_thread_dimension2", 1127, 1120),
    F("register_count", 1136, 1128),
    F("barrier_count", 1141, 1137),
    F("shared_memory_size", 1162, 1152, shift=7),
    F("min_sm_config_shared_mem_size", 1168, 1163),
    F("max_sm_config_shared_mem_size", 1174, 1169),
    F("target_sm_config_shared_mem_size", 1180, 1175),
    F("shader_local_memory_low_size", 1199, 1184, shift=4),
    F("shader_local_memory_high_size", 1215, 1200, shift=4),
    F("grid_width", 1279, 1248),
    F("grid_height", 1295, 1280),
    F("grid_depth", 1327, 1312),
    *array("constant_buffer_addr", 1394, 1344, CONSTANT_BANKS, 64, shift=6),
    *array("constant_buffer_size", 1407, 1395, CONSTANT_BANKS, 64, shift=4),
    *array("constant_buffer_valid", 1856, 1856, CONSTANT_BANKS, 4),
    *array("constant_buffer_prefetch", 1858, 1857, CONSTANT_BANKS, 4),
    *array("constant_buffer_invalidate", 1859, 1859, CONSTANT_BANKS, 4),
    F("program_prefetch_addr_lower", 1919, 1888),
    F("program_prefetch_addr_upper", 1936, 1920),
    F("gpc_cga_width", 2053, 2048),
    F("gpc_cga_height", 2061, 2056),
    F("gpc_cga_depth", 2069, 2064),
))

VERSIONS: Mapping[int, tuple[int, Layout]] = {2: (3, _V2), 3: (0, _V3), 4: (0, _V4), 5: (0, _V5)}  # major -> minor, fields


def major_of(sm: int) -> int:
    """The version that a generation's compute class takes."""
    return 2 if sm < TURING + 5 else 3 if sm < HOPPER else 4 if sm < BLACKWELL else 5


def table(sm: int) -> Compiled:
    return VERSIONS[major_of(sm)][1].of(sm)


def nbytes(sm: int) -> int:
    return VERSIONS[major_of(sm)][1].bits // 8


def pack(sm: int, **fields: int) -> bytes:
    """A descriptor with its version filled in. Raises InvalidArgument for a value that does not fit its field."""
    major = major_of(sm)
    number = table(sm).pack(qmd_major_version=major, qmd_version=VERSIONS[major][0], **fields)
    return number.to_bytes(nbytes(sm), "little")


def unpack(sm: int, data: bytes) -> dict[str, int]:
    """The fields of a descriptor. Raises BadField for reserved bits and for values that a field does not have."""
    return table(sm).unpack(int.from_bytes(data[:nbytes(sm)], "little"))


def text(sm: int, data: bytes) -> str:
    """The fields of a descriptor that are not 0, in one line."""
    return table(sm).text(int.from_bytes(data[:nbytes(sm)], "little"))
