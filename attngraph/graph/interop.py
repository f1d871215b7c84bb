"""Extracts of a graph in the terms of NetworkX, igraph and rustworkx.

These libraries keep an object per edge, or need seconds per million edges to build their structures, so each
conversion takes an extract and refuses more edges than `max_edges`; the sweeps of this package need none of
them. Edges run in the model's direction, from level to level + 1; each has its probability and its length,
-log(probability), so that a shortest path by length is the best route.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np

from attngraph.errors import GraphError, MissingDependencyError
from attngraph.graph.source import FloatArray, IntArray

if TYPE_CHECKING:
    import igraph
    import rustworkx

    from attngraph.graph.layered import AttentionGraph

NodeLabel = tuple[int, int | str]
RESIDUAL = "residual"


class EdgeData(NamedTuple):
    """What a rustworkx edge carries: `head` is None for a residual step."""

    layer: int
    head: int | None
    probability: float
    length: float


@dataclass(frozen=True, eq=False)
class _Extract:
    """Edges of some layers: attention edges of a layer first, then its residual steps, whose head is -1.

    `lower` and `upper` number the nodes through all levels: level · nodes per level + node.
    """

    lower: IntArray
    upper: IntArray
    layer: IntArray
    head: IntArray
    mass: FloatArray
    contribution: FloatArray
    probability: FloatArray

    @property
    def length(self) -> FloatArray:
        return np.abs(np.log(self.probability))  # abs: no -0.0


def node_label(level: int, block: int, target: int | None) -> NodeLabel:
    """(level, block), or (level, "token:N") for a target token."""
    return (level, block if target is None else f"token:{target}")


def node_labels(graph: AttentionGraph) -> list[NodeLabel]:
    """The label of every node, level by level, ``[(layers + 1) · nodes]``."""
    blocks, targets = graph.node_blocks().tolist(), graph.node_targets()
    return [
        node_label(level, block, target)
        for level in range(graph.layers + 1)
        for block, target in zip(blocks, targets, strict=True)
    ]


def to_networkx(
    graph: AttentionGraph,
    *,
    max_edges: int = 100_000,
    layers: Iterable[int] | None = None,
    minimum: float = 0.0,
) -> nx.MultiDiGraph:
    """An extract of a graph as a NetworkX multigraph; NetworkX takes about 2 KiB per edge.

    Parameters
    ----------
    max_edges
        Refuse to build more edges than this, residual steps included.
    layers
        The layers to take; all of them by default.
    minimum
        Leave out edges and residual steps whose probability is below this; those of probability 0 are always
        left out.

    Returns
    -------
    networkx.MultiDiGraph
        Nodes are (level, block) and (level, "token:N"). Attention edges are keyed by their head, with the
        attributes kind="attention", layer, head, mass, contribution, probability, length; residual steps by
        "residual", with kind="residual", layer, probability, length. Only nodes with edges are there.

    Raises
    ------
    GraphError
        If there are more than `max_edges` edges, or a layer doesn't exist.
    """
    found = _extract(graph, max_edges, layers, minimum)
    labels = node_labels(graph)
    result = nx.MultiDiGraph()
    names = ("lower", "upper", "layer", "head", "mass", "contribution", "probability", "length")
    for lower, upper, layer, head, mass, contribution, probability, length in zip(
        *(getattr(found, name).tolist() for name in names), strict=True
    ):
        attributes = {"layer": layer, "probability": probability, "length": length}
        if head < 0:
            result.add_edge(labels[lower], labels[upper], RESIDUAL, kind=RESIDUAL, **attributes)
        else:
            weights = {"mass": mass, "contribution": contribution}
            result.add_edge(labels[lower], labels[upper], head, kind="attention", head=head, **weights, **attributes)
    return result


def to_igraph(
    graph: AttentionGraph,
    *,
    max_edges: int = 1_000_000,
    layers: Iterable[int] | None = None,
    minimum: float = 0.0,
) -> igraph.Graph:
    """An extract of a graph as a directed igraph multigraph; about 1 second per million edges.

    Parameters
    ----------
    max_edges, layers, minimum
        As in `to_networkx`.

    Returns
    -------
    igraph.Graph
        All nodes of all levels, with the attributes level, block, target (a token position, or None); edges
        with layer, head (None for a residual step), probability, length.

    Raises
    ------
    MissingDependencyError
        If igraph isn't installed.
    GraphError
        As `to_networkx`.
    """
    _require("igraph")
    import igraph

    found = _extract(graph, max_edges, layers, minimum)
    levels = graph.layers + 1
    result = igraph.Graph(
        n=levels * graph.nodes,
        edges=np.column_stack([found.lower, found.upper]),
        directed=True,
    )
    result.vs["level"] = np.repeat(np.arange(levels), graph.nodes).tolist()
    result.vs["block"] = graph.node_blocks().tolist() * levels
    result.vs["target"] = graph.node_targets() * levels
    result.es["layer"] = found.layer.tolist()
    result.es["head"] = _heads(found)
    result.es["probability"] = found.probability.tolist()
    result.es["length"] = found.length.tolist()
    return result


def to_rustworkx(
    graph: AttentionGraph,
    *,
    max_edges: int = 1_000_000,
    layers: Iterable[int] | None = None,
    minimum: float = 0.0,
) -> rustworkx.PyDiGraph[NodeLabel, EdgeData]:
    """An extract of a graph as a rustworkx multigraph; about 1 second per million edges.

    Parameters
    ----------
    max_edges, layers, minimum
        As in `to_networkx`.

    Returns
    -------
    rustworkx.PyDiGraph
        All nodes of all levels, carrying their labels (level, block) or (level, "token:N"); edges carry an
        `EdgeData`: ``weight_fn=lambda edge: edge.length``.

    Raises
    ------
    MissingDependencyError
        If rustworkx isn't installed.
    GraphError
        As `to_networkx`.
    """
    _require("rustworkx")
    import rustworkx

    found = _extract(graph, max_edges, layers, minimum)
    result: rustworkx.PyDiGraph[NodeLabel, EdgeData] = rustworkx.PyDiGraph(
        node_count_hint=(graph.layers + 1) * graph.nodes, edge_count_hint=len(found.lower)
    )
    result.add_nodes_from(node_labels(graph))
    columns = (found.layer.tolist(), _heads(found), found.probability.tolist(), found.length.tolist())
    result.add_edges_from(list(zip(found.lower.tolist(), found.upper.tolist(), map(EdgeData, *columns), strict=True)))
    return result


def _heads(found: _Extract) -> list[int | None]:
    return [None if head < 0 else head for head in found.head.tolist()]


def _extract(graph: AttentionGraph, max_edges: int, layers: Iterable[int] | None, minimum: float) -> _Extract:
    """The edges and residual steps of an extract; the rest is only counted, for the message."""
    parts = []
    count = 0
    for layer in range(graph.layers) if layers is None else sorted(set(layers)):
        transition = graph.transition(layer)
        edges = np.flatnonzero((transition.probability >= minimum) & (transition.probability > 0))
        stays = np.flatnonzero((transition.stay >= minimum) & (transition.stay > 0))
        count += len(edges) + len(stays)
        if count > max_edges:
            continue
        none = np.full(len(stays), np.nan)
        lower = np.concatenate([transition.key_block[edges], stays]) + layer * graph.nodes
        upper = np.concatenate([transition.query[edges], stays]) + (layer + 1) * graph.nodes
        parts.append(
            _Extract(
                lower=lower,
                upper=upper,
                layer=np.full(len(lower), layer),
                head=np.concatenate([transition.head[edges], np.full(len(stays), -1)]),
                mass=np.concatenate([transition.mass[edges], none]),
                contribution=np.concatenate([transition.contribution[edges], none]),
                probability=np.concatenate([transition.probability[edges], transition.stay[stays]]),
            )
        )
    if count > max_edges:
        raise GraphError(
            f"This extract has {count:,} edges and residual steps, over max_edges={max_edges:,}. Take fewer "
            f"`layers`, raise `minimum` (now {minimum:g}) or `max_edges`, or convert routes alone with "
            f"Routes.to_networkx()."
        )
    whole, fraction = np.zeros(0, np.int64), np.zeros(0)
    names = ("lower", "upper", "layer", "head", "mass", "contribution", "probability")
    return _Extract(
        *(
            np.concatenate([whole if index < 4 else fraction, *(getattr(part, name) for part in parts)])
            for index, name in enumerate(names)
        )
    )


def _require(package: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f'{package} is not installed. Install it with: pip install "attngraph[interop]"'
        ) from error
