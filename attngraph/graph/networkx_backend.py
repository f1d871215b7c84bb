"""NetworkX's own functions on an `AttentionGraph`, answered by sweeps instead of a conversion.

    nx.shortest_path(graph, (0, 17), (30, "token:4093"), weight="length")

NetworkX finds this module by the entry point `networkx.backends` and hands it every call whose graph says
`__networkx_backend__ = "attngraph"`. To these functions a graph is what `AttentionGraph.to_networkx` makes of
it, all nodes included: nodes (level, block) and (level, "token:N"), edges from level to level + 1. Every path
between two nodes has the same number of edges, so a shortest path is any path, unless weight="length", the
negative logarithm of the probability: then it is the best route.

Errors are NetworkX's own, so that code written for it keeps working. Other functions convert the graph where
``nx.config.fallback_to_nx`` is set, within the limits of `to_networkx`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from scipy import sparse

from attngraph.graph.algebra import backward, forward
from attngraph.graph.interop import NodeLabel, node_labels
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.paths import Paths, best_paths
from attngraph.graph.source import FloatArray
from attngraph.graph.transition import LayerTransition

LENGTH = "length"


class _Place(NamedTuple):
    level: int
    node: int


class _Between:
    """Some of a graph's layers as a graph of their own."""

    def __init__(self, graph: AttentionGraph, bottom: int, top: int) -> None:
        self._graph = graph
        self._bottom = bottom
        self._layers = top - bottom

    @property
    def layers(self) -> int:
        return self._layers

    @property
    def nodes(self) -> int:
        return self._graph.nodes

    def transition(self, layer: int) -> LayerTransition:
        return self._graph.transition(self._bottom + layer)


def has_path(G: AttentionGraph, source: NodeLabel, target: NodeLabel) -> bool:
    """Whether any path leads from one node to another."""
    bottom, top = _place(G, source), _place(G, target)
    if bottom.level >= top.level:
        return bottom == top
    *_, reached = forward(_Between(G, bottom.level, top.level), _only(G, bottom) > 0, "or_and")
    return bool(reached[top.node])


def descendants(G: AttentionGraph, source: NodeLabel) -> set[NodeLabel]:
    """All nodes to which a path leads from a node, itself left out."""
    place = _place(G, source, nx.NetworkXError)
    levels = forward(_Between(G, place.level, G.layers), _only(G, place) > 0, "or_and")
    return _labels_of(G, enumerate(levels, place.level)) - {source}


def ancestors(G: AttentionGraph, source: NodeLabel) -> set[NodeLabel]:
    """All nodes from which a path leads to a node, itself left out."""
    place = _place(G, source, nx.NetworkXError)
    levels = backward(_Between(G, 0, place.level), _only(G, place) > 0, "or_and")
    return _labels_of(G, ((place.level - down, reached) for down, reached in enumerate(levels))) - {source}


def shortest_path(
    G: AttentionGraph, source: NodeLabel, target: NodeLabel, weight: str | None = None, method: str = "dijkstra"
) -> list[NodeLabel]:
    """The nodes of the best route between two nodes, which is a shortest path with and without lengths."""
    bottom, top = _place(G, source), _place(G, target)
    if bottom == top:
        return [source]
    labels = node_labels(G)
    nodes = _best(G, bottom, top, source, target).node[0]
    return [labels[(bottom.level + up) * G.nodes + node] for up, node in enumerate(nodes.tolist())]


def shortest_path_length(
    G: AttentionGraph, source: NodeLabel, target: NodeLabel, weight: str | None = None, method: str = "dijkstra"
) -> float:
    """The number of steps between two nodes, or the negative logarithm of the best route's weight."""
    bottom, top = _place(G, source), _place(G, target)
    if bottom == top:
        return 0
    path = _best(G, bottom, top, source, target)
    return float(-np.log(path.probability).sum()) if weight == LENGTH else top.level - bottom.level


def dijkstra_path(G: AttentionGraph, source: NodeLabel, target: NodeLabel, weight: str = "weight") -> list[NodeLabel]:
    """The nodes of the best route between two nodes."""
    return shortest_path(G, source, target, weight)


def dijkstra_path_length(G: AttentionGraph, source: NodeLabel, target: NodeLabel, weight: str = "weight") -> float:
    """The negative logarithm of the best route's weight."""
    return shortest_path_length(G, source, target, weight)


def betweenness_centrality_subset(
    G: AttentionGraph,
    sources: Iterable[NodeLabel],
    targets: Iterable[NodeLabel],
    normalized: bool = False,
    weight: str | None = None,
) -> dict[NodeLabel, float]:
    """The share of the paths between sources and targets that pass each node, summed over all pairs.

    All paths between two nodes are shortest ones, so this counts paths: one sweep up and one down for each
    source, whatever the number of targets (Brandes 2001). Parallel edges count once, as in NetworkX.
    """
    ends = np.zeros((G.layers + 1, G.nodes))
    for target in targets:
        place = _place(G, target)
        ends[place.level, place.node] = 1.0
    total = np.zeros((G.layers + 1, G.nodes))
    for source in sources:
        total += _dependencies(G, _place(G, source), ends)
    return dict(zip(node_labels(G), total.ravel().tolist(), strict=True))


