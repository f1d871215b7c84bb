"""Routes: a diamond by hand, enumeration, laws of the k best, NetworkX as a second opinion."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, NoRouteError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import BLOCK_SIZE, all_paths, layer_arrays, random_source, sources
from attngraph_analyses import Hop, Null, Route, routes, throughput
from tests.analyses.paths import chain

EVERYTHING = 100_000


def source(**changes: object) -> ArraySource:
    """Three layers; the needle (block 0) reaches the target by way of block 2, straight, or by block 1."""
    shares = {"residual": np.array([1.0, 0.5, 0.5, 0.5]), "target_residual": np.array([0.5])}
    first = layer_arrays([(0, 1, 0, 1.0)], **shares)
    second = layer_arrays([(1, 2, 0, 1.0), (0, 1, 1, 1.0)], **shares)
    third = layer_arrays([], [(0, 0, 0, 1.0), (0, 0, 1, 3.0), (1, 0, 2, 4.0)], **shares)
    settings = {
        "arrays": [first, second, third],
        "heads": 2,
        "tokens": 8,
        "block_size": 2,
        "targets": (7,),
        "spans": {"needle": ((0, 2),), "question": ((5, 8),)},
    }
    return ArraySource(**(settings | changes))


def test_a_small_graph_by_hand():
    found = routes(AttentionGraph(source()), "needle", "output")
    half, quarter, last = (pytest.approx(weight) for weight in (0.5, 0.25, 3 / 16))
    assert found.routes == (
        Route(pytest.approx(1 / 8), (Hop(1, 1, 0, 2, None, half), Hop(2, 1, 2, 3, 7, quarter)), quarter),
        Route(pytest.approx(1 / 16), (Hop(2, 0, 0, 3, 7, pytest.approx(1 / 16)),), pytest.approx(1 / 16)),
        # Block 1 stays through the second layer, or reads itself there: of two equals the stay comes first.
        Route(pytest.approx(3 / 64), (Hop(0, 0, 0, 1, None, half), Hop(2, 0, 1, 3, 7, last)), last),
        Route(
            pytest.approx(3 / 64),
            (Hop(0, 0, 0, 1, None, half), Hop(1, 0, 1, 1, None, half), Hop(2, 0, 1, 3, 7, last)),
            last,
        ),
    )
    assert (found.source, found.target, found.layers, found.block_size) == ("needle", "output", 3, 2)
    assert found.completeness is None


def test_a_route_without_hops_stays_in_place():
    graph = AttentionGraph(source())
    assert routes(graph, "token:7", "output").routes == (Route(pytest.approx(0.5), (), pytest.approx(0.5)),)
    assert routes(graph, "block:0", "block:0").routes == (Route(1.0, (), 1.0),)
    best, second = routes(graph, "question", "output").routes
    assert best == Route(pytest.approx(0.5), (), pytest.approx(0.5))
    quarter = pytest.approx(1 / 4)
    assert second == Route(pytest.approx(1 / 8), (Hop(2, 1, 2, 3, 7, quarter),), quarter)


@given(sources(), st.sampled_from(["output", "block:0", "span:0"]), st.integers(1, 30))
def test_the_k_best_of_all_paths(source: ArraySource, target: str, k: int):
    graph = AttentionGraph(source)
    paths = all_paths(graph, "span:0", target)
    assume(paths)
    found = routes(graph, "span:0", target, k).routes
    assert len(found) == min(k, len(paths))
    np.testing.assert_allclose([route.weight for route in found], [weight for weight, _ in paths[:k]], rtol=1e-9)


@given(sources())
def test_all_routes_are_all_paths(source: ArraySource):
    graph = AttentionGraph(source)
    paths = all_paths(graph, "block:0", "output")
    assume(paths)
    found = routes(graph, "block:0", "output", EVERYTHING)
    expected = {
        tuple((layer, head, lower, upper) for layer, head, lower, upper in steps if head is not None): weight
        for weight, steps in paths
    }
    node = {target: graph.blocks + index for index, target in enumerate(graph.targets)}
    by_hops = {
        tuple(
            (hop.layer, hop.head, hop.key_block, node.get(hop.target, hop.query_block)) for hop in route.hops
        ): route.weight
        for route in found.routes
    }
    assert len(by_hops) == len(found.routes) == len(paths)
    assert by_hops == pytest.approx(expected, rel=1e-9)
    total = throughput(graph, "block:0", "output").total
    assert sum(route.weight for route in found.routes) == pytest.approx(total, rel=1e-9)


@given(sources(), st.integers(1, 12), st.integers(1, 12))
def test_the_k_best_begin_the_more_best(source: ArraySource, k: int, more: int):
    graph = AttentionGraph(source)
    assume(all_paths(graph, "output", "output"))
    best = routes(graph, "output", "output", k + more).routes
    assert routes(graph, "output", "output", k).routes == best[:k]
    assert all(first.weight >= second.weight * (1 - 1e-9) for first, second in pairwise(best))


@given(sources(), st.randoms(use_true_random=False))
def test_permuting_heads_only_relabels_them(source: ArraySource, random: object):
    order = list(range(source.heads))
    random.shuffle(order)
    labels = np.array(order)
    relabelled = [
        replace(arrays, head=labels[arrays.head], target_head=labels[arrays.target_head]) for arrays in source.arrays
    ]
    graph, other = AttentionGraph(source), AttentionGraph(replace(source, arrays=relabelled))

    def hops(graph: AttentionGraph, labels: np.ndarray) -> dict[tuple[Hop, ...], float]:
        return {
            tuple(hop._replace(head=int(labels[hop.head]), weight=0.0) for hop in route.hops): route.weight
            for route in routes(graph, "output", "output", EVERYTHING).routes
        }

    assume(all_paths(graph, "output", "output"))
    assert hops(other, np.arange(source.heads)) == pytest.approx(hops(graph, labels), rel=1e-9)


@given(sources(), st.data())
def test_an_edge_of_weight_zero_changes_nothing(source: ArraySource, data: st.DataObject):
    graph = AttentionGraph(source)
    assume(all_paths(graph, "block:0", "output"))
    layer = data.draw(st.integers(0, source.layers - 1))
    query = data.draw(st.integers(0, source.blocks - 1))
    arrays = source.arrays[layer]
    more = layer_arrays([(0, query, data.draw(st.integers(0, query)), 0.0)])
    added = {
        name: np.concatenate([getattr(arrays, name), getattr(more, name)])
        for name in ("head", "query_block", "key_block", "mass", "contribution")
    }
    other = [replace(each, **added) if index == layer else each for index, each in enumerate(source.arrays)]
    padded = AttentionGraph(replace(source, arrays=other))
    assert routes(padded, "block:0", "output", 20).routes == routes(graph, "block:0", "output", 20).routes
    np.testing.assert_array_equal(throughput(padded, "block:0").node, throughput(graph, "block:0").node)
    np.testing.assert_array_equal(padded.uniform().to_scipy(layer).toarray(), graph.uniform().to_scipy(layer).toarray())


@pytest.mark.parametrize("seed", range(8))
def test_networkx_finds_the_same_best_route(seed: int):
    graph = AttentionGraph(random_source(seed=seed, layers=5, heads=3, blocks=6), residual=0.4)
    best = routes(graph, "block:1", "output", 1).routes[0]
    lengths = graph.to_networkx()
    for *_, edge in lengths.edges(data=True):
        edge["length"] = -np.log(edge["probability"])
    end = (graph.layers, f"token:{graph.targets[-1]}")
    length = nx.dijkstra_path_length(lengths, (0, 1), end, weight="length")
    assert np.log(best.weight) == pytest.approx(-length, rel=1e-9)


@given(sources())
def test_residual_one_has_no_route_but_staying(source: ArraySource):
    graph = AttentionGraph(source, residual=1.0)
    assert routes(graph, "output", "output").routes == (Route(1.0, (), 1.0),)
    if graph.targets[-1] >= BLOCK_SIZE:
        with pytest.raises(NoRouteError, match=r"from 'block:0' to 'output' with weight='contribution', residual=1\.0"):
            routes(graph, "block:0")


def test_an_excluded_sink_has_no_route():
    with pytest.raises(NoRouteError, match=r"from 'needle' to 'output' with .* sink='exclude'"):
        routes(AttentionGraph(source(), sink="exclude"), "needle")


def test_bad_arguments():
    graph = AttentionGraph(source())
    with pytest.raises(ConfigError, match=r"k=0 routes were asked for; give a whole number of at least 1"):
        routes(graph, "needle", k=0)
    with pytest.raises(ConfigError, match=r"k=0 routes were asked for"):
        routes(graph, "needle", k=0, reuse=0.5)
    with pytest.raises(ConfigError, match=r"kind='longest' is not one of best, widest"):
        routes(graph, "needle", kind="longest")
    with pytest.raises(ConfigError, match=r"distinct='heads' is not one of edges, nodes"):
        routes(graph, "needle", distinct="heads")
    for reuse in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=rf"reuse={reuse} is not a factor from 0 \(disjoint routes\) to 1"):
            routes(graph, "needle", reuse=reuse)
    with pytest.raises(UnknownNodeError, match=r"'nadel' names nothing in this graph\. Spans: needle, question"):
        routes(graph, "nadel")
    with pytest.raises(UnknownNodeError, match=r"'token:0' is not a target of this run.*Targets: token:7"):
        routes(graph, "needle", "token:0")


def test_to_polars():
    frame = routes(AttentionGraph(source()), "needle").to_polars()
    assert frame.columns == [
        "route", "route_weight", "hop", "layer", "head", "key_block", "query_block", "target", "weight",
    ]  # fmt: skip
    assert frame.select("route", "hop", "layer", "target").rows() == [
        (0, 0, 1, None), (0, 1, 2, 7), (1, 0, 2, 7), (2, 0, 0, None), (2, 1, 2, 7),
        (3, 0, 0, None), (3, 1, 1, None), (3, 2, 2, 7),
    ]  # fmt: skip
    empty = routes(AttentionGraph(source()), "token:7").to_polars()
    assert empty.schema == frame.schema
    assert empty.schema["target"] == pl.Int64


def test_to_dict():
    found = routes(AttentionGraph(source(), residual=0.5), "needle", k=1).to_dict()
    assert found["policy"] == {"weight": "contribution", "residual": 0.5, "heads": "sum", "sink": "keep"}
    assert found["routes"][0]["hops"][-1] == {
        "layer": 2, "head": 1, "key_block": 2, "query_block": 3, "target": 7, "weight": pytest.approx(1 / 4),
    }  # fmt: skip
    assert (found["source"], found["target"], found["completeness"]) == ("needle", "output", None)
    assert (found["kind"], found["distinct"], found["reuse"]) == ("best", "edges", 1.0)
    assert found["routes"][0]["width"] == pytest.approx(1 / 4)


def test_to_networkx_shares_edges_and_collapses_residual_steps():
    result = routes(AttentionGraph(source()), "needle").to_networkx()
    edges = {(lower, upper, key): data["routes"] for lower, upper, key, data in result.edges(keys=True, data=True)}
    assert edges == {
        ((0, 0), (1, 0), "residual"): (0,),
        ((1, 0), (2, 2), 1): (0,),
        ((2, 2), (3, "token:7"), 1): (0,),
        ((0, 0), (2, 0), "residual"): (1,),
        ((2, 0), (3, "token:7"), 0): (1,),
        ((0, 0), (1, 1), 0): (2, 3),
        ((1, 1), (2, 1), "residual"): (2,),
        ((1, 1), (2, 1), 0): (3,),
        ((2, 1), (3, "token:7"), 0): (2, 3),
    }
    again = routes(AttentionGraph(source(arrays=[*source().arrays, source().arrays[0]]), residual=0.5), "needle", k=1)
    assert ((3, "token:7"), (4, "token:7"), "residual") in again.to_networkx().edges(keys=True)
    assert routes(AttentionGraph(source()), "token:7").to_networkx().number_of_nodes() == 0


def test_to_networkx_takes_single_routes():
    found = routes(AttentionGraph(source()), "needle")
    one = found.to_networkx(1)
    assert sorted(one.edges(keys=True)) == [((0, 0), (2, 0), "residual"), ((2, 0), (3, "token:7"), 0)]
    assert {data["routes"] for *_, data in one.edges(data=True)} == {(1,)}
    assert set(found.to_networkx(0, 1).edges(keys=True)) > set(one.edges(keys=True))


@given(sources(), st.integers(1, 20))
def test_to_networkx_holds_every_route(source: ArraySource, k: int):
    graph = AttentionGraph(source)
    assume(all_paths(graph, "block:0", "output"))
    found = routes(graph, "block:0", "output", k)
    result = found.to_networkx()
    end = (graph.layers, f"token:{graph.targets[-1]}")
    for number, route in enumerate(found.routes):
        used = [edge for *edge, data in result.edges(keys=True, data=True) if number in data["routes"]]
        assert sum(key != "residual" for *_, key in used) == len(route.hops)
        if route.hops:
            assert nx.has_path(nx.MultiDiGraph(used), (0, route.hops[0].key_block), end)


def test_the_best_route_against_its_nulls():
    graph = chain()
    found = routes(graph, "needle", k=1, null="uniform").against
    assert found is not None
    assert found.value == routes(graph, "needle", k=1).routes[0].weight
    assert found.draws.tolist() == [routes(graph.uniform(), "needle", k=1).routes[0].weight]
    moved = routes(graph, "needle", null=Null(name="distance", draws=2)).against
    assert moved is not None
    best = [
        max(routes(graph, f"block:{block}", k=1).routes[0].weight for block in pair) for pair in ((10, 11), (14, 15))
    ]
    assert moved.draws == pytest.approx(best)
    assert routes(graph, "needle", null="targets").to_dict()["null"]["draws"] == 16
