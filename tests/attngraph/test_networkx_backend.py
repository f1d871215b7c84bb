"""NetworkX's functions on a graph, answered by sweeps, beside NetworkX's own answers on the converted graph."""

from __future__ import annotations

from importlib.metadata import entry_points

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.graph import AttentionGraph
from attngraph.graph.interop import node_labels
from attngraph.testing import layered_graphs


def test_networkx_knows_the_backend():
    """If this fails, the installed metadata is older than pyproject.toml: `make setup`."""
    assert entry_points(group="networkx.backends", name="attngraph")


def converted(graph: AttentionGraph) -> nx.MultiDiGraph:
    result = graph.to_networkx()
    result.add_nodes_from(node_labels(graph))
    return result


@st.composite
def graphs_with_nodes(draw: st.DrawFn) -> tuple[AttentionGraph, tuple[int, int | str], tuple[int, int | str]]:
    graph = draw(layered_graphs(max_targets=2))
    nodes = st.sampled_from(node_labels(graph))
    return graph, draw(nodes), draw(nodes)


@given(graphs_with_nodes())
def test_reachability(case: tuple[AttentionGraph, tuple[int, int | str], tuple[int, int | str]]):
    graph, source, target = case
    expected = converted(graph)
    assert nx.has_path(graph, source, target) == nx.has_path(expected, source, target)
    assert nx.descendants(graph, source) == nx.descendants(expected, source)
    assert nx.ancestors(graph, target) == nx.ancestors(expected, target)


@given(graphs_with_nodes(), st.sampled_from([None, "length"]))
def test_shortest_paths(case: tuple[AttentionGraph, tuple[int, int | str], tuple[int, int | str]], weight: str | None):
    graph, source, target = case
    expected = converted(graph)
    if not nx.has_path(expected, source, target):
        for function in (nx.shortest_path, nx.shortest_path_length):
            with pytest.raises(nx.NetworkXNoPath):
                function(graph, source, target, weight=weight)
        return
    length = nx.shortest_path_length(expected, source, target, weight=weight)
    assert nx.shortest_path_length(graph, source, target, weight=weight) == pytest.approx(length, abs=1e-12)
    path = nx.shortest_path(graph, source, target, weight=weight)
    assert (path[0], path[-1]) == (source, target)
    assert nx.is_path(expected, path)
    assert len(path) - 1 == target[0] - source[0]
    if weight:
        assert nx.path_weight(nx.DiGraph(shortest(expected)), path, weight) == pytest.approx(length, abs=1e-12)
        assert nx.dijkstra_path(graph, source, target, weight=weight) == path
        found = nx.dijkstra_path_length(graph, source, target, weight=weight)
        assert found == pytest.approx(length, abs=1e-12)


def shortest(graph: nx.MultiDiGraph) -> nx.DiGraph:
    """The shortest of parallel edges."""
    result = nx.DiGraph()
    for lower, upper, length in graph.edges(data="length"):
        known = result.get_edge_data(lower, upper, {"length": float("inf")})["length"]
        result.add_edge(lower, upper, length=min(known, length))
    return result


@given(layered_graphs(), st.data())
def test_betweenness(graph: AttentionGraph, data: st.DataObject):
    nodes = st.lists(st.sampled_from(node_labels(graph)), max_size=4, unique=True)
    sources, targets = data.draw(nodes), data.draw(nodes)
    found = nx.betweenness_centrality_subset(graph, sources, targets)
    assert found == pytest.approx(nx.betweenness_centrality_subset(converted(graph), sources, targets), abs=1e-12)


def test_path_counts_may_outgrow_every_number():
    """20^1000 paths: every block reads all others, so the middle ones share the betweenness evenly."""
    blocks, layers = 20, 1000
    edges = {
        "layer": [layer for layer in range(layers) for _ in range(blocks * blocks)],
        "query_block": [query for _ in range(layers) for query in range(blocks) for _ in range(blocks)],
        "key_block": [key for _ in range(layers * blocks) for key in range(blocks)],
        "weight": [1.0] * (layers * blocks * blocks),
    }
    graph = AttentionGraph.from_edges(edges, residual=0.0)
    found = nx.betweenness_centrality_subset(graph, [(0, 3)], [(layers, 5)])
    assert found[500, 7] == pytest.approx(1 / blocks)
    assert found[0, 3] == found[layers, 5] == 0.0


GRAPH = AttentionGraph.from_edges(
    {"layer": [0, 1], "query_block": [1, 2], "key_block": [0, 1], "weight": [1.0, 1.0]}, residual=0.5
)


@pytest.mark.parametrize("node", [(0, 9), (9, 0), (-1, 0), (0, "token:1"), "needle", (0,), ([], 0)])
def test_unknown_nodes_raise_what_networkx_raises(node: object):
    for function in (nx.has_path, nx.shortest_path, nx.shortest_path_length):
        with pytest.raises(nx.NodeNotFound, match="is not in the graph"):
            function(GRAPH, node, (2, 2))
        with pytest.raises(nx.NodeNotFound, match="is not in the graph"):
            function(GRAPH, (0, 0), node)
    for function in (nx.descendants, nx.ancestors):
        with pytest.raises(nx.NetworkXError, match="is not in the graph"):
            function(GRAPH, node)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nx.shortest_path(GRAPH, (0, 0)),
        lambda: nx.shortest_path(GRAPH, (0, 0), (2, 2), weight="probability"),
        lambda: nx.dijkstra_path(GRAPH, (0, 0), (2, 2)),
        lambda: nx.betweenness_centrality_subset(GRAPH, [(0, 0)], [(2, 2)], normalized=True),
        lambda: nx.betweenness_centrality_subset(GRAPH, [(0, 0)], [(2, 2)], weight="length"),
        lambda: nx.pagerank(GRAPH),
        lambda: nx.has_path(nx.path_graph(3), 0, 2, backend="attngraph"),
    ],
)
def test_what_the_backend_does_not_answer_is_refused(call: object):
    with pytest.raises(NotImplementedError):
        call()


def test_other_functions_convert_where_networkx_may():
    with nx.config(fallback_to_nx=True):
        assert nx.shortest_path(GRAPH, (0, 0))[2, 2] == [(0, 0), (1, 1), (2, 2)]
        assert nx.dag_longest_path_length(GRAPH) == 2
