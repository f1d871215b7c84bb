"""Sweeps in every algebra against enumerated paths, their laws, and what happens where products underflow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, backward, forward, head_values, source_state, state_in
from attngraph.graph.semirings import Algebra, through
from attngraph.graph.testing import all_paths, step_probabilities
from attngraph.testing import layered_graphs

ALGEBRAS = ("plus_times", "log_plus_times", "max_times", "max_min", "or_and")
ROUNDING = 1e-14
"""Of a logarithm near 0."""


def last(states: Iterable[np.ndarray]) -> np.ndarray:
    (state,) = deque(states, maxlen=1)
    return state


def merged(algebra: Algebra, probabilities: list[list[float]]) -> float:
    """What an algebra makes of paths that are given step by step."""
    products = [float(np.prod(steps)) for steps in probabilities]
    with np.errstate(divide="ignore"):
        return {
            "plus_times": sum(products),
            "log_plus_times": float(np.log(sum(products))),
            "max_times": float(np.log(max(products, default=0.0))),
            "max_min": max((min(steps) for steps in probabilities), default=0.0),
            "or_and": float(bool(probabilities)),
        }[algebra]


def paths_between(graph: AttentionGraph, source: int, target: int) -> list[list[float]]:
    return [step_probabilities(graph, steps) for _, steps in all_paths(graph, f"block:{source}", f"block:{target}")]


@given(layered_graphs(), st.sampled_from(ALGEBRAS))
def test_a_sweep_merges_all_enumerated_paths(graph: AttentionGraph, algebra: Algebra):
    upwards = last(forward(graph, state_in(algebra, source_state(graph, "block:0")), algebra))
    ends = np.zeros(graph.nodes)
    ends[graph.blocks - 1] = 1.0
    downwards = last(backward(graph, state_in(algebra, ends), algebra))
    for block in range(graph.blocks):
        expected = merged(algebra, paths_between(graph, 0, block))
        np.testing.assert_allclose(float(upwards[block]), expected, rtol=1e-9, atol=ROUNDING)
        starts = np.zeros(graph.nodes)
        starts[block] = 1.0
        from_block = last(forward(graph, state_in(algebra, starts), algebra))[graph.blocks - 1]
        np.testing.assert_allclose(
            float(downwards[block]), float(from_block), rtol=1e-9, atol=ROUNDING, err_msg=f"down to {block}"
        )


@given(layered_graphs(), st.sampled_from(ALGEBRAS), st.integers(0, 2**32 - 1))
def test_columns_are_sweeps_of_their_own(graph: AttentionGraph, algebra: Algebra, seed: int):
    weights = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], (graph.nodes, 3))
    for sweep in (forward, backward):
        together = last(sweep(graph, state_in(algebra, weights), algebra))
        apart = [last(sweep(graph, state_in(algebra, column), algebra)) for column in weights.T]
        np.testing.assert_allclose(together.astype(float), np.stack(apart, 1).astype(float), rtol=1e-12, atol=ROUNDING)


@given(layered_graphs(), st.sampled_from(ALGEBRAS))
def test_every_layer_carries_the_whole_answer(graph: AttentionGraph, algebra: Algebra):
    """Forward and backward meet: on every layer, edges and stays merge to the same value."""
    below = list(forward(graph, state_in(algebra, source_state(graph, "block:0")), algebra))
    ends = np.zeros(graph.nodes)
    ends[graph.blocks - 1] = 1.0
    above = list(backward(graph, state_in(algebra, ends), algebra))[::-1]
    whole = float(below[-1][graph.blocks - 1])
    heads, stays = head_values(graph, source_state(graph, "block:0"), ends, algebra)
    assert heads.shape == (graph.layers, graph.heads)
    merge = {"plus_times": np.sum, "log_plus_times": np.logaddexp.reduce}.get(algebra, np.max)
    for layer in range(graph.layers):
        edges, stay = through(graph.transition(layer), below[layer], above[layer + 1], algebra)
        values = np.concatenate([edges, stay]).astype(float)
        np.testing.assert_allclose(merge(values), whole, rtol=1e-9, atol=ROUNDING)
        np.testing.assert_allclose(
            merge(np.append(heads[layer], stays[layer]).astype(float)), whole, rtol=1e-9, atol=ROUNDING
        )


@given(layered_graphs())
def test_the_algebras_agree_where_nothing_underflows(graph: AttentionGraph):
    state = source_state(graph, "block:0")
    total, log_total, best, width, any_path = (
        last(forward(graph, state_in(algebra, state), algebra)) for algebra in ALGEBRAS
    )
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_total, np.log(total), rtol=1e-9, atol=ROUNDING)
    assert ((total > 0) == any_path).all()
    assert ((width > 0) == any_path).all()
    assert (np.exp(best) <= total * (1 + 1e-9)).all()
    assert (np.exp(best) <= width * (1 + 1e-9)).all()


@pytest.mark.parametrize("causal", [True, False])
def test_the_best_ways_from_a_late_node_are_those_of_a_dense_matrix(causal: bool):
    """Rows below a source are passed over only where they read nothing above themselves."""
    random, blocks = np.random.default_rng(0), 12
    query, key = np.indices((blocks, blocks)).reshape(2, -1)
    edge = (random.random(len(query)) < 0.3) & ((key <= query) | (not causal))
    columns = {"query_block": query[edge], "key_block": key[edge], "weight": random.random(edge.sum())}
    graph = AttentionGraph.from_edges({"layer": np.zeros(edge.sum(), int), **columns}, residual=0.0)
    matrix = graph.to_scipy(0).toarray()
    for first in range(blocks):
        weights = np.where(np.arange(blocks) >= first, random.random(blocks), 0.0)
        best = last(forward(graph, state_in("max_times", weights), "max_times"))
        np.testing.assert_allclose(np.exp(best), (matrix * weights).max(1), rtol=1e-12)


def fading(layers: int, leak: float) -> AttentionGraph:
    """Block 0 keeps all it has, block 2 a `leak` per layer; the rest it reads of block 1, which has nothing."""
    edges = {
        "layer": list(range(layers)),
        "query_block": [2] * layers,
        "key_block": [1] * layers,
        "weight": [1.0] * layers,
    }
    return AttentionGraph.from_edges(edges, residual=np.tile([1.0, 1.0, leak], (layers, 1)))


@pytest.mark.parametrize("algebra", ["log_plus_times", "max_times"])
def test_logarithms_survive_where_products_underflow(algebra: Algebra):
    """1 and 1e-3000 side by side: neither fits the other's scale."""
    graph = fading(100, 1e-30)
    up = last(forward(graph, state_in(algebra, np.array([1.0, 0.0, 1.0])), algebra))
    np.testing.assert_allclose(up, [0.0, -np.inf, -3000 * np.log(10)], rtol=1e-12, atol=ROUNDING)
    down = last(backward(graph, state_in(algebra, np.array([1.0, 0.0, 1.0])), algebra))
    np.testing.assert_allclose(down[[0, 2]], [0.0, -3000 * np.log(10)], rtol=1e-12, atol=ROUNDING)
    assert down[1] == pytest.approx(np.log1p(-1e-30), abs=1e-12)  # the first step down from block 2


