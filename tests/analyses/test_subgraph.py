"""Pruned sub-graphs: what they carry, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, NoRouteError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import all_paths, sources
from attngraph_analyses import Subgraph, prune
from tests.analyses.paths import chain, diamond, shares

SHARES = st.sampled_from([0.3, 0.8, 0.98, 1.0])


def steps_of(found: Subgraph) -> dict[tuple[int, int | None, int, int], float]:
    columns = (found.layer, found.head, found.key_block, found.query, found.throughput)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {(layer, None if head < 0 else head, lower, upper): share for layer, head, lower, upper, share in rows}


def test_a_diamond_by_hand():
    """Of the two arms, of ¼ and ¾, the wider one is enough for ¾ of a level."""
    found = prune(diamond(), "needle", node_share=0.75, edge_share=1.0)
    assert found.carried == pytest.approx(0.75)
    assert found.to_polars().rows() == [
        (0, 1, 0, 2, None, pytest.approx(0.75)),
        (1, 1, 2, 3, 7, pytest.approx(0.75)),
    ]
    assert (found.nodes, found.edges, found.nodes_before, found.edges_before) == (3, 2, 4, 4)
    assert prune(diamond(), "needle", node_share=0.76).carried == pytest.approx(1.0)


@given(sources(), SHARES, SHARES)
def test_what_is_carried_are_the_paths_inside(source: ArraySource, node_share: float, edge_share: float):
    graph = AttentionGraph(source)
    paths = all_paths(graph, "block:0", "output")
    assume(paths)
    found = prune(graph, "block:0", node_share=node_share, edge_share=edge_share)
    steps, total = steps_of(found), sum(weight for weight, _ in paths)
    inside = sum(weight for weight, path in paths if all(step in steps for step in path))
    assert found.carried == pytest.approx(inside / total, abs=1e-12)
    every = shares(paths)
    assert steps == pytest.approx({step: every[step] for step in steps}, rel=1e-9)
    used = {step for _, path in paths if all(step in steps for step in path) for step in path}
    assert used == set(steps)
    if node_share == edge_share == 1.0:
        assert set(steps) == set(every)
        assert found.carried == pytest.approx(1.0)


def test_without_a_source_all_that_the_target_reads_counts():
    found = prune(diamond(), None, node_share=1.0, edge_share=1.0)
    assert found.carried == pytest.approx(1.0)
    assert found.source is None
    assert found.edges == found.edges_before == 4
    assert found.to_polars()["head"].null_count() > 0


def test_more_is_carried_by_more():
    carried = [prune(chain(), "needle", node_share=share).carried for share in (0.3, 0.6, 0.9, 1.0)]
    assert carried == sorted(carried)
    assert carried[-1] > 0.9


def test_a_null_is_asked_for_the_same_shares():
    found = prune(chain(), "needle", null="uniform")
    assert found.against is not None
    assert found.against.draws == pytest.approx([prune(chain().uniform(), "needle").carried])


def test_bad_input():
    for name in ("node_share", "edge_share"):
        for share in (0.0, 1.1, np.nan):
            with pytest.raises(ConfigError, match=rf"{name}=.* is not above 0 and at most 1"):
                prune(diamond(), "needle", **{name: share})
    with pytest.raises(NoRouteError, match="from 'output' to 'needle'"):
        prune(diamond(), "output", "needle")
    with pytest.raises(UnknownNodeError, match="Spans: needle"):
        prune(diamond(), "answer")
