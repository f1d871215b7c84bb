"""Graphs in which every layer of another was changed at random; see `attngraph_analyses.nulls`.

Exchanging ends of edges is the rewiring of Maslov & Sneppen (2002).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from attngraph.graph import AttentionGraph, LayerArrays, LayerSource
from attngraph.graph.source import SpanRanges

Change = Callable[[LayerArrays, LayerSource, np.random.Generator], LayerArrays]
ROUNDS = 16
"""Rounds of exchanges in which `exchanged_keys` mixes a layer."""
NEAREST = 64
"""Edges exchange keys with others at most this many places away in the order of their masses."""


def rewired(graph: AttentionGraph, change: Change, seed: tuple[int, int]) -> AttentionGraph:
    """A graph under the same policy whose layers are changed when they are read, each from a seed of its own."""
    return graph.with_source(_Changed(graph.source, change, seed))


class _Changed:
    """A `LayerSource` whose layers are those of another, changed at random, each from a seed of its own."""

    def __init__(
        self,
        inner: LayerSource,
        change: Change,
        seed: tuple[int, int],
    ) -> None:
        self._inner = inner
        self._change = change
        self._seed = seed

    @property
    def layers(self) -> int:
        return self._inner.layers

    @property
    def heads(self) -> int:
        return self._inner.heads

    @property
    def blocks(self) -> int:
        return self._inner.blocks

    @property
    def tokens(self) -> int:
        return self._inner.tokens

    @property
    def block_size(self) -> int:
        return self._inner.block_size

    @property
    def targets(self) -> tuple[int, ...]:
        return self._inner.targets

    @property
    def spans(self) -> SpanRanges:
        return self._inner.spans

    def kept_mass(self, layer: int) -> None:
        """Nothing: what the original dropped says nothing of a changed layer."""

    def layer(self, layer: int) -> LayerArrays:
        return self._change(self._inner.layer(layer), self._inner, np.random.default_rng((*self._seed, layer)))


def exchanged_keys(arrays: LayerArrays, source: LayerSource, random: np.random.Generator) -> LayerArrays:
    """Edges of nearly the same mass exchange key blocks, wherever both keys stay at or before their new query."""
    targets = np.asarray(source.targets, np.int64) // source.block_size
    query = np.concatenate([arrays.query_block.astype(np.int64), targets[arrays.target.astype(np.int64)]])
    key = np.concatenate([arrays.key_block, arrays.target_key_block]).astype(np.int64)
    order = np.argsort(np.concatenate([arrays.mass, arrays.target_mass]), kind="stable")
    query, exchanged = query[order], key[order]
    for _ in range(ROUNDS):
        distance, start = int(random.integers(1, NEAREST + 1)), int(random.integers(0, NEAREST))
        one = np.arange(start, len(order) - distance)
        one = one[(one - start) // distance % 2 == 0]  # stretches of `distance` edges, each paired with the next one
        other = one + distance
        causal = (exchanged[one] <= query[other]) & (exchanged[other] <= query[one])
        one, other = one[causal], other[causal]
        exchanged[one], exchanged[other] = exchanged[other], exchanged[one]
    key[order] = exchanged
    edges = len(arrays.key_block)
    return replace(arrays, key_block=key[:edges], target_key_block=key[edges:])


def permuted_heads(arrays: LayerArrays, source: LayerSource, random: np.random.Generator) -> LayerArrays:
    """Every row (query block or target) gives its heads' names to one another."""
    rows = source.blocks + len(source.targets)
    names = np.argsort(random.random((rows, source.heads)), axis=1)
    return replace(
        arrays,
        head=names[arrays.query_block, arrays.head],
        target_head=names[source.blocks + arrays.target.astype(np.int64), arrays.target_head],
    )
