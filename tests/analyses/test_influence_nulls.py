"""Influence against its nulls: hand-computed expectations, and what isn't asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from attngraph.errors import ConfigError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import layer_arrays, sources
from attngraph_analyses import Null, influence, influence_profile
from attngraph_analyses.influence import influence_of_targets
from tests.analyses.paths import chain, diamond


@given(sources())
def test_several_targets_in_one_pass(source: ArraySource):
    graph = AttentionGraph(source)
    together = influence_of_targets(graph, ["output", "block:0"])
    np.testing.assert_allclose(together[:, 0], influence(graph).influence)
    np.testing.assert_allclose(together[:, 1], influence(graph, "block:0").influence)


def test_around_is_the_mean_of_the_nearest_blocks():
    graph = chain()
    found = influence(graph, null=Null(name="distance", draws=4))
    f = found.influence
    assert found.null[10] == pytest.approx(np.mean(f[[8, 9, 11, 12]]))
    assert found.null[1] == pytest.approx(np.mean(f[[2, 3, 4, 5]]))  # the sink is no neighbour
    assert found.null[23] == pytest.approx(np.mean(f[[19, 20, 21, 22]]))
    np.testing.assert_allclose(found.excess, f * np.log(f / found.null))


def test_other_targets_by_hand():
    graph = chain()
    found = influence(graph, null=Null(name="targets", draws=3))
    others = ["block:22", "block:21", "block:20"]
    f, u = influence_of_targets(graph, others), influence_of_targets(graph.uniform(), others)
    uniform = influence(graph).null
    assert found.null[5] == pytest.approx(uniform[5] * f[5].sum() / u[5].sum())
    # Block 19 is next to target 20, and block 21 next to or behind all three.
    assert found.null[19] == pytest.approx(uniform[19] * f[19, :2].sum() / u[19, :2].sum())
    np.testing.assert_allclose(found.null[21:], uniform[21:])
    assert found.against == Null(name="targets", draws=3)


def test_what_all_targets_read_has_no_excess_by_other_targets():
    """Every row reads block 1 nine times as much: no news to the target, though it exceeds the uniform null."""
    blocks = 12
    rows = [(0, row, key, 9.0 if key == 1 else 1.0) for row in range(blocks) for key in range(row + 1)]
    target = [(0, 0, key, {1: 9.0, 4: 9.0}.get(key, 1.0)) for key in range(blocks)]
    layer = layer_arrays(rows, target, residual=np.full(blocks, 0.5), target_residual=np.array([0.5]))
    graph = AttentionGraph(ArraySource(arrays=[layer], heads=1, tokens=24, block_size=2, targets=(23,)))
    uniform, others = influence(graph), influence(graph, null=Null(name="targets", draws=4))
    assert uniform.excess[1] == pytest.approx(uniform.excess[4])
    assert others.excess[1] < others.excess[4] / 2
    assert others.rank[4] < others.rank[1]


def test_rewired_edges_are_a_mean_of_draws():
    found = influence(chain(), null=Null(name="edges", draws=5))
    assert found.null.sum() == pytest.approx(1.0)
    assert (found.null > 0).all()


def test_a_null_of_nothing_has_a_floor():
    """Where the neighbours have no influence at all, the least positive expectation takes their place."""
    target = [(0, 0, 6, 1.0)]
    layer = layer_arrays([], target, residual=np.full(8, 1.0), target_residual=np.array([0.5]))
    graph = AttentionGraph(ArraySource(arrays=[layer], heads=1, tokens=16, block_size=2, targets=(15,)))
    found = influence(graph, null=Null(name="distance", draws=2))
    assert np.isfinite(found.excess).all()
    assert found.rank[6] == 0 or found.rank[7] == 0


def test_heads_say_nothing_of_influence():
    with pytest.raises(ConfigError, match=r"null='heads' can't change influence\. Nulls that can: uniform, edges"):
        influence(chain(), null="heads")
    with pytest.raises(ConfigError, match="null='none' is not one of"):
        influence(chain(), null="none")


def test_profiles_by_hand():
    graph = diamond()
    target = influence_profile(graph, target="output")
    np.testing.assert_allclose(target.share.sum(1), 1.0)
    np.testing.assert_allclose(target.share[1], [0, 0.1875, 0.5625, 0, 0.25])
    source = influence_profile(graph, source="needle")
    np.testing.assert_allclose(source.share[1], [1, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(source.share[2], [1, 0.5, 0.5, 0, 0.375])
    assert source.to_polars().filter(level=2, target=7)["share"].item() == pytest.approx(0.375)
    assert (target.target, target.source, source.target, source.source) == ("output", None, None, "needle")


@given(sources())
def test_profiles_meet_in_the_middle(source: ArraySource):
    """At every level the two profiles have the same product: the probability that the walk ends in the source."""
    graph = AttentionGraph(source)
    target, reached = influence_profile(graph, target="output").share, influence_profile(graph, source="block:0").share
    np.testing.assert_allclose((target * reached).sum(1), influence(graph).influence[0], atol=1e-12)


@pytest.mark.parametrize("ends", [{}, {"target": "output", "source": "needle"}])
def test_a_profile_has_one_end(ends: dict[str, str]):
    with pytest.raises(ConfigError, match="An influence profile is that of one end"):
        influence_profile(diamond(), **ends)
