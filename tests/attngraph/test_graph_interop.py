"""Conversions to Arrow tables, SciPy, NetworkX, igraph and rustworkx, and their answers beside ours."""

from __future__ import annotations

import subprocess
import sys

import duckdb
import networkx as nx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import rustworkx
from hypothesis import assume, given
from scipy.sparse import csgraph

from attngraph.errors import GraphError
from attngraph.graph import ArraySource, AttentionGraph, best_log_weights, source_state
from attngraph.graph.interop import node_labels
from attngraph.graph.testing import layer_arrays, random_source, sources
from attngraph.testing import layered_graphs
from attngraph_analyses import influence, reach, routes, sequence_weight, throughput

LAYER = layer_arrays(
    [(0, 0, 0, 1.0), (0, 1, 0, 1.0), (1, 1, 0, 2.0), (1, 1, 1, 1.0)],
    [(1, 0, 0, 4.0)],
    residual=np.array([0.5, 0.2]),
    target_residual=np.array([0.75]),
)


def graph() -> AttentionGraph:
    return AttentionGraph(ArraySource(arrays=[LAYER, LAYER], heads=2, tokens=4, block_size=2, targets=(3,)))


def test_edges_table_by_hand():
    frame = pl.from_arrow(graph().edges_table())
    assert frame.columns == [
        "layer", "head", "query_block", "target", "key_block", "mass", "contribution", "probability",
    ]  # fmt: skip
    assert frame.height == 10
    assert frame.filter(pl.col("layer") == 1).row(4) == (1, 1, 1, 3, 0, 4.0, 4.0, 0.25)
    assert frame.row(2) == (0, 1, 1, None, 0, 2.0, 2.0, pytest.approx(0.4))
    assert frame.schema["target"] == pl.UInt32


def test_networkx_by_hand():
    result = graph().to_networkx()
    assert set(result) == {(level, node) for level in range(3) for node in (0, 1, "token:3")}
    assert result.number_of_edges() == 16
    parallel = result.get_edge_data((0, 0), (1, 1))
    assert set(parallel) == {0, 1}
    assert parallel[1] == {
        "kind": "attention", "layer": 0, "head": 1, "mass": 2.0, "contribution": 2.0,
        "probability": pytest.approx(0.4), "length": pytest.approx(-np.log(0.4)),
    }  # fmt: skip
    assert result.edges[(1, 0), (2, "token:3"), 1]["probability"] == 0.25
    assert result.edges[(1, "token:3"), (2, "token:3"), "residual"] == {
        "kind": "residual", "layer": 1, "probability": 0.75, "length": pytest.approx(-np.log(0.75)),
    }  # fmt: skip
    # a block's own attention runs beside its residual step
    assert set(result.get_edge_data((0, 1), (1, 1))) == {1, "residual"}


@given(sources())
def test_networkx_holds_the_whole_transition_matrix(source: ArraySource):
    graph = AttentionGraph(source)
    labels = [*range(graph.blocks), *(f"token:{target}" for target in graph.targets)]
    converted = graph.to_networkx()
    for layer in range(graph.layers):
        nodes = [(level, label) for level in (layer, layer + 1) for label in labels]
        nodes = [node for node in nodes if node in converted]
        matrix = nx.to_numpy_array(converted, nodelist=nodes, weight="probability")
        dense = graph.to_scipy(layer).toarray().T
        np.testing.assert_allclose(matrix.sum(), dense.sum(), rtol=1e-12)
        for lower, upper in np.argwhere(dense > 0).tolist():
            parallel = converted.get_edge_data((layer, labels[lower]), (layer + 1, labels[upper]))
            total = sum(edge["probability"] for edge in parallel.values())
            np.testing.assert_allclose(total, dense[lower, upper], rtol=1e-12)


def test_networkx_takes_extracts():
    one = graph().to_networkx(layers=[1, 1])
    assert {level for level, _ in one} == {1, 2}
    assert one.number_of_edges() == 8
    strong = graph().to_networkx(minimum=0.5)
    assert sorted(data["probability"] for *_, data in strong.edges(data=True)) == [0.5] * 4 + [0.75] * 2
    assert graph().to_networkx(layers=[]).number_of_nodes() == 0


def test_networkx_refuses_too_many_edges():
    assert graph().to_networkx(max_edges=16).number_of_edges() == 16
    with pytest.raises(GraphError, match=r"has 16 edges and residual steps, over max_edges=15.*`minimum` \(now 0\)"):
        graph().to_networkx(max_edges=15)
    with pytest.raises(GraphError, match=r"layer=2 is outside this graph's layers 0 to 1"):
        graph().to_networkx(layers=[0, 2])


def everything(graph: AttentionGraph) -> nx.MultiDiGraph:
    """The graph for NetworkX, nodes without edges included."""
    result = graph.to_networkx()
    result.add_nodes_from(node_labels(graph))
    return result


@given(layered_graphs(max_targets=2))
def test_scipy_takes_all_layers_together(graph: AttentionGraph):
    whole = graph.to_scipy()
    size = graph.nodes
    assert whole.shape == ((graph.layers + 1) * size,) * 2
    for layer in range(graph.layers):
        block = whole[(layer + 1) * size : (layer + 2) * size, layer * size : (layer + 1) * size]
        np.testing.assert_array_equal(block.toarray(), graph.to_scipy(layer).toarray())
    assert whole.sum() == pytest.approx(graph.layers * size)
    expected = nx.to_scipy_sparse_array(everything(graph), nodelist=node_labels(graph), weight="probability")
    np.testing.assert_allclose(whole.T.toarray(), expected.toarray(), rtol=1e-12)


