"""Routes other than the k best: widest, distinct by nodes, diverse, disjoint."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import NoRouteError
from attngraph.graph import AttentionGraph, best_paths, source_state, target_state
from attngraph.graph.testing import all_paths, step_probabilities
from attngraph.testing import layered_graphs
from attngraph_analyses import Route, Routes, routes

KINDS = st.sampled_from(["best", "widest"])
DISTINCT = st.sampled_from(["edges", "nodes"])
REUSE = st.sampled_from([0.0, 0.3, 1.0])


def last_block(graph: AttentionGraph) -> str:
    return f"block:{graph.blocks - 1}"


def fan(**policy: object) -> AttentionGraph:
    """Two layers: block 4 reads blocks 1 (by two heads), 2 and 3 with 2.5 + 1.5 : 3 : 1, and these read block 0."""
    edges = {
        "layer": [0, 0, 0, 1, 1, 1, 1],
        "head": [0, 0, 0, 0, 1, 0, 0],
        "query_block": [1, 2, 3, 4, 4, 4, 4],
        "key_block": [0, 0, 0, 1, 1, 2, 3],
        "weight": [1.0, 1.0, 1.0, 2.5, 1.5, 3.0, 1.0],
    }
    shares = np.array([[1.0, 0.875, 0.2, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    return AttentionGraph.from_edges(edges, residual=shares, **policy)


def carriers(found: Routes) -> list[tuple[int, int]]:
    """Block and head by which each route of the fan enters its end."""
    return [(route.hops[-1].key_block, route.hops[-1].head) for route in found.routes]


def test_a_fan_by_hand():
    graph = fan()
    # by way of 1: 1/8 · (5/16, 3/16); of 2: 0.8 · 3/8; of 3: 1 · 1/8
    best = routes(graph, "block:0", "block:4")
    assert carriers(best) == [(2, 0), (3, 0), (1, 0), (1, 1)]
    np.testing.assert_allclose([route.weight for route in best.routes], [0.3, 1 / 8, 5 / 128, 3 / 128])
    widest = routes(graph, "block:0", "block:4", kind="widest")
    np.testing.assert_allclose([route.width for route in widest.routes], [3 / 8, 1 / 8, 1 / 8, 1 / 8])
    assert carriers(widest) == [(2, 0), (1, 0), (1, 1), (3, 0)]  # of equal widths the more probable last step first
    assert carriers(routes(graph, "block:0", "block:4", distinct="nodes")) == [(2, 0), (3, 0), (1, 0)]
    assert carriers(routes(graph, "block:0", "block:4", reuse=0.0)) == [(2, 0), (3, 0), (1, 0)]


def test_diverse_routes_pay_for_what_was_used():
    """Block 2 leads twice into the end; half price for its second use lets block 1 through first."""
    edges = {
        "layer": [0, 0, 1, 1, 1],
        "head": [0, 0, 0, 1, 0],
        "query_block": [1, 2, 3, 3, 3],
        "key_block": [0, 0, 2, 2, 1],
        "weight": [1.0, 1.0, 5.0, 4.0, 3.0],
    }
    graph = AttentionGraph.from_edges(edges, residual=np.array([[1.0, 0, 0, 1], [1, 1, 1, 0]]))
    found = [
        [round(route.weight * 12, 9) for route in routes(graph, "block:0", "block:3", reuse=reuse).routes]
        for reuse in (1.0, 0.5, 0.0)
    ]
    assert found == [[5, 4, 3], [5, 3, 4], [5, 3]]


@given(layered_graphs(), st.integers(1, 30))
def test_the_k_widest_of_all_paths(graph: AttentionGraph, k: int):
    paths = all_paths(graph, "block:0", last_block(graph))
    assume(paths)
    widths = sorted((min(step_probabilities(graph, steps)) for _, steps in paths), reverse=True)
    found = routes(graph, "block:0", last_block(graph), k, kind="widest").routes
    np.testing.assert_allclose([route.width for route in found], widths[:k], rtol=1e-9)
    assert len(set(found)) == len(found)


@given(layered_graphs(), KINDS, st.integers(1, 30))
def test_distinct_by_nodes_keeps_the_best_of_the_routes_through_the_same_nodes(
    graph: AttentionGraph, kind: str, k: int
):
    starts, ends = source_state(graph, "block:0"), target_state(graph, last_block(graph))
    everything = best_paths(graph, starts, ends, 100_000, kind=kind)
    value = everything.weight if kind == "best" else everything.probability.min(1, initial=1.0)
    best: dict[tuple[int, ...], float] = {}
    for nodes, worth in zip(everything.node.tolist(), value.tolist(), strict=True):
        best[tuple(nodes)] = max(best.get(tuple(nodes), 0.0), worth)
    found = best_paths(graph, starts, ends, k, kind=kind, distinct="nodes")
    worths = found.weight if kind == "best" else found.probability.min(1, initial=1.0)
    np.testing.assert_allclose(worths, sorted(best.values(), reverse=True)[:k], rtol=1e-9)
    assert len({tuple(nodes) for nodes in found.node.tolist()}) == len(found.node)


@given(layered_graphs(), KINDS, DISTINCT, REUSE, st.integers(1, 6), st.integers(1, 6))
def test_fewer_routes_begin_more_routes(
    graph: AttentionGraph, kind: str, distinct: str, reuse: float, k: int, more: int
):
    assume(all_paths(graph, "block:0", last_block(graph)))
    settings = {"kind": kind, "distinct": distinct, "reuse": reuse}
    longer = routes(graph, "block:0", last_block(graph), k + more, **settings).routes
    assert routes(graph, "block:0", last_block(graph), k, **settings).routes == longer[:k]
    worth = {"best": lambda route: route.weight, "widest": lambda route: route.width}[kind]
    if reuse == 1:
        assert all(worth(first) >= worth(second) * (1 - 1e-9) for first, second in pairwise(longer))


def inner_nodes(route: Route) -> set[tuple[int, int]]:
    """(level, block) of the nodes that a route passes, those of its own ends' blocks left out."""
    ends = {route.hops[0].key_block, route.hops[-1].query_block} if route.hops else set()
    passed = set()
    for hop, after in pairwise(route.hops):
        passed |= {(level, hop.query_block) for level in range(hop.layer + 1, after.layer + 1)}
    return {(level, block) for level, block in passed if block not in ends}


