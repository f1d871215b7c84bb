"""The graph in other libraries' terms: Arrow tables and NetworkX extracts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import pyarrow as pa

from attngraph.errors import GraphError

if TYPE_CHECKING:
    from attngraph.graph.layered import AttentionGraph

NodeLabel = tuple[int, int | str]
RESIDUAL = "residual"


def node_label(level: int, block: int, target: int | None) -> NodeLabel:
    """(level, block), or (level, "token:N") for a target token."""
    return (level, block if target is None else f"token:{target}")


def edges_table(graph: AttentionGraph) -> pa.Table:
    """All attention edges of a graph, one chunk per layer.

    Returns
    -------
    pyarrow.Table
        layer, head, query_block, target (token position; null for an edge into a block), key_block, mass,
        contribution, probability. A target's `query_block` is the block that holds it. Residual steps aren't
        edges of this table.
    """
    blocks, targets = graph.node_blocks(), pa.array(graph.node_targets(), pa.uint32())
    batches = []
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        batches.append(
            pa.table(
                {
                    "layer": pa.array(np.full(len(transition.head), layer), pa.uint16()),
                    "head": pa.array(transition.head, pa.uint16()),
                    "query_block": pa.array(blocks[transition.query], pa.uint32()),
                    "target": targets.take(pa.array(transition.query)),
                    "key_block": pa.array(transition.key_block, pa.uint32()),
                    "mass": pa.array(transition.mass, pa.float32()),
                    "contribution": pa.array(transition.contribution, pa.float32()),
                    "probability": pa.array(transition.probability, pa.float64()),
                }
            )
        )
    return pa.concat_tables(batches)


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
        attributes kind="attention", layer, head, mass, contribution, probability; residual steps by
        "residual", with kind="residual", layer, probability. Edges run in the model's direction, from level
        to level + 1.

    Raises
    ------
    GraphError
        If there are more than `max_edges` edges, or a layer doesn't exist.
    """
    result = nx.MultiDiGraph()
    blocks, targets = graph.node_blocks().tolist(), graph.node_targets()
    count = 0
    for layer in range(graph.layers) if layers is None else sorted(set(layers)):
        transition = graph.transition(layer)
        edges = np.flatnonzero((transition.probability >= minimum) & (transition.probability > 0))
        stays = np.flatnonzero((transition.stay >= minimum) & (transition.stay > 0))
        count += len(edges) + len(stays)
        if count > max_edges:
            continue  # the rest is only counted, for the message
        names = ("head", "mass", "contribution", "probability")
        rows = zip(*(getattr(transition, name)[edges].tolist() for name in names), strict=True)
        ends = zip(transition.key_block[edges].tolist(), transition.query[edges].tolist(), strict=True)
        for (key_block, query), row in zip(ends, rows, strict=True):
            upper = node_label(layer + 1, blocks[query], targets[query])
            attributes = dict(zip(names, row, strict=True))
            result.add_edge((layer, key_block), upper, row[0], kind="attention", layer=layer, **attributes)
        for node, stay in zip(stays.tolist(), transition.stay[stays].tolist(), strict=True):
            lower, upper = (node_label(level, blocks[node], targets[node]) for level in (layer, layer + 1))
            result.add_edge(lower, upper, RESIDUAL, kind=RESIDUAL, layer=layer, probability=stay)
    if count > max_edges:
        raise GraphError(
            f"This extract has {count:,} edges and residual steps, over max_edges={max_edges:,}. Take fewer "
            f"`layers`, raise `minimum` (now {minimum:g}) or `max_edges`, or convert routes alone with "
            f"Routes.to_networkx()."
        )
    return result
