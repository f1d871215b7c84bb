"""Minimum cuts, dominators and betweenness, against enumeration and NetworkX."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, NoRouteError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import Step, all_paths, sources
from attngraph_analyses import betweenness, dominators, minimum_cut
from attngraph_analyses.flow import Network, saturated
from tests.analyses.paths import carrying, chain, diamond, nodes_of, shares

# None that the random graphs' shares, which are round numbers often, could meet but for rounding.
THRESHOLDS = st.sampled_from([0.0, 0.0517, 0.3013])


def masses(graph: AttentionGraph) -> dict[Step, float]:
    """The recorded mass of every attention edge; parallel edges of one head don't occur in the random sources."""
    found = {}
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        columns = (transition.head, transition.key_block, transition.query, transition.mass)
        for head, lower, upper, mass in zip(*(column.tolist() for column in columns), strict=True):
            found[layer, head, lower, upper] = mass
    return found


@pytest.mark.parametrize(
    ("capacity", "residual"), [("mass", "keep"), ("unit", "keep"), ("throughput", "cut"), ("unit", "cut")]
)
@given(source=sources(), threshold=THRESHOLDS)
def test_edge_cuts(capacity: str, residual: str, source: ArraySource, threshold: float):
    graph = AttentionGraph(source)
    paths = carrying(graph, "block:0", "output", threshold)
    assume(paths)
    found = minimum_cut(graph, "block:0", of="edges", capacity=capacity, threshold=threshold, residual=residual)
    share, mass = shares(all_paths(graph, "block:0", "output")), masses(graph)
    network = nx.DiGraph()
    for step in {step for _, steps in paths for step in steps}:
        layer, head, lower, upper = step
        fixed = head is None and residual == "keep"
        cost = (
            float("inf") if fixed else {"mass": mass.get(step, 0.0), "unit": 1.0, "throughput": share[step]}[capacity]
        )
        known = network.get_edge_data((layer, lower), (layer + 1, upper), {"capacity": 0.0})["capacity"]
        network.add_edge((layer, lower), (layer + 1, upper), capacity=known + cost)
    for _, steps in paths:
        network.add_edge("source", nodes_of(steps)[0], capacity=float("inf"))
        network.add_edge(nodes_of(steps)[-1], "target", capacity=float("inf"))
    finite = nx.DiGraph((one, other) for one, other, data in network.edges(data=True) if np.isinf(data["capacity"]))
    if finite.has_node("source") and finite.has_node("target") and nx.has_path(finite, "source", "target"):
        assert found.value == found.flow == np.inf
        assert len(found) == 0
        assert found.to_dict()["value"] is None
        return
    assert found.value == pytest.approx(nx.maximum_flow_value(network, "source", "target"), rel=1e-6, abs=1e-6)
    # The cut is one: every path takes one of its steps, and its capacity is the flow but for rounding.
    columns = (found.layer, found.head, found.key_block, found.query)
    cut = {(layer, None if head < 0 else head, lower, upper) for layer, head, lower, upper in
           zip(*(column.tolist() for column in columns), strict=True)}  # fmt: skip
    assert all(cut & set(steps) for _, steps in paths)
    assert abs(found.value - found.flow) <= 0.5 * len(found) / found.scale + 1e-9
    assert found.scale == 1.0 or capacity != "unit"


@given(source=sources(), threshold=THRESHOLDS)
def test_node_cuts_are_the_least_sets_of_nodes(source: ArraySource, threshold: float):
    """With unit capacities, by trying all sets of nodes (Menger)."""
    graph = AttentionGraph(source)
    paths = carrying(graph, "block:0", "output", threshold)
    assume(paths)
    found = minimum_cut(graph, "block:0", of="nodes", capacity="unit", threshold=threshold, residual="cut")
    inner = [set(nodes_of(steps)[1:-1]) for _, steps in paths]
    if graph.layers == 1:
        assert found.value == np.inf
        return
    cut = set(zip(found.level.tolist(), found.node.tolist(), strict=True))
    assert all(cut & nodes for nodes in inner)
    assert found.value == len(cut) == len(found) == least(inner)


