"""Paths that differ: each the best one left after those before it have made their nodes and edges worse.

1. Find the best path.
2. Multiply every node that it passes, and every edge that it takes, by `reuse`, a factor from 0 to 1. The
   nodes of the sources and the targets are exempt: nearly every path rides their residual streams.
3. Search again, and again, until there are k. A factor of 0 makes the paths *disjoint*: no two share an edge
   or a node between their ends.

Every path is the best under the factors of its turn, so the first k paths of k + 1 are the k paths. For
disjoint paths that is a greedy choice: the largest set of disjoint paths may be another one (that question is
a minimum vertex cut). Each path costs the two sweeps of `best_paths`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from attngraph.errors import ConfigError
from attngraph.graph.paths import STAY, Distinct, Kind, Paths, best_paths, check_question, path_weights
from attngraph.graph.source import AnyFloats, FloatArray
from attngraph.graph.transition import LayerTransition, Transitions

Edge = tuple[int, int, int]


def diverse_paths(
    graph: Transitions,
    sources: AnyFloats,
    targets: AnyFloats,
    k: int,
    *,
    reuse: float,
    kind: Kind = "best",
    distinct: Distinct = "edges",
) -> Paths:
    """`k` paths in the order in which they are chosen, or as many as there are.

    Parameters
    ----------
    sources, targets, k, kind, distinct
        As in `best_paths`.
    reuse
        Factor on each node and edge per earlier path that uses it, from 0 (disjoint paths) to below 1.

    Raises
    ------
    ConfigError
        If a parameter is out of range.
    """
    check_question(k, kind, distinct)
    if not 0 <= reuse < 1:
        raise ConfigError(f"reuse={reuse!r} is not a factor from 0 (disjoint routes) to 1 (reuse is free).")
    factors = _Factors(graph, reuse, exempt=(sources > 0) | (targets > 0))
    chosen: list[Paths] = []
    seen: set[bytes] = set()
    while len(chosen) < k:
        # One more than there are, so that one of them is new.
        found = best_paths(factors, sources, targets, len(chosen) + 1, kind=kind, distinct=distinct)
        new = [index for index, key in enumerate(_keys(found, distinct)) if key not in seen]
        if not new:
            break
        path = _only(found, new[0])
        seen.update(_keys(path, distinct))
        chosen.append(replace(path, probability=path.probability / factors.along(path)))
        factors.use(path)
    if not chosen:
        return best_paths(graph, sources, targets, 1, kind=kind, distinct=distinct)
    node, head, probability = (np.concatenate([getattr(path, name) for path in chosen]) for name in _COLUMNS)
    weight = path_weights(node, probability, sources, targets)
    return Paths(weight=weight, node=node, head=head, probability=probability)


_COLUMNS = ("node", "head", "probability")


class _Factors:
    """A graph whose used nodes and edges are worth less; its rows sum to at most 1."""

    def __init__(self, graph: Transitions, reuse: float, exempt: npt.NDArray[np.bool_]) -> None:
        self._graph = graph
        self._reuse = reuse
        self._exempt = exempt
        self._node = np.ones((graph.layers + 1, graph.nodes))
        self._edges: dict[int, dict[Edge, float]] = defaultdict(dict)

    @property
    def layers(self) -> int:
        return self._graph.layers

    @property
    def nodes(self) -> int:
        return self._graph.nodes

    def transition(self, layer: int) -> LayerTransition:
        transition = self._graph.transition(layer)
        weights = transition.weights
        if self._edges[layer]:
            weights = weights._replace(data=weights.data.copy())
            for (head, lower, upper), factor in self._edges[layer].items():
                row = np.arange(weights.indptr[upper], weights.indptr[upper + 1])
                weights.data[row[(weights.indices[row] == lower) & (transition.head[row] == head)]] *= factor
        factor = self._node[layer + 1]
        rows = transition.rows._replace(scale=transition.scale * factor, stay=transition.stay * factor)
        return replace(transition, weights=weights, rows=rows)

    def use(self, path: Paths) -> None:
        """Make what a path uses worth less."""
        for layer, (head, lower, upper) in enumerate(_steps(path)):
            if not self._exempt[upper]:
                self._node[layer + 1, upper] *= self._reuse
            if head != STAY:
                edges = self._edges[layer]
                edges[head, lower, upper] = edges.get((head, lower, upper), 1.0) * self._reuse

    def along(self, path: Paths) -> FloatArray:
        """The factor on every step of a path, ``[1, layers]``."""
        steps = enumerate(_steps(path))
        return np.array([[self._node[layer + 1, step[2]] * self._edges[layer].get(step, 1.0) for layer, step in steps]])


def _steps(path: Paths) -> list[Edge]:
    """(head, lower node, upper node) of every step of the one path."""
    nodes = path.node[0].tolist()
    return list(zip(path.head[0].tolist(), nodes[:-1], nodes[1:], strict=True))


def _keys(paths: Paths, distinct: Distinct) -> list[bytes]:
    """What tells paths apart."""
    parts = [paths.node] if distinct == "nodes" else [paths.node, paths.head]
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def _only(paths: Paths, index: int) -> Paths:
    one = slice(index, index + 1)
    return Paths(
        weight=paths.weight[one], node=paths.node[one], head=paths.head[one], probability=paths.probability[one]
    )
