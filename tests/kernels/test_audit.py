"""Streamed dense attention against the textbook, and how its memory grows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attngraph_kernels import BlockGrid, Softmax, dense_attention
from tests.kernels import reference
from tests.kernels.reference import PeakElements, random_attention

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 300),
    window=st.none() | st.integers(1, 320),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    softcap=st.sampled_from([None, 5.0]),
    with_sinks=st.booleans(),
    value_width=st.sampled_from([8, 5]),
)
def test_it_is_dense_attention(tokens, window, heads, softcap, with_sinks, value_width) -> None:
    q, k, v = random_attention(*heads, tokens, 8, seed=tokens)
    v = v[..., :value_width]
    sinks = 3 * torch.randn(heads[0], generator=torch.Generator().manual_seed(tokens)) if with_sinks else None
    grid = BlockGrid(tokens, 16, window)
    found = dense_attention(q, k, v, grid, 0.3, softcap, sinks)
    truth = reference.dense_attention(q, k, v, grid, 0.3, softmax=Softmax(softcap, sinks))
    torch.testing.assert_close(found.output, truth.output, **CLOSE)
    torch.testing.assert_close(found.log_sum_exp, truth.log_sum_exp, **CLOSE)


@pytest.mark.parametrize("window", [None, 40])
def test_half_precision_stays_what_it_is(window) -> None:
    q, k, v = (x.bfloat16() for x in random_attention(4, 2, 200, 16, seed=0))
    grid = BlockGrid(200, 16, window)
    found = dense_attention(q, k, v, grid, 0.2, sinks=torch.zeros(4, dtype=torch.bfloat16))
    truth = reference.dense_attention(q.float(), k.float(), v.float(), grid, 0.2, softmax=Softmax(sinks=torch.zeros(4)))
    assert (found.output.dtype, found.log_sum_exp.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.output.float(), truth.output, atol=0.03, rtol=0.03)
    torch.testing.assert_close(found.log_sum_exp, truth.log_sum_exp, atol=0.03, rtol=0.01)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = random_attention(2, 1, 50, 8, seed=0)
    for sinks in (torch.tensor([1e4, -1e4]), torch.tensor([0.0, 500.0])):
        found = dense_attention(100 * q, k, v, BlockGrid(50, 8, 20), 1.0, sinks=sinks)
        assert torch.isfinite(found.output).all() and torch.isfinite(found.log_sum_exp).all()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (None, 5.0), (512, None), (512, 5.0)])
def test_memory_grows_linearly(window, softcap) -> None:
    def peak(tokens: int) -> int:
        q, k, v = random_attention(2, 1, tokens, 16, seed=0)
        seen = PeakElements()
        with seen:
            dense_attention(q, k, v, BlockGrid(tokens, 16, window), 0.3, softcap)
        return seen.largest

    assert peak(16_384) <= 4.1 * max(peak(4_096), 1 << 18)