@given(source=sources())
def test_streams_are_kept_and_hops_between_them_left_out(source: ArraySource):
    graph = AttentionGraph(source)
    paths = all_paths(graph, "block:0", "output")
    assume(paths)
    starts = {nodes_of(steps)[0][1] for _, steps in paths}
    ends = {nodes_of(steps)[-1][1] for _, steps in paths}
    assume(not starts & ends)
    found = minimum_cut(graph, "block:0", of="nodes", capacity="unit", threshold=0.0)
    direct = {
        step for _, steps in paths for step in steps if step[1] is not None and step[2] in starts and step[3] in ends
    }
    share = shares(paths)
    assert found.direct == pytest.approx(sum(share[step] for step in direct), abs=1e-12)
    inner = [
        {node for node in nodes_of(steps) if node[1] not in starts | ends}
        for _, steps in paths
        if not direct & set(steps)
    ]
    assert found.value == least(inner)
    blocks = minimum_cut(graph, "block:0", of="blocks", capacity="unit", threshold=0.0)
    cut = set(blocks.node.tolist())
    assert all(cut & {node for _, node in nodes} for nodes in inner)


def least(sets: list[set[tuple[int, int]]]) -> int:
    """The size of the least set that meets all of some sets, tried out by size."""
    chosen: list[frozenset[tuple[int, int]]] = [frozenset()]
    while not any(all(nodes & pick for nodes in sets) for pick in chosen):
        chosen = list({pick | {node} for pick in chosen for nodes in sets if not nodes & pick for node in nodes})
    return min(len(pick) for pick in chosen if all(nodes & pick for nodes in sets))


def test_a_diamond_by_hand():
    """Either arm has one edge of mass 1 and one of mass 1 or 3: both edges into the middle are the least."""
    found = minimum_cut(diamond(), "needle")
    assert (found.value, found.flow) == (2.0, 2.0)
    assert found.to_polars().rows() == [
        (0, 1, 0, 2, None, pytest.approx(0.75), 1.0),
        (0, 0, 0, 1, None, pytest.approx(0.25), 1.0),
    ]
    assert minimum_cut(diamond(), "needle", capacity="unit", threshold=0.3).value == 1
    nodes = minimum_cut(diamond(), "needle", of="nodes", capacity="unit")
    assert nodes.to_polars().rows() == [(1, 1, None), (1, 2, None)]
    assert minimum_cut(diamond(), "needle", of="blocks", capacity="unit").to_polars().rows() == [(1, None), (2, None)]
    assert set(found.to_dict()) >= {"value", "flow", "scale", "cut", "null", "completeness"}


def test_a_null_asks_for_the_least_capacity():
    graph = chain()
    found = minimum_cut(graph, "needle", capacity="unit", null="uniform").against
    assert found is not None
    assert found.draws.tolist() == [minimum_cut(graph.uniform(), "needle", capacity="unit").value]