@given(layered_graphs(max_layers=4, max_blocks=4), KINDS, DISTINCT)
def test_disjoint_routes_share_no_edge_and_no_node_between_their_ends(graph: AttentionGraph, kind: str, distinct: str):
    target = last_block(graph)
    try:
        found = routes(graph, "block:0", target, 50, kind=kind, distinct=distinct, reuse=0.0).routes
    except NoRouteError:
        return
    assert found[0] == routes(graph, "block:0", target, 1, kind=kind, distinct=distinct).routes[0]
    nodes = Counter(node for route in found for node in inner_nodes(route))
    edges = Counter((hop.layer, hop.head, hop.key_block, hop.query_block) for route in found for hop in route.hops)
    assert max([0, *nodes.values(), *edges.values()]) <= 1
    if distinct == "edges":  # nothing disjoint is left over: every route meets one of those found, or is one of them
        for route in routes(graph, "block:0", target, 100_000).routes:
            hops = {(hop.layer, hop.head, hop.key_block, hop.query_block) for hop in route.hops}
            assert hops & set(edges) or inner_nodes(route) & set(nodes) or route in found


@given(layered_graphs(), REUSE)
def test_weights_are_the_true_ones(graph: AttentionGraph, reuse: float):
    paths = all_paths(graph, "block:0", last_block(graph))
    assume(paths)
    weights = {
        tuple((layer, head, lower, upper) for layer, head, lower, upper in steps if head is not None): weight
        for weight, steps in paths
    }
    for route in routes(graph, "block:0", last_block(graph), 20, reuse=reuse).routes:
        hops = tuple((hop.layer, hop.head, hop.key_block, hop.query_block) for hop in route.hops)
        assert route.weight == pytest.approx(weights[hops], rel=1e-9)


@given(layered_graphs(), KINDS, DISTINCT, REUSE)
def test_nothing_flows_back(graph: AttentionGraph, kind: str, distinct: str, reuse: float):
    assume(graph.blocks > 1)
    with pytest.raises(NoRouteError, match=f"from '{last_block(graph)}' to 'block:0'"):
        routes(graph, last_block(graph), "block:0", kind=kind, distinct=distinct, reuse=reuse)
