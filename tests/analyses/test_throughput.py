"""Throughput: a diamond by hand, enumeration, conservation."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, NoRouteError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import all_paths, sources
from attngraph_analyses import Throughput, influence, throughput
from tests.analyses.paths import diamond


def test_a_diamond_by_hand():
    found = throughput(diamond(), "needle")
    assert found.total == pytest.approx(0.75 * 0.5)
    assert found.to_polars().rows() == [
        (0, 1, 0, 2, None, pytest.approx(0.75)),
        (1, 1, 2, 3, 7, pytest.approx(0.75)),
        (0, 0, 0, 1, None, pytest.approx(0.25)),
        (1, 0, 1, 3, 7, pytest.approx(0.25)),
    ]
    np.testing.assert_allclose(found.node, [[1, 0, 0, 0, 0], [0, 0.25, 0.75, 0, 0], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(found.stay, np.zeros((2, 5)))
    assert found.nodes().rows() == [
        (0, 0, None, 1.0, 0.0),
        (1, 1, None, pytest.approx(0.25), 0.0),
        (1, 2, None, pytest.approx(0.75), 0.0),
        (2, 3, 7, 1.0, None),
    ]
    assert (found.source, found.target, found.completeness) == ("needle", "output", None)


def test_heads_of_a_diamond():
    found = throughput(diamond(), "needle", heads=True)
    np.testing.assert_allclose(found.by_head, [[0.25, 0.75], [0.25, 0.75]])
    assert found.heads().rows() == [
        (0, 1, pytest.approx(0.75)),
        (1, 1, pytest.approx(0.75)),
        (0, 0, pytest.approx(0.25)),
        (1, 0, pytest.approx(0.25)),
    ]


@given(sources())
def test_heads_are_the_sums_of_their_edges(source: ArraySource):
    graph = AttentionGraph(source)
    assume(all_paths(graph, "block:0", "output"))
    found = throughput(graph, "block:0", heads=True)
    summed = np.zeros_like(found.by_head)
    np.add.at(summed, (found.layer, found.head), found.throughput)
    np.testing.assert_allclose(found.by_head, summed, atol=1e-12)
    np.testing.assert_allclose(found.by_head.sum(1) + found.stay.sum(1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(throughput(graph, "block:0", top=1, heads=True).by_head, found.by_head)


def test_heads_are_added_up_only_if_asked_for():
    with pytest.raises(ConfigError, match=r"ask for throughput\(…, heads=True\)"):
        throughput(diamond(), "needle").heads()


def test_stays_carry_their_share():
    found = throughput(diamond(), "block:1", "output")
    assert found.total == pytest.approx(0.75 * 0.25 * 0.5)
    np.testing.assert_allclose(found.stay, [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert found.to_polars().rows() == [(1, 0, 1, 3, 7, pytest.approx(1.0))]


def by_edge(found: Throughput) -> dict[tuple[int, int, int, int], float]:
    columns = (found.layer, found.head, found.key_block, found.query, found.throughput)
    return {tuple(edge): share for *edge, share in zip(*(column.tolist() for column in columns), strict=True)}


@given(sources(), st.sampled_from(["output", "span:0"]))
def test_throughput_sums_the_enumerated_paths(source: ArraySource, target: str):
    graph = AttentionGraph(source)
    paths = all_paths(graph, "block:0", target)
    assume(paths)
    found = throughput(graph, "block:0", target)
    total = sum(weight for weight, _ in paths)
    edges: dict[tuple[int, int, int, int], float] = defaultdict(float)
    stays = np.zeros((graph.layers, graph.nodes))
    nodes = np.zeros((graph.layers + 1, graph.nodes))
    for weight, steps in paths:
        nodes[0, steps[0][2]] += weight / total
        for layer, head, lower, upper in steps:
            nodes[layer + 1, upper] += weight / total
            if head is None:
                stays[layer, upper] += weight / total
            else:
                edges[layer, head, lower, upper] += weight / total
    np.testing.assert_allclose(found.total, total, rtol=1e-12)
    np.testing.assert_allclose(found.node, nodes, atol=1e-12)
    np.testing.assert_allclose(found.stay, stays, atol=1e-12)
    assert by_edge(found) == pytest.approx(edges, rel=1e-9)


@given(sources(), st.sampled_from(["contribution", "uniform"]), st.sampled_from(["measured", 0.3]))
def test_throughput_is_conserved(source: ArraySource, weight: str, residual: str | float):
    graph = AttentionGraph(source, weight=weight, residual=residual)
    try:
        found = throughput(graph, "span:0")
    except NoRouteError:
        assert influence(graph).influence[0] == 0
        return
    np.testing.assert_allclose(found.node.sum(1), 1.0, rtol=1e-12)
    for layer in range(graph.layers):
        here = found.layer == layer
        np.testing.assert_allclose(found.throughput[here].sum() + found.stay[layer].sum(), 1.0, rtol=1e-12)
        entering = np.bincount(found.query[here], found.throughput[here], minlength=graph.nodes) + found.stay[layer]
        leaving = np.bincount(found.key_block[here], found.throughput[here], minlength=graph.nodes) + found.stay[layer]
        np.testing.assert_allclose(entering, found.node[layer + 1], atol=1e-12)
        np.testing.assert_allclose(leaving, found.node[layer], atol=1e-12)


@given(sources())
def test_total_is_the_sources_influence(source: ArraySource):
    """Forward from the source and backward from the target meet in the same number."""
    graph = AttentionGraph(source)
    for block, share in enumerate(influence(graph).influence.tolist()):
        if share > 0:
            assert throughput(graph, f"block:{block}").total == pytest.approx(share, rel=1e-12)
        else:
            with pytest.raises(NoRouteError):
                throughput(graph, f"block:{block}")


@given(sources(), st.integers(1, 20))
def test_top_is_the_head_of_the_whole(source: ArraySource, top: int):
    graph = AttentionGraph(source)
    assume(all_paths(graph, "output", "output"))
    whole = throughput(graph, "output")
    some = throughput(graph, "output", top=top)
    assert (np.diff(whole.throughput) <= 0).all()
    assert list(by_edge(some).items()) == list(by_edge(whole).items())[:top]
    np.testing.assert_array_equal(some.node, whole.node)


def test_no_route_names_both_ends_and_the_policy():
    message = r"from 'output' to 'needle' with .*residual='measured'.*influence\(graph, 'needle'\)"
    with pytest.raises(NoRouteError, match=message):
        throughput(diamond(), "output", "needle")


def test_bad_arguments():
    with pytest.raises(ConfigError, match=r"top=0 must be at least 1, or None for all edges"):
        throughput(diamond(), "needle", top=0)
    with pytest.raises(UnknownNodeError, match=r"Spans: needle"):
        throughput(diamond(), "question")
