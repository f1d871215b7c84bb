"""Edges from whatever names them, and what is no edge."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import attngraph as ag
from attngraph.errors import GraphError
from attngraph.graph.edge_set import edge_set, joined
from attngraph.testing import write_random_run

ROWS = [(1, 0, 5, 2), (0, 1, 7, 7, 124), (2, 1, 3, 0)]
"""With 8 blocks of 16 tokens and one target, token 124, whose node is number 8."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ag.AttentionGraph:
    return write_random_run(tmp_path_factory.mktemp("store"), layers=3, heads=2, blocks=8, block_size=16).graph()


def table() -> pl.DataFrame:
    whole = [(*row, None)[:5] for row in ROWS]
    return pl.DataFrame(whole, schema=["layer", "head", "query_block", "key_block", "target"], orient="row")


@pytest.mark.parametrize(
    "edges",
    [ROWS, table(), table().lazy(), table().to_arrow(), table().to_dict(as_series=False), table().fill_null(-1)],
    ids=["tuples", "polars", "lazy", "arrow", "columns", "no target as -1"],
)
def test_every_way_to_name_edges(graph: ag.AttentionGraph, edges: Any) -> None:
    found = edge_set(graph, edges)
    assert [column.tolist() for column in found] == [[1, 0, 2], [0, 1, 1], [5, 8, 3], [2, 7, 0]]
    assert found.to_polars(graph).rows() == [(1, 0, 2, 5, None), (0, 1, 7, 7, 124), (2, 1, 0, 3, None)]


def test_an_edge_named_twice_is_one(graph: ag.AttentionGraph) -> None:
    found = edge_set(graph, [*ROWS, ROWS[0]])
    assert found.size == 3
    assert found.of_layer(1).key_block.tolist() == [2]
    assert found.only(slice(1)).size == 1
    assert joined([found, found]).size == 6
    assert joined([]).size == 0


def test_what_analyses_found_comes_without_steps_that_lead_nowhere(graph: ag.AttentionGraph) -> None:
    routes = ag.routes(graph, "needle", k=5)
    hops = {hop[:5] for route in routes.routes for hop in route.hops if hop.key_block != hop.query_block}
    found = edge_set(graph, routes).to_polars(graph)
    assert set(found.select("layer", "head", "key_block", "query_block", "target").rows()) == hops
    first = edge_set(graph, routes.routes[0])
    assert first.size == len([hop for hop in routes.routes[0].hops if hop.key_block != hop.query_block])
    throughput = ag.throughput(graph, "needle")
    assert (
        edge_set(graph, throughput).size == throughput.to_polars().filter(pl.col.key_block != pl.col.query_block).height
    )
    pruned = ag.prune(graph, "needle")
    attention = pruned.to_polars().drop_nulls("head").filter(pl.col.key_block != pl.col.query_block)
    assert edge_set(graph, pruned).size == attention.height < len(pruned.head)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([], "There are no edges to ask about"),
        ({"layer": [0], "head": [0], "query": [1]}, "no query_block and no key_block.*Found: layer, head, query"),
        ([(0, 1, 2)], r"\(0, 1, 2\) is no edge: give \(layer, head, query_block, key_block\)"),
        ([(0, 1, 2, 0.5)], r"\(0, 1, 2, 0.5\) is no edge"),
        ({"layer": [0.5], "head": [0], "query_block": [1], "key_block": [0]}, "layer holds Float64 values"),
        ({"layer": [0], "head": [None], "query_block": [1], "key_block": [0]}, "head has 1 nulls; only target may be"),
        ([(3, 0, 1, 0)], "layer=3 is outside the graph: give a number from 0 to 2"),
        ([(0, -1, 1, 0)], "head=-1 is outside the graph: give a number from 0 to 1"),
        ([(0, 0, 8, 0)], "query_block=8 is outside the graph: give a number from 0 to 7"),
        ([(0, 0, 1, 99)], "key_block=99 is outside"),
        ([(0, 0, 0, 0, 3)], r"target=3 is not a target of this graph, whose targets are \(124,\)"),
        ([(0, 0, 6, 0, 124)], "target=124 is in block 7, not in query_block=6"),
        (3.5, "3.5 is no set of edges: give a table, a list of tuples"),
        (pa.table({"layer": [0]}), "no head and no query_block and no key_block"),
    ],
)
def test_what_is_no_edge_is_named(graph: ag.AttentionGraph, edges: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        edge_set(graph, edges)


def test_an_answer_without_edges_is_no_set_of_them(graph: ag.AttentionGraph) -> None:
    with pytest.raises(GraphError, match="These edges have no layer and no head and no query_block and no key_block"):
        edge_set(graph, ag.influence(graph))


def test_an_answer_of_residual_steps_alone_has_no_edges(graph: ag.AttentionGraph) -> None:
    alone = ag.routes(graph, "question", k=1).routes[0]._replace(hops=())
    with pytest.raises(GraphError, match="There are no edges to ask about; give at least one that leads from one"):
        edge_set(graph, alone)
