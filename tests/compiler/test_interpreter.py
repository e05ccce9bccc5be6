"""devrt.compiler.interpreter: structure, memory, lanes, and every rule it enforces. Expectations are by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from devrt.compiler import convert, interpreter
from devrt.compiler import dtypes as dt
from devrt.compiler.lir import Builder
from devrt.device import CompileError, InvalidArgument

LANES, GROUPS = 4, 3
SIZE = LANES * GROUPS


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def builder(**options):
    return Builder("test", lanes=LANES, groups=GROUPS, **options)


def own(b):
    """The index group*lanes + lane."""
    return b.add(b.mul(b.group(), b.idx(LANES)), b.lane())


def result(b, value, dtype=dt.int64, **arrays):
    """The program `b` with `value` stored one element a lane; returns what lands there, as (groups, lanes)."""
    out = b.param("out", dtype, SIZE, writable=True)
    b.store(out, own(b), value)
    raw = np.zeros(SIZE, convert.storage_numpy(dtype))
    interpreter.run(b.finish(), {"out": raw, **arrays})
    return raw.reshape(GROUPS, LANES)


def test_ids():
    b = builder()
    assert result(b, b.add(b.mul(b.group(), b.idx(100)), b.lane())).tolist() == \
        [[100 * g + lane for lane in range(LANES)] for g in range(GROUPS)]


@pytest.mark.parametrize("dtype", [d for d in dt.ALL if d is not dt.int4])
def test_every_type_passes_through_memory(dtype):
    rng = np.random.default_rng(0)
    storage = convert.storage_numpy(dtype)
    values = rng.integers(0, 2, SIZE).astype(storage) if dtype is dt.bool_ else \
        rng.integers(0, 256, SIZE * storage.itemsize, np.uint8).view(storage)
    b = builder()
    x = b.param("x", dtype, SIZE)
    got = result(b, b.load(x, own(b)), dtype, x=values)
    assert got.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", [d for d in dt.ALL if d is not dt.int4])
def test_constants_and_tables_round_to_their_type(dtype):
    b = builder()
    values = (0, 1, 1, 0) if dtype.kind == "bool" else (0, 1, 100, 7) if dtype.is_int else (0.1, -0.0, 1e9, 100.0)
    got = result(b, b.table(dtype, values, b.lane()), dtype)
    want = convert.encode(np.array(values, np.float64), dtype)
    assert got.tobytes() == want.tobytes() * GROUPS
    for lane, value in enumerate(values):
        b = builder()
        assert result(b, b.const(dtype, value), dtype).tobytes() == want[lane:lane + 1].tobytes() * SIZE


def test_casts_and_bitcasts():
    b = builder()
    x = b.param("x", dt.float32, SIZE)
    values = np.array([1.5, -2.5, np.nan, 1e20] * GROUPS, np.float32)
    assert result(b, b.cast(b.load(x, own(b)), dt.int8), dt.int8, x=values).tolist() == [[1, -2, 0, 127]] * GROUPS
    b = builder()
    x = b.param("x", dt.float32, SIZE)
    assert result(b, b.bitcast(b.load(x, own(b)), dt.uint32), dt.uint32, x=values).tobytes() == values.tobytes()


def test_lane_operations():
    b = builder()
    assert result(b, b.lane_xor(b.lane(), 3)).tolist() == [[3, 2, 1, 0]] * GROUPS
    b = builder()
    assert result(b, b.lane_get(b.add(b.lane(), b.group()), 2)).tolist() == [[2] * 4, [3] * 4, [4] * 4]


@pytest.mark.parametrize("at_once", [1, 2, None])
def test_loops_with_bounds_that_differ_among_groups(at_once):
    b = builder()
    out = b.param("out", dt.int64, SIZE, writable=True)

    def outer(i, carried):
        inner = b.loop(i, b.add(b.group(), b.idx(3)), carried, lambda j, c: [b.add(c[0], j)], step=2)
        return [b.mul(inner[0], b.idx(3))]

    total, = b.loop(0, b.mul(b.group(), b.idx(2)), [b.lane()], outer)
    b.store(out, own(b), total)
    raw = np.zeros(SIZE, np.int64)
    interpreter.run(b.finish(), {"out": raw}, groups_at_once=at_once)

    def expected(group, value):
        for i in range(2 * group):
            for j in range(i, group + 3, 2):
                value += j
            value *= 3
        return value

    assert raw.tolist() == [expected(g, lane) for g in range(GROUPS) for lane in range(LANES)]


def test_a_finished_group_neither_stores_nor_faults():
    b = builder()
    out = b.param("out", dt.int64, SIZE, writable=True)
    # Group g runs g times and stores at g*4 + lane only while it runs; i beyond its count would leave the array.
    b.loop(0, b.group(), [], lambda i, c: b.store(out, b.add(own(b), b.mul(i, b.idx(0))), b.add(i, b.idx(1))) or [])
    raw = np.zeros(SIZE, np.int64)
    interpreter.run(b.finish(), {"out": raw})
    assert raw.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_loop_that_never_runs_gives_what_it_carries():
    b = builder()
    assert result(b, b.loop(5, 2, [b.lane()], lambda i, c: [b.idx(9)])[0]).tolist() == [[0, 1, 2, 3]] * GROUPS


def test_when_is_a_select():
    b = builder()
    condition = b.lt(b.lane(), b.group())
    got, = b.when(condition, [b.idx(-1)], lambda: [b.mul(b.lane(), b.idx(10))])
    assert result(b, got).tolist() == [[-1, -1, -1, -1], [0, -1, -1, -1], [0, 10, -1, -1]]


def test_masked_lanes_read_zero_and_touch_nothing():
    b = builder()
    x = b.param("x", dt.float32, 2)
    assert result(b, b.load(x, b.lane(), b.lt(b.lane(), b.idx(2))), dt.float32,
                  x=np.array([5, 6], np.float32)).tolist() == [[5, 6, 0, 0]] * GROUPS
    b = builder()
    y = b.param("y", dt.int32, 2, writable=True)
    b.store(y, b.lane(), b.const(dt.int32, 7), b.and_(b.lt(b.lane(), b.idx(1)), b.eq(b.group(), b.idx(2))))
    raw = np.array([1, 2], np.int32)
    interpreter.run(b.finish(), {"y": raw})
    assert raw.tolist() == [7, 2]


def test_shared_memory_is_a_group_s_own():
    b = builder()
    s = b.shared("s", dt.int64, LANES)
    b.store(s, b.lane(), own(b))
    b.barrier()
    got = b.load(s, b.sub(b.idx(LANES - 1), b.lane()))
    assert result(b, got).tolist() == [[4 * g + 3 - lane for lane in range(LANES)] for g in range(GROUPS)]


def test_many_groups_run_in_parts():
    lanes = 32
    groups = 3 * interpreter._LANES_AT_ONCE // lanes // 2
    b = Builder("test", lanes=lanes, groups=groups)
    out = b.param("out", dt.int32, groups * lanes, writable=True)
    at = b.add(b.mul(b.group(), b.idx(lanes)), b.lane())
    b.store(out, at, b.cast(at, dt.int32))
    raw = np.zeros(groups * lanes, np.int32)
    interpreter.run(b.finish(), {"out": raw})
    np.testing.assert_array_equal(raw, np.arange(groups * lanes))


# ----- what it refuses


def refused(b, match, **arrays):
    program = b.finish()
    for p in program.params:
        arrays.setdefault(p.name, np.zeros(p.count, convert.storage_numpy(p.dtype)))
    with pytest.raises(CompileError, match=match) as caught:
        interpreter.run(program, arrays)
    return str(caught.value)


def test_indexes_must_lie_inside():
    b = builder()
    x = b.param("x", dt.float32, SIZE)
    b.load(x, b.add(own(b), b.idx(1)))
    assert "group 2, lane 3" in refused(b, r"index 12 is outside x\[12\]")
    b = builder()
    y = b.param("y", dt.float32, SIZE, writable=True)
    b.store(y, b.sub(own(b), b.idx(1)), b.const(dt.float32, 1.0))
    assert "group 0, lane 0" in refused(b, r"index -1 is outside y\[12\]")
    b = builder()
    b.table(dt.int32, [1, 2, 3], b.lane())
    assert "group 0, lane 3" in refused(b, r"index 3 is outside table0\[3\]")
    b = builder()
    x = b.param("x", dt.float32, SIZE)
    b.load(x, b.add(own(b), b.idx(1)), b.le(b.lane(), b.idx(3)))  # a mask that is on does not help
    refused(b, "outside")


def test_a_when_block_may_run_in_every_lane():
    b = builder()
    x = b.param("x", dt.int64, 2)
    b.when(b.lt(b.lane(), b.idx(2)), [b.idx(0)], lambda: [b.load(x, b.lane())])
    refused(b, "outside")


def test_shared_memory_must_be_written_before():
    b = builder()
    s = b.shared("s", dt.int64, LANES)
    b.store(s, b.lane(), b.lane(), b.lt(b.lane(), b.idx(2)))
    b.barrier()
    b.load(s, b.lane())
    assert "group 0, lane 2" in refused(b, "nothing has written")


def test_lanes_storing_different_values_to_one_place():
    b = builder()
    y = b.param("y", dt.int64, GROUPS, writable=True)
    b.store(y, b.group(), b.mul(b.lane(), b.group()))  # group 0 stores 0 in all lanes: allowed
    assert "group 1" in refused(b, "race")


def test_lanes_storing_the_same_value_to_one_place():
    b = builder()
    y = b.param("y", dt.int64, GROUPS, writable=True)
    b.store(y, b.group(), b.mul(b.group(), b.idx(5)))
    raw = np.zeros(GROUPS, np.int64)
    interpreter.run(b.finish(), {"y": raw})
    assert raw.tolist() == [0, 5, 10]


def exchange(b, *, fence, shared):
    """Each lane stores an element and reads its neighbour's."""
    y = b.shared("y", dt.int64, LANES) if shared else b.param("y", dt.int64, SIZE, writable=True)
    at = b.lane() if shared else own(b)
    b.store(y, at, b.lane())
    if fence:
        b.barrier()
    b.load(y, b.xor(at, b.idx(1)))


