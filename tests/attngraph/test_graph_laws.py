"""Laws that tie graphs together: collapsed heads, permuted heads, edges of weight zero, an infinite budget."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.graph import AttentionGraph, backward, forward, head_values, source_state
from attngraph.graph.semirings import zero_of
from attngraph.testing import layered_graphs
from attngraph_analyses import influence, routes, throughput


def remade(graph: AttentionGraph, edges: pl.DataFrame) -> AttentionGraph:
    """The same graph with other edges; weights go through 32-bit floats."""
    shares = np.stack([graph.transition(layer).stay for layer in range(graph.layers)])
    return AttentionGraph.from_edges(
        edges,
        residual=shares,
        layers=graph.layers,
        tokens=graph.tokens,
        block_size=graph.block_size,
        targets=graph.targets,
    )


def edges_of(graph: AttentionGraph) -> pl.DataFrame:
    edges = pl.DataFrame(graph)
    assume(edges.height)
    return edges


@given(layered_graphs())
def test_collapsing_heads_changes_no_sum(graph: AttentionGraph):
    edges = edges_of(graph)
    pair = ("layer", "query_block", "target", "key_block")
    collapsed = edges.group_by(pair, maintain_order=True).agg(pl.col("mass", "contribution").sum())
    one, many = remade(graph, collapsed), remade(graph, edges)
    for layer in range(graph.layers):
        np.testing.assert_allclose(one.to_scipy(layer).toarray(), many.to_scipy(layer).toarray(), rtol=1e-5)
    block = f"block:{graph.blocks - 1}"
    np.testing.assert_allclose(influence(one, block).influence, influence(many, block).influence, rtol=1e-4)
    if _reads_itself(many, block):  # what heads share, one head carries alone
        shared, alone = (routes(each, block, block, 1).routes[0].weight for each in (many, one))
        assert alone >= shared * (1 - 1e-5)


def _reads_itself(graph: AttentionGraph, block: str) -> bool:
    return bool(influence(graph, block).influence[graph.blocks - 1] > 0)


@given(layered_graphs(max_heads=3), st.randoms(use_true_random=False))
def test_permuting_heads_permutes_what_passes_them(graph: AttentionGraph, random: object):
    edges = edges_of(graph)
    order = list(range(graph.heads))
    random.shuffle(order)
    other = remade(graph, edges.with_columns(head=pl.Series(np.array(order)[edges["head"].to_numpy()])))
    graph = remade(graph, edges)
    ends = source_state(graph, f"block:{graph.blocks - 1}")
    for algebra in ("plus_times", "max_times", "max_min"):
        values, stays = zip(
            *(head_values(each, source_state(graph, "block:0"), ends, algebra) for each in (graph, other)), strict=True
        )
        found, permuted = (
            np.pad(each, ((0, 0), (0, len(order) - each.shape[1])), constant_values=zero_of(algebra)) for each in values
        )
        np.testing.assert_allclose(permuted[:, order], found, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(*stays, rtol=1e-6, atol=1e-12)


@given(layered_graphs(), st.data())
def test_an_edge_of_weight_zero_changes_nothing(graph: AttentionGraph, data: st.DataObject):
    edges = edges_of(graph)
    query = data.draw(st.integers(0, graph.blocks - 1))
    zero = {
        "layer": data.draw(st.integers(0, graph.layers - 1)),
        "head": data.draw(st.integers(0, graph.heads - 1)),
        "query_block": query,
        "target": None,
        "key_block": data.draw(st.integers(0, query)),
        "mass": 0.0,
        "contribution": 0.0,
        "probability": 0.0,
    }
    padded = remade(graph, pl.concat([edges, pl.DataFrame([zero], schema=edges.schema)]))
    plain = remade(graph, edges)
    for sweep in (forward, backward):
        for one, other in zip(sweep(plain, np.eye(plain.nodes)), sweep(padded, np.eye(plain.nodes)), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-12)
    block = f"block:{graph.blocks - 1}"
    assume(_reads_itself(plain, block))
    found = [[route.weight for route in routes(each, block, block, 20).routes] for each in (plain, padded)]
    assert found[1] == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_an_infinite_budget_is_attention_rollout(seed: int):
    """With every block kept, sweeps multiply the dense matrices ½(mean over heads of A + I)."""
    layers, heads, blocks = 4, 3, 6
    random = np.random.default_rng(seed)
    attention = np.tril(random.random((layers, heads, blocks, blocks)))
    attention /= attention.sum(-1, keepdims=True)
    layer, head, query, key = np.nonzero(attention)
    edges = {"layer": layer, "head": head, "query_block": query, "key_block": key, "weight": attention[attention > 0]}
    graph = AttentionGraph.from_edges(edges, residual="half")
    rollout = np.eye(blocks)
    for matrix in attention.mean(1):
        rollout = (matrix + np.eye(blocks)) / 2 @ rollout
    for block in range(blocks):
        np.testing.assert_allclose(influence(graph, f"block:{block}").influence, rollout[block], rtol=1e-12)
        total = throughput(graph, "block:0", f"block:{block}").total
        assert total == pytest.approx(rollout[block, 0], rel=1e-12)
