"""What every question says of graphs with nothing in them, with bad numbers, or with less than was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attngraph.errors import GraphError, NoRouteError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import layer_arrays
from attngraph_analyses import (
    betweenness,
    bottlenecks,
    current_flow,
    curvature,
    dominators,
    influence,
    influence_profile,
    minimum_cut,
    prune,
    routes,
    sensitivity,
    sink_effect,
    throughput,
)
from tests.analyses.paths import chain

PAIRS = [bottlenecks, current_flow, curvature, dominators, minimum_cut, prune, routes, throughput]
"""Questions that need a route between their ends."""
OTHERS = [sensitivity, sink_effect]
ONE_END: list[Callable[[AttentionGraph], Any]] = [
    influence,
    betweenness,
    lambda graph: influence_profile(graph, target="output"),
]


def graph_of(weight: float | None) -> AttentionGraph:
    """Two layers in which the target reads block 1 with a weight, or nobody reads anything."""
    target = [] if weight is None else [(0, 0, 1, weight)]
    layer = layer_arrays([], target, residual=np.full(4, 0.5), target_residual=np.array([0.5]))
    spans = {"needle": ((2, 4),)}
    return AttentionGraph(
        ArraySource(arrays=[layer, layer], heads=1, tokens=8, block_size=2, targets=(7,), spans=spans)
    )


@pytest.mark.parametrize("weight", [np.nan, -1.0, np.inf])
@pytest.mark.parametrize("ask", [*PAIRS, *OTHERS])
def test_bad_weights_are_refused(ask, weight: float):
    with pytest.raises(GraphError, match=r"on edge 0; weights are finite and at least 0"):
        ask(graph_of(weight), "needle")


@pytest.mark.parametrize("ask", ONE_END)
def test_bad_weights_are_refused_by_questions_of_one_end(ask):
    with pytest.raises(GraphError, match=r"weights are finite and at least 0"):
        ask(graph_of(-1.0))


@pytest.mark.parametrize("ask", PAIRS)
@pytest.mark.parametrize("weight", [None, 0.0], ids=["no edges", "no weight"])
def test_a_graph_of_nothing_has_no_route(ask, weight: float | None):
    with pytest.raises(NoRouteError, match="No path of positive weight leads from 'needle' to 'output'"):
        ask(graph_of(weight), "needle")


def test_a_graph_of_nothing_leaves_everything_in_its_place():
    graph = graph_of(None)
    assert influence(graph).influence.tolist() == [0, 0, 0, 1]
    assert sensitivity(graph, "needle").source_bound == 0
    assert sensitivity(graph, "needle").to_dict()["null"]["ratio"] is None
    assert influence_profile(graph, source="needle").share[-1].tolist() == [0, 1, 0, 0, 0]
    assert sink_effect(graph, "needle").source_share == 0
    assert betweenness(graph).node.sum(1).tolist() == [0, 1, 0]
    assert np.isnan(sink_effect(graph, "needle").mass).all()


@pytest.mark.parametrize("ask", [*PAIRS, *OTHERS])
def test_names_that_mean_nothing(ask):
    with pytest.raises(UnknownNodeError, match=r"'answer' names nothing in this graph. Spans: needle"):
        ask(graph_of(1.0), "answer")
    with pytest.raises(UnknownNodeError, match="'token:3' is not a target of this run"):
        ask(graph_of(1.0), "needle", "token:3")


def test_more_than_there_is_gives_what_there_is():
    graph = chain(blocks=5)
    assert len(throughput(graph, "needle", top=10**6).layer) == len(throughput(graph, "needle").layer)
    assert len(curvature(graph, "needle", edges=10**6).layer) > 0
    assert len(routes(graph, "needle", k=10**4).routes) < 10**4
