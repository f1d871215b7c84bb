"""Sweeps and best paths against dense matrices and enumeration."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import GraphError
from attngraph.graph import (
    ArraySource,
    AttentionGraph,
    backward,
    best_log_weights,
    best_paths,
    forward,
    source_state,
    target_state,
)
from attngraph.graph.testing import all_paths, layer_arrays, random_source, sources


def product(graph: AttentionGraph) -> np.ndarray:
    result = np.eye(graph.nodes)
    for layer in range(graph.layers):
        result = graph.to_scipy(layer).toarray() @ result
    return result


def last(states: object) -> np.ndarray:
    (state,) = deque(states, maxlen=1)
    return state


@given(sources(), st.integers(0, 2**32 - 1))
def test_sweeps_are_matrix_products_and_each_others_adjoints(source: ArraySource, seed: int):
    graph = AttentionGraph(source)
    random = np.random.default_rng(seed)
    below, above = random.random((graph.nodes, 3)), random.random((graph.nodes, 3))
    upwards, downwards = last(forward(graph, below)), last(backward(graph, above))
    np.testing.assert_allclose(upwards, product(graph) @ below, rtol=1e-12)
    np.testing.assert_allclose(downwards, product(graph).T @ above, rtol=1e-12)
    np.testing.assert_allclose(above.T @ upwards, downwards.T @ below, rtol=1e-12)
    np.testing.assert_allclose(last(forward(graph, below[:, 0])), upwards[:, 0], rtol=1e-12)
    np.testing.assert_allclose(last(backward(graph, above[:, 0])), downwards[:, 0], rtol=1e-12)


def test_sweeps_yield_every_level_and_leave_the_state_alone():
    graph = AttentionGraph(random_source(seed=3, layers=3))
    state = np.ones(graph.nodes, np.float32)
    levels = list(forward(graph, state))
    assert len(levels) == 4
    assert all(level.dtype == np.float64 for level in levels)
    np.testing.assert_allclose(levels, 1.0)  # rows sum to 1
    np.testing.assert_allclose([level.sum() for level in backward(graph, state)], graph.nodes)
    assert (state == 1).all()


@pytest.mark.parametrize("sweep", [forward, backward])
@pytest.mark.parametrize("shape", [(), (4,), (4, 2), (5, 1, 1)])
def test_a_state_of_another_shape_is_refused(sweep: object, shape: tuple[int, ...]):
    with pytest.raises(GraphError, match=r"doesn't fit this graph: give \(5,\) or \(5, n\)"):
        list(sweep(AttentionGraph(random_source(seed=0, blocks=4, targets=1)), np.zeros(shape)))


@given(sources())
def test_best_log_weights_are_those_of_the_best_enumerated_paths(source: ArraySource):
    graph = AttentionGraph(source)
    best = np.exp(best_log_weights(graph, source_state(graph, "block:0"))[-1])
    for block in range(graph.blocks):
        paths = all_paths(graph, "block:0", f"block:{block}")
        np.testing.assert_allclose(best[block], paths[0][0] if paths else 0.0, rtol=1e-12)


def deep_chain(layers: int) -> AttentionGraph:
    """At every layer block 1 reads itself with probability 1e-3 and block 0 with the rest; nothing stays."""
    edges = [(0, 1, 0, 999.0), (0, 1, 1, 1.0)]
    layer = layer_arrays(edges, residual=np.zeros(2))
    return AttentionGraph(ArraySource(arrays=[layer] * layers, heads=1, tokens=4, block_size=2), residual=0.0)


def test_deep_products_neither_underflow_nor_lose_their_order():
    graph = deep_chain(200)
    best = best_log_weights(graph, source_state(graph, "block:1"))
    np.testing.assert_allclose(best[-1, 1], 200 * np.log(1e-3), rtol=1e-12)
    paths = best_paths(graph, source_state(graph, "block:1"), target_state(graph, "block:1"), 3)
    assert paths.node.tolist() == [[1] * 201]


@given(sources(), st.integers(1, 12))
def test_best_paths_connect_and_multiply(source: ArraySource, k: int):
    graph = AttentionGraph(source)
    starts, ends = source_state(graph, "block:0"), target_state(graph, "output")
    paths = best_paths(graph, starts, ends, k)
    assert (starts[paths.node[:, 0]] > 0).all()
    assert (ends[paths.node[:, -1]] > 0).all()
    np.testing.assert_allclose(paths.weight, paths.probability.prod(1), rtol=1e-9)
    stays = paths.head == -1
    assert (paths.node[:, 1:][stays] == paths.node[:, :-1][stays]).all()
