"""Laws of every selector, and what the search must find."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attngraph_kernels import BlockGrid, Exact, Flat, Representative, Stream, select
from attngraph_kernels.descent import fan_of, steps
from tests.kernels.reference import PeakElements, block_mass, dense_attention, random_attention


@st.composite
def cases(draw):
    """A small attention layer and a selector that has to search it (no exact tail, few start nodes)."""
    size = draw(st.sampled_from([8, 16]))
    grid = BlockGrid(
        tokens=draw(st.integers(1, 60 * size)),
        size=size,
        window=draw(st.none() | st.integers(1, 50 * size)),
    )
    groups, repeat = draw(st.sampled_from([(1, 1), (1, 3), (2, 2)]))
    selector = draw(
        st.builds(
            Stream,
            budget=st.integers(3, 6),
            candidates=st.integers(1, 3),
            start_nodes=st.integers(1, 40),
            representatives=st.integers(1, 4),
            exact_tail=st.sampled_from([0, 0, 20]),
        )
        | st.builds(Exact, budget=st.integers(3, 6))
        | st.builds(Representative, budget=st.integers(3, 6), exact_tail=st.sampled_from([0, 20]))
        | st.builds(Flat, budget=st.integers(3, 6), exact_tail=st.sampled_from([0, 20]))
    )
    q, k, _ = random_attention(groups * repeat, groups, grid.tokens, 4, seed=draw(st.integers(0, 1000)))
    return q, k, grid, selector


@settings(max_examples=60)
@given(cases())
def test_selection_is_causal_unique_forced_and_full(case):
    q, k, grid, selector = case
    blocks = select(q, k, grid, selector, scale=0.5).blocks
    assert blocks.shape == (len(q), grid.count, min(selector.budget, grid.count))
    for block in range(grid.count):
        for kept in blocks[:, block].tolist():
            chosen = [b for b in kept if b >= 0]
            assert kept == [-1] * (len(kept) - len(chosen)) + sorted(set(chosen))
            assert all(grid.first_visible(block) <= b <= block for b in chosen)
            assert set(grid.forced(block)) <= set(chosen)
            assert len(chosen) == min(selector.budget, grid.available(block))


@settings(max_examples=30)
@given(cases())
def test_selection_is_deterministic(case):
    q, k, grid, selector = case
    first, second = (select(q, k, grid, selector, scale=0.5).blocks for _ in range(2))
    assert torch.equal(first, second)


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("selector", [Stream(budget=6, start_nodes=64), Exact(budget=6)])
def test_selection_does_not_depend_on_the_number_of_threads(selector, restored_threads):
    """Long enough for a descent of two steps and for matrix products that several threads share."""
    q, k, _ = random_attention(6, 2, 3999, 32, seed=7)
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found.append(select(q, k, BlockGrid(3999, 8), selector, scale=0.3).blocks)
    assert all(torch.equal(blocks, found[0]) for blocks in found)


@settings(max_examples=30)
@given(cases(), st.integers(0, 100))
def test_earlier_blocks_do_not_change_with_exact_scores_of_later_keys(case, seed):
    """With the exact selector a block's selection depends on its own past alone."""
    q, k, grid, _ = case
    cut = (grid.count // 2) * grid.size
    changed = k.clone()
    changed[:, cut:] = torch.randn(changed[:, cut:].shape, generator=torch.Generator().manual_seed(seed))
    before, after = (select(q, keys, grid, Exact(budget=4), scale=0.5).blocks for keys in (k, changed))
    assert torch.equal(before[:, : cut // grid.size], after[:, : cut // grid.size])


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("tokens", [256, 403])
def test_exact_keeps_the_blocks_with_the_most_mass(tokens, window):
    grid = BlockGrid(tokens, 16, window)
    q, k, v = random_attention(4, 2, tokens, 8, seed=3)
    mass = block_mass(dense_attention(q, k, v, grid, 0.3).probability, grid)
    found = select(q, k, grid, Exact(budget=5), scale=0.3)
    for block in range(grid.count):
        forced = list(grid.forced(block))
        for head in range(4):
            free = mass[head, block].clone()
            free[forced] = -1
            best = free.argsort(descending=True)[: min(5, grid.available(block)) - len(forced)].tolist()
            kept = [b for b in found.blocks[head, block].tolist() if b >= 0]
            assert kept == sorted(best + forced)
            torch.testing.assert_close(
                found.kept_mass[head, block], mass[head, block, kept].sum(), atol=1e-5, rtol=1e-4
            )


def test_equal_masses_go_to_the_earlier_block():
    """Equal keys: all block masses tie, and the lowest block numbers win."""
    grid = BlockGrid(tokens=320, size=16)
    q, k = torch.ones(2, 320, 4), torch.ones(1, 320, 4)
    for selector in (Exact(budget=6), Stream(budget=6, exact_tail=0, candidates=2, start_nodes=1000)):
        blocks = select(q, k, grid, selector, scale=0.5).blocks
        assert blocks[:, 19].tolist() == [[0, 1, 2, 3, 18, 19]] * 2


@pytest.mark.parametrize("window", [None, 1600])
def test_search_with_all_candidates_equals_exact(window):
    """As many candidates as blocks: the descent can't lose anything, so the re-score must agree with the truth."""
    grid = BlockGrid(tokens=1000, size=8, window=window)
    q, k, _ = random_attention(4, 2, 1000, 8, seed=5)
    wide = Stream(budget=4, candidates=40, exact_tail=0, start_nodes=8)
    assert torch.equal(
        select(q, k, grid, wide, scale=0.3).blocks, select(q, k, grid, Exact(budget=4), scale=0.3).blocks
    )


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("window", [None, 90])
def test_search_finds_one_sharp_key_anywhere(size, window):
    """A single outlier key that one head's late queries look for is found at every place of its block."""
    blocks = 90
    grid = BlockGrid(blocks * size, size, None if window is None else window * size // 2)
    q, k, _ = random_attention(2, 1, grid.tokens, 16, seed=1)
    k *= 0.1
    needles = [grid.first_visible(blocks - 1) + 5, blocks // 2 + 9, blocks - 12]
    for place, needle in enumerate(needles):
        keys = k.clone()
        direction = torch.nn.functional.normalize(
            torch.randn(16, generator=torch.Generator().manual_seed(place)), dim=0
        )
        keys[0, needle * size + place * (size // 3)] = 12 * direction
        queries = q * 0.1
        queries[1, -size // 2 :] = 4 * direction
        search = Stream(budget=4, candidates=2, start_nodes=16, exact_tail=0)
        assert needle in select(queries, keys, grid, search, scale=1.0).blocks[1, -1].tolist()


def test_exact_tail_and_targets_are_exact():
    grid = BlockGrid(tokens=1600, size=16)
    q, k, _ = random_attention(3, 1, 1600, 8, seed=2)
    truth = select(q, k, grid, Exact(budget=4), scale=0.3)
    found = select(
        q,
        k,
        grid,
        Stream(budget=4, candidates=1, start_nodes=4, exact_tail=40, exact_blocks=frozenset({50})),
        scale=0.3,
    )
    known = ~found.kept_mass.isnan().any(dim=0)
    assert known.nonzero().flatten().tolist() == [0, 1, 2, 3, 50, 97, 98, 99]
    assert torch.equal(found.blocks[:, known], truth.blocks[:, known])
    assert not torch.equal(found.blocks, truth.blocks)


def test_memory_grows_linearly():
    """Peak memory of a search at four times the length is at most about four times as high."""

    def peak(tokens: int) -> int:
        grid = BlockGrid(tokens, 16)
        q, k, _ = random_attention(2, 1, tokens, 16, seed=0)
        seen = PeakElements()
        with seen:
            select(q, k, grid, Stream(budget=4), scale=0.3)
        return seen.largest

    assert peak(16_384) <= 4.5 * peak(4_096)


def test_a_descent_comes_to_every_block():
    """Whatever the number of levels, the steps lead from the coarsest to the blocks, and each node to all below it."""
    assert [steps(top, 4) for top in range(5)] == [[], [(0, 2)], [(0, 4)], [(1, 4), (0, 2)], [(2, 4), (0, 4)]]
    assert steps(3, 2) == [(2, 2), (1, 2), (0, 2)]
    assert (fan_of(64), fan_of(65)) == (4, 2)
