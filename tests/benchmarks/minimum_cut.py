"""The minimum cut between two blocks in SciPy, igraph and NetworkX, of the very steps that attngraph cuts.

The flow through a graph of millions of edges is so diffuse that no step carries a thousandth of it, attngraph's default
threshold. `THRESHOLD` leaves a hundred thousand steps that carry most of it. The others get these steps with their
capacities, residual ones without end, so that they are spared what attngraph begins with: two sweeps over all edges and
the search for the steps that carry enough. rustworkx has no cut between two nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import igraph
import networkx as nx
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

import attngraph as ag
from attngraph.graph import blocks_of
from attngraph.graph.paths import STAY
from attngraph_analyses.nulls import Question
from attngraph_analyses.steps import routes_graph, stacked

THRESHOLD = 1e-5
"""Least share of the walks that a step carries."""


class Problem(NamedTuple):
    """Steps from `lower` to `upper`, parallel ones added up, and what cutting them costs, as numbers without end."""

    size: int
    start: int
    end: int
    lower: np.ndarray
    upper: np.ndarray
    capacity: np.ndarray


def problem(graph: ag.AttentionGraph, source: str, target: str) -> tuple[Problem, int]:
    """What is to be cut between two blocks, and how many steps that are before parallel ones are added up."""
    found = routes_graph(Question(graph, blocks_of(graph, source), target), THRESHOLD)
    if found is None:
        raise SystemExit(f"No route from {source} to {target} is made of steps that carry {THRESHOLD:g} each.")
    steps = stacked(found.layers)
    layer = np.repeat(np.arange(graph.layers), [len(part.share) for part in found.layers])
    stays = steps.head == STAY
    capacity = np.where(stays, steps.mass[~stays].sum() + 1.0, steps.mass)
    size = (graph.layers + 1) * graph.nodes
    ends = (layer * graph.nodes + steps.lower, (layer + 1) * graph.nodes + steps.upper)
    merged = sparse.coo_array((capacity, ends), shape=(size, size)).tocsr().tocoo()
    start, end = int(found.starts[0]), graph.layers * graph.nodes + int(found.ends[0])
    return Problem(size, start, end, merged.row, merged.col, merged.data), len(stays)


def scipy_network(cut: Problem, scale: float) -> sparse.csr_array:
    """Capacities as 32-bit integers, `scale` units to one."""
    units = np.minimum(np.rint(cut.capacity * scale), np.iinfo(np.int32).max).astype(np.int32)
    return sparse.coo_array((units, (cut.lower, cut.upper)), shape=(cut.size, cut.size)).tocsr()


def scipy_value(network: sparse.csr_array, cut: Problem, scale: float) -> float:
    return float(csgraph.maximum_flow(network, cut.start, cut.end).flow_value) / scale


def igraph_network(cut: Problem) -> igraph.Graph:
    graph = igraph.Graph(n=cut.size, edges=np.column_stack([cut.lower, cut.upper]), directed=True)
    graph.es["capacity"] = cut.capacity.tolist()
    return graph


def igraph_value(network: igraph.Graph, cut: Problem) -> float:
    return float(network.mincut(cut.start, cut.end, capacity="capacity").value)


def networkx_network(cut: Problem) -> nx.DiGraph:
    graph = nx.DiGraph()
    columns = (cut.lower.tolist(), cut.upper.tolist(), cut.capacity.tolist())
    graph.add_weighted_edges_from(zip(*columns, strict=True), weight="capacity")
    return graph


def networkx_value(network: nx.DiGraph, cut: Problem) -> float:
    return float(nx.minimum_cut_value(network, cut.start, cut.end))
