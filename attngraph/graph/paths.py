"""The k best paths, exactly, in two sweeps.

1. `best_log_weights` gives every node the log weight of the best path that reaches it from a source.
2. The *detour* of an edge (or stay) into a node is how much it lies below that node's best way in, in
   logarithms: 0 for the best way in, never less (Eppstein 1998). A path's weight is the best weight times exp
   of minus the sum of its detours.
3. A second sweep, from the targets down, keeps the k partial paths with the smallest sums of detours at each
   level. None of the k best is lost: a partial path that isn't among them has k others whose best completions
   are at least as good.

O(E + L·k·d·log(k·d)) time for in-degree d, one layer in memory at a time, and O(L·k) memory for the paths.
Ties keep one order (stay first, then head, then key block), so the k best are the first k of the k + 1 best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attngraph.graph.algebra import best_log_weights, log_weights_through
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.source import AnyFloats, FloatArray, IntArray

STAY = -1
"""In place of a head: this step stays where it is."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Paths:
    """Paths from level 0 to level L, best first.

    Parameters
    ----------
    weight
        ``[paths]``: the product of its steps' probabilities and of the weights of its two ends.
    node
        ``[paths, layers + 1]``: the node at each level.
    head
        ``[paths, layers]``: the head of each step, or `STAY`.
    probability
        ``[paths, layers]``: the probability of each step.
    """

    weight: FloatArray
    node: IntArray
    head: IntArray
    probability: FloatArray


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps of one layer into some nodes, sorted by upper node, detour, head (stay first), lower node."""

    upper: IntArray
    lower: IntArray
    head: IntArray
    probability: FloatArray
    detour: FloatArray


@dataclass(frozen=True, eq=False)
class _Choice:
    """The partial paths kept at one level: each one's parent at the level above, and its step down."""

    parent: IntArray
    lower: IntArray
    head: IntArray
    probability: FloatArray


def best_paths(graph: AttentionGraph, sources: AnyFloats, targets: AnyFloats, k: int) -> Paths:
    """The `k` paths of the greatest weight from any source to any target, or as many as there are.

    Parameters
    ----------
    sources, targets
        ``[nodes]``: the weight of each node as a start at level 0, and as an end at level L; 0 for neither.
    k
        Number of paths, at least 1.
    """
    best = best_log_weights(graph, sources)
    with np.errstate(divide="ignore"):
        completed = np.log(targets.astype(np.float64)) + best[-1]
    top = np.argsort(-completed, kind="stable")[:k]
    top = top[np.isfinite(completed[top])]
    if not len(top):
        none = np.empty((0, graph.layers))
        return Paths(
            weight=none[:, 0],
            node=np.empty((0, graph.layers + 1), np.int64),
            head=none.astype(np.int64),
            probability=none,
        )

    node, detour = top, completed[top[0]] - completed[top]
    choices = []
    for layer in reversed(range(graph.layers)):
        steps = _steps_into(graph, layer, best, np.unique(node))
        choice, detour = _extend(steps, node, detour, k)
        node = choice.lower
        choices.append(choice)
    return _follow(choices[::-1], top, sources, targets)


def _steps_into(graph: AttentionGraph, layer: int, best: FloatArray, nodes: IntArray) -> _Steps:
    transition = graph.transition(layer)
    through_edges, through_stays = log_weights_through(transition, best[layer])
    wanted = np.zeros(graph.nodes, bool)
    wanted[nodes] = True
    edges = np.flatnonzero(wanted[transition.query] & np.isfinite(through_edges))
    stays = nodes[np.isfinite(through_stays[nodes])]
    upper = np.concatenate([stays, transition.query[edges]])
    lower = np.concatenate([stays, transition.key_block[edges]])
    head = np.concatenate([np.full(len(stays), STAY), transition.head[edges]])
    probability = np.concatenate([transition.stay[stays], transition.probability[edges]])
    # Computed from the very numbers whose maximum is `best`, so a node's best step has a detour of exactly 0.
    detour = best[layer + 1][upper] - np.concatenate([through_stays[stays], through_edges[edges]])
    order = np.lexsort((lower, head, detour, upper))
    return _Steps(upper[order], lower[order], head[order], probability[order], detour[order])


def _extend(steps: _Steps, node: IntArray, detour: FloatArray, k: int) -> tuple[_Choice, FloatArray]:
    """Extend partial paths, sorted by detour, by every step; keep the k smallest sums, ties in order."""
    first = np.searchsorted(steps.upper, node, side="left")
    count = np.searchsorted(steps.upper, node, side="right") - first
    # The best steps of the paths before it, and the better steps of its own, come before a path's r-th step.
    count = np.minimum(count, k - np.arange(len(node)))
    parent = np.repeat(np.arange(len(node)), count)
    rank = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
    step = first[parent] + rank
    total = detour[parent] + steps.detour[step]
    if len(node) == k:
        # Each of the k has a continuation without detour, so nothing beyond the last of them can be kept.
        kept = np.flatnonzero(total <= detour[-1])
        parent, step, total = parent[kept], step[kept], total[kept]
    order = np.argsort(total, kind="stable")[:k]
    step = step[order]
    return _Choice(parent[order], steps.lower[step], steps.head[step], steps.probability[step]), total[order]


def _follow(choices: list[_Choice], top: IntArray, sources: AnyFloats, targets: AnyFloats) -> Paths:
    """Spell out the paths that end at level 0, from their steps (`choices`, layer 0 first)."""
    count, layers = len(choices[0].parent), len(choices)
    node = np.empty((count, layers + 1), np.int64)
    head = np.empty((count, layers), np.int64)
    probability = np.empty((count, layers))
    index = np.arange(count)
    for layer, choice in enumerate(choices):
        node[:, layer] = choice.lower[index]
        head[:, layer] = choice.head[index]
        probability[:, layer] = choice.probability[index]
        index = choice.parent[index]
    node[:, layers] = top[index]
    ends = np.log(sources[node[:, 0]].astype(np.float64)) + np.log(targets[node[:, layers]].astype(np.float64))
    return Paths(weight=np.exp(np.log(probability).sum(1) + ends), node=node, head=head, probability=probability)
