"""Descent through a key pyramid, and the choice among the blocks that survive it (steps 1 to 4 of `select`).

Nothing here is more than a ranking, so its scores are bfloat16 where the processor multiplies bfloat16 natively (four
to five times as fast as fp32); softmax shares and their sums are fp32. The blocks that are kept are scored anew in
fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid
from attngraph_kernels.chosen import (
    Chosen,
    block_mass,
    gathered_products,
    gathered_scores,
    kept_share,
    largest,
    most_mass,
    row_mass,
)
from attngraph_kernels.coreset import coreset
from attngraph_kernels.estimate import Dropped, Estimate, log_sum_exp
from attngraph_kernels.pyramid import (
    Pyramid,
    bump,
    centre_pyramid,
    mean_level,
    present,
    pyramid,
    query_features,
    second_moment_factor,
    siblings,
)
from attngraph_kernels.softmax import PLAIN, Softmax

MOST_BELOW = 256
"""Nodes that are looked at, at most, two levels below those kept."""

PROCESSOR_HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Index(NamedTuple):
    """What a descent goes by: the keys' `levels`, and of every query block the features `query` [P, n, r_q, d + 1] and
    the `weight` [P, n, r_q] of its representatives. Where what is dropped shall be estimated, `representative`
    [P, n, size] says which of them stands for each query, and `lift` [P, n, r_q] by how much the log-sum-exp of a query
    lies above that of its representative. A step looks at `fan` nodes below each one kept: 2 or 4.
    """

    levels: Pyramid
    query: Tensor
    weight: Tensor
    fan: int = 2
    representative: Tensor | None = None
    lift: Tensor | None = None


def coreset_index(
    queries: Tensor,
    keys: Tensor,
    grid: BlockGrid,
    *,
    representatives: int,
    query_representatives: int,
    start_nodes: int,
    fan: int,
    estimate: bool = False,
) -> Index:
    """Coresets of keys, in the metric of the queries, and of queries, in the metric of the keys.

    Parameters
    ----------
    queries, keys
        [P, n, size, d], scaled, and [n, size, d].
    representatives, query_representatives
        Per node, and per query block.
    start_nodes
        The coarsest level has at most as many nodes.
    fan
        Nodes below each one kept that are looked at, 2 or 4.
    estimate
        Let the descent estimate what it drops.
    """
    heads, centred = len(queries), _centred(keys, grid)
    metric = second_moment_factor(queries.flatten(0, 2), count=heads * grid.tokens)
    levels = pyramid(centred, grid, representatives, metric, start_nodes)
    reduced = coreset(
        queries.flatten(0, 1),
        present(grid, keys).repeat(heads, 1),
        query_representatives,
        second_moment_factor(centred),
    )
    shape = (heads, grid.count, query_representatives)
    index = Index(levels, query_features(reduced.mean).view(*shape, -1), reduced.weight.view(shape), fan)
    if not estimate:
        return index
    # Queries differ from their mean by δ, their scores by δ·k, of variance δᵀ Cov[k] δ: the spread in this metric.
    lift = bump(reduced.spread, keys.new_tensor(float(grid.tokens)).log()).view(shape)
    return index._replace(representative=reduced.group.view(heads, grid.count, grid.size), lift=lift)


def centre_index(queries: Tensor, keys: Tensor, grid: BlockGrid, *, start_nodes: int) -> Index:
    """One key for each node, all queries of each block."""
    weight = present(grid, keys).expand(len(queries), -1, -1)
    return Index(centre_pyramid(_centred(keys, grid), grid, start_nodes), query_features(queries), weight)


def mean_index(queries: Tensor, keys: Tensor, grid: BlockGrid) -> Index:
    """The mean key and the mean query of each block, without a pyramid."""
    means = queries.sum(dim=2, keepdim=True) / present(grid, keys).sum(dim=1).view(-1, 1, 1)
    return Index(mean_level(_centred(keys, grid), grid), query_features(means), keys.new_ones(*means.shape[:3]))


def _centred(keys: Tensor, grid: BlockGrid) -> Tensor:
    """The keys [T, d] of all tokens, less their mean."""
    tokens = _of_tokens(keys, grid)
    return tokens - tokens.mean(dim=0)


def _of_tokens(keys: Tensor, grid: BlockGrid) -> Tensor:
    """Keys [n, size, d] without those of the padding, [T, d]."""
    return keys.flatten(0, 1)[: grid.tokens]


class Descent:
    """Finds the kept blocks of the P query heads of one key/value head.

    Parameters
    ----------
    queries, keys
        [P, n, size, d], scaled, and [n, size, d], the last block padded with zeros.
    index
        What the descent goes by; it starts at the coarsest level.
    beam
        Nodes kept per level, and blocks that survive (the forced ones included). Where these are more than the budget,
        or a `mass_threshold` is given, they are scored with all their keys and all queries.
    softmax
        The layer's soft cap and the sinks [P] of these heads. The descent itself goes by uncapped scores without sinks:
        a cap keeps the order of scores.
    """

    def __init__(
        self, queries: Tensor, keys: Tensor, grid: BlockGrid, index: Index, *, beam: int, softmax: Softmax = PLAIN
    ) -> None:
        self.grid, self.beam, self.softmax = grid, beam, softmax
        dtype = search_dtype(keys.device)
        self.queries, self.keys = queries, keys
        # A shift of all keys moves the scores of a query alike: then small numbers are to be had, and rounded less.
        self.mean_key = _of_tokens(keys, grid).mean(dim=0)
        rough_keys = keys - self.mean_key if softmax.shift_invariant else keys
        self.rough_queries, self.rough_keys = queries.to(dtype), rough_keys.to(dtype)
        self.top = len(index.levels) - 1
        self.steps = [
            _Step(at, fan, siblings(index.levels[at], fan).to(dtype)) for at, fan in steps(self.top, index.fan)
        ]
        # Sums over a node's representatives are fast where these are not neighbours: [r, nodes, d + 1].
        self.coarsest = index.levels[-1].to(dtype).transpose(0, 1).contiguous()
        self.query, self.weight = index.query.to(dtype), index.weight
        # The first and the last block that the descent may find for each query block, [n, 1]: visible and not forced.
        lowest, highest = zip(*map(self._findable, range(grid.count)), strict=True)
        self.lowest, self.highest = (torch.tensor(ends, device=keys.device)[:, None] for ends in (lowest, highest))
        # What estimates need: the index's two, and by how much a query's scores with centred keys lie below its own,
        # [P, n, size]. A cap would bend the nodes' scores too: nothing is estimated then.
        self.of_queries: tuple[Tensor, ...] | None = None
        if softmax.softcap is None and index.representative is not None and index.lift is not None:
            self.of_queries = index.representative, index.lift, queries @ self.mean_key

    def choose(self, start: int, stop: int, budget: int, mass_threshold: float | None = None) -> Chosen:
        """The kept blocks of the query blocks `start` to `stop - 1`."""
        rows = self._rows(start, stop)
        nodes = self._start(rows, start, stop)
        for step in self.steps:
            nodes = self._split(rows, nodes, step)
        blocks = self._with_forced(nodes, start, stop)
        of_candidates = torch.ones((), device=blocks.device)
        complete = not self.grid.windowed  # rows see more blocks than the beam holds
        if self.beam > budget or mass_threshold is not None:
            scores = gathered_scores(
                self.rough_queries, self.rough_keys, blocks, self.grid, start, self.softmax, complete=complete
            )
            of_rows = row_mass(scores, self.grid, start, self.softmax)
            own = torch.arange(start, stop, device=blocks.device)
            mass = block_mass(of_rows, self.grid, start)
            blocks, slots = most_mass(mass, blocks, own, self.grid, budget, mass_threshold)
            if rows.dropped is not None:
                each = (x.unsqueeze(2).expand(-1, -1, self.grid.size, -1) for x in (blocks, slots))
                of_candidates = kept_share(of_rows, *each)
        complete = complete and mass_threshold is None
        scores = gathered_scores(self.queries, self.keys, blocks, self.grid, start, self.softmax, complete=complete)
        unknown = scores.new_full(blocks.shape[:2], torch.nan)
        return Chosen(start, blocks, scores, unknown, self._estimate(rows, of_candidates, start, stop))

    def _estimate(self, rows: _Rows, of_candidates: Tensor, start: int, stop: int) -> Estimate | None:
        if rows.dropped is None or self.of_queries is None:
            return None
        return Estimate(of_candidates, rows.dropped.of_queries(*(x[:, start:stop] for x in self.of_queries)))

    def _rows(self, start: int, stop: int) -> _Rows:
        return _Rows(
            self.query[:, start:stop].flatten(0, 1),
            self.weight[:, start:stop].unsqueeze(2),
            self.lowest[start:stop],
            self.highest[start:stop],
            None if self.of_queries is None else Dropped(),
        )

    def _findable(self, block: int) -> tuple[int, int]:
        return max(self.grid.first_visible(block), 0 if self.grid.windowed else 1), block - 2

    def _start(self, rows: _Rows, start: int, stop: int) -> Tensor:
        """The best nodes [P, B, beam] of the coarsest level, -1 where fewer are alive."""
        level = self.top
        (first, of_first), (of_last, last) = ([end >> level for end in self._findable(b)] for b in (start, stop - 1))
        scores = rows.query.flatten(0, 1) @ self.coarsest[:, first : last + 1].flatten(0, 1).T
        scores = scores.view(*rows.weight.shape[:2], -1, len(self.coarsest), last + 1 - first)
        nodes = torch.arange(first, last + 1, device=scores.device)
        alive = rows.alive(nodes, level)
        # Between the last row's lowest node and the first row's highest, all nodes are alive in all rows.
        for part in (slice(0, of_last - first), slice(of_first + 1 - first, None)):
            scores[..., part].masked_fill_(~alive[:, None, None, part], -torch.inf)
        return self._best(rows, scores, 3, nodes, alive, level)

    def _split(self, rows: _Rows, nodes: Tensor, step: _Step) -> Tensor:
        """The best of the nodes that a step leads to from `nodes` [P, B, C]."""
        below = step.below(nodes)
        alive = rows.alive(below, step.level)
        scores = gathered_products(rows.query, step.table, nodes.clamp_min(0).flatten(0, 1))
        representatives = step.table.shape[1] // step.fan
        apart = torch.where(alive, 0.0, -torch.inf).unsqueeze(-1).expand(-1, -1, -1, representatives).flatten(2)
        scores = scores.view(*nodes.shape[:2], -1, apart.shape[2]) + apart.unsqueeze(2)
        scores = scores.view(*scores.shape[:3], -1, representatives)
        return self._best(rows, scores, 4, below, alive, step.level)

    def _best(
        self, rows: _Rows, scores: Tensor, representatives: int, nodes: Tensor, alive: Tensor, level: int
    ) -> Tensor:
        """Keep the beam: scores of `nodes` [..., C], in softmax shares over the nodes alive.

        `scores` [P, B, r_q, ...] have the nodes and, as the dimension `representatives`, these. Of the blocks
        themselves (level 0) as many are kept as leave room for the forced ones.
        """
        scores = scores.float()  # of bfloat16 numbers it would take longer to find the largest
        shares = scores.flatten(3).softmax(dim=-1)  # some node is alive in every row
        of_nodes = shares.view(scores.shape).sum(dim=representatives)
        mass = (rows.weight @ of_nodes).squeeze(2)
        beam = self.beam - (len(self.grid.forced(self.grid.count - 1)) if level == 0 else 0)
        slots = largest(mass, alive, min(beam, mass.shape[-1]))
        if rows.dropped is not None:
            everything = log_sum_exp(scores.flatten(3), shares)
            rows.dropped.add(everything, of_nodes, slots, rows.findable(nodes, level) if level else alive.float())
        kept = nodes.masked_fill(~alive, -1)
        return kept.expand_as(mass).gather(-1, slots)

    def _with_forced(self, nodes: Tensor, start: int, stop: int) -> Tensor:
        """Candidate blocks [P, B, C], ascending with -1 first: the best found, and the forced ones."""
        forced = torch.tensor([self.grid.forced(b) for b in range(start, stop)], device=nodes.device)
        return torch.cat([nodes, forced.expand(len(nodes), -1, -1)], dim=-1).sort(dim=-1).values


class _Step(NamedTuple):
    """A step down to a `level`: from every node above it to `fan` nodes, whose features are a row of `table`
    [nodes above, fan·r, d + 1].
    """

    level: int
    fan: int
    table: Tensor

    def below(self, nodes: Tensor) -> Tensor:
        """The nodes [..., fan·C] that it leads to from `nodes` [..., C]; from -1 to negative ones."""
        first = nodes.unsqueeze(-1) * self.fan
        return (first + torch.arange(self.fan, device=nodes.device)).flatten(-2)


class _Rows(NamedTuple):
    """The query blocks of a chunk: `query` features [P·B, r_q, d + 1], `weight` [P, B, 1, r_q] of the representatives,
    the `lowest` and `highest` block [B, 1] that the descent may find for each row; and, where it is wanted, what has
    been `dropped` so far.
    """

    query: Tensor
    weight: Tensor
    lowest: Tensor
    highest: Tensor
    dropped: Dropped | None

    def alive(self, nodes: Tensor, level: int) -> Tensor:
        """Whether each of `nodes` [..., C] holds a block that its row may find: [..., B, C]."""
        return (nodes >= self.lowest >> level) & (nodes <= self.highest >> level)

    def findable(self, nodes: Tensor, level: int) -> Tensor:
        """The share of the blocks of each of `nodes` [..., C] that its row may find: [..., B, C], 0 to 1."""
        first, last = torch.maximum(nodes << level, self.lowest), torch.minimum((nodes + 1 << level) - 1, self.highest)
        return (last - first + 1).clamp_min_(0).to(self.weight.dtype) / (1 << level)


def fan_of(beam: int) -> int:
    """Nodes that the search looks at for each of the `beam` that it has kept: 4, two levels down, so that half as many
    levels are dropped from; 2, the children, where the others are too many for a kernel's registers.
    """
    return 4 if 4 * beam <= MOST_BELOW else 2


def steps(top: int, fan: int) -> list[tuple[int, int]]:
    """The levels that a descent from the level `top` comes to, and how many of their nodes make one of those above: as
    many as the `fan`, 2 or 4, but for the last step of an odd number of levels.
    """
    down = fan // 2
    return [(max(level - down, 0), 1 << min(level, down)) for level in range(top, 0, -down)]


def search_dtype(device: torch.device) -> torch.dtype:
    """The number type of the search's scores: bfloat16 where `device` multiplies it natively, else fp32."""
    return torch.bfloat16 if device.type != "cpu" or PROCESSOR_HAS_BFLOAT16 else torch.float32
