"""Effective resistance: the layered graph as a network of resistors.

Edges and residual steps become undirected conductances c[u, v], the transition probabilities with heads summed. A
unit current goes in at the target and out at the source; the nodes of each end are joined to one. With L the
graph's Laplacian and p its potentials, L p = e_target − e_source (Klein & Randić 1993):

- the effective resistance is R = p_target − p_source. Over-squashing between two nodes is bounded by it (Di
  Giovanni et al. 2023, arXiv 2302.02941; Black et al. 2023, arXiv 2302.06835): many short parallel routes make it
  small;
- the current-flow throughput of a node is ½·Σ_u c[u, v]·|p_u − p_v| (Newman 2005), the share of the current that
  passes it, 1 at both ends. Unlike the walk it may go up and down through layers, so levels don't sum to 1, but to
  at least 1.

The potentials come from conjugate gradients with a Jacobi preconditioner, with the source grounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import cg

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import AttentionGraph, blocks_of, no_route, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nodes import node_table
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about


@dataclass(frozen=True, eq=False, kw_only=True)
class CurrentFlow(ComparedAnswer):
    """What `current_flow` found.

    Parameters
    ----------
    source, target
        The two ends, by name.
    resistance
        Effective resistance between them, above 0, where a step of probability 1 has the resistance 1.
    node
        ``[layers + 1, nodes]``: share of the current that passes each node.
    node_block, node_target
        Each node's block, and the token position of those that are targets (None for blocks).
    tolerance
        The relative residual that conjugate gradients stopped at.
    against
        How the resistance stands against a null.
    """

    source: str
    target: str
    resistance: float
    node: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]
    tolerance: float

    def to_polars(self) -> pl.DataFrame:
        """One row per level and node that any current passes, by level: level, block, target, current."""
        return node_table("current", self.node, self.node_block, self.node_target)


def current_flow(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
    null: Null | NullName | None = None,
) -> CurrentFlow:
    """Effective resistance between a source and a target, and where the current between them passes.

    The whole graph is held in memory, heads summed: about 24 bytes per pair of nodes.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    tolerance
        Relative residual of the potentials, above 0 and below 1.
    max_iterations
        Conjugate gradient steps after which to give up.
    null
        Also ask for the resistance under this null.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If the two ends aren't connected.
    ConfigError
        If the tolerance is out of range, or the null unknown or ``"heads"``, which changes no resistance.
    GraphError
        If the iterations don't suffice, or the null has nothing to compare with.
    """
    if not 0.0 < tolerance < 1.0:
        raise ConfigError(f"tolerance={tolerance!r} is not above 0 and below 1.")
    chosen = None if null is None else meaningful(null, "the effective resistance", *ALL_BUT_HEADS)

    def solved(question: Question) -> tuple[float, FloatArray] | None:
        network = conductances(question.graph)
        starts = np.flatnonzero(question.starts())
        ends = np.flatnonzero(target_state(question.graph, question.target)) + question.graph.layers * graph.nodes
        return _currents(network, starts, ends, tolerance, max_iterations)

    question = Question(graph, blocks_of(graph, source), target)
    found = solved(question)
    if found is None:
        raise no_route(graph, source, target)
    resistance, node = found
    result = CurrentFlow(
        source=source,
        target=target,
        resistance=resistance,
        node=node.reshape(graph.layers + 1, graph.nodes),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        tolerance=tolerance,
        **about(graph, target),
    )
    if chosen is None:
        return result

    def ask(question: Question) -> float:
        other = solved(question)
        return np.nan if other is None else other[0]

    return replace(result, against=compare(ask, question, chosen, value=resistance))


def conductances(graph: AttentionGraph) -> sparse.csr_array[np.float64]:
    """The undirected layered graph, ``[levels · nodes, levels · nodes]``: node i of level ℓ is ℓ · nodes + i.

    Entries are transition probabilities above 0, residual steps included, heads summed.
    """
    nodes, size = graph.nodes, (graph.layers + 1) * graph.nodes
    lower, upper, values = [], [], []
    for layer in range(graph.layers):
        steps = graph.transition(layer).matrix().tocoo()
        kept = steps.data > 0
        upper.append(steps.row[kept] + np.int64((layer + 1) * nodes))
        lower.append(steps.col[kept] + np.int64(layer * nodes))
        values.append(steps.data[kept])
    rows, columns = np.concatenate(upper), np.concatenate(lower)
    half = sparse.coo_array((np.concatenate(values), (rows, columns)), shape=(size, size)).tocsr()
    return (half + half.T).tocsr()


def _currents(
    network: sparse.csr_array[np.float64], starts: IntArray, ends: IntArray, tolerance: float, max_iterations: int
) -> tuple[float, FloatArray] | None:
    """Resistance between two sets of nodes, each joined to one, and the current through each node; None if apart."""
    size = network.shape[0]
    names = np.arange(size)
    names[starts], names[ends] = size, size + 1
    names = np.unique(names, return_inverse=True)[1]
    out, into = len(np.unique(names)) - 2, len(np.unique(names)) - 1
    edges = sparse.triu(network).tocoo()
    one, other = names[edges.row], names[edges.col]
    kept = one != other
    one, other, conductance = one[kept], other[kept], edges.data[kept]
    joined = sparse.coo_array((conductance, (one, other)), shape=(into + 1, into + 1)).tocsr()
    component = csgraph.connected_components(joined, directed=False)[1]
    if component[out] != component[into]:
        return None
    inside = np.flatnonzero(component == component[into])
    inside = inside[inside != out]
    potential = np.zeros(into + 1)
    potential[inside] = _potentials(joined, inside, int(np.searchsorted(inside, into)), tolerance, max_iterations)

    current = conductance * np.abs(potential[one] - potential[other])
    through = np.bincount(one, current, minlength=into + 1) + np.bincount(other, current, minlength=into + 1)
    share = np.asarray(0.5 * through[names], np.float64)
    # A set of several nodes is one node of the network: its nodes share its current by what each lets through.
    for members in (starts, ends):
        mine = np.isin(edges.row, members), np.isin(edges.col, members)
        flow = edges.data * np.abs(potential[names[edges.row]] - potential[names[edges.col]])
        by_node = np.bincount(edges.row[mine[0]], flow[mine[0]], minlength=size)
        by_node = by_node + np.bincount(edges.col[mine[1]], flow[mine[1]], minlength=size)
        share[members] = by_node[members]
    return float(potential[into]), share


def _potentials(
    joined: sparse.csr_array[np.float64], inside: IntArray, entry: int, tolerance: float, max_iterations: int
) -> FloatArray:
    """Potentials of the nodes `inside` when a unit current enters at one of them and leaves at the grounded one."""
    both = (joined + joined.T).tocsr()
    degree: FloatArray = np.asarray(both.sum(1), np.float64).ravel()[inside]
    laplacian = (sparse.diags_array(degree) - both[inside][:, inside]).tocsr()
    entering = np.zeros(len(inside))
    entering[entry] = 1.0
    jacobi = sparse.diags_array(1.0 / degree)
    found, status = cg(laplacian, entering, rtol=tolerance, maxiter=max_iterations, M=jacobi)
    if status != 0:
        raise GraphError(
            f"The potentials didn't settle to tolerance={tolerance:g} in max_iterations={max_iterations:,} steps: the "
            f"conductances differ by too much. Raise either, or use residual='half'."
        )
    return np.asarray(found)
