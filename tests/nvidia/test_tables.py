"""Methods, pushbuffers and launch descriptors. Witness: the class headers, as tinygrad's modules have them."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devrt.device import InvalidArgument
from devrt.nvidia import qmd
from devrt.nvidia.fields import BadField, F, Layout
from devrt.nvidia.methods import COMPUTE, COPY, HOST, Method, Methods
from devrt.nvidia.pushbuffer import ENTRY, MAX_SEGMENT, Push, Sec, dump, entry, header, writes

SMS = (75, 80, 86, 89, 90, 100, 120)


@pytest.fixture(scope="module")
def headers() -> Any:
    pytest.importorskip("tinygrad", reason="not yet: tinygrad is not installed (it is a test extra)")
    return importlib.import_module("tinygrad.runtime.autogen.nv_580")


# ---------------------------------------------------------------------------------------------------------------------
# Launch descriptors

# Version -> the header's prefix. Hopper's 4.0 is in no module; 4.1 differs from it in the block's third dimension.
PREFIXES = {2: "NVC6C0_QMDV02_03_", 3: "NVC6C0_QMDV03_00_", 4: "NVCEC0_QMDV04_01_", 5: "NVCEC0_QMDV05_00_"}
def declared(headers: Any, major: int) -> dict[int, tuple[int, str]]:
    """lsb -> (msb, name) of the header's fields; arrays with their index."""
    found: dict[int, tuple[int, str]] = {}
    prefix = PREFIXES[major]
    for name in dir(headers):
        if name.startswith(prefix):
            value = getattr(headers, name)
            count = 8 if "CONSTANT" in name else 3 if "RELEASE" in name else 2  # the header does not say how many there are
            rows = [(value(n), f"_{n}") for n in range(count)] if callable(value) else [(value, "")]
            for row, index in rows:
                if isinstance(row, tuple):
                    found[row[1]] = row[0], name.removeprefix(prefix) + index
    return found


def tokens(name: str) -> set[str]:
    return set(re.findall(r"[A-Z]+|\d+", name.upper().replace("ADDRESS", "ADDR").replace("CTA_RASTER", "GRID")))


@pytest.mark.parametrize("major", [2, 3, 4, 5])
def test_descriptor_fields_are_those_of_the_headers(headers: Any, major: int) -> None:
    """Each is one field of the header or several that adjoin, and its words are theirs."""
    known = declared(headers, major)
    for row in qmd.VERSIONS[major][1].fields:
        if major == 4 and row.name == "cta_thread_dimension2":
            continue
        at, words = row.lsb, set()
        while at <= row.msb and at in known:
            words |= tokens(known[at][1])
            at = known[at][0] + 1
        assert at == row.msb + 1, row.name
        mine = tokens(row.name) - ({"0"} if row.name.startswith("dependent") else set())
        assert mine <= words, row.name


def test_what_a_descriptor_holds_comes_back() -> None:
    for sm in SMS:
        data = qmd.pack(sm, grid_width=5, cta_thread_dimension0=32, register_count=24, program_address=0x7F_1234_5600,
                        constant_buffer_valid_3=1, constant_buffer_addr_3=0x10_0000_0100, constant_buffer_size_3=0x120,
                        shared_memory_size=1024, shader_local_memory_low_size=64, cwd_membar_type=qmd.Membar.L1_SYSMEMBAR)
        assert len(data) == qmd.nbytes(sm) == (384 if sm >= 90 else 256)
        fields = qmd.unpack(sm, data)
        assert fields["grid_width"] == 5 and fields["program_address"] == 0x7F_1234_5600
        assert fields["constant_buffer_addr_3"] == 0x10_0000_0100 and fields["constant_buffer_size_3"] == 0x120
        assert fields["shared_memory_size"] == 1024 and fields["shader_local_memory_low_size"] == 64
        assert (fields["qmd_major_version"], fields["qmd_version"]) == (qmd.major_of(sm), qmd.VERSIONS[qmd.major_of(sm)][0])
        assert "cwd_membar_type=L1_SYSMEMBAR" in qmd.text(sm, data) and "grid_width=5" in qmd.text(sm, data)


@pytest.mark.parametrize(("field", "value"), [
    ("grid_height", 1 << 16), ("constant_buffer_addr_0", 1 << 57), ("register_count", 512), ("constant_buffer_size_0", 8),
    ("cwd_membar_type", 2), ("colour", 1)])
def test_values_that_do_not_fit_are_refused(field: str, value: int) -> None:
    for sm in SMS:
        with pytest.raises(InvalidArgument):
            qmd.pack(sm, **{field: value})


def test_reserved_bits_are_refused() -> None:
    data = bytearray(qmd.pack(90))
    data[-1] |= 0x80
    with pytest.raises(BadField, match="reserved bit 3071"):
        qmd.unpack(90, bytes(data))


# ---------------------------------------------------------------------------------------------------------------------
# Methods

CLASSES: tuple[tuple[Methods, str, int], ...] = (
    (HOST, "NVC56F", 86), (COMPUTE, "NVC6C0", 86), (COPY, "NVC6B5", 86))