def test_reading_what_another_lane_stored_needs_a_barrier():
    b = builder()
    exchange(b, fence=False, shared=True)
    assert "load y" in refused(b, "race: another lane stored here")


def test_barriers_order_shared_memory_alone():
    b = builder()
    exchange(b, fence=True, shared=True)
    interpreter.run(b.finish(), {})
    b = builder()
    exchange(b, fence=True, shared=False)
    refused(b, "race")


def test_storing_where_another_lane_has_read():
    b = builder()
    s = b.shared("s", dt.int64, LANES)
    b.store(s, b.lane(), b.lane())
    b.barrier()
    b.load(s, b.idx(0))
    b.store(s, b.lane(), b.idx(7))
    assert "group 0, lane 0" in refused(b, "race: another lane loads or stores here")


@pytest.mark.parametrize("at_once", [1, None])
def test_groups_must_not_meet(at_once):
    b = builder()
    y = b.param("y", dt.int64, LANES, writable=True)
    b.store(y, b.lane(), b.group())
    with pytest.raises(CompileError, match="race"):
        interpreter.run(b.finish(), {"y": np.zeros(LANES, np.int64)}, groups_at_once=at_once)


def test_loop_bounds_are_uniform():
    b = builder()
    b.loop(0, b.lane(), [], lambda i, c: [])
    assert "group 0, lane 1" in refused(b, "loop bound .* differs among the lanes")