@pytest.mark.parametrize("algebra", ["log_plus_times", "max_times"])
@pytest.mark.parametrize("sweep", [forward, backward])
def test_edges_in_logarithms_equal_nodes_in_logarithms(algebra: Algebra, sweep: object):
    """The same sweep beside a node so faint that every edge takes its logarithm, and without it."""
    random = np.random.default_rng(0)
    edges = {
        "layer": np.repeat([0, 1, 2], 16),
        "head": np.tile(np.repeat([0, 1], 8), 3),
        "query_block": np.tile(np.repeat([2, 3], 4), 6),
        "key_block": np.tile([0, 1, 2, 3], 12),
        "weight": random.random(48),
    }
    graph = AttentionGraph.from_edges(edges, residual=0.3, tokens=5)
    state = np.log(random.random(5))
    faint = np.append(state[:4], -5000.0)
    alone, beside = last(sweep(graph, state, algebra)), last(sweep(graph, faint, algebra))
    np.testing.assert_allclose(beside[:4], alone[:4], rtol=1e-12, atol=ROUNDING)
    assert beside[4] == pytest.approx(-5000.0)


def test_tiny_and_huge_weights_keep_their_ratios():
    for size in (1e-300, 1e300):
        edges = {"layer": [0, 0], "query_block": [2, 2], "key_block": [0, 1], "weight": [size, 3 * size]}
        graph = AttentionGraph.from_edges(edges, residual=0.0)
        for algebra, expected in (("plus_times", 0.25), ("max_times", np.log(0.25)), ("max_min", 0.25)):
            found = last(forward(graph, state_in(algebra, np.array([1.0, 0, 0])), algebra))
            assert found[2] == pytest.approx(expected)


def test_an_unknown_algebra_is_refused():
    graph = fading(1, 0.5)
    with pytest.raises(ConfigError, match=r"algebra='min_plus' is not one of plus_times, log_plus_times, max_times"):
        list(forward(graph, np.ones(3), "min_plus"))
    with pytest.raises(ConfigError, match="min_plus"):
        state_in("min_plus", np.ones(3))
