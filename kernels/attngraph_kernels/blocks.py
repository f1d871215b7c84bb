"""Cutting T positions into blocks, and which key block a query block may see.

A query at position i sees the keys j with j <= i and, in a layer with a sliding window of `window` tokens,
j > i - window (the convention of transformers). A key block is *visible* to a query block when at least one of
its keys is visible to at least one of the block's queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class BlockGrid:
    """The partition of `tokens` positions into blocks of `size`, the last of which may be shorter."""

    tokens: int
    size: int
    window: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} must be at least 1.")
        if self.size not in BLOCK_SIZES:
            raise ValueError(f"size={self.size} is not one of {BLOCK_SIZES}.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1, or None.")

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.tokens // self.size)

    @property
    def windowed(self) -> bool:
        """Whether the window hides anything: one that reaches over the whole prompt is the same as none."""
        return self.window is not None and self.window < self.tokens

    def first_visible(self, block: int) -> int:
        """The first key block that any query of `block` sees."""
        if self.window is None or not self.windowed:
            return 0
        return max(0, block * self.size - self.window + 1) // self.size

    def available(self, block: int) -> int:
        """Number of key blocks visible to query block `block`."""
        return block - self.first_visible(block) + 1

    def forced(self, block: int) -> tuple[int, ...]:
        """Key blocks always kept: own, previous and, without a window, the sink (block 0); ascending."""
        first = self.first_visible(block)
        local = range(max(first, block - 1), block + 1)
        return tuple(local) if self.windowed or 0 in local else (0, *local)

    def forced_among(self, blocks: Tensor, own: Tensor) -> Tensor:
        """Which of the visible `blocks` [..., rows, candidates] are forced in rows of the blocks `own` [rows]."""
        forced = (blocks == own[:, None]) | (blocks == own[:, None] - 1)
        return forced if self.windowed else forced | (blocks == 0)

    def rows(self, block: int) -> int:
        """Number of tokens in `block`."""
        return min(self.size, self.tokens - block * self.size)

    def row_counts(self, start: int, stop: int, like: Tensor) -> Tensor:
        """Number of tokens in each of the blocks `start` to `stop - 1`, in the dtype and on the device of `like`."""
        counts = torch.full((stop - start,), self.size, dtype=like.dtype, device=like.device)
        if stop == self.count:
            counts[-1] = self.rows(stop - 1)
        return counts

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether the query at each position of `queries` sees the key at each position of `keys` (broadcast, bool)."""
        seen = keys <= queries
        if self.window is not None:
            seen = seen & (keys > queries - self.window)
        return seen


def into_blocks(x: Tensor, size: int) -> Tensor:
    """[..., T, d] as [..., blocks, size, d], the last block padded with zeros."""
    padding = -x.shape[-2] % size
    if padding:
        x = torch.nn.functional.pad(x, (0, 0, 0, padding))
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])