def test_small_capacities_are_not_lost():
    """Twelve orders of magnitude between capacities: the cut's units follow its size, not the greatest capacity."""
    capacity = np.array([np.inf, 1e6, 3e-6, np.inf, 2e-6, np.inf])
    tail, head = np.array([0, 2, 3, 4, 3, 1]), np.array([2, 3, 4, 1, 4, 1])
    found = saturated(Network(5, tail, head, capacity))
    assert found.flow == pytest.approx(5e-6, rel=1e-6)
    assert found.crossing.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "heads"}, "of='heads' is not one of edges, nodes, blocks"),
        ({"capacity": "flow"}, "capacity='flow' is not one of mass, unit, throughput"),
        ({"residual": "half"}, "residual='half' is not one of keep, cut"),
        ({"residual": "cut"}, "Residual steps have no mass"),
        ({"threshold": -0.1}, "threshold=-0.1 is a share of the walks"),
        ({"threshold": float("nan")}, "threshold=nan is a share of the walks"),
    ],
)
def test_bad_choices(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        minimum_cut(diamond(), "needle", **options)


@pytest.mark.parametrize("ask", [minimum_cut, dominators])
def test_no_route(ask):
    with pytest.raises(NoRouteError, match="No path of positive weight leads from 'output' to 'needle'"):
        ask(diamond(), "output", "needle", threshold=0.0)
    with pytest.raises(NoRouteError, match=r"steps that each carry at least threshold=0.8 of the walks"):
        ask(diamond(), "needle", threshold=0.8)
    with pytest.raises(UnknownNodeError, match="Spans: needle"):
        ask(diamond(), "answer")


@given(source=sources(), threshold=THRESHOLDS)
def test_dominators_are_on_every_path(source: ArraySource, threshold: float):
    graph = AttentionGraph(source)
    paths = carrying(graph, "block:0", "output", threshold)
    assume(paths)
    found = dominators(graph, "block:0", threshold=threshold)
    every = set.intersection(*(set(nodes_of(steps)) for _, steps in paths))
    assert set(zip(found.level.tolist(), found.node.tolist(), strict=True)) == every
    blocks = graph.node_blocks()
    common = set.intersection(*({int(blocks[node]) for _, node in nodes_of(steps)} for _, steps in paths))
    assert found.block.tolist() == sorted(common)
    network = nx.DiGraph((one, other) for _, steps in paths for one, other in _pairs(steps))
    tree = nx.immediate_dominators(network, "source")
    node, above = tree["target"], set()
    while node != "source":
        above.add(node)
        node = tree[node]
    assert above == every


def _pairs(steps: tuple[Step, ...]) -> list[tuple[object, object]]:
    nodes = ["source", *nodes_of(steps), "target"]
    return list(pairwise(nodes))


@given(source=sources())
def test_betweenness_is_networkxs(source: ArraySource):
    graph = AttentionGraph(source)
    found = betweenness(graph, paths="counted")
    network = nx.DiGraph()
    for layer in range(graph.layers):
        rows, columns = graph.transition(layer).matrix().toarray().nonzero()
        network.add_edges_from(((layer, lower), (layer + 1, upper)) for upper, lower in zip(rows, columns, strict=True))
    target = (graph.layers, graph.nodes - 1)
    starts = [
        (0, node)
        for node in range(graph.nodes)
        if network.has_node((0, node)) and nx.has_path(network, (0, node), target)
    ]
    expected = nx.betweenness_centrality_subset(network, starts, [target], normalized=False)
    assert found.sources == len(starts)
    for (level, node), value in expected.items():
        assert found.node[level, node] * len(starts) == pytest.approx(value, abs=1e-9)


@given(source=sources())
def test_weighted_betweenness_is_the_mean_throughput(source: ArraySource):
    graph = AttentionGraph(source)
    total: dict[tuple[int, int], float] = defaultdict(float)
    weight: dict[int, float] = defaultdict(float)
    paths = [path for block in range(graph.blocks) for path in all_paths(graph, f"block:{block}", "output")]
    for value, steps in paths:
        weight[nodes_of(steps)[0][1]] += value
    for value, steps in paths:
        for node in nodes_of(steps)[1:-1]:
            total[node] += value / weight[nodes_of(steps)[0][1]]
    found = betweenness(graph)
    assert found.sources == len(weight)
    for (level, node), value in total.items():
        assert found.node[level, node] * found.sources == pytest.approx(value, rel=1e-9)
    assert found.block[0] == found.node[:, 0].max() or graph.blocks == 1
    with pytest.raises(ConfigError, match="paths='short' is not one of counted, weighted"):
        betweenness(graph, paths="short")
