"""Attention over given blocks, and dense attention without some, against the textbook with a T × T mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attngraph_kernels import PLAIN, BlockGrid, Softmax, attend_given, attend_without
from attngraph_kernels.chosen import DENSE_ELEMENTS
from tests.attngraph.test_capture_memory import Largest
from tests.kernels.reference import dense_attention, random_attention

HEADS, TOKENS, SIZE, TARGETS = 4, 77, 8, (37, 76)
CASES = {
    "plain": (2, None, PLAIN),
    "one group per head": (4, None, PLAIN),
    "window": (2, 21, PLAIN),
    "soft cap": (1, None, Softmax(3.0)),
    "sinks": (2, 30, Softmax(None, torch.tensor([0.5, -1.0, 2.0, 0.0]))),
}


def rows_of(grid: BlockGrid) -> list[tuple[list[int], int]]:
    """Positions and block of every row: blocks without the targets in them, then the targets."""
    blocks = [
        [at for at in range(b * SIZE, min(TOKENS, (b + 1) * SIZE)) if at not in TARGETS] for b in range(grid.count)
    ]
    return [(positions, block) for block, positions in enumerate(blocks)] + [([at], at // SIZE) for at in TARGETS]


def random_blocks(grid: BlockGrid, seed: int) -> Tensor:
    """[H, rows, width]: the own block last, before it some others of those that are seen, and gaps."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.full((HEADS, grid.count + len(TARGETS), 5), -1)
    for head in range(HEADS):
        for row, (_, own) in enumerate(rows_of(grid)):
            found[head, row, -1] = own
            for slot in range(4):
                if own > grid.first_visible(own) and torch.rand(1, generator=draw) < 0.7:
                    found[head, row, slot] = torch.randint(grid.first_visible(own), own, (1,), generator=draw)
            others = found[head, row, :4]
            repeated = torch.tensor([x in others[:slot] for slot, x in enumerate(others)])
            found[head, row, :4] = others.masked_fill(repeated, -1)
    return found


def as_mask(rows: dict[tuple[int, int], set[int]], grid: BlockGrid) -> Tensor:
    """[H, T, T]: which keys the blocks of every (head, row) allow."""
    mask = torch.zeros(HEADS, TOKENS, TOKENS, dtype=torch.bool)
    every = rows_of(grid)
    for (head, row), blocks in rows.items():
        for at in every[row][0]:
            for block in blocks:
                mask[head, at, block * SIZE : (block + 1) * SIZE] = True
    return mask


@pytest.mark.parametrize("case", CASES)
def test_given_blocks(case: str) -> None:
    groups, window, softmax = CASES[case]
    grid = BlockGrid(TOKENS, SIZE, window)
    q, k, v = random_attention(HEADS, groups, TOKENS, 16, seed=1)
    blocks = random_blocks(grid, seed=2)
    mask = as_mask(
        {(h, r): set(blocks[h, r].tolist()) - {-1} for h in range(HEADS) for r in range(blocks.shape[1])}, grid
    )
    truth = dense_attention(q, k, v, grid, 0.3, mask, softmax).output
    found = attend_given(q, k, v, grid, blocks, scale=0.3, softmax=softmax, targets=TARGETS)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_dense_without_blocks(case: str) -> None:
    groups, window, softmax = CASES[case]
    grid = BlockGrid(TOKENS, SIZE, window)
    q, k, v = random_attention(HEADS, groups, TOKENS, 16, seed=3)
    every = rows_of(grid)
    allowed = {
        (head, row): set(range(grid.first_visible(own), own + 1))
        for head in range(HEADS)
        for row, (_, own) in enumerate(every)
    }
    draw = torch.Generator().manual_seed(4)
    removed = []
    for (head, row), blocks in allowed.items():
        for key in sorted(blocks - {every[row][1]}):
            if torch.rand(1, generator=draw) < 0.3:
                removed.append((head, row, key))
                blocks.remove(key)
    output = dense_attention(q, k, v, grid, 0.3, None, softmax).output
    before = output.clone()
    found = attend_without(output, q, k, v, grid, torch.tensor(removed), scale=0.3, softmax=softmax, targets=TARGETS)
    torch.testing.assert_close(output, before, atol=0, rtol=0)
    truth = dense_attention(q, k, v, grid, 0.3, as_mask(allowed, grid), softmax).output
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)
    assert (found - before).abs().amax() > 0.1


def test_a_row_of_targets_alone_is_left_to_their_own_edges() -> None:
    # Both tokens of the last block are targets: edges into the block concern no row.
    grid = BlockGrid(10, SIZE)
    q, k, v = random_attention(2, 1, 10, 16, seed=5)
    output = dense_attention(q, k, v, grid, 0.3).output
    found = attend_without(output, q, k, v, grid, torch.tensor([[0, 1, 0]]), scale=0.3, targets=(8, 9))
    torch.testing.assert_close(found, output, atol=0, rtol=0)


def test_nothing_held_is_near_tokens_times_tokens() -> None:
    tokens = 4_096
    grid = BlockGrid(tokens, SIZE)
    q, k, v = random_attention(2, 1, tokens, 8, seed=6)
    own = torch.arange(grid.count)
    blocks = torch.stack([0 * own, own // 2, own], dim=-1).expand(2, -1, -1)
    removed = torch.tensor([[head, row, 1] for head in range(2) for row in (3, 200, 511)])
    with Largest() as given:
        attend_given(q, k, v, grid, blocks, scale=0.3)
    with Largest() as without:
        attend_without(v.expand(2, -1, -1), q, k, v, grid, removed, scale=0.3)
    assert given.elements <= DENSE_ELEMENTS
    assert without.elements <= 2 * SIZE * tokens
