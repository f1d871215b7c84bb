"""Balanced Forman curvature: does an edge sit in a well-knit neighbourhood, or does it bridge two?

For an edge i ~ j of an undirected graph without weights (Topping et al. 2022, arXiv 2111.14522, definition 1), with
d the degrees and max, min those of the two ends:

    Ric(i, j) = 2/d_i + 2/d_j − 2 + 2·|T|/max + |T|/min + (|S_i| + |S_j|) / (γ·max),    0 if min = 1.

T are the triangles at the edge; S_i the neighbours of i, other than j and not neighbours of j, on a 4-cycle through
the edge without a diagonal inside; γ the greatest number of these 4-cycles through one node of S_i or S_j. Very
negative edges are where information from many nodes has to squeeze through.

The graph here is the layered one, unrolled, directions and weights forgotten: an edge joins (ℓ, key block) and (ℓ +
1, query) if its transition probability is above `minimum`, residual steps included. Between consecutive levels it
is bipartite, so there are no triangles and only degrees and 4-cycles count. Curvature costs the squared degrees, so
it is computed for chosen edges, not for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import sparse

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import AttentionGraph, blocks_of, no_route
from attngraph.graph.paths import STAY
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.resistance import conductances
from attngraph_analyses.results import ComparedAnswer, about
from attngraph_analyses.steps import stacked, walks


@dataclass(frozen=True, eq=False, kw_only=True)
class Curvature(ComparedAnswer):
    """What `curvature` found: one entry per edge, greatest throughput first.

    Parameters
    ----------
    source, target
        The ends between which the edges carry most.
    layer, key_block, query, throughput
        ``[edges]``: pairs of nodes, heads summed; `query` is a node, see `node_block`.
    curvature
        ``[edges]``: balanced Forman curvature, above -2.
    node_block, node_target
        Each node's block, and the token position of those that are targets (None for blocks).
    minimum
        Transition probabilities up to this made no edge.
    against
        How the mean curvature of these edges stands against that of as many edges under a null.
    """

    source: str
    target: str
    layer: IntArray
    key_block: IntArray
    query: IntArray
    throughput: FloatArray
    curvature: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]
    minimum: float

    def to_polars(self) -> pl.DataFrame:
        """One row per edge: layer, key_block, query_block, target, throughput, curvature."""
        return pl.DataFrame(
            {
                "layer": self.layer,
                "key_block": self.key_block,
                "query_block": self.node_block[self.query],
                "target": pl.Series(self.node_target, dtype=pl.Int64).gather(self.query),
                "throughput": self.throughput,
                "curvature": self.curvature,
            }
        )


def curvature(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    edges: int = 30,
    minimum: float = 0.0,
    null: Null | NullName | None = None,
) -> Curvature:
    """The curvature of the edges that carry most between a source and a target.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    edges
        Number of edges (pairs of nodes), at least 1, or as many as there are.
    minimum
        Leave out transition probabilities up to this.
    null
        Also ask for the mean curvature of the edges that carry most under this null; NaN where none carries anything.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no walk from the target ends in the source.
    ConfigError
        If `edges` is below 1, `minimum` negative, or the null unknown or ``"heads"``, which changes no curvature.
    GraphError
        If the null has nothing to compare with.
    """
    if edges < 1:
        raise ConfigError(f"edges={edges!r} must be at least 1.")
    if not minimum >= 0.0:
        raise ConfigError(f"minimum={minimum!r} must be at least 0.")
    chosen = None if null is None else meaningful(null, "the curvature", *ALL_BUT_HEADS)
    question = Question(graph, blocks_of(graph, source), target)
    found = _curvature(question, source, edges, minimum)
    if found is None:
        raise no_route(graph, source, target)
    found = replace(found, **about(graph, target))
    if chosen is None:
        return found

    def ask(question: Question) -> float:
        other = _curvature(question, source, edges, minimum)
        return np.nan if other is None else _mean(other.curvature)

    return replace(found, against=compare(ask, question, chosen, value=_mean(found.curvature)))


def _mean(values: FloatArray) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else np.nan


def _curvature(question: Question, source: str, edges: int, minimum: float) -> Curvature | None:
    """The curvature of a question's edges; None if no walk reaches the source."""
    passing, graph = walks(question), question.graph
    if passing is None:
        return None
    nodes = graph.nodes
    size = (graph.layers + 1) * nodes
    layers = [passing.steps(layer) for layer in range(graph.layers)]
    flow, layer = stacked(layers), np.repeat(np.arange(graph.layers), [len(steps.share) for steps in layers])
    moving = flow.head != STAY
    flow, layer = flow.only(moving), layer[moving]
    ends = ((layer + 1) * nodes + flow.upper, layer * nodes + flow.lower)
    carried = sparse.coo_array((flow.share, ends), shape=(size, size)).tocsr().tocoo()
    network = conductances(graph)
    network.data[network.data <= minimum] = 0.0
    network.eliminate_zeros()
    linked = np.asarray(network[carried.row, carried.col]).ravel() > 0
    order = np.flatnonzero(linked)
    order = order[np.argsort(-carried.data[order], kind="stable")[:edges]]
    lower, upper = carried.col[order].astype(np.int64), carried.row[order].astype(np.int64)
    pairs = list(zip(lower.tolist(), upper.tolist(), strict=True))
    return Curvature(
        source=source,
        target=question.target,
        layer=lower // nodes,
        key_block=lower % nodes,
        query=upper % nodes,
        throughput=carried.data[order],
        curvature=balanced_forman(network, pairs),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        minimum=minimum,
        policy=graph.policy,
        block_size=graph.block_size,
    )


def balanced_forman(adjacency: sparse.csr_array[np.float64], edges: Sequence[tuple[int, int]]) -> FloatArray:
    """Balanced Forman curvature of edges of an undirected graph, ``[edges]``.

    Parameters
    ----------
    adjacency
        ``[nodes, nodes]``: symmetric; entries that aren't 0 are edges, the diagonal is ignored.
    edges
        Pairs of neighbours.

    Raises
    ------
    GraphError
        If a pair isn't an edge.
    """
    neighbours: dict[int, set[int]] = {}

    def around(node: int) -> set[int]:
        if node not in neighbours:
            row = slice(adjacency.indptr[node], adjacency.indptr[node + 1])
            indices = adjacency.indices[row][adjacency.data[row] != 0]
            neighbours[node] = set(indices.tolist()) - {node}
        return neighbours[node]

    def squares(one: int, other: int) -> Iterable[int]:
        """For each node of S_one, the number of 4-cycles without diagonals on it: paths k ~ w ~ other, w not ~ one."""
        far = around(other) - around(one) - {one}
        counts = (len(around(k) & far) for k in around(one) - around(other) - {other})
        return [count for count in counts if count]

    found = []
    for i, j in edges:
        if j not in around(i):
            raise GraphError(f"({i}, {j}) is not an edge of this graph, so it has no curvature.")
        least, most = sorted((len(around(i)), len(around(j))))
        if least == 1:
            found.append(0.0)
            continue
        triangles = len(around(i) & around(j))
        cycles = [*squares(i, j), *squares(j, i)]
        term = len(cycles) / (max(cycles) * most) if cycles else 0.0
        found.append(2 / least + 2 / most - 2 + 2 * triangles / most + triangles / least + term)
    return np.array(found)