# Fields that say what a flag's 1 means, where the header names the flag's values instead.
SUFFIXES = ("_PITCH", "_PHYSICAL", "_64BIT", "_ONE_WORD", "_ALL", "_UNSIGNED", "_GL", "_TWO_WORDS", "_384", "_CONDITIONAL",
            "_SUBROUTINE", "_WAIT")


def bits_of(headers: Any, prefix: str, method: Method, field: str) -> Any:
    other = {"reduction_unsigned": "reduction_format", "semaphore_reduction_unsigned": "semaphore_reduction_sign"}
    field = other.get(field, field)
    for name in (field, *(field.removesuffix(s.lower()) for s in SUFFIXES)):
        found = getattr(headers, f"{prefix}_{method.name}_{name.upper()}", None)
        if isinstance(found, tuple):
            return found
    return None


@pytest.mark.parametrize(("table", "prefix", "sm"), CLASSES)
def test_methods_are_those_of_the_headers(headers: Any, table: Methods, prefix: str, sm: int) -> None:
    seen = 0
    for method in table.rows:
        offset = getattr(headers, f"{prefix}_{method.name}", None)
        if offset is None or not method.since <= sm <= method.until:
            continue
        assert (offset(0) if callable(offset) else offset) == method.offset, method.name
        for name, row in method.of(sm).fields.items():
            bits = bits_of(headers, prefix, method, name)
            if bits is not None:
                assert bits == (row.msb, row.lsb), (method.name, name)
                seen += 1
    assert seen >= len(table.rows) // 2


def test_tables_do_not_overlap() -> None:
    for table in (HOST, COMPUTE, COPY):
        for sm in SMS:
            offsets = [row.offset + 4 * n for row in table.rows if row.since <= sm <= row.until for n in range(row.count)]
            assert len(offsets) == len(set(offsets))
            for row in table.rows:
                row.of(sm)


# ---------------------------------------------------------------------------------------------------------------------
# Pushbuffers


@given(st.lists(st.tuples(st.sampled_from(["SEM_ADDR_LO", "NOP", "SEM_PAYLOAD_HI"]), st.integers(0, 2**30)), max_size=20))
def test_what_is_pushed_is_read(pushed: list[tuple[str, int]]) -> None:
    push = Push(90)
    for name, value in pushed:
        push.host(name, 4 * value % (1 << 32), subchannel=1)
    read = [(write.subchannel, write.offset, write.value) for write in writes(push.words)]
    assert read == [(1, HOST[name].offset, 4 * value % (1 << 32)) for name, value in pushed]


def test_headers_of_every_kind() -> None:
    words = [header(Sec.NON_INC_METHOD, 2, 1, 0x1B4), 7, 8, 0, header(Sec.IMMD_DATA_METHOD, 0x1FFF, 4, 0x100),
             header(Sec.ONE_INC, 3, 1, 0x180), 1, 2, 3, header(Sec.END_PB_SEGMENT, 0, 0, 0), 99]
    assert [(w.at, w.subchannel, w.offset, w.value) for w in writes(words)] == [
        (1, 1, 0x1B4, 7), (2, 1, 0x1B4, 8), (4, 4, 0x100, 0x1FFF), (6, 1, 0x180, 1), (7, 1, 0x184, 2), (8, 1, 0x184, 3)]


@pytest.mark.parametrize(("words", "says"), [
    ([0x234], "no operation"), ([header(Sec.INC_METHOD, 3, 0, 0x5C), 1], "1 are left"), ([0xC0000000], "has no value 6")])
def test_what_is_no_pushbuffer(words: list[int], says: str) -> None:
    with pytest.raises(BadField, match=says):
        list(writes(words))


def test_text_names_methods_and_values() -> None:
    push = Push(90)
    push.compute("SEND_PCAS_A", 0x1000)
    push.compute("SEND_SIGNALING_PCAS2_B", pcas_action=3)
    text = dump(push.words, 90)
    assert "SEND_PCAS_A qmd_address_shifted8=0x1000" in text and "pcas_action=INVALIDATE_COPY_SCHEDULE" in text


def test_methods_and_values_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="has no compute method"):
        Push(75).compute("SEND_SIGNALING_PCAS2_B", 3)
    with pytest.raises(InvalidArgument, match="is no value"):
        Push(86).host("SEM_ADDR_HI", 0x100)
    Push(90).host("SEM_ADDR_HI", 0x100)
    with pytest.raises(InvalidArgument, match="has no field"):
        Push(86).copy("LAUNCH_DMA", colour=1)


@given(st.integers(0, (1 << 38) - 1), st.integers(1, MAX_SEGMENT))
def test_entries(address: int, dwords: int) -> None:
    fields = ENTRY.of(90).unpack(entry(4 * address, dwords))
    assert (fields["get"], fields["length"], fields["level_subroutine"]) == (4 * address, dwords, 1)


@pytest.mark.parametrize(("address", "dwords"), [(2, 1), (1 << 40, 1), (0, 0), (0, MAX_SEGMENT + 1)])
def test_what_no_entry_names(address: int, dwords: int) -> None:
    with pytest.raises(InvalidArgument, match="no entry"):
        entry(address, dwords)


def test_overlapping_fields_are_a_mistake_in_the_table() -> None:
    with pytest.raises(AssertionError, match="overlaps"):
        Layout("wrong", 32, (F("a", 3, 0), F("b", 4, 3))).of(90)
