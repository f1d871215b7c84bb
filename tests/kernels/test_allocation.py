"""Budgets by mass: every row keeps the fewest blocks that hold enough of its mass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attngraph_kernels import BlockGrid, Exact, Flat, Representative, Softmax, Stream, attend, select
from attngraph_kernels.chosen import choose_rows
from tests.kernels.reference import block_mass, dense_attention, kept_pairs, random_attention


def fewest(mass: list[float], forced: list[int], visible: range, budget: int, threshold: float) -> list[int]:
    """The forced blocks, then the best others until they hold the threshold or the budget is spent."""
    kept = list(forced)
    others = sorted((block for block in visible if block not in forced), key=lambda block: -mass[block])
    for block in others:
        if len(kept) == budget or sum(mass[b] for b in kept) >= threshold:
            break
        kept.append(block)
    return sorted(kept)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("tokens", [256, 403])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.95])
def test_exact_keeps_the_fewest_blocks_that_reach_the_threshold(tokens: int, window: int | None, threshold: float):
    grid = BlockGrid(tokens, 16, window)
    q, k, v = random_attention(4, 2, tokens, 8, seed=3)
    mass = block_mass(dense_attention(q, k, v, grid, 0.3).probability, grid)
    found = select(q, k, grid, Exact(budget=9, mass_threshold=threshold), scale=0.3)
    sizes = set()
    for block in range(grid.count):
        visible = range(grid.first_visible(block), block + 1)
        for head in range(4):
            kept = [b for b in found.blocks[head, block].tolist() if b >= 0]
            assert kept == fewest(mass[head, block].tolist(), list(grid.forced(block)), visible, 9, threshold)
            assert found.blocks[head, block].tolist()[-len(kept) :] == kept  # -1 come first
            torch.testing.assert_close(
                found.kept_mass[head, block], mass[head, block, kept].sum(), atol=1e-5, rtol=1e-4
            )
            sizes.add(len(kept))
    assert len(sizes) > 2


@settings(max_examples=40)
@given(
    st.integers(1, 700),
    st.none() | st.integers(1, 500),
    st.integers(3, 9),
    st.floats(0.05, 0.99),
    st.integers(0, 100),
    st.sampled_from([Stream, Representative, Flat, Exact]),
)
def test_what_is_kept_by_mass_is_a_part_of_what_the_budget_alone_keeps(tokens, window, budget, threshold, seed, kind):
    grid = BlockGrid(tokens, 8, window)
    q, k, _ = random_attention(2, 1, tokens, 4, seed=seed)
    search = {} if kind is Exact else {"exact_tail": 0}
    if kind is Stream:
        search |= {"candidates": 2, "start_nodes": 8}
    alone = select(q, k, grid, kind(budget=budget, **search), scale=0.5).blocks
    found = select(q, k, grid, kind(budget=budget, mass_threshold=threshold, **search), scale=0.5).blocks
    assert found.shape == alone.shape
    for block in range(grid.count):
        for kept, all_kept in zip(found[:, block].tolist(), alone[:, block].tolist(), strict=True):
            chosen = [b for b in kept if b >= 0]
            assert kept == [-1] * (len(kept) - len(chosen)) + sorted(chosen)
            assert set(grid.forced(block)) <= set(chosen) <= set(all_kept)


@pytest.mark.parametrize("window", [None, 90])
def test_attention_is_over_the_kept_keys_alone(window: int | None):
    grid = BlockGrid(203, 8, window)
    q, k, v = random_attention(4, 2, 203, 8, seed=7)
    for selector in (
        Exact(budget=7, mass_threshold=0.6),
        Stream(budget=7, mass_threshold=0.6, exact_tail=0, candidates=2, start_nodes=4),
    ):
        found = attend(q, k, v, grid, selector, scale=0.3)
        truth = dense_attention(q, k, v, grid, 0.3, kept_pairs(found.edges.blocks, grid))
        torch.testing.assert_close(found.output, truth.output, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.log_sum_exp, truth.log_sum_exp, atol=1e-5, rtol=1e-4)
        assert (found.edges.mass[found.edges.blocks < 0] == 0).all()
        torch.testing.assert_close(found.edges.mass.sum(dim=-1), torch.ones(4, grid.count))
        kept = (found.edges.blocks >= 0).sum(dim=-1)
        assert len(kept.unique()) > 3


def test_target_rows_have_a_share_of_their_own():
    grid = BlockGrid(203, 8)
    q, k, v = random_attention(2, 1, 203, 8, seed=7)
    at = [30, 150, 202]
    mass = dense_attention(q, k, v, grid, 0.3).probability
    mass = torch.stack([part.sum(dim=-1) for part in mass.split(8, dim=-1)], dim=-1)[:, at]
    blocks, scores, kept_mass = choose_rows(0.3 * q[:, at], k[0], grid, torch.tensor(at), 9, mass_threshold=0.5)
    for head in range(2):
        for row, position in enumerate(at):
            own = position // 8
            kept = [b for b in blocks[head, row].tolist() if b >= 0]
            assert kept == fewest(mass[head, row].tolist(), list(grid.forced(own)), range(own + 1), 9, 0.5)
            torch.testing.assert_close(kept_mass[head, row], mass[head, row, kept].sum(), atol=1e-5, rtol=1e-4)
    assert torch.isinf(scores[blocks < 0]).all()
    rows = attend(q, k, v, grid, Exact(budget=9, mass_threshold=0.5), scale=0.3, targets=at).targets
    assert torch.equal(rows.blocks, blocks)
    torch.testing.assert_close(rows.mass.sum(dim=-1), torch.ones(2, 3))


def test_what_a_sink_takes_is_enough():
    """A sink that takes all but a little of every row leaves nothing worth keeping but the forced blocks."""
    grid = BlockGrid(203, 8)
    q, k, v = random_attention(2, 1, 203, 8, seed=7)
    selector = Exact(budget=9, mass_threshold=0.9)
    plain, sunk = (
        attend(q, k, v, grid, selector, scale=0.3, softmax=softmax).edges.blocks
        for softmax in (Softmax(), Softmax(sinks=torch.full((2,), 50.0)))
    )
    assert ((sunk >= 0).sum(dim=-1) == torch.tensor([len(grid.forced(block)) for block in range(grid.count)])).all()
    assert (plain >= 0).sum() > (sunk >= 0).sum()
