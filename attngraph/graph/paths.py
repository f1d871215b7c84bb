"""The k best or widest paths, exactly, in two sweeps.

1. A forward sweep gives every node the value of the best path that reaches it from a source: in `max_times`
   its weight (in logarithms), in `max_min` its width.
2. The *loss* of a step into a node says what is given up by taking it. For weights it is how far the step
   lies below that node's best way in, in logarithms: 0 for the best way in, never less (Eppstein 1998). For
   widths it is the width of the best path through the step, negated. The losses of a path's steps are added
   up, or their greatest is taken, and say how the path ranks.
3. A second sweep, from the targets down, keeps the k partial paths of the smallest loss at each level. None
   of the k best is lost: a partial path that isn't among them has k others whose best completions are at
   least as good. From the k-th loss on nothing can be kept, so most steps are never looked at.

O(E + L·k·log k) time, as long as few steps tie, one layer in memory at a time, and O(L·k) memory for the
paths. Ties keep one order (the more probable step first, then stay, then head, then key block), so the k best
are the first k of the k + 1 best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from attngraph.errors import ConfigError
from attngraph.graph.algebra import forward
from attngraph.graph.semirings import Algebra, state_in, zero_of
from attngraph.graph.source import AnyFloats, FloatArray, IntArray
from attngraph.graph.transition import LayerTransition, Transitions

STAY = -1
"""In place of a head: this step stays where it is."""

Kind = Literal["best", "widest"]
Distinct = Literal["edges", "nodes"]
_ALGEBRAS: dict[str, Algebra] = {"best": "max_times", "widest": "max_min"}


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
    """Steps of one layer into some nodes, sorted by upper node and loss."""

    upper: IntArray
    lower: IntArray
    head: IntArray
    probability: FloatArray
    loss: FloatArray

    def take(self, index: IntArray) -> _Steps:
        return _Steps(self.upper[index], self.lower[index], self.head[index], self.probability[index], self.loss[index])


@dataclass(frozen=True, eq=False)
class _Choice:
    """The partial paths kept at one level: each one's parent at the level above, and its step down."""

    parent: IntArray
    step: _Steps


def best_paths(
    graph: Transitions,
    sources: AnyFloats,
    targets: AnyFloats,
    k: int,
    *,
    kind: Kind = "best",
    distinct: Distinct = "edges",
) -> Paths:
    """The `k` best or widest paths from any source to any target, or as many as there are.

    Parameters
    ----------
    sources, targets
        ``[nodes]``: the weight of each node as a start at level 0, and as an end at level L; 0 for neither.
    k
        Number of paths, at least 1.
    kind
        ``"best"``: the greatest product of probabilities; ``"widest"``: the greatest smallest probability
        (the ends don't count), the more probable step first among ties.
    distinct
        ``"edges"``: paths differ in an edge, be it only its head; ``"nodes"``: of the paths through the same
        nodes only the best.

    Raises
    ------
    ConfigError
        If `k` is below 1, or there is no such kind.
    """
    check_question(k, kind, distinct)
    algebra = _ALGEBRAS[kind]
    best = np.stack(list(forward(graph, state_in(algebra, sources), algebra)))
    ends = state_in(algebra, targets)
    completed = ends + best[-1] if kind == "best" else np.minimum(ends, best[-1])
    node = np.argsort(-completed, kind="stable")[:k]
    node = node[completed[node] > zero_of(algebra)]
    if not len(node):
        return _follow([], node, graph.layers, sources, targets)
    top = node
    loss = (completed[node[0]] if kind == "best" else 0.0) - completed[node]
    choices = []
    for layer in reversed(range(graph.layers)):
        # With k paths in hand, whatever loses more than the last of them is out.
        limit = loss[-1] if len(node) == k else np.inf
        steps = _steps_into(graph.transition(layer), best[layer], np.unique(node), kind)
        if distinct == "nodes":
            steps = _best_of_parallel(steps)
        choice, loss = _extend(steps, node, loss, k, limit, kind)
        node = choice.step.lower
        choices.append(choice)
    return _follow(choices[::-1], top, graph.layers, sources, targets)


def check_question(k: int, kind: Kind, distinct: Distinct) -> None:
    """Refuse a number of paths, a kind or a distinction that makes no sense.

    Raises
    ------
    ConfigError
        Naming the value and what is allowed.
    """
    if k < 1:
        raise ConfigError(f"k={k!r} routes were asked for; give a whole number of at least 1.")
    for name, value, allowed in (("kind", kind, get_args(Kind)), ("distinct", distinct, get_args(Distinct))):
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(allowed)}.")


