"""Conversions to Arrow and NetworkX."""

from __future__ import annotations

import networkx as nx
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from attngraph.errors import GraphError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import layer_arrays, random_source, sources

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
        "probability": pytest.approx(0.4),
    }  # fmt: skip
    assert result.edges[(1, 0), (2, "token:3"), 1]["probability"] == 0.25
    assert result.edges[(1, "token:3"), (2, "token:3"), "residual"] == {
        "kind": "residual", "layer": 1, "probability": 0.75,
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


def test_scipy_indices_suit_csgraph():
    matrix = AttentionGraph(random_source(seed=0)).to_scipy(0)
    assert matrix.format == "csr"
    assert matrix.indices.dtype == np.int32