def convert_from_nx(graph: object, **_: object) -> AttentionGraph:
    """Refused: a NetworkX graph holds no weights, shares or policy."""
    raise NotImplementedError(
        f"A {type(graph).__name__} can't become an AttentionGraph by itself; AttentionGraph.from_edges makes one "
        f"from columns of edges."
    )


def convert_to_nx(result: Any, **_: object) -> Any:
    """A graph as NetworkX holds it, for functions that this backend doesn't have; other results as they are."""
    return result.to_networkx() if isinstance(result, AttentionGraph) else result


def can_run(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool | str:
    """Whether this backend answers a call; if not, why not."""
    graph = args[0] if args else kwargs.get("G")
    if not isinstance(graph, AttentionGraph):
        return "attngraph answers for AttentionGraph alone"
    given = dict(zip(_ARGUMENTS[name], args, strict=False)) | dict(kwargs)
    if name in ("shortest_path", "shortest_path_length") and None in (given.get("source"), given.get("target")):
        return "attngraph needs a source and a target"
    if given.get("normalized"):
        return "attngraph doesn't normalise betweenness"
    weights: tuple[str | None, ...] = (None, LENGTH)
    if name.startswith("dijkstra"):
        weights = (LENGTH,)
    elif name.startswith("betweenness"):
        weights = (None,)
    if "weight" in _ARGUMENTS[name] and given.get("weight") not in weights:
        return f"attngraph knows weight={' or '.join(map(repr, weights))} here, not {given.get('weight')!r}"
    return True


_PAIR = ("G", "source", "target", "weight", "method")
_ARGUMENTS = {
    "has_path": _PAIR[:3],
    "descendants": _PAIR[:2],
    "ancestors": _PAIR[:2],
    "shortest_path": _PAIR,
    "shortest_path_length": _PAIR,
    "dijkstra_path": _PAIR[:4],
    "dijkstra_path_length": _PAIR[:4],
    "betweenness_centrality_subset": ("G", "sources", "targets", "normalized", "weight"),
}


def _dependencies(graph: AttentionGraph, source: _Place, ends: FloatArray) -> FloatArray:
    """Σ over targets of the share of the paths from a source that pass each node, ``[levels, nodes]``.

    Counts grow past every integer, so each level is divided by its greatest count (`growth`).
    """
    layers = range(source.level, graph.layers)
    counts = np.zeros(ends.shape)
    counts[source.level, source.node] = 1.0
    growth = np.ones(graph.layers)
    for layer in layers:
        counts[layer + 1] = _steps(graph.transition(layer)) @ counts[layer]
        growth[layer] = counts[layer + 1].max() or 1.0
        counts[layer + 1] /= growth[layer]
    result = np.zeros(ends.shape)
    for layer in reversed(layers):
        above = counts[layer + 1]
        share = np.divide(ends[layer + 1] + result[layer + 1], above, out=np.zeros(len(above)), where=above > 0)
        result[layer] = counts[layer] * (_steps(graph.transition(layer)).T @ share) / growth[layer]
    result[source.level] = 0.0
    return result


def _steps(transition: LayerTransition) -> sparse.csr_array[np.float64]:
    """1 for every pair of nodes with an edge or a residual step, ``[upper, lower]``."""
    pattern = transition.matrix()
    pattern.data = (pattern.data > 0).astype(np.float64)
    return pattern


def _best(graph: AttentionGraph, bottom: _Place, top: _Place, source: NodeLabel, target: NodeLabel) -> Paths:
    if bottom.level < top.level:
        path = best_paths(_Between(graph, bottom.level, top.level), _only(graph, bottom), _only(graph, top), 1)
        if len(path.weight):
            return path
    raise nx.NetworkXNoPath(f"No path between {source} and {target}.")


def _only(graph: AttentionGraph, place: _Place) -> FloatArray:
    state = np.zeros(graph.nodes)
    state[place.node] = 1.0
    return state


def _place(graph: AttentionGraph, label: Any, error: type[Exception] = nx.NodeNotFound) -> _Place:
    """Where a label stands; NetworkX's own errors if it is none of this graph's."""
    names = [*range(graph.blocks), *(f"token:{target}" for target in graph.targets)]
    known = isinstance(label, tuple) and len(label) == 2 and label[0] in range(graph.layers + 1)
    if not known or label[1] not in names:
        raise error(f"The node {label} is not in the graph.")
    return _Place(label[0], names.index(label[1]))


def _labels_of(graph: AttentionGraph, levels: Iterable[tuple[int, Any]]) -> set[NodeLabel]:
    labels = node_labels(graph)
    return {
        labels[level * graph.nodes + node] for level, reached in levels for node in np.flatnonzero(reached).tolist()
    }
