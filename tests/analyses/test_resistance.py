"""Effective resistance and curvature: NetworkX, laws of circuits, closed forms."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from scipy import sparse

from attngraph.errors import ConfigError, GraphError, NoRouteError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import layer_arrays, sources
from attngraph_analyses import current_flow, curvature, throughput
from attngraph_analyses.curvature import balanced_forman
from attngraph_analyses.resistance import conductances
from tests.analyses.paths import chain, diamond


def test_a_diamond_by_hand():
    """Two arms in parallel: conductances ½ then 0.75·¼, and ½ then 0.75·¾."""
    found = current_flow(diamond(), "needle")
    arms = [1 / (1 / 0.5 + 1 / 0.1875), 1 / (1 / 0.5 + 1 / 0.5625)]
    # Block 0 also stays, and the blocks go on to level 2, but these are dead ends.
    assert found.resistance == pytest.approx(1 / sum(arms), rel=1e-6)
    np.testing.assert_allclose(found.node[1, 1:3], np.array(arms) / sum(arms), rtol=1e-6)
    assert found.node[0, 0] == pytest.approx(1.0, rel=1e-6)
    assert found.to_polars().filter(level=2, target=7)["current"].item() == pytest.approx(1.0, rel=1e-6)


@given(sources())
def test_resistance_is_networkxs(source: ArraySource):
    graph = AttentionGraph(source, weight="uniform", residual=0.4)
    if graph.node_blocks()[-1] == 0:
        return  # the target's own node at level 0 is a source, too
    network = nx.Graph()
    for one, other, value in _entries(conductances(graph)):
        network.add_edge(one, other, weight=value)
    start, end = 0, (graph.layers + 1) * graph.nodes - 1
    if not (network.has_node(start) and network.has_node(end) and nx.has_path(network, start, end)):
        with pytest.raises(NoRouteError):
            current_flow(graph, "block:0")
        return
    component = network.subgraph(nx.node_connected_component(network, start))
    expected = nx.resistance_distance(component, start, end, weight="weight", invert_weight=False)
    found = current_flow(graph, "block:0")
    assert found.resistance == pytest.approx(expected, rel=1e-5)
    # Each level separates the ends, so all the current passes it at least once.
    assert (found.node.sum(1) >= 1 - 1e-5).all()
    assert found.node.max() <= 1 + 1e-5


def _entries(matrix: sparse.csr_array) -> list[tuple[int, int, float]]:
    upper = sparse.triu(matrix).tocoo()
    return list(zip(upper.row.tolist(), upper.col.tolist(), upper.data.tolist(), strict=True))


def test_more_ways_resist_less():
    """Rayleigh: shorting a source of two blocks can't raise the resistance."""
    graph = chain()
    both = current_flow(graph, "needle").resistance
    assert both < min(current_flow(graph, f"block:{block}").resistance for block in (12, 13))


def test_nulls_and_bad_input():
    found = current_flow(chain(), "needle", null="uniform")
    assert found.against is not None
    assert found.against.draws == pytest.approx([current_flow(chain().uniform(), "needle").resistance])
    with pytest.raises(ConfigError, match="tolerance=0 is not above 0 and below 1"):
        current_flow(chain(), "needle", tolerance=0)
    with pytest.raises(GraphError, match="didn't settle to tolerance=1e-08 in max_iterations=1 steps"):
        current_flow(chain(), "needle", max_iterations=1)
    apart = layer_arrays([], residual=np.ones(2), target_residual=np.ones(1))
    graph = AttentionGraph(ArraySource(arrays=[apart], heads=1, tokens=4, block_size=2, targets=(3,)))
    with pytest.raises(NoRouteError, match="from 'block:0' to 'output'"):
        current_flow(graph, "block:0")


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (nx.cycle_graph(3), 3 / 2),
        (nx.cycle_graph(4), 1.0),
        (nx.cycle_graph(5), 0.0),
        (nx.cycle_graph(9), 0.0),
        (nx.complete_graph(4), 4 / 3),
        (nx.complete_graph(7), 7 / 6),
        (nx.grid_2d_graph(6, 6, periodic=True), 0.0),
        (nx.path_graph(2), 0.0),
    ],
    ids=["C3", "C4", "C5", "C9", "K4", "K7", "torus", "a leaf"],
)
def test_closed_forms_of_the_curvature(graph: nx.Graph, expected: float):
    graph = nx.convert_node_labels_to_integers(graph)
    adjacency = sparse.csr_array(nx.to_scipy_sparse_array(graph, dtype=float))
    np.testing.assert_allclose(balanced_forman(adjacency, list(graph.edges)), expected, atol=1e-12)


def test_trees_are_negatively_curved():
    """4 / (r + 1) − 2 on the inner edges of a tree in which every inner node has r + 1 neighbours."""
    tree = nx.balanced_tree(3, 4)
    adjacency = sparse.csr_array(nx.to_scipy_sparse_array(tree, dtype=float))
    assert balanced_forman(adjacency, [(1, 4)]) == pytest.approx([4 / 4 - 2])
    with pytest.raises(GraphError, match=r"\(0, 5\) is not an edge"):
        balanced_forman(adjacency, [(0, 5)])


def test_the_curvature_of_routes():
    graph = chain(blocks=6)
    found = curvature(graph, "needle", edges=4)
    carried: dict[tuple[int, int, int], float] = {}
    flow = throughput(graph, "needle")
    for layer, key, query, share in zip(flow.layer, flow.key_block, flow.query, flow.throughput, strict=True):
        carried[layer, key, query] = carried.get((layer, key, query), 0.0) + share
    best = sorted(carried.values(), reverse=True)[:4]
    np.testing.assert_allclose(found.throughput, best)
    for layer, key, query, share in zip(found.layer, found.key_block, found.query, found.throughput, strict=True):
        assert carried[layer, key, query] == pytest.approx(share)
    assert (found.curvature > -2).all()
    assert len(curvature(graph, "needle", edges=10_000).layer) == len(carried)
    assert found.to_polars().columns == ["layer", "key_block", "query_block", "target", "throughput", "curvature"]


def test_bad_curvature():
    with pytest.raises(ConfigError, match="edges=0 must be at least 1"):
        curvature(diamond(), "needle", edges=0)
    with pytest.raises(ConfigError, match="minimum=-1 must be at least 0"):
        curvature(diamond(), "needle", minimum=-1)
    with pytest.raises(NoRouteError):
        curvature(diamond(), "output", "needle")
