"""Which kernels an expression becomes, as text: golden/<name>.txt, written again by `pytest --bless`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import devrt
from devrt import nn
from devrt.compiler import dtypes as dt
from devrt.compiler.ops import Op
from devrt.scheduler.fusion import Step
from tests.scheduler.drawn import Build, Inputs, steps, text

f32, f16 = dt.float32, dt.float16


def block(x: Inputs) -> devrt.Array:
    """A norm, a projection with bias and GELU, one back, and the residual."""
    h, w1, b1, w2 = x(f32, 64, 256), x(f32, 256, 512), x(f32, 512), x(f32, 512, 256)
    return h + nn.gelu(nn.rms_norm(h) @ w1 + b1) @ w2


def two_row_statistics(x: Inputs) -> devrt.Array:
    a = x(f32, 64, 100)
    return a / devrt.max(a, axis=1, keepdims=True) - devrt.mean(a, axis=1, keepdims=True)


CASES: dict[str, tuple[int, Build]] = {
    "axpb": (1, lambda x: x(f32, 100, 33) * x(f32, 33) + x(f32, 100, 1)),
    "long_chain": (1, lambda x: devrt.tanh(devrt.exp(x(f32, 1000)) * 2.0 + 1.0) / x(f32, 1000)),
    "movement_is_free": (1, lambda x: devrt.flip(devrt.pad(x(f32, 6, 8).T[1:7, ::2], [(1, 1), (0, 2)]), axis=0)),
    "concat": (1, lambda x: devrt.concat([x(f32, 3, 4), x(f32, 5, 4) * 2.0])),
    "sum_rows": (1, lambda x: devrt.sum(x(f32, 100, 64) * 2.0, axis=1) + 1.0),
    "sum_columns": (1, lambda x: devrt.sum(x(f32, 100, 64), axis=0)),
    "sum_all_is_two_steps": (2, lambda x: devrt.sum(x(f32, 1 << 20))),
    "softmax": (1, lambda x: nn.softmax(x(f32, 64, 1000))),
    "log_softmax": (1, lambda x: nn.log_softmax(x(f32, 64, 1000))),
    "rms_norm": (1, lambda x: nn.rms_norm(x(f32, 64, 256), x(f32, 256))),
    "rms_norm_f16": (1, lambda x: nn.rms_norm(x(f16, 64, 256), x(f16, 256), cast="before_weight")),
    "layer_norm": (1, lambda x: nn.layer_norm(x(f32, 64, 256), x(f32, 256), x(f32, 256))),
    "cross_entropy": (1, lambda x: nn.cross_entropy(x(f32, 64, 1000), x(dt.int64, 64))),
    "cross_entropy_mean": (2, lambda x: devrt.mean(nn.cross_entropy(x(f32, 64, 1000), x(dt.int64, 64)))),
    "gelu": (1, lambda x: nn.gelu(x(f32, 4096))),
    "swiglu": (1, lambda x: nn.swiglu(x(f32, 64, 128), x(f32, 64, 128))),
    "matmul": (1, lambda x: x(f32, 64, 96) @ x(f32, 96, 128)),
    "matmul_transposed": (1, lambda x: nn.linear(x(f16, 64, 96), x(f16, 128, 96))),
    "matmul_bias_gelu": (1, lambda x: nn.gelu(x(f32, 64, 96) @ x(f32, 96, 128) + x(f32, 128))),
    "matmul_residual_heads": (1, lambda x: devrt.permute_dims(devrt.reshape(x(f32, 64, 96) @ x(f32, 96, 128),
                                                                            (64, 4, 32)), (1, 0, 2))),
    "matvec": (1, lambda x: nn.linear(x(f32, 1, 1024), x(f32, 512, 1024), x(f32, 512))),
    "matvec_int4": (1, lambda x: nn.quantised_linear(x(f32, 1, 1024), x(dt.int4, 512, 1024), x(f32, 512, 1))),
    "matvec_int4_groups": (1, lambda x: nn.quantised_linear(x(f32, 1, 1024), x(dt.int4, 512, 1024), x(f32, 512, 32))),
    "two_products": (2, lambda x: nn.relu(x(f32, 64, 96) @ x(f32, 96, 128)) @ x(f32, 128, 64)),
    "attention": (1, lambda x: nn.attention(x(f32, 4, 64, 32), x(f32, 2, 64, 32), x(f32, 2, 64, 32), causal=True,
                                            window=16, cap=30.0)),
    "attention_plain": (1, lambda x: nn.attention(x(f16, 4, 128, 32), x(f16, 4, 128, 32), x(f16, 4, 128, 32))),
    "embedding": (1, lambda x: nn.embedding(x(f32, 1000, 64), x(dt.int32, 7)) * 8.0),
    "two_row_statistics": (1, two_row_statistics),
    "block": (3, block),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels(name: str, golden: Callable[[str, str], None]) -> None:
    count, build = CASES[name]
    assert len(steps(build)) == count, text(build)
    golden(name, text(build))


@pytest.mark.parametrize("t, s, causal, window", [(64, 64, True, None), (512, 512, False, None), (16, 4096, True, 256),
                                                  (300, 300, True, 64)])
def test_the_score_matrix_never_exists(t: int, s: int, causal: bool, window: int | None) -> None:
    """No array of the schedule is as large as one head's scores, but for what the caller gave and gets."""
    drawn = steps(lambda x: nn.attention(x(f32, 8, t, 16), x(f32, 2, s, 16), x(f32, 2, s, 16), causal=causal,
                                         window=window) * 2.0 + 1.0)
    assert len(drawn) == 1
    assert all(n.op is Op.BUFFER for n in drawn[0].operands)  # type: ignore[union-attr]
    assert drawn[0].node.shape == (8, t, 16)


def test_what_two_kernels_need_is_computed_once() -> None:
    """A row statistic used along another axis, and a transcendental read by two products."""
    def build(x: Inputs) -> devrt.Array:
        a = devrt.exp(x(f32, 64, 64))
        return (a @ x(f32, 64, 64)) + (x(f32, 64, 64) @ a)
    drawn = steps(build)
    ops = [n for s in drawn if isinstance(s, Step) for n in s.operands]
    assert len(drawn) == 3 and sum(n.op is not Op.BUFFER for n in ops) >= 3


def test_several_results_share_what_they_have_in_common() -> None:
    def build(x: Inputs) -> tuple[devrt.Array, ...]:
        p = nn.softmax(x(f32, 64, 100))
        return p, devrt.sum(p * p, axis=1)
    assert len(steps(build)) == 2


@pytest.mark.parametrize("n", (2, 64, 1000, 1 << 16))
def test_running_sums_stay_small(n: int) -> None:
    """Sums of shifted sums: kernels of at most eight loads, not one that doubles at every step."""
    drawn = steps(lambda x: devrt.cumulative_sum(x(f32, n)))
    assert len(drawn) <= 1 + n.bit_length() // 3
    assert all(str(s.kernel).count("\n") < 200 for s in drawn if isinstance(s, Step))


def test_constants_and_inputs_need_no_kernel() -> None:
    x = Inputs()
    a = x(f32, 4, 5)
    assert steps(lambda _: a) == []
    assert len(steps(lambda _: devrt.zeros((4, 5)))) == 1
    assert len(steps(lambda _: devrt.sum(devrt.broadcast_to(a[:0], (0, 5)), axis=0))) == 1
