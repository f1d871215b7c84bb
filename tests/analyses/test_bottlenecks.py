"""Widths by hand and as laws, squash, nulls, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, NoRouteError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import all_paths, sources
from attngraph_analyses import bottlenecks, sensitivity, throughput
from tests.analyses.paths import chain, diamond


def test_a_diamond_by_hand():
    found = bottlenecks(diamond(), "needle")
    np.testing.assert_allclose(found.width, [1, 1 / (0.25**2 + 0.75**2), 1])
    assert found.bottleneck == (1, pytest.approx(1.6))
    np.testing.assert_allclose(found.hops, [1, 1])
    assert found.to_polars().rows()[1:] == [
        (1, pytest.approx(1.6), 2, None, pytest.approx(0.75), pytest.approx(1.0)),
        (2, pytest.approx(1.0), 3, 7, pytest.approx(1.0), None),
    ]
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(bottlenecks(diamond(), "needle", order=1).width, [1, np.exp(entropy), 1])


@given(sources(), st.sampled_from([1, 2]))
def test_widths_are_numbers_of_nodes(source: ArraySource, order: int):
    graph = AttentionGraph(source)
    assume(all_paths(graph, "block:0", "output"))
    found = bottlenecks(graph, "block:0", order=order)
    node = throughput(graph, "block:0").node
    assert (found.width >= 1 - 1e-9).all()
    assert (found.width <= (node > 0).sum(1) + 1e-9).all()
    inner = found.width[1:-1] if graph.layers > 1 else found.width
    assert found.bottleneck.width == inner.min()
    assert found.width[found.bottleneck.level] == found.bottleneck.width
    stays = throughput(graph, "block:0").stay.sum(1)
    np.testing.assert_allclose(found.hops, 1 - stays, atol=1e-12)


def test_squash_is_the_sensitivity_against_moved_sources():
    found = bottlenecks(chain(), "needle").squash
    expected = sensitivity(chain(), "needle", null="distance").against
    assert found is not None
    assert found.to_dict() == expected.to_dict()
    assert bottlenecks(diamond(), "needle", "block:1").squash is None  # nowhere to move the source to


def test_a_null_is_compared_level_by_level():
    graph = chain(layers=3)
    found = bottlenecks(graph, "needle", null="uniform")
    uniform = bottlenecks(graph.uniform(), "needle").width
    assert found.against is not None
    np.testing.assert_allclose(found.against.mean, uniform)
    np.testing.assert_allclose(found.to_polars()["ratio"], found.width / uniform)
    document = found.to_dict()
    level = document["bottleneck"]["level"]
    assert document["null"]["ratio"] == pytest.approx(found.width[level] / uniform[level])
    assert set(document["levels"][0]) >= {"level", "width"}


def test_bad_input():
    with pytest.raises(ConfigError, match="order=3 is not 1"):
        bottlenecks(diamond(), "needle", order=3)
    with pytest.raises(NoRouteError, match="from 'output' to 'needle'"):
        bottlenecks(diamond(), "output", "needle")
