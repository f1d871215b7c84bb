"""Descent through the key pyramid, and the exact re-score of the blocks that survive it (steps 1 to 4 of `select`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import Chosen, keep, largest
from attngraph_kernels.coreset import coreset
from attngraph_kernels.pyramid import ABSENT, pyramid, query_features, second_moment_factor
from attngraph_kernels.softmax import PLAIN, Softmax


class _Rows(NamedTuple):
    """The query blocks of a chunk: `query` features [P·B, r_q, 2d + 1], `weight` [P, B, 1, r_q] of the representatives,
    and the `lowest` and `highest` block [B, 1] that the descent may find for each row: visible and not forced.
    """

    query: Tensor
    weight: Tensor
    lowest: Tensor
    highest: Tensor

    def alive(self, nodes: Tensor, level: int) -> Tensor:
        """Whether each of `nodes` [..., C] holds a block that its row may find: [..., B, C]."""
        return (nodes >= self.lowest >> level) & (nodes <= self.highest >> level)


class Descent:
    """Finds the kept blocks of the P query heads of one key/value head.

    Parameters
    ----------
    q, k
        [P, T, d], scaled, and [T, d].
    beam
        Nodes kept per level, and candidates that are scored exactly (the forced blocks included).
    representatives, query_representatives, start_nodes, variance
        As in `Stream`.
    softmax
        The layer's soft cap and the sinks [P] of these heads. The descent itself goes by uncapped scores without sinks:
        a cap keeps the order of scores.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        grid: BlockGrid,
        *,
        beam: int,
        representatives: int,
        query_representatives: int,
        start_nodes: int,
        variance: float,
        softmax: Softmax = PLAIN,
    ) -> None:
        self.grid, self.beam, self.softmax = grid, beam, softmax
        self.queries, self.keys = into_blocks(q, grid.size), into_blocks(k, grid.size)
        centred = k - k.mean(dim=0)
        metric = second_moment_factor(q.flatten(0, 1))
        levels = pyramid(centred, grid, representatives, metric, variance, start_nodes)
        self.level, self.features = levels.start(start_nodes), levels.features
        valid = into_blocks(k.new_ones(grid.tokens, 1), grid.size).squeeze(-1)
        reduced = coreset(
            self.queries.flatten(0, 1), valid.repeat(len(q), 1), query_representatives, second_moment_factor(centred)
        )
        shape = (len(q), grid.count, query_representatives)
        self.query = query_features(reduced.mean).view(*shape, -1)
        self.weight = reduced.weight.view(shape)

    def choose(self, start: int, stop: int, budget: int) -> Chosen:
        """The kept blocks of the query blocks `start` to `stop - 1`."""
        rows = self._rows(start, stop)
        nodes = self._start(rows)
        for level in range(self.level - 1, -1, -1):
            nodes = self._split(rows, nodes, level)
        blocks = self._with_forced(nodes, start, stop)
        return keep(blocks, self._score(blocks, start, stop), self.grid, start, budget, self.softmax, complete=False)

    def _rows(self, start: int, stop: int) -> _Rows:
        first_visible = [self.grid.first_visible(block) for block in range(start, stop)]
        lowest = torch.tensor(first_visible, device=self.keys.device).clamp_min(0 if self.grid.windowed else 1)
        highest = torch.arange(start - 2, stop - 2, device=self.keys.device)
        return _Rows(
            self.query[:, start:stop].flatten(0, 1),
            self.weight[:, start:stop].unsqueeze(2),
            lowest[:, None],
            highest[:, None],
        )

    def _start(self, rows: _Rows) -> Tensor:
        """The best nodes [P, B, beam] of the start level, -1 where fewer are alive."""
        lowest, highest = ((ends >> self.level).flatten().tolist() for ends in (rows.lowest, rows.highest))
        first, last = lowest[0], highest[-1] + 1
        table = self.features[self.level][first:last]
        scores = rows.query.flatten(0, 1) @ table.flatten(0, 1).T
        scores = scores.view(*rows.weight.shape[:2], -1, last - first, table.shape[1])
        nodes = torch.arange(first, last, device=scores.device)
        alive = rows.alive(nodes, self.level)
        # Between the last row's lowest node and the first row's highest, all nodes are alive in all rows.
        for part in (slice(0, lowest[-1] - first), slice(highest[0] + 1 - first, None)):
            scores[..., part, :].masked_fill_(~alive[:, None, part, None], -torch.inf)
        return self._best(rows, scores, nodes, alive)

    def _split(self, rows: _Rows, nodes: Tensor, level: int) -> Tensor:
        """The best children, at `level`, of `nodes` [P, B, C]."""
        children = torch.stack([2 * nodes, 2 * nodes + 1], dim=-1).flatten(2)
        table = self.features[level]
        alive = rows.alive(children, level)
        found = table.flatten(1).index_select(0, children.clamp(0, len(table) - 1).flatten())
        found = found.view(*children.shape, *table.shape[1:])
        found[..., -1].masked_fill_(~alive.unsqueeze(-1), ABSENT)
        scores = torch.bmm(rows.query, found.flatten(2, 3).flatten(0, 1).transpose(1, 2))
        scores = scores.view(*children.shape[:2], -1, children.shape[2], table.shape[1])
        return self._best(rows, scores, children, alive)

    def _best(self, rows: _Rows, scores: Tensor, nodes: Tensor, alive: Tensor) -> Tensor:
        """Keep the beam: scores [P, B, r_q, C, r] of `nodes` [..., C], in softmax shares over the nodes alive."""
        shares = scores.flatten(3).softmax(dim=-1)  # some node is alive in every row
        mass = (rows.weight @ shares).view(*scores.shape[:2], *scores.shape[3:]).sum(dim=-1)
        slots = largest(mass, alive, min(self.beam, mass.shape[-1]))
        kept = nodes.masked_fill(~alive, -1)
        return kept.expand_as(mass).gather(-1, slots)

    def _with_forced(self, nodes: Tensor, start: int, stop: int) -> Tensor:
        """Candidate blocks [P, B, C], ascending with -1 first: the best found, and the forced ones."""
        forced = torch.tensor([self.grid.forced(b) for b in range(start, stop)], device=nodes.device)
        found = nodes[..., : self.beam - forced.shape[-1]]
        return torch.cat([found, forced.expand(len(nodes), -1, -1)], dim=-1).sort(dim=-1).values

    def _score(self, blocks: Tensor, start: int, stop: int) -> Tensor:
        """Exact scores [P, B, size, C, size] of the candidates; the own block is always the last of them."""
        heads, count, width = blocks.shape
        size = self.grid.size
        found = self.keys.flatten(1).index_select(0, blocks.clamp_min(0).flatten())
        found = found.view(heads * count, width * size, -1)
        scores = self.softmax.capped(torch.bmm(self.queries[:, start:stop].flatten(0, 1), found.transpose(1, 2)))
        scores = scores.view(heads, count, size, width, size)
        if not self.grid.windowed:
            future = torch.ones(size, size, dtype=torch.bool, device=blocks.device).triu_(1)
            scores[..., -1, :].masked_fill_(future, -torch.inf)
            absent = blocks < 0
            return scores.masked_fill_(absent[:, :, None, :, None], -torch.inf) if absent.any() else scores
        within = torch.arange(size, device=blocks.device)
        positions = torch.arange(start, stop, device=blocks.device)[:, None] * size + within
        reached = blocks[:, :, None, :, None] * size + within
        hidden = ~self.grid.visible(positions[None, :, :, None, None], reached)
        return scores.masked_fill_(hidden | (blocks < 0)[:, :, None, :, None], -torch.inf)
