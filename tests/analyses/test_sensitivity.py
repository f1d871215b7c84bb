"""The sensitivity bound against its definition, rollout, and the sink's effect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import layer_arrays, sources
from attngraph_analyses import influence, sensitivity, sink_effect
from tests.analyses.paths import chain


def definition(graph: AttentionGraph, beta: float) -> np.ndarray:
    """[Π_ℓ (Λ_ℓ / β + I)] for the output, by dense products, a target's node counting to its block."""
    product = np.eye(graph.nodes)
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        attention = np.zeros((graph.nodes, graph.nodes))
        np.add.at(attention, (transition.query, transition.key_block), transition.mass.astype(float))
        total = attention.sum(1, keepdims=True)
        attention = np.where(total > 0, attention / np.where(total > 0, total, 1), np.eye(graph.nodes))
        product = (attention / beta + np.eye(graph.nodes)) @ product
    row = product[graph.blocks + len(graph.targets) - 1]
    return np.bincount(graph.node_blocks(), row, minlength=graph.blocks)


@given(sources(), st.sampled_from([0.5, 1.0, 4.0]))
def test_the_bound_is_its_definition(source: ArraySource, beta: float):
    graph = AttentionGraph(source)
    if graph.blocks < 3:
        return
    found = sensitivity(graph, "block:0", beta=beta)
    np.testing.assert_allclose(found.bound * np.exp(found.log_scale), definition(graph, beta), rtol=1e-9, atol=1e-12)
    assert found.bound.sum() == pytest.approx(1.0)
    assert found.source_bound == pytest.approx(found.bound[0])


@given(sources())
def test_rollout_is_the_normalised_bound(source: ArraySource):
    """β = 1 is the influence with masses and λ = ½, where every row has attention."""
    full = [vars(arrays) for arrays in source.arrays]
    graph = AttentionGraph(source, weight="mass", residual=0.5)
    if any((graph.transition(layer).stay == 1).any() for layer in range(len(full))):
        return
    np.testing.assert_allclose(sensitivity(graph, "block:0").bound, influence(graph).influence, atol=1e-12)


def test_ratio_and_squash():
    graph = chain()
    found = sensitivity(graph, "needle", null="distance")
    uniform = sensitivity(graph.uniform(), "needle").bound
    np.testing.assert_allclose(found.uniform, uniform)
    np.testing.assert_allclose(found.ratio, found.bound / uniform)
    moved = [found.bound[[10, 11]].mean(), found.bound[[14, 15]].mean()]
    np.testing.assert_allclose(found.against.draws[:2], moved)
    assert found.to_dict()["null"]["ratio"] == pytest.approx(found.source_bound / found.against.draws.mean())
    assert found.to_polars()["spans"][12].to_list() == ["needle"]


def test_sink_effect_by_hand():
    """The target reads the sink and block 1 as 3 : 1, stays with ½; without the sink all goes to block 1."""
    layer = layer_arrays(
        [(0, 1, 0, 0.25), (0, 1, 1, 0.75), (0, 2, 0, 1.0)],
        [(0, 0, 0, 0.75), (0, 0, 1, 0.25)],
        residual=np.full(4, 0.5),
        target_residual=np.array([0.5]),
    )
    graph = AttentionGraph(
        ArraySource(arrays=[layer], heads=2, tokens=8, block_size=2, targets=(7,), spans={"needle": ((2, 4),)})
    )
    found = sink_effect(graph, "needle")
    assert (found.share, found.share_excluded) == pytest.approx((0.375, 0.0))
    assert (found.source_share, found.source_share_excluded) == pytest.approx((0.125, 0.5))
    np.testing.assert_allclose(found.mass, [[(0.25 + 1.0 + 0.75) / 3, np.nan]])
    assert found.to_polars()["mass"].null_count() == 1
    assert found.rank_excluded <= found.rank


def test_bad_input():
    for beta in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match=r"beta=.* is not a finite number above 0"):
            sensitivity(chain(), "needle", beta=beta)
    with pytest.raises(UnknownNodeError, match="'answer' names nothing"):
        sensitivity(chain(), "answer")
    with pytest.raises(UnknownNodeError, match="'answer' names nothing"):
        sink_effect(chain(), "answer")
