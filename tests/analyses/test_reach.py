"""Reach, against enumeration and NetworkX."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given

from attngraph.errors import NoRouteError, UnknownNodeError
from attngraph.graph import AttentionGraph
from attngraph.testing import layered_graphs
from attngraph_analyses import reach, routes


def chain() -> AttentionGraph:
    """Block 1 reads block 0 in the first layer, block 2 reads block 1 in the second; block 3 nobody."""
    edges = {"layer": [0, 1], "query_block": [1, 2], "key_block": [0, 1], "weight": [1.0, 1.0]}
    return AttentionGraph.from_edges(edges, residual=0.5, tokens=4)


def test_a_chain_by_hand():
    found = reach(chain(), "block:0")
    assert found.to_polars().rows() == [
        (0, None, 0, True), (1, None, 1, True), (2, None, 2, True), (3, None, None, False),
    ]  # fmt: skip
    assert (found.at("block:2"), found.at("block:3")) == (True, False)
    with pytest.raises(UnknownNodeError, match="names nothing"):
        found.at("nowhere")


@given(layered_graphs())
def test_reached_nodes_are_networkx_descendants(graph: AttentionGraph):
    extract = graph.to_networkx()
    extract.add_node((0, 0))
    descendants = nx.descendants(extract, (0, 0)) | {(0, 0)}
    reached = reach(graph, "block:0").reached[:, : graph.blocks]
    assert {(level, block) for level, block in descendants if isinstance(block, int)} == {
        (level, block) for level in range(graph.layers + 1) for block in range(graph.blocks) if reached[level, block]
    }


@given(layered_graphs())
def test_a_route_exists_where_the_source_reaches(graph: AttentionGraph):
    found = reach(graph, "block:0")
    for block in range(graph.blocks):
        if found.at(f"block:{block}"):
            assert routes(graph, "block:0", f"block:{block}", 1).routes
        else:
            with pytest.raises(NoRouteError):
                routes(graph, "block:0", f"block:{block}", 1)
