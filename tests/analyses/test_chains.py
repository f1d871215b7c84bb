"""Walks through every hop of a chain: against enumeration, planted chains, and hops that are nothing special."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, GraphError, UnknownNodeError
from attngraph.graph import AttentionGraph, completeness
from attngraph.graph.testing import all_paths
from attngraph.testing import layered_graphs, write_random_run
from attngraph_analyses import chain, chain_weights, sequence_weight
from attngraph_analyses.chain_places import (
    all_replaced,
    as_sets,
    exchanged,
    first_block,
    in_order,
    last_block,
    one_replaced,
    shifted,
)
from tests.analyses.paths import nodes_of

BLOCKS, LAYERS, QUESTION = 30, 3, 27
HOPS = {"hop:0": (6, 7), "hop:1": (13, 14), "hop:2": (19, 20)}
Planted = Sequence[tuple[int, int, int]]


def graph_of(spans: dict[str, object], planted: Planted = (), *, weight: float = 60.0, seed: int = 0) -> AttentionGraph:
    """Everything reads all before it at random; planted edges (layer, query, key) have a weight of their own."""
    random = np.random.default_rng(seed)
    layer, query, key = np.nonzero(np.broadcast_to(np.tri(BLOCKS), (LAYERS, BLOCKS, BLOCKS)))
    weights = random.exponential(size=len(layer))
    for edge in planted:
        weights[(layer == edge[0]) & (query == edge[1]) & (key == edge[2])] = weight
    edges = {"layer": layer, "query_block": query, "key_block": key, "weight": weights}
    return AttentionGraph.from_edges(edges, residual=0.5, spans={"question": (QUESTION, BLOCKS), **spans})


def ranks(graph: AttentionGraph, hops: Sequence[str] = (), control: str = "haystack", **options) -> dict[str, float]:
    found = chain(graph, hops, f"block:{BLOCKS - 1}", **options).to_polars().filter(control=control)
    return dict(found.select("stop", "percentile").rows())


def steps_of(*places: int) -> Planted:
    """The last block reads the last place, which reads the one before, down to the first."""
    path = [*places, BLOCKS - 1]
    return [(layer, path[layer + 1], path[layer]) for layer in range(len(places))]


@given(layered_graphs(max_blocks=4), st.data())
def test_weights_are_those_of_the_enumerated_paths(graph: AttentionGraph, data: st.DataObject):
    target = "output" if graph.targets else f"block:{graph.blocks - 1}"
    sets = st.sets(st.integers(0, graph.blocks - 1), min_size=1, max_size=2)
    hops = data.draw(st.lists(sets, min_size=2, max_size=3))
    blocks = graph.node_blocks()

    def passes(nodes: list[tuple[int, int]]) -> bool:
        """Whether some levels, none below the one before it, have the hops in order; the first one is level 0."""
        way = [int(blocks[node]) for _, node in nodes]
        levels = combinations_with_replacement(range(len(way)), len(hops) - 1)
        return any(all(way[level] in hop for level, hop in zip(chosen, hops[1:], strict=True)) for chosen in levels)

    paths = [path for block in hops[0] for path in all_paths(graph, f"block:{block}", target)]
    expected = sum(weight for weight, steps in paths if passes(nodes_of(steps)))
    real = as_sets([np.array(sorted(hop)) for hop in hops], graph.blocks)
    assert chain_weights(graph, real[None], target)[0] == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_chain_by_hand():
    edges = {"layer": [0, 0, 0, 1, 1, 1, 2, 2, 2], "query_block": [1, 2, 2] * 3, "key_block": [0, 0, 1] * 3}
    spans = {"hop:0": (0, 1), "hop:1": (1, 2), "question": (2, 3)}
    graph = AttentionGraph.from_edges({**edges, "weight": np.ones(9)}, residual=0.5, spans=spans)
    found = chain(graph, target="block:2")
    # 2 → 1 → 0 with a step to spare: it stays in 2, in 1, or in 0, which reads nothing else.
    assert found.weight == pytest.approx(1 / 16 + 1 / 16 + 1 / 8)
    assert found.blocks == ((0,), (1,))
    assert sequence_weight(graph, ["block:0", "block:1", "block:2"]).total == pytest.approx(found.weight)


def test_what_lies_between_the_hops_may_be_passed():
    graph = graph_of({})
    stops = ["block:3", "block:9", f"block:{BLOCKS - 1}"]
    found = chain(graph, stops[:2], stops[2])
    assert found.weight > sequence_weight(graph, stops).total > 0


def test_a_planted_chain_ranks_first_among_all_its_controls():
    found = chain(graph_of({**HOPS}, steps_of(6, 13, 19)), target=f"block:{BLOCKS - 1}")
    table = found.to_polars().filter(control="haystack")
    assert table["stop"].to_list() == ["chain", "hop:0", "hop:1", "hop:2"]
    assert table["first"].all()
    # Single hops: every other place between the neighbours, the sink and the question.
    assert table["controls"].to_list() == [199, 13 - 1 - 1, 19 - 6 - 2, QUESTION - 13 - 2]
    assert table["percentile"][1] == pytest.approx((11 + 0.5) / 12)
    assert (table["weight"] > 3 * table["control_weight"]).all()
    assert found.to_polars().filter(control="distractor")["percentile"].to_list() == [None] * 4, "no other chains"


def test_a_hop_that_is_not_on_the_way_is_told_from_those_that_are():
    """The walk goes through block 16, where hop:1 may lie or not."""
    found = ranks(graph_of({**HOPS}, steps_of(6, 16, 19)))
    assert found["hop:1"] < 0.9
    moved = ranks(graph_of({**HOPS, "hop:1": (16, 17)}, steps_of(6, 16, 19)))
    assert moved["hop:1"] > 0.95


def test_other_chains_are_controls_of_their_own():
    others = [[[4], [10], [22]], [[8], [16], [24]]]
    asked = {"control": "distractor", "others": others}
    assert set(ranks(graph_of({**HOPS}, steps_of(6, 13, 19)), **asked).values()) == {1 - 0.5 / 3}
    # Where the walk follows another chain, this one loses against it.
    found = ranks(graph_of({**HOPS}, steps_of(8, 16, 24)), control="distractor", others=others[1:])
    assert found["chain"] == 0.25
    # Blocks of other chains are no haystack.
    spans = {**HOPS, "distractor": [(4, 5), (8, 9), (10, 11)]}
    table = chain(graph_of(spans), target=f"block:{BLOCKS - 1}").to_polars().filter(control="haystack")
    assert table.filter(stop="hop:0")["controls"].item() == 13 - 1 - 1 - 3


def test_hops_are_exchanged_where_both_chains_stay_in_order():
    real = as_sets([np.array([6]), np.array([13]), np.array([19])], 30)
    others = [as_sets([np.array([block]) for block in blocks], 30) for blocks in ((4, 10, 22), (14, 16, 24), (1, 2, 9))]
    middle = exchanged(real, np.stack(others), 1)
    # 13 fits between 4 and 22, and 10 between 6 and 19; the second can't get 13 after 14, nor the third before 9.
    assert [np.flatnonzero(one.any(0)).tolist() for one in middle] == [[6, 10, 19]]
    assert in_order(np.stack([real, *others])).all()
    assert not in_order(real[None, ::-1]).any()
    # Chains that touch this one, or the question, or have two hops in a block, are left out.
    touching = [[[6], [14], [20]], [[3], [9], [QUESTION]], [[3], [9], [9]], [[0], [9], [11]]]
    found = chain(graph_of({**HOPS}), target=f"block:{BLOCKS - 1}", others=touching)
    assert {rank.controls for rank in found.ranks if rank.control == "distractor"} == {0}


def test_places_keep_the_order_and_touch_nothing():
    real = as_sets([np.array([3, 4]), np.array([9]), np.array([12, 13])], 20)
    random = np.random.default_rng(0)
    places = [shifted(own) for own in real]
    assert [len(own) for own in places] == [19, 20, 19]
    middle = one_replaced(real, 1, places[1], 50, random)
    assert first_block(middle[:, 1]).tolist() == list(range(5, 12))
    assert (middle[:, [0, 2]] == real[[0, 2]]).all()
    assert len(one_replaced(real, 1, places[1], 4, random)) == 4
    drawn = all_replaced(places, 100, random)
    assert len(np.unique(drawn, axis=0)) == 100
    assert (last_block(drawn[:, :-1]) < first_block(drawn[:, 1:])).all()
    assert (drawn.sum(-1) == [2, 1, 2]).all()
    assert len(all_replaced([places[0][:0], *places[1:]], 9, random)) == 0


def test_hops_that_share_a_block_have_no_rank():
    found = ranks(graph_of({"hop:0": (6, 8), "hop:1": (7, 8), "hop:2": (19, 20)}))
    assert [name for name, percentile in found.items() if percentile is None] == ["chain", "hop:0", "hop:1"]
    at_the_ends = ranks(graph_of({"hop:0": (0, 1), "hop:1": (7, 8), "hop:2": (QUESTION, QUESTION + 1)}))
    assert [name for name, percentile in at_the_ends.items() if percentile is not None] == ["hop:1"]


def test_ties_are_in_the_middle():
    nothing = AttentionGraph.from_edges(
        {"layer": [0], "query_block": [1], "key_block": [0], "weight": [1.0]},
        residual=0.5,
        tokens=20,
        spans={"hop:0": (4, 5), "hop:1": (9, 10), "question": (18, 20)},
    )
    found = chain(nothing, target="block:19")
    assert found.weight == 0.0
    assert {rank.percentile for rank in found.ranks if rank.control == "haystack"} == {0.5}


def test_hops_that_are_nothing_special_have_even_percentiles():
    random = np.random.default_rng(0)
    graphs = [graph_of({}, seed=seed) for seed in range(4)]
    found = []
    for number in range(120):
        this, *others = (np.sort(random.choice(np.arange(1, QUESTION), 2, replace=False)) for _ in range(4))
        hops = [f"block:{block}" for block in this]
        options = {"others": [other[:, None] for other in others], "draws": 39}
        found.append(chain(graphs[number % 4], hops, f"block:{BLOCKS - 1}", **options).ranks)
    for same in zip(*found, strict=True):
        known = np.array([rank.percentile for rank in same if rank.percentile is not None])
        assert len(known) > 80
        assert abs(known.mean() - 0.5) < 3.5 * known.std() / np.sqrt(len(known)), same[0].control
        if same[0].control == "haystack":
            assert scipy.stats.kstest(known, "uniform").pvalue > 0.001


def test_the_answer_carries_the_graphs_completeness(tmp_path):
    graph = write_random_run(tmp_path, blocks=20, budget=6).graph(weight="mass")
    found = chain(graph, ["block:3", "needle"], draws=5)
    assert (found.completeness, found.completeness_source) == (completeness(graph).share, "estimated")
    assert found.policy == graph.policy
    document = found.to_dict()
    assert document["hops"] == [{"hop": "block:3", "blocks": [3]}, {"hop": "needle", "blocks": list(found.blocks[1])}]
    assert [rank["stop"] for rank in document["ranks"]] == ["chain", "block:3", "needle"] * 2
    assert chain(graph, ["block:3", "needle"], draws=5).to_polars().equals(found.to_polars())


def test_bad_input():
    graph = graph_of({**HOPS})
    with pytest.raises(UnknownNodeError, match=r"no spans hop:0, hop:1, …, so name the hops\. Spans: question"):
        chain(graph_of({}))
    with pytest.raises(ConfigError, match=r"at least two hops; got \['hop:0'\]"):
        chain(graph, ["hop:0"])
    with pytest.raises(GraphError, match=r"'hop:2' begins in block 19, after 'hop:0' in block 6: no block reads what"):
        chain(graph, ["hop:2", "hop:0"])
    with pytest.raises(GraphError, match=r"All 2 hops lie in block 6, so nothing tells them apart"):
        chain(graph, ["hop:0", "block:6"])
    with pytest.raises(ConfigError, match=r"draws=0 places"):
        chain(graph, draws=0)
    with pytest.raises(ConfigError, match=r"others\[1\] has 2 hops, the chain 3"):
        chain(graph, others=[[[1], [2], [3]], [[4], [5]]])
    with pytest.raises(UnknownNodeError, match="'answer' names nothing"):
        chain(graph, before="answer")
    with pytest.raises(UnknownNodeError, match="'output' is this run's target token"):
        chain(graph)