def test_streamed_stores_start_at_a_vector():
    b = builder()
    y = b.param("y", dt.int64, SIZE + 1, writable=True)
    b.store(y, b.add(own(b), b.idx(1)), b.lane(), stream=True)
    refused(b, "starts between vectors")


def test_arguments_are_checked():
    b = builder()
    y = b.param("y", dt.bfloat16, SIZE, writable=True)
    b.store(y, own(b), b.const(dt.bfloat16, 1.0))
    program = b.finish()
    good = np.zeros(SIZE, np.uint16)
    locked = good.copy()
    locked.flags.writeable = False
    for arrays, match in (({}, "no array"), ({"y": good, "z": good}, "no parameter z"),
                          ({"y": good[:-1]}, "12 bfloat16"), ({"y": locked}, "read-only"),
                          ({"y": np.zeros(SIZE, np.float32)}, "uint16"),
                          ({"y": np.zeros(2 * SIZE, np.uint16)[::2]}, "contiguous")):
        with pytest.raises(InvalidArgument, match=match):
            interpreter.run(program, arrays)
    interpreter.run(program, {"y": good})
    assert set(good.tolist()) == {0x3F80}


def test_what_is_written_overlaps_nothing():
    b = builder()
    x, y = b.param("x", dt.int64, SIZE), b.param("y", dt.int64, SIZE, writable=True)
    b.store(y, own(b), b.load(x, own(b)))
    memory = np.zeros(SIZE + 4, np.int64)
    with pytest.raises(InvalidArgument, match="y is written and overlaps x"):
        interpreter.run(b.finish(), {"x": memory[:SIZE], "y": memory[4:]})


def test_no_warnings_from_odd_arithmetic():
    b = builder()
    zero, top = b.const(dt.float32, 0.0), b.const(dt.float32, 3e38)
    for value in (b.div(zero, zero), b.mul(top, top), b.sqrt(b.neg(top)), b.fma(top, top, b.neg(top))):
        b.cast(b.cast(value, dt.float16), dt.int8)
    b.rem(b.div(b.const(dt.int8, -128), b.const(dt.int8, -1)), b.const(dt.int8, 0))
    interpreter.run(b.finish(), {})
