"""Descent through the key pyramid, and the exact re-score of the blocks that survive it (steps 1 to 4 of `select`)."""

from __future__ import annotations

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import Chosen, keep, largest
from attngraph_kernels.coreset import coreset
from attngraph_kernels.pyramid import pyramid, query_features, second_moment_factor


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
    ) -> None:
        self.grid, self.beam = grid, beam
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
        nodes = self._start(start, stop)
        for level in range(self.level - 1, -1, -1):
            nodes = self._split(nodes, level, start, stop)
        blocks = self._with_forced(nodes, start, stop)
        return keep(blocks, self._score(blocks, start, stop), self.grid, start, budget, complete=False)

    def _alive(self, nodes: Tensor, level: int, start: int, stop: int) -> Tensor:
        """Whether each of `nodes` [..., B, C] holds a block that its row may find: visible and not forced."""
        rows = range(start, stop)
        lowest = [max(self.grid.first_visible(b), 0 if self.grid.windowed else 1) for b in rows]
        low = torch.tensor(lowest, device=nodes.device)[:, None]
        high = torch.arange(start - 2, stop - 2, device=nodes.device)[:, None]
        return (nodes << level <= high) & (((nodes + 1) << level) > low) & (nodes >= 0)

    def _start(self, start: int, stop: int) -> Tensor:
        """The best nodes [P, B, beam] of the start level, -1 where fewer are alive."""
        first = self.grid.first_visible(start) >> self.level
        last = ((stop - 3) >> self.level) + 1
        table = self.features[self.level][first:last]
        heads, count = len(self.query), stop - start
        scores = self.query[:, start:stop].flatten(0, 2) @ table.flatten(0, 1).T
        nodes = torch.arange(first, last, device=scores.device).expand(count, -1)
        alive = self._alive(nodes, self.level, start, stop)
        return self._best(scores.view(heads, count, -1, last - first, table.shape[1]), nodes, alive, start, stop)

    def _split(self, nodes: Tensor, level: int, start: int, stop: int) -> Tensor:
        """The best children, at `level`, of `nodes` [P, B, C]."""
        children = torch.stack([2 * nodes, 2 * nodes + 1], dim=-1).flatten(-2)
        table = self.features[level]
        alive = self._alive(children, level, start, stop)
        found = table.flatten(1).index_select(0, children.clamp(0, len(table) - 1).flatten())
        heads, count, width = children.shape
        found = found.view(heads * count, width * table.shape[1], -1)
        scores = torch.bmm(self.query[:, start:stop].flatten(0, 1), found.transpose(1, 2))
        return self._best(scores.view(heads, count, -1, width, table.shape[1]), children, alive, start, stop)

    def _best(self, scores: Tensor, nodes: Tensor, alive: Tensor, start: int, stop: int) -> Tensor:
        """Keep the beam: scores [P, B, r_q, C, r] of `nodes` ([P,] B, C), in softmax shares over the nodes alive."""
        scores.masked_fill_(~alive[..., None, :, None], -torch.inf)
        flat = scores.flatten(3)
        flat = flat.sub_(flat.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(flat.dtype).min)).exp_()
        share = self.weight[:, start:stop] / flat.sum(dim=-1).clamp_min_(torch.finfo(flat.dtype).tiny)
        mass = (share.unsqueeze(-2) @ flat).view(*flat.shape[:2], *scores.shape[3:]).sum(dim=-1)
        slots = largest(mass, alive, min(self.beam, mass.shape[-1]))
        kept = nodes.expand(*mass.shape).gather(-1, slots)
        return kept.masked_fill(~alive.expand_as(mass).gather(-1, slots), -1)

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
        scores = torch.bmm(self.queries[:, start:stop].flatten(0, 1), found.transpose(1, 2))
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