@given(layered_graphs())
def test_scipy_finds_the_same_best_path(graph: AttentionGraph):
    """Of parallel heads csgraph sees the sum, so only graphs of one head compare; and no block reads itself."""
    edges = pl.DataFrame(graph).filter(pl.col("head") == 0, pl.col("query_block") != pl.col("key_block"))
    edges = edges.filter(pl.col("target").is_null())
    assume(edges.height)
    one = AttentionGraph.from_edges(edges, residual=0.4, layers=graph.layers, tokens=graph.blocks)
    lengths = one.to_scipy().T.tocsr()
    lengths.eliminate_zeros()
    lengths.data = -np.log(lengths.data) + 1e-15  # an explicit 0 is no edge to csgraph
    found = csgraph.dijkstra(lengths, indices=0)[-one.nodes :]
    best = best_log_weights(one, source_state(one, "block:0"))[-1]
    np.testing.assert_allclose(-found, best, rtol=1e-9, atol=1e-12)


@given(layered_graphs(max_targets=2))
def test_igraph_and_rustworkx_hold_the_same_extract(graph: AttentionGraph):
    labels = node_labels(graph)
    expected = {
        (lower, upper, data["layer"], data.get("head"), data["probability"], data["length"])
        for lower, upper, data in graph.to_networkx().edges(data=True)
    }
    converted = graph.to_igraph()
    names = ("layer", "head", "probability", "length")
    found = [(labels[edge.source], labels[edge.target], *(edge[name] for name in names)) for edge in converted.es]
    assert set(found) == expected
    assert len(found) == len(expected)
    named = [
        (level, block if target is None else f"token:{target}")
        for level, block, target in zip(*(converted.vs[name] for name in ("level", "block", "target")), strict=True)
    ]
    assert named == labels
    converted = graph.to_rustworkx()
    found = [(labels[lower], labels[upper], *data) for lower, upper, data in converted.weighted_edge_list()]
    assert set(found) == expected
    assert converted.nodes() == labels


@pytest.mark.parametrize("seed", range(4))
def test_igraph_and_rustworkx_find_the_same_best_route(seed: int):
    graph = AttentionGraph(random_source(seed=seed, layers=4, heads=2, blocks=5), residual=0.4)
    best = best_log_weights(graph, source_state(graph, "block:1"))[-1, -1]
    end = (graph.layers + 1) * graph.nodes - 1
    converted = graph.to_igraph()
    assert -converted.distances(1, end, weights="length")[0][0] == pytest.approx(best)
    lengths = rustworkx.dijkstra_shortest_path_lengths(graph.to_rustworkx(), 1, lambda edge: edge.length, end)
    assert -lengths[end] == pytest.approx(best)


@pytest.mark.parametrize("name", ["to_igraph", "to_rustworkx"])
def test_other_libraries_take_extracts_and_refuse_too_many_edges(name: str):
    def edges(**settings: object) -> int:
        converted = getattr(graph(), name)(**settings)
        return converted.ecount() if name == "to_igraph" else converted.num_edges()

    assert edges() == 16
    assert edges(layers=[1], minimum=0.5) == 3
    with pytest.raises(GraphError, match=r"has 16 edges and residual steps, over max_edges=15"):
        edges(max_edges=15)


@pytest.mark.parametrize("package", ["igraph", "rustworkx"])
def test_a_missing_library_is_named_with_its_command(package: str):
    code = f"""
import sys
sys.modules["{package}"] = None
from attngraph.graph import AttentionGraph
edges = {{"layer": [0], "query_block": [1], "key_block": [0], "weight": [1.0]}}
AttentionGraph.from_edges(edges, residual=0.5).to_{package}()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = f'MissingDependencyError: {package} is not installed. Install it with: pip install "attngraph[interop]"'
    assert message in done.stderr


def test_arrow_libraries_take_a_graph_as_it_is():
    one = graph()
    expected = one.edges_table()
    assert pa.table(one).equals(expected)
    assert pl.DataFrame(one).equals(pl.DataFrame(expected))
    assert duckdb.sql("SELECT count(*), sum(probability) FROM one").fetchall() == [(10, pytest.approx(3.1))]
    assert len(expected["layer"].chunks) == 2


def test_arrow_libraries_take_results_as_they_are():
    one = graph()
    for result in (
        routes(one, "block:0"), influence(one), throughput(one, "block:0"), reach(one, "block:0"),
        sequence_weight(one, ["block:0", "output"]),
    ):  # fmt: skip
        frame = result.to_polars()
        assert frame.height
        assert pl.DataFrame(result).equals(frame)
        assert pa.table(result).num_rows == frame.height
        assert duckdb.sql("SELECT * FROM result").columns == frame.columns


def test_scipy_indices_suit_csgraph():
    matrix = AttentionGraph(random_source(seed=0)).to_scipy(0)
    assert matrix.format == "csr"
    assert matrix.indices.dtype == np.int32
