"""Selectors: which key blocks every query block of every head keeps.

The `stream` search finds, for each query block, the key blocks that hold most of its attention mass:

1. **Pyramid.** Keys become a pyramid of weighted representatives (`pyramid.py`), once per key/value head.
2. **Query coreset.** Each query block becomes a few weighted representatives, in the metric Cov[k] (`coreset.py`).
3. **Descent.** Score the finest level with at most `start_nodes` nodes, keep the best `candidates · budget` nodes,
   split them into their children, and repeat down to the blocks. A node's score for a query block is its softmax share
   among the nodes alive in the row, summed over the query representatives by weight.
4. **Re-score.** The surviving blocks are scored exactly, with all queries of the block; the `budget` blocks with the
   most mass stay. `attend` goes on with these scores.
5. **Exact rows.** Where all visible blocks are few anyway (early rows, narrow windows), in the last `exact_tail` tokens
   and in the target blocks, every visible block is a candidate.

Forced blocks (sink, own, previous) are candidates always and are kept always, inside the budget. In a layer with a
sliding window the sink is not forced. Of two blocks with equal mass the earlier one is kept.

Every selector is a callable `(q, k, grid) -> iterator of Chosen` over chunks of query blocks of one key/value head, so
that memory stays linear in T. Hierarchical pruning is HiP's (Lee et al. 2025, arXiv 2406.09827), its use for tracing
Stream's (Rosser et al. 2025, arXiv 2510.19875); coresets, softmax scores and exact re-score are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.coreset import coreset
from attngraph_kernels.pyramid import pyramid, query_features, second_moment_factor

DENSE_ELEMENTS = 1 << 22
"""Scores held at once where all visible blocks are candidates."""
SEARCH_BLOCKS = 32
"""Query blocks searched at once."""


class Chosen(NamedTuple):
    """The kept blocks of P heads (of one key/value head) in the B query blocks from `start` on.

    `blocks` [P, B, budget], ascending, -1 (first) where fewer are visible; `scores` [P, B, size, budget, size], the
    scaled scores of each query with each kept key, -inf where a key is not visible; `kept_mass` [P, B], the share of
    the dense attention mass on the kept blocks, NaN where the search has not seen every visible key.
    """

    start: int
    blocks: Tensor
    scores: Tensor
    kept_mass: Tensor


class Selector(Protocol):
    """What `attend` asks for: chunks of kept blocks, in order, for the P query heads of one key/value head.

    `q` [P, T, d] is already multiplied with the softmax scale; `k` is [T, d].
    """

    def __call__(self, q: Tensor, k: Tensor, grid: BlockGrid) -> Iterator[Chosen]: ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Keep the blocks with the most true attention mass: O(T²) time, O(T) memory."""

    budget: int

    def __call__(self, q: Tensor, k: Tensor, grid: BlockGrid) -> Iterator[Chosen]:
        keys, queries = into_blocks(k, grid.size), into_blocks(q, grid.size)
        for start, stop in _dense_chunks(range(grid.count), len(q), grid):
            yield _choose_dense(queries, keys, grid, start, stop, min(self.budget, grid.count))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The hierarchical search: O(T log T) time, O(T) memory. Parameters as in `attngraph.StreamConfig`.

    `exact_blocks` are further query blocks whose candidates are all visible blocks, like those of the exact tail.
    """

    budget: int
    representatives: int = 4
    query_representatives: int | None = None
    candidates: int = 3
    start_nodes: int = 256
    variance: float = 0.2
    exact_tail: int = 128
    exact_blocks: frozenset[int] = field(default_factory=frozenset)

    def __call__(self, q: Tensor, k: Tensor, grid: BlockGrid) -> Iterator[Chosen]:
        budget = min(self.budget, grid.count)
        keys, queries = into_blocks(k, grid.size), into_blocks(q, grid.size)
        search = None
        for dense, group in groupby(range(grid.count), key=lambda block: self._is_dense(block, grid)):
            if dense:
                for start, stop in _dense_chunks(list(group), len(q), grid):
                    yield _choose_dense(queries, keys, grid, start, stop, budget)
                continue
            search = search or _Search(self, q, queries, k, keys, grid)
            rows = list(group)
            for start in range(rows[0], rows[-1] + 1, SEARCH_BLOCKS):
                yield search.choose(start, min(start + SEARCH_BLOCKS, rows[-1] + 1), budget)

    def _is_dense(self, block: int, grid: BlockGrid) -> bool:
        limit = self.candidates * self.budget * (4 if grid.windowed else 1)
        in_tail = min(grid.tokens, (block + 1) * grid.size) > grid.tokens - self.exact_tail
        return grid.available(block) <= limit or in_tail or block in self.exact_blocks


class BlockSelection(NamedTuple):
    """Kept blocks of a whole layer: `blocks` [H, nq, budget] (see `Chosen`), `kept_mass` [H, nq]."""

    blocks: Tensor
    kept_mass: Tensor


def select(q: Tensor, k: Tensor, grid: BlockGrid, selector: Selector, *, scale: float) -> BlockSelection:
    """The blocks that `selector` keeps.

    Parameters
    ----------
    q, k
        [H, T, d] and [G, T, d]; query head h reads key/value head h // (H / G).
    scale
        Softmax scale.
    """
    groups = []
    for heads, keys in zip((q * scale).chunk(len(k)), k, strict=True):
        chunks = list(selector(heads, keys, grid))
        groups.append(
            [torch.cat(parts, dim=1) for parts in zip(*((c.blocks, c.kept_mass) for c in chunks), strict=True)]
        )
    return BlockSelection(*(torch.cat(parts) for parts in zip(*groups, strict=True)))


def _dense_chunks(blocks: range | list[int], heads: int, grid: BlockGrid) -> Iterator[tuple[int, int]]:
    """Cut consecutive query blocks into chunks whose dense scores stay within DENSE_ELEMENTS (or are one block)."""
    start, end = blocks[0], blocks[-1] + 1
    while start < end:
        stop = start + 1
        while (
            stop < end
            and heads * (stop + 1 - start) * (stop + 1 - grid.first_visible(start)) * grid.size**2 <= DENSE_ELEMENTS
        ):
            stop += 1
        yield start, stop
        start = stop


def _choose_dense(queries: Tensor, keys: Tensor, grid: BlockGrid, start: int, stop: int, budget: int) -> Chosen:
    """Score every visible key of the query blocks `start` to `stop - 1` and keep the blocks with the most mass."""
    first = grid.first_visible(start)
    heads, size = len(queries), grid.size
    scores = queries[:, start:stop].flatten(1, 2) @ keys[first:stop].flatten(0, 1).T
    scores = scores.view(heads, stop - start, size, stop - first, size)
    positions = torch.arange(stop * size, device=keys.device)
    hidden = ~grid.visible(positions[start * size :, None], positions[None, first * size :])
    scores.masked_fill_(hidden.view(1, stop - start, size, stop - first, size), -torch.inf)
    blocks = torch.arange(first, stop, device=keys.device).expand(heads, stop - start, -1)
    earliest = torch.tensor([grid.first_visible(b) for b in range(start, stop)], device=keys.device)
    own = torch.arange(start, stop, device=keys.device)
    seen = (blocks >= earliest[:, None]) & (blocks <= own[:, None])
    return _keep(blocks.masked_fill(~seen, -1), scores, grid, start, budget, complete=True)


class ChosenRows(NamedTuple):
    """The kept blocks of single query rows, each with a budget of its own.

    `blocks` [P, R, budget], ascending, -1 (first) where fewer are visible; `scores` [P, R, budget, size], scaled, -inf
    where a key is not visible; `kept_mass` [P, R], the share of the dense attention mass on the kept blocks.
    """

    blocks: Tensor
    scores: Tensor
    kept_mass: Tensor


def choose_rows(q: Tensor, k: Tensor, grid: BlockGrid, at: Tensor, budget: int) -> ChosenRows:
    """The blocks with the most true mass for single query rows; O(T) each.

    Parameters
    ----------
    q, k
        [P, T, d], scaled, and [T, d].
    at
        [R], the query positions.
    budget
        Blocks kept per row, the forced blocks of the row's own block included.
    """
    heads, rows = len(q), len(at)
    reached = torch.arange(grid.count * grid.size, device=k.device)
    scores = q[:, at] @ into_blocks(k, grid.size).flatten(0, 1).T
    scores.masked_fill_(~grid.visible(at[:, None], reached), -torch.inf)
    mass = scores.softmax(dim=-1).view(heads, rows, grid.count, grid.size).sum(dim=-1)
    own = at // grid.size
    earliest = torch.tensor([grid.first_visible(block) for block in own.tolist()], dtype=own.dtype, device=k.device)
    blocks = torch.arange(grid.count, device=k.device).expand(heads, rows, -1)
    blocks = blocks.masked_fill((blocks < earliest[:, None]) | (blocks > own[:, None]), -1)
    kept, slots = _most_mass(mass, blocks, own, grid, budget)
    index = slots.unsqueeze(-1).expand(-1, -1, -1, grid.size)
    return ChosenRows(
        kept, scores.view(heads, rows, grid.count, grid.size).gather(2, index), mass.gather(-1, slots).sum(dim=-1)
    )


class _Search:
    """Descent and exact re-score for the P query heads of one key/value head."""

    def __init__(self, config: Stream, q: Tensor, queries: Tensor, k: Tensor, keys: Tensor, grid: BlockGrid) -> None:
        self.grid, self.queries, self.keys = grid, queries, keys
        self.beam = config.candidates * min(config.budget, grid.count)
        heads, width = len(q), k.shape[-1]
        centred = k - k.mean(dim=0)
        metric = second_moment_factor(q.flatten(0, 1))
        levels = pyramid(centred, grid, config.representatives, metric, config.variance, config.start_nodes)
        self.level = levels.start(config.start_nodes)
        self.features = levels.features
        wanted = config.query_representatives or max(1, grid.size // 2)
        valid = into_blocks(k.new_ones(grid.tokens, 1), grid.size).squeeze(-1)
        reduced = coreset(queries.flatten(0, 1), valid.repeat(heads, 1), wanted, second_moment_factor(centred))
        self.query = query_features(reduced.mean).view(heads, grid.count, wanted, 2 * width + 1)
        self.weight = reduced.weight.view(heads, grid.count, wanted)

    def choose(self, start: int, stop: int, budget: int) -> Chosen:
        nodes = self._start(start, stop)
        for level in range(self.level - 1, -1, -1):
            nodes = self._split(nodes, level, start, stop)
        blocks = self._with_forced(nodes, start, stop)
        return _keep(blocks, self._score(blocks, start, stop), self.grid, start, budget, complete=False)

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
        slots = _largest(mass, alive, min(self.beam, mass.shape[-1]))
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


def _keep(blocks: Tensor, scores: Tensor, grid: BlockGrid, start: int, budget: int, *, complete: bool) -> Chosen:
    """Keep the `budget` candidates with the most mass, the forced ones before all others."""
    heads, count, size, width, _ = scores.shape
    shares = scores.flatten(3).softmax(dim=-1).view_as(scores)
    rows = torch.full((count,), size, device=scores.device)
    if start + count == grid.count:
        rows[-1] = grid.rows(grid.count - 1)
        shares[:, -1, grid.rows(grid.count - 1) :] = 0
    # Summed key by key, then row by row: every block in the same order, so that equal blocks tie exactly.
    mass = shares.sum(dim=-1).sum(dim=2).div_(rows[:, None])
    own = torch.arange(start, start + count, device=blocks.device)
    kept, slots = _most_mass(mass, blocks, own, grid, min(budget, width))
    row = torch.arange(heads * count * size, device=blocks.device).view(heads, count, size, 1)
    picked = scores.view(-1, size).index_select(0, (row * width + slots.unsqueeze(2)).flatten())
    picked = picked.view(heads, count, size, slots.shape[-1], size)
    if slots.shape[-1] < budget:
        missing = budget - slots.shape[-1]
        kept = torch.nn.functional.pad(kept, (missing, 0), value=-1)
        picked = torch.nn.functional.pad(picked, (0, 0, missing, 0), value=-torch.inf)
    total = mass.gather(-1, slots).sum(dim=-1) if complete else mass.new_full((heads, count), torch.nan)
    return Chosen(start, kept, picked, total)


def _most_mass(mass: Tensor, blocks: Tensor, own: Tensor, grid: BlockGrid, budget: int) -> tuple[Tensor, Tensor]:
    """The kept `blocks` [P, R, budget], ascending, and their slots: forced ones first, then those with the most mass.

    `mass` and `blocks` are [P, R, C], -1 marking what is no candidate; `own` [R] is each row's own block.
    """
    forced = (blocks == own[:, None]) | (blocks == own[:, None] - 1)
    if not grid.windowed:
        forced |= blocks == 0
    slots = _largest(mass.masked_fill(forced, 2.0), blocks >= 0, budget)
    kept, order = blocks.gather(-1, slots).sort(dim=-1)
    return kept, slots.gather(-1, order)


def _largest(mass: Tensor, valid: Tensor, count: int) -> Tensor:
    """Slots of the `count` largest of `mass` (>= 0, fp32), best first; ties to the lower slot, invalid ones last.

    The bits of a non-negative float order like the float itself, so value and slot make one unique integer key.
    """
    width = mass.shape[-1]
    key = mass.contiguous().view(torch.int32).to(torch.int64) << 32
    key += torch.arange(width - 1, -1, -1, device=mass.device)
    return key.masked_fill_(~valid, -1).topk(count, dim=-1).indices
