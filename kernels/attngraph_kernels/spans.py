"""Attention between named token ranges, summed from kept token pairs while they are in memory.

Spans need not line up with blocks, and may overlap. The sequence is cut at every span boundary into segments; each
chunk's probabilities are first summed over the rows of each (query block, query span) pair that meets, then added up
per (query span, segment), and segments are joined to key spans at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid


class SpanSums:
    """Running sums over the chunks of one key/value head with P query heads."""

    def __init__(self, spans: Sequence[tuple[int, int]], grid: BlockGrid, heads: int, device: torch.device) -> None:
        self.spans, self.grid = list(spans), grid
        bounds = torch.tensor(sorted({0, grid.tokens, *(end for span in spans for end in span)}))
        positions = torch.arange(grid.count * grid.size)
        self.segment = (torch.bucketize(positions, bounds, right=True) - 1).view(-1, grid.size).to(device)
        limits = torch.tensor(self.spans, dtype=torch.int64).view(-1, 2)
        self.member = ((bounds[:, None] >= limits[:, 0]) & (bounds[:, None] < limits[:, 1])).float().to(device)
        self.length = (limits[:, 1] - limits[:, 0]).to(device)
        self.sums = torch.zeros(2, heads, len(self.spans) * len(bounds), device=device)
        self.met: dict[int, list[int]] = {}
        for span, (start, end) in enumerate(self.spans):
            for block in range(start // grid.size, (end - 1) // grid.size + 1):
                self.met.setdefault(block, []).append(span)

    def add(self, start: int, blocks: Tensor, weights: Tensor, inverse: Tensor, length: Tensor) -> None:
        """Add a chunk: `weights` [P, B, size, budget·size], 1 / row sum in `inverse`, value norms in `length`."""
        met = self.pairs(range(start, start + blocks.shape[1]))
        if not len(met):
            return
        span, block = met.to(blocks.device).T
        rows = block[:, None] * self.grid.size + torch.arange(self.grid.size, device=blocks.device)
        limits = torch.tensor(self.spans, device=blocks.device)[span]
        inside = ((rows >= limits[:, :1]) & (rows < limits[:, 1:])).float()
        local = block - start
        share = ((inverse[:, local] * inside).unsqueeze(2) @ weights[:, local]).squeeze(2)
        self.take(span, blocks[:, local], share, length[:, local].flatten(2))

    def pairs(self, blocks: range) -> Tensor:
        """The pairs [M, 2] of a query span and a query block of `blocks` that it meets, on the processor."""
        met = [(span, block) for block in blocks for span in self.met.get(block, ())]
        return torch.tensor(met, dtype=torch.int64).view(-1, 2)

    def take(self, span: Tensor, blocks: Tensor, share: Tensor, length: Tensor) -> None:
        """Add what M query blocks' rows inside of query spans [M] give to the keys of their `blocks` [P, M, budget].

        `share` and `length` [P, M, budget·size]: probability summed over these rows, and value norm, of every key.
        """
        segment = self.segment[blocks.clamp_min(0)].flatten(2)
        target = (span[:, None] * len(self.member) + segment).flatten(1)
        self.sums[0].scatter_add_(1, target, share.flatten(1))
        self.sums[1].scatter_add_(1, target, (share * length).flatten(1))

    def mass(self) -> Tensor:
        """[P, query spans, key spans]: mean over the query span's tokens of the probability on the key span."""
        return self._joined(self.sums[0])

    def contribution(self) -> Tensor:
        """The same with every probability multiplied by the key's value norm."""
        return self._joined(self.sums[1])

    def _joined(self, sums: Tensor) -> Tensor:
        return sums.view(len(sums), len(self.spans), len(self.member)) @ self.member / self.length[:, None]
