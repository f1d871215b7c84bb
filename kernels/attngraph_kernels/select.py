"""Selectors: which key blocks every query block of every head keeps.

The `stream` search finds, for each query block, the key blocks that hold most of its attention mass:

1. **Pyramid.** Keys become a pyramid of weighted representatives (`pyramid.py`), once per key/value head.
2. **Query coreset.** Each query block becomes a few weighted representatives, in the metric Cov[k] (`coreset.py`).
3. **Descent.** Score the finest level with at most `start_nodes` nodes, keep the best `candidates · budget` nodes,
   score the children of their children, and repeat down to the blocks. A node's score for a query block is its softmax
   share among the nodes alive in the row, summed over the query representatives by weight.
4. **Re-score.** The surviving blocks are scored with all their keys and all queries of the block; the `budget` blocks
   with the most mass stay. Up to here scores are a ranking (`descent.py`); those of the kept blocks, in fp32, are what
   `attend` goes on with.
5. **Exact rows.** Where all visible blocks are few anyway (early rows, narrow windows), in the last `exact_tail` tokens
   and in the target blocks, every visible block is a candidate.

`representative` and `flat` are simple searches to compare with, `exact` the brute force that all are measured by.

Forced blocks (sink, own, previous) are candidates always and are kept always, inside the budget. In a layer with a
sliding window the sink is not forced. Of two blocks with equal mass the earlier one is kept. With a `mass_threshold` a
row whose forced and best blocks hold this share of its candidates' mass keeps no more of them.

Every selector is a callable `(q, k, grid, softmax) -> iterator of Chosen` over chunks of query blocks of one key/value
head, so that memory stays linear in T. Hierarchical pruning is HiP's (Lee et al. 2025, arXiv 2406.09827), its use for
tracing Stream's (Rosser et al. 2025, arXiv 2510.19875); coresets, softmax scores and exact re-score are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attngraph_kernels.backend import runs_in_triton
from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import DENSE_ELEMENTS, Chosen, choose_dense, dense_chunks
from attngraph_kernels.descent import Descent, Index, centre_index, coreset_index, fan_of, mean_index
from attngraph_kernels.softmax import PLAIN, Softmax
from attngraph_kernels.triton import limits

SEARCH_BLOCKS = 32
"""Query blocks searched at once, at most."""


def searched_at_once(heads: int, candidates: int, size: int) -> int:
    """Query blocks searched at once: the more candidates, the fewer, so that their scores stay within a cache."""
    return max(1, min(SEARCH_BLOCKS, DENSE_ELEMENTS // (heads * candidates * size**2)))


class Selector(Protocol):
    """What `attend` asks for: chunks of kept blocks, in order, for the P query heads of one key/value head.

    `q` [P, T, d] is already multiplied with the softmax scale; `k` is [T, d]; `softmax` holds their sinks. At most
    `budget` blocks are kept per row, fewer where they hold the share `mass_threshold` of the mass (None: as many as the
    budget and the past allow).
    """

    @property
    def budget(self) -> int: ...

    @property
    def mass_threshold(self) -> float | None: ...

    def __call__(self, q: Tensor, k: Tensor, grid: BlockGrid, softmax: Softmax = PLAIN) -> Iterator[Chosen]: ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Keep the blocks with the most true attention mass: O(T²) time, O(T) memory."""

    budget: int
    mass_threshold: float | None = None

    def __call__(self, q: Tensor, k: Tensor, grid: BlockGrid, softmax: Softmax = PLAIN) -> Iterator[Chosen]:
        keys, queries = into_blocks(k, grid.size), into_blocks(q, grid.size)
        budget = min(self.budget, grid.count)
        for start, stop in dense_chunks(range(grid.count), len(q), grid):
            yield choose_dense(queries, keys, grid, start, stop, budget, softmax, self.mass_threshold)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Rows with few visible blocks, and those asked for, choose among all of these; a descent serves the others.

    `exact_tail` tokens at the end and the query blocks `exact_blocks` are asked for.
    """

    budget: int
    mass_threshold: float | None = None
    exact_tail: int = 128
    exact_blocks: frozenset[int] = field(default_factory=frozenset)

    def index(self, queries: Tensor, keys: Tensor, grid: BlockGrid) -> Index:
        """What the descent of queries [P, n, size, d] among keys [n, size, d] goes by."""
        raise NotImplementedError

    @property
    def beam(self) -> int:
        """Blocks that survive the descent."""
        return self.budget

    def __call__(self, q: Tensor, k: Tensor, grid: BlockGrid, softmax: Softmax = PLAIN) -> Iterator[Chosen]:
        budget = min(self.budget, grid.count)
        keys, queries = into_blocks(k, grid.size), into_blocks(q, grid.size)
        descent = None
        for dense, group in groupby(range(grid.count), key=lambda block: self._is_dense(block, grid)):
            if dense:
                for start, stop in dense_chunks(list(group), len(q), grid):
                    yield choose_dense(queries, keys, grid, start, stop, budget, softmax, self.mass_threshold)
                continue
            descent = descent or Descent(
                queries, keys, grid, self.index(queries, keys, grid), beam=self.beam, softmax=softmax
            )
            rows = list(group)
            at_once = searched_at_once(len(q), self.beam, grid.size)
            for start in range(rows[0], rows[-1] + 1, at_once):
                stop = min(start + at_once, rows[-1] + 1)
                yield descent.choose(start, stop, budget, self.mass_threshold)

    def _is_dense(self, block: int, grid: BlockGrid) -> bool:
        limit = self.beam * (4 if grid.windowed else 1)
        in_tail = min(grid.tokens, (block + 1) * grid.size) > grid.tokens - self.exact_tail
        return grid.available(block) <= limit or in_tail or block in self.exact_blocks


@dataclass(frozen=True, kw_only=True)
class Stream(Search):
    """The hierarchical search: O(T log T) time, O(T) memory. Parameters as in `attngraph.StreamConfig`.

    With `estimate` it also tells how much of the dense attention its rows keep, roughly (`estimate.py`).
    """

    representatives: int = 8
    query_representatives: int | None = None
    candidates: int = 3
    start_nodes: int = 512
    estimate: bool = False

    @property
    def beam(self) -> int:
        return self.candidates * self.budget

    def index(self, queries: Tensor, keys: Tensor, grid: BlockGrid) -> Index:
        return coreset_index(
            queries,
            keys,
            grid,
            representatives=self.representatives,
            query_representatives=self.query_representatives or max(1, grid.size // 4),
            start_nodes=self.start_nodes,
            fan=fan_of(self.beam),
            estimate=self.estimate,
        )


@dataclass(frozen=True, kw_only=True)
class Representative(Search):
    """A descent with one key for each node, its middle one (as in HiP, Lee et al. 2025, arXiv 2406.09827)."""

    def index(self, queries: Tensor, keys: Tensor, grid: BlockGrid) -> Index:
        return centre_index(queries, keys, grid, start_nodes=2 * self.budget)


@dataclass(frozen=True, kw_only=True)
class Flat(Search):
    """The mean query of a block against the mean key of every block: O((T / block)²)."""

    def index(self, queries: Tensor, keys: Tensor, grid: BlockGrid) -> Index:
        return mean_index(queries, keys, grid)


class BlockSelection(NamedTuple):
    """Kept blocks of a whole layer: `blocks` [H, nq, budget] (see `Chosen`), `kept_mass` [H, nq]."""

    blocks: Tensor
    kept_mass: Tensor


def select(
    q: Tensor, k: Tensor, grid: BlockGrid, selector: Selector, *, scale: float, softmax: Softmax = PLAIN
) -> BlockSelection:
    """The blocks that `selector` keeps.

    Parameters
    ----------
    q, k
        [H, T, d] and [G, T, d]; query head h reads key/value head h // (H / G).
    scale
        Softmax scale.
    softmax
        The layer's soft cap and the sinks [H] of its heads.
    """
    if runs_in_triton("select", q, lambda: limits.of_layer(q, k) or limits.of_search(selector, grid, q.dtype)):
        from attngraph_kernels.triton.select import select as fused

        return fused(q, k, grid, selector, scale=scale, softmax=softmax)
    groups = []
    for heads, keys, rule in zip((q.float() * scale).chunk(len(k)), k.float(), softmax.split(len(k)), strict=True):
        chunks = list(selector(heads, keys, grid, rule))
        groups.append(
            [torch.cat(parts, dim=1) for parts in zip(*((c.blocks, c.kept_mass) for c in chunks), strict=True)]
        )
    return BlockSelection(*(torch.cat(parts) for parts in zip(*groups, strict=True)))
