"""The partition into blocks and what each may see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attngraph_kernels import BlockGrid, into_blocks
from tests.kernels.reference import mask

grids = st.builds(
    BlockGrid,
    tokens=st.integers(1, 300),
    size=st.sampled_from([8, 16, 32, 64, 128]),
    window=st.none() | st.integers(1, 320),
)


@given(grids)
def test_first_visible_block_is_the_first_with_a_visible_pair(grid):
    seen = torch.zeros(grid.count * grid.size, grid.count * grid.size, dtype=torch.bool)
    seen[: grid.tokens, : grid.tokens] = mask(grid)
    blocks = seen.view(grid.count, grid.size, grid.count, grid.size).any(dim=3).any(dim=1)
    for block in range(grid.count):
        visible = blocks[block].nonzero().flatten().tolist()
        assert visible == list(range(grid.first_visible(block), block + 1))
        assert grid.available(block) == len(visible)


@given(grids)
def test_forced_blocks_are_visible_unique_and_ascending(grid):
    for block in range(grid.count):
        forced = grid.forced(block)
        assert list(forced) == sorted(set(forced))
        assert block in forced
        assert all(grid.first_visible(block) <= other <= block for other in forced)
        assert (0 in forced) == (not grid.windowed or (grid.first_visible(block) == 0 and block <= 1))


@given(grids)
def test_visible_is_the_causal_window(grid):
    positions = torch.arange(grid.tokens)
    assert torch.equal(grid.visible(positions[:, None], positions[None]), mask(grid))


def test_rows_of_the_last_block():
    grid = BlockGrid(20, 8)
    assert [grid.rows(block) for block in range(grid.count)] == [8, 8, 4]


def test_into_blocks_pads_with_zeros():
    blocks = into_blocks(torch.ones(2, 20, 3), 8)
    assert blocks.shape == (2, 3, 8, 3)
    assert blocks.sum() == 2 * 20 * 3
    assert not blocks[:, 2, 4:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 0, "size": 8}, "tokens=0 must be at least 1"),
        ({"tokens": 9, "size": 12}, "size=12 is not one of"),
        ({"tokens": 9, "size": 8, "window": 0}, "window=0 must be at least 1"),
    ],
)
def test_bad_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockGrid(**arguments)
