"""Graphs from columns of edges: every kind of table, round trips, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import AttentionGraph
from attngraph.testing import layered_graphs, write_random_run

EDGES = {
    "layer": np.array([0, 0, 0, 1], np.uint16),
    "head": np.array([0, 1, 0, 0], np.uint16),
    "query_block": np.array([1, 1, 2, 2], np.uint32),
    "key_block": np.array([0, 0, 1, 0], np.uint32),
    "weight": np.array([1.0, 3.0, 2.0, 5.0], np.float32),
}
MATRICES = [[[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]], [[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]]]


def matrices(graph: AttentionGraph) -> list[object]:
    return [graph.to_scipy(layer).toarray().tolist() for layer in range(graph.layers)]


def changed(**columns: object) -> dict[str, object]:
    return EDGES | {name: np.array(column) for name, column in columns.items()}


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda edges: {name: column.tolist() for name, column in edges.items()},
        pl.DataFrame,
        pa.table,
        lambda edges: pa.Table.from_batches(pa.table(edges).to_batches(max_chunksize=2)),
        lambda edges: duckdb.from_arrow(pa.table(edges)),
    ],
    ids=["arrays", "lists", "polars", "pyarrow", "chunks", "duckdb"],
)
def test_any_table_of_edges_makes_the_same_graph(make: Callable[[dict[str, np.ndarray]], object]):
    graph = AttentionGraph.from_edges(make(EDGES), residual=0.5)
    assert matrices(graph) == MATRICES
    assert (graph.layers, graph.heads, graph.blocks, graph.tokens, graph.block_size) == (2, 2, 3, 3, 1)
    assert graph.transition(0).head.tolist() == [0, 1, 0]


@given(st.permutations(range(4)))
def test_the_order_of_edges_does_not_matter(order: list[int]):
    shuffled = {name: column[order] for name, column in EDGES.items()}
    assert matrices(AttentionGraph.from_edges(shuffled, residual=0.5)) == MATRICES


def test_heads_sizes_spans_and_shares():
    edges = {name: column for name, column in EDGES.items() if name != "head"}
    shares = np.array([[0.5, 0.25, 0.0, 1.0, 0.0], [1.0, 1.0, 0.2, 0.0, 0.0]])
    graph = AttentionGraph.from_edges(
        edges, residual=shares, tokens=33, block_size=8, spans={"one": (0, 9), "two": ((1, 2), (30, 33))}
    )
    assert (graph.heads, graph.blocks, graph.tokens) == (1, 5, 33)
    assert dict(graph.spans) == {"one": ((0, 9),), "two": ((1, 2), (30, 33))}
    assert graph.policy.residual == "measured"
    assert graph.transition(0).stay.tolist() == [1.0, 0.25, 0.0, 1.0, 1.0]  # rows without edges stay
    assert AttentionGraph.from_edges(EDGES, residual="half", layers=4, spans={"far": (0, 9)}).layers == 4
    assert AttentionGraph.from_edges(EDGES, residual="half", spans={"far": (0, 9)}).tokens == 9


def test_targets_by_their_tokens():
    edges = changed(query_block=[1, 1, 2, 0], target=[-1, -1, -1, 2])
    named = AttentionGraph.from_edges(edges, residual=0.5)
    assert (named.targets, named.nodes) == ((2,), 4)
    np.testing.assert_allclose(named.to_scipy(1).toarray()[3], [0.5, 0, 0, 0.5])
    given_ones = AttentionGraph.from_edges(edges, residual=0.5, targets=(2, 0))
    assert given_ones.targets == (2, 0)
    np.testing.assert_allclose(given_ones.to_scipy(1).toarray()[3:], [[0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 1]])


@given(layered_graphs(max_targets=2))
def test_a_graph_survives_its_own_table(graph: AttentionGraph):
    table = graph.edges_table()
    shares = np.stack([graph.transition(layer).stay for layer in range(graph.layers)])
    settings = {"tokens": graph.tokens, "block_size": graph.block_size, "layers": graph.layers}
    if not table.num_rows:
        with pytest.raises(GraphError, match="There are no edges"):
            AttentionGraph.from_edges(table, residual=shares, **settings)
        return
    again = AttentionGraph.from_edges(table, residual=shares, targets=graph.targets, **settings)
    for layer in range(graph.layers):
        # the table holds the weights as 32-bit floats
        expected = graph.to_scipy(layer).toarray()
        np.testing.assert_allclose(again.to_scipy(layer).toarray(), expected, rtol=1e-6)


def test_a_runs_edges_make_its_graph(tmp_path):
    run = write_random_run(tmp_path, layers=2, heads=3, blocks=7)
    ours = run.graph(residual="half")
    table = run.edges().collect()
    graph = AttentionGraph.from_edges(table, residual="half", block_size=16, tokens=ours.tokens)
    for layer in range(2):
        np.testing.assert_array_equal(graph.to_scipy(layer).toarray(), ours.to_scipy(layer).toarray()[:7, :7])
    by_mass = AttentionGraph.from_edges(table, residual="half", weight="mass")
    assert (by_mass.to_scipy(0) != graph.to_scipy(0)).nnz > 0


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (changed(weight=[1, np.nan, 1, 1]), r"Layer 0 has mass=nan on edge 1; weights are finite and at least 0"),
        (changed(weight=[1.0, 1, 1, -2]), r"Layer 1 has mass=-2\.0 on edge 0"),
        (changed(weight=[1, 1, np.inf, 1]), r"Layer 0 has mass=inf on edge 2"),
        (changed(key_block=[0, -1, 1, 0]), r"Layer 0 has key_block=-1, but the source has 3"),
        (changed(head=[0, -1, 1, 0]), r"Layer 0 has head=-1"),
        (changed(layer=[-1, 0, 0, 0]), r"layer=-1 is outside the graph's layers 0 to 0"),
        (changed(layer=[0.0, 0, 0, 0]), r"layer holds float64 values; ids are whole numbers"),
        (changed(weight=["a", "b", "c", "d"]), r"weight|mass holds <U1 values; weights are numbers"),
        (changed(weight=[1.0]), r"columns of one length; these have the shapes .*'mass': \(1,\)"),
        (changed(weight=np.ones((4, 1))), r"'mass': \(4, 1\)"),
        ({name: column[:0] for name, column in EDGES.items()}, r"There are no edges; a graph needs at least one"),
        ({"layer": [0], "weight": [1.0]}, r"have no query_block and no key_block\. Columns needed.*Found: layer, weig"),
        ({}, r"Found: none"),
        (pl.DataFrame({**EDGES, "weight": [1.0, None, 1.0, 1.0]}), r"weight has 1 nulls; only target may be null"),
        (pl.LazyFrame(EDGES), r"Edges of type LazyFrame can't be read: .*Collect the LazyFrame first"),
        ([(0, 0, 1, 0, 1.0)], r"Edges of type list can't be read: give a mapping of arrays, or a table that speaks"),
    ],
)
def test_edges_that_make_no_graph_are_refused(edges: object, message: str):
    with pytest.raises(GraphError, match=message):
        AttentionGraph.from_edges(edges, residual=0.5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tokens": 2}, GraphError, r"query_block=2, but the source has 2 of them"),
        ({"tokens": 0}, GraphError, r"at least one layer, one head, one token"),
        ({"layers": 1}, GraphError, r"layer=1 is outside the graph's layers 0 to 0"),
        ({"block_size": 0}, GraphError, r"block_size=0 must be at least 1 token"),
        ({"residual": np.ones((2, 4))}, GraphError, r"shape \(2, 4\) don't fit this graph: give \(2, 3\), one row per"),
        ({"residual": np.full((2, 3), 1.5)}, GraphError, r"the residual share 1\.5 at block 0"),
        ({"residual": "measured"}, GraphError, r"none of the 3 measured residual shares"),
        ({"residual": 2.0}, ConfigError, r"residual=2\.0 is not"),
        ({"spans": {"x": (2, 2)}}, GraphError, r"Span 'x' has the range 2 to 2"),
        ({"targets": (9,), "tokens": 3}, GraphError, r"Target 9 is not a position"),
        ({"weight": "logit"}, ConfigError, r"weight='logit'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        AttentionGraph.from_edges(EDGES, **({"residual": 0.5} | settings))


def test_an_unknown_target_is_refused():
    with pytest.raises(GraphError, match=r"target=2 is not among targets=\(1,\)"):
        AttentionGraph.from_edges(changed(target=[-1, -1, -1, 2]), residual=0.5, targets=(1,))


def test_weights_that_overflow_a_row_are_refused():
    with pytest.raises(GraphError, match=r"Layer 0 has weights that sum to inf on a row; scale them down"):
        AttentionGraph.from_edges(changed(weight=[1.7e308, 1.7e308, 1.0, 1.0]), residual=0.5)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int32", "int64", ">u4", "every second"])
def test_ids_of_any_kind_make_the_same_graph(kind: str):
    random = np.random.default_rng(0)
    layer, query = np.repeat([0, 1, 3], 40), np.tile(np.sort(random.integers(0, 9, 40)), 3)
    ids = {"layer": layer, "head": random.integers(0, 2, 120), "query_block": query, "key_block": query // 2}
    weight = random.random(120, np.float32)
    plain = AttentionGraph.from_edges(ids | {"weight": weight}, residual=0.5)
    if kind == "every second":
        columns = {name: np.repeat(column.astype(np.uint32), 2)[::2] for name, column in ids.items()}
    else:
        columns = {name: column.astype(kind) for name, column in ids.items()}
    before = {name: column.copy() for name, column in columns.items()}
    graph = AttentionGraph.from_edges(columns | {"weight": weight}, residual=0.5)
    assert graph.layers == 4
    for other in (graph, graph.with_policy(heads="max"), graph.with_policy(sink="exclude")):
        same = plain.with_policy(**vars(other.policy))
        for at in range(4):
            np.testing.assert_array_equal(other.to_scipy(at).toarray(), same.to_scipy(at).toarray())
            np.testing.assert_array_equal(other.transition(at).head, same.transition(at).head)
    for name, column in columns.items():
        np.testing.assert_array_equal(column, before[name])


def test_more_layers_than_their_ids_can_count():
    edges = {"layer": np.zeros(1, np.uint8), "query_block": [1], "key_block": [0], "weight": [1.0]}
    graph = AttentionGraph.from_edges(edges, residual=0.5, layers=300)
    assert graph.layers == 300
    assert graph.transition(0).probability.tolist() == [0.5]
    assert len(graph.transition(299).probability) == 0


def test_columns_are_read_where_they_lie():
    edges = {
        "layer": np.array([0, 0, 1, 1], np.uint16),
        "query_block": np.array([1, 2, 1, 2], np.uint32),
        "key_block": np.array([0, 1, 1, 0], np.uint32),
        "weight": np.ones(4, np.float32),
    }
    transition = AttentionGraph.from_edges(edges, residual=0.5).transition(1)
    assert np.shares_memory(transition.weights.indices, edges["key_block"])
    assert np.shares_memory(transition.weights.data, edges["weight"])
    np.testing.assert_array_equal(transition.pull(np.array([1.0, 0.0, 0.0])), [1.0, 0.0, 0.5])
    np.testing.assert_array_equal(transition.push(np.array([0.0, 0.0, 1.0])), [0.5, 0.0, 0.5])