def path_weights(node: IntArray, probability: FloatArray, sources: AnyFloats, targets: AnyFloats) -> FloatArray:
    """The product of every path's steps and of the weights of its two ends, ``[paths]``."""
    ends = sources[node[:, 0]].astype(np.float64), targets[node[:, -1]].astype(np.float64)
    return np.asarray(np.exp(np.log(probability).sum(1) + np.log(ends[0]) + np.log(ends[1])))


def _steps_into(transition: LayerTransition, below: FloatArray, nodes: IntArray, kind: Kind) -> _Steps:
    """All steps into `nodes` (ascending) over which a source can be reached."""
    edges, into = transition.edges_into(nodes)
    group = np.concatenate([np.arange(len(nodes)), into])
    upper = nodes[group]
    lower = np.concatenate([nodes, transition.weights.indices[edges]])
    head = np.concatenate([np.full(len(nodes), STAY), transition.head_of(edges)])
    through_edges = transition.scale[nodes][into] * transition.weights.data[edges]
    probability = np.concatenate([transition.stay[nodes], through_edges])
    if kind == "best":
        with np.errstate(divide="ignore"):
            value = np.log(probability) + below[lower]
        # From the very numbers that are compared, so a node's best step loses exactly 0.
        most = np.full(len(nodes), -np.inf)
        np.maximum.at(most, group, value)
        possible = np.flatnonzero(np.isfinite(value))
        loss = np.zeros(len(value))
        loss[possible] = most[group[possible]] - value[possible]
    else:
        loss = -np.minimum(probability, below[lower])
        possible = np.flatnonzero(loss < 0)
    return _Steps(upper, lower, head, probability, loss).take(possible)


def _in_order(steps: _Steps) -> _Steps:
    return steps.take(np.lexsort((steps.lower, steps.head, -steps.probability, steps.loss, steps.upper)))


def _best_of_parallel(steps: _Steps) -> _Steps:
    """Of the steps between the same two nodes only the one of the smallest loss, or the first in order."""
    steps = _in_order(steps)
    pair = steps.upper * (int(steps.lower.max()) + 1) + steps.lower
    return steps.take(np.unique(pair, return_index=True)[1])


def _extend(
    steps: _Steps, node: IntArray, loss: FloatArray, k: int, limit: float, kind: Kind
) -> tuple[_Choice, FloatArray]:
    """Extend partial paths, sorted by loss, by every step; keep the k smallest losses, ties in order."""
    least = np.full(int(node.max()) + 1, np.inf)
    np.minimum.at(least, node, loss)
    steps = _in_order(steps.take(np.flatnonzero(_joined(least[steps.upper], steps.loss, kind) <= limit)))
    first = np.searchsorted(steps.upper, node, side="left")
    count = np.searchsorted(steps.upper, node, side="right") - first
    # The best steps of the paths before it, and the better steps of its own, come before a path's r-th step.
    count = np.minimum(count, k - np.arange(len(node)))
    parent = np.repeat(np.arange(len(node)), count)
    step = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(parent))
    total = _joined(loss[parent], steps.loss[step], kind)
    kept = np.flatnonzero(total <= limit)
    kept = kept[np.argsort(total[kept], kind="stable")[:k]]
    return _Choice(parent[kept], steps.take(step[kept])), total[kept]


def _joined(path: FloatArray, step: FloatArray, kind: Kind) -> FloatArray:
    return path + step if kind == "best" else np.maximum(path, step)


def _follow(choices: list[_Choice], top: IntArray, layers: int, sources: AnyFloats, targets: AnyFloats) -> Paths:
    """Spell out the paths that end at level 0, from their steps (`choices`, layer 0 first)."""
    count = len(choices[0].parent) if choices else 0
    node = np.empty((count, layers + 1), np.int64)
    head = np.empty((count, layers), np.int64)
    probability = np.empty((count, layers))
    index = np.arange(count)
    for layer, choice in enumerate(choices):
        node[:, layer] = choice.step.lower[index]
        head[:, layer] = choice.step.head[index]
        probability[:, layer] = choice.step.probability[index]
        index = choice.parent[index]
    node[:, layers] = top[index]
    return Paths(
        weight=path_weights(node, probability, sources, targets), node=node, head=head, probability=probability
    )
