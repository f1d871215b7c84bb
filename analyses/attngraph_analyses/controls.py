"""Edges to compare a set of edges with: what would taking away any such edges do?

Every control takes as many edges, at random, of those that the graph has, but none of the set itself, none from a row's
own block and none from the blocks to avoid (the source's: they may carry what the set carries):

1. ``"mass_matched"``: for each edge one of the same layer with nearly the same mass.
2. ``"random"``: any.
3. ``"distance_matched"``: for each edge one of the same layer, head and row, from a key block at nearly the same
   distance.
4. ``"row_matched"``: for each edge one of the same layer and row, of any head, with nearly the same mass. It is the
   strictest, since the row loses as much attention.

A row has few edges, so the last two may find less than one for each edge; every draw says how many it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from attngraph.graph import AttentionGraph
from attngraph.graph.edge_set import EdgeSet, joined
from attngraph.graph.source import FloatArray, IntArray

ControlName = Literal["mass_matched", "random", "distance_matched", "row_matched"]
NEAREST = {"mass_matched": 64, "distance_matched": 4, "row_matched": 4}
"""Each edge is matched with one of this many nearest candidates."""


class Weighed(NamedTuple):
    """Edges with their masses, ``[edges]``."""

    edges: EdgeSet
    mass: FloatArray

    def only(self, which: Any) -> Weighed:
        """Some of them: those of a mask, or of indices in their order."""
        return Weighed(self.edges.only(which), self.mass[which])


def weighed(graph: AttentionGraph, layer: int) -> Weighed:
    """All recorded edges of a layer but those from a row's own block."""
    arrays = graph.source.layer(layer)
    node = np.concatenate([arrays.query_block.astype(np.int64), graph.blocks + arrays.target.astype(np.int64)])
    head, key = (
        np.concatenate(parts).astype(np.int64)
        for parts in ((arrays.head, arrays.target_head), (arrays.key_block, arrays.target_key_block))
    )
    mass = np.concatenate([arrays.mass, arrays.target_mass]).astype(np.float64)
    others = graph.node_blocks()[node] != key
    return Weighed(EdgeSet(np.full(len(head), layer), head, node, key), mass).only(others)


def masses(graph: AttentionGraph, edges: EdgeSet) -> FloatArray:
    """The recorded mass of every edge, ``[edges]``; NaN for one that is not recorded."""
    found = np.full(edges.size, np.nan)
    for layer in np.unique(edges.layer).tolist():
        here, known = np.flatnonzero(edges.layer == layer), weighed(graph, layer)
        codes = _codes(graph, known.edges)
        if not len(codes):
            continue
        order = np.argsort(codes)
        wanted = _codes(graph, edges.only(here))
        place = order[np.minimum(np.searchsorted(codes, wanted, sorter=order), len(codes) - 1)]
        found[here] = np.where(codes[place] == wanted, known.mass[place], np.nan)
    return found


def control_sets(
    graph: AttentionGraph, edges: EdgeSet, name: ControlName, *, draws: int, seed: int, avoid: IntArray
) -> list[Weighed]:
    """Draw edges to compare a set with; see the module.

    Parameters
    ----------
    graph
        It has recorded the edges.
    edges
        The set.
    name
        Which control.
    draws
        How many sets to draw.
    seed
        Of the draws.
    avoid
        Key blocks that no drawn edge leads from.
    """
    if name == "random":
        return _random_sets(graph, edges, draws, seed, avoid)
    parts: list[list[Weighed]] = [[] for _ in range(draws)]
    mass = masses(graph, edges)
    for layer in np.unique(edges.layer).tolist():
        here = edges.layer == layer
        others = _others(graph, layer, edges, avoid)
        group, value = _features(graph, name, Weighed(edges.only(here), mass[here]))
        of_group, of_value = _features(graph, name, others)
        for draw in range(draws):
            random = np.random.default_rng((seed, draw, layer))
            matched = list(_matched(group, value, of_group, of_value, NEAREST[name], random))
            parts[draw].append(others.only(np.array(matched, np.int64)))
    return list(map(_together, parts))


def random_subgraphs(graph: AttentionGraph, edges: EdgeSet, *, draws: int, seed: int) -> list[Weighed]:
    """In every layer as many edges as a sub-graph has there, of all that the graph has, its own included."""
    parts: list[list[Weighed]] = [[] for _ in range(draws)]
    for layer in np.unique(edges.layer).tolist():
        every, count = weighed(graph, layer), edges.of_layer(layer).size
        for draw in range(draws):
            random = np.random.default_rng((seed, draw, layer))
            parts[draw].append(every.only(random.choice(every.edges.size, count, replace=False)))
    return list(map(_together, parts))


def _others(graph: AttentionGraph, layer: int, edges: EdgeSet, avoid: IntArray) -> Weighed:
    """The edges of a layer that a control may take."""
    every = weighed(graph, layer)
    free = ~np.isin(_codes(graph, every.edges), _codes(graph, edges.of_layer(layer)))
    free &= ~np.isin(every.edges.key_block, avoid)
    return every.only(free)


def _together(parts: Sequence[Weighed]) -> Weighed:
    """The edges of several layers as one set."""
    return Weighed(
        joined([part.edges for part in parts]), np.concatenate([np.zeros(0), *(part.mass for part in parts)])
    )


def _random_sets(graph: AttentionGraph, edges: EdgeSet, draws: int, seed: int, avoid: IntArray) -> list[Weighed]:
    counts = np.array([_others(graph, layer, edges, avoid).edges.size for layer in range(graph.layers)])
    ends, size = counts.cumsum(), min(edges.size, int(counts.sum()))
    chosen = [
        np.random.default_rng((seed, draw)).choice(int(ends[-1]), size, replace=False, shuffle=False)
        for draw in range(draws)
    ]
    parts: list[list[Weighed]] = [[] for _ in range(draws)]
    for layer, end in enumerate(ends.tolist()):
        others, start = _others(graph, layer, edges, avoid), end - counts[layer]
        for part, one in zip(parts, chosen, strict=True):
            part.append(others.only(one[(one >= start) & (one < end)] - start))
    return list(map(_together, parts))


def _codes(graph: AttentionGraph, edges: EdgeSet) -> IntArray:
    """One number per edge of a layer."""
    return np.asarray((edges.head * graph.nodes + edges.node) * graph.blocks + edges.key_block)


def _features(graph: AttentionGraph, name: ControlName, known: Weighed) -> tuple[IntArray, FloatArray]:
    """What a match has in common with its edge, and what is nearly the same."""
    edges = known.edges
    if name == "mass_matched":
        return np.zeros_like(edges.node), known.mass
    if name == "row_matched":
        return edges.node, known.mass
    distance = graph.node_blocks()[edges.node] - edges.key_block
    return edges.head * graph.nodes + edges.node, distance.astype(np.float64)


def _matched(
    group: IntArray,
    value: FloatArray,
    of_group: IntArray,
    of_value: FloatArray,
    nearest: int,
    random: np.random.Generator,
) -> Iterator[int]:
    """For every wanted edge, in random order, one of the nearest candidates of its group that are not yet taken."""
    free = np.ones(len(of_group), bool)
    for wanted in random.permutation(len(group)):
        candidates = np.flatnonzero(free & (of_group == group[wanted]))
        apart = np.abs(of_value[candidates] - value[wanted])
        candidates = candidates[np.argsort(apart, kind="stable")[:nearest]]
        if len(candidates) and not np.isnan(value[wanted]):
            match = int(random.choice(candidates))
            free[match] = False
            yield match
