"""Nulls: what each keeps and what it changes, and how answers are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import ArraySource, AttentionGraph, LayerTransition, blocks_of
from attngraph.graph.testing import layer_arrays, sources
from attngraph_analyses import (
    Null,
    Question,
    betweenness,
    bottlenecks,
    current_flow,
    curvature,
    dominators,
    influence,
    influence_profile,
    minimum_cut,
    prune,
    reach,
    routes,
    sequence_weight,
    sink_effect,
    throughput,
)
from attngraph_analyses.nulls import ALL_BUT_HEADS, NullName, alternatives, as_null, compare, matched_blocks
from attngraph_analyses.results import ComparedAnswer
from tests.analyses.paths import chain, diamond


def question(graph: AttentionGraph, source: str = "needle", target: str = "output") -> Question:
    return Question(graph, blocks_of(graph, source), target)


def rows(transition: LayerTransition, *names: str) -> Counter[tuple[float, ...]]:
    return Counter(zip(*(getattr(transition, name).tolist() for name in names), strict=True))


@given(sources(), st.sampled_from(["edges", "heads"]), st.integers(0, 5))
def test_random_nulls_keep_the_rows_weights(source: ArraySource, name: str, seed: int):
    graph = AttentionGraph(source)
    for other in alternatives(question(graph, "span:0"), Null(name=name, draws=2, seed=seed)):
        for layer in range(graph.layers):
            before, after = graph.transition(layer), other.graph.transition(layer)
            np.testing.assert_allclose(after.stay, before.stay)
            assert rows(after, "query", "mass", "contribution") == rows(before, "query", "mass", "contribution")
            blocks = graph.node_blocks()
            assert (after.key_block <= blocks[after.query]).all()
            if name == "edges":
                assert rows(after, "key_block") == rows(before, "key_block")
                assert rows(after, "head", "query") == rows(before, "head", "query")
            else:
                assert rows(after, "query", "key_block", "mass") == rows(before, "query", "key_block", "mass")


@pytest.mark.parametrize(("name", "column"), [("edges", "key_block"), ("heads", "head")])
def test_random_nulls_change_something_and_repeat_with_their_seed(name: str, column: str):
    graph = chain()

    def drawn(seed: int) -> list[np.ndarray]:
        others = alternatives(question(graph), Null(name=name, draws=2, seed=seed))
        return [getattr(other.graph.transition(1), column) for other in others]

    first, again, different = drawn(0), drawn(0), drawn(1)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first[0] != different[0]).any()
    assert (first[0] != getattr(graph.transition(1), column)).mean() > 0.3


def test_edges_exchange_keys_with_those_of_nearly_the_same_mass():
    """The strongest edges all read block 0, and most go on: few weak ones come near them in the order of masses."""
    blocks, strong = 400, 100.0
    rows = [(0, row, 0, strong) for row in range(blocks)] + [
        (1, row, 1 + row // 2, 1.0) for _ in range(5) for row in range(1, blocks)
    ]
    layer = layer_arrays(rows, residual=np.full(blocks, 0.5), target_residual=np.zeros(0))
    graph = AttentionGraph(ArraySource(arrays=[layer], heads=2, tokens=2 * blocks, block_size=2))
    (other,) = alternatives(Question(graph, None, "block:399"), Null(name="edges", draws=1))
    before, after = graph.transition(0), other.graph.transition(0)
    assert (after.key_block[after.mass == strong] == 0).mean() > 0.7
    weak = after.mass == 1.0
    assert (after.key_block[weak] != before.key_block[weak]).mean() > 0.3


def test_matched_blocks_are_the_nearest_that_have_room():
    graph = chain()
    own = blocks_of(graph, "needle").tolist()
    assert own == [12, 13]
    moved = [blocks.tolist() for blocks in matched_blocks(question(graph), 5)]
    assert moved == [[10, 11], [14, 15], [9, 10], [15, 16], [8, 9]]
    every = np.concatenate(matched_blocks(question(graph), 100))
    assert every.min() == 1
    assert every.max() == 22  # the target's block is 23


def test_other_targets_are_the_blocks_before():
    asked = [other.target for other in alternatives(question(chain()), Null(name="targets", draws=3))]
    assert asked == ["block:22", "block:21", "block:20"]
    assert len(list(alternatives(question(chain()), Null(name="targets", draws=100)))) == 22


def test_a_comparison_by_hand():
    answers = iter([1.0, 3.0, np.nan, 4.0])
    found = compare(lambda _: next(answers), question(chain()), Null(name="distance", draws=4), value=3.0)
    assert found.mean == pytest.approx(8 / 3)
    assert found.ratio == pytest.approx(9 / 8)
    assert found.rank == 2
    assert found.to_dict() == {
        "name": "distance",
        "draws": 4,
        "mean": pytest.approx(8 / 3),
        "ratio": pytest.approx(9 / 8),
        "rank": 2,
    }


def test_a_comparison_with_nothing_is_null():
    found = compare(lambda _: np.nan, question(chain()), "uniform", value=3.0)
    assert found.to_dict() == {"name": "uniform", "draws": 1, "mean": None, "ratio": None, "rank": 0}
    assert compare(lambda _: 0.0, question(chain()), "uniform", value=3.0).to_dict()["ratio"] is None


def test_arrays_are_compared_entry_by_entry():
    found = compare(lambda _: [[1.0, 2.0]], question(chain()), Null(name="targets", draws=3), value=[[2.0, 1.0]])
    np.testing.assert_array_equal(found.ratio, [[2.0, 0.5]])
    np.testing.assert_array_equal(found.rank, [[0, 3]])
    assert found.at(0, 1).to_dict() == {"name": "targets", "draws": 3, "mean": 2.0, "ratio": 0.5, "rank": 3}


@pytest.mark.parametrize("name", ["uniform", "edges", "heads", "distance", "targets"])
def test_every_null_answers_throughput(name: str):
    graph = chain()
    found = throughput(graph, "needle", null=name)
    assert found.against is not None
    assert found.against.value == pytest.approx(found.total)
    assert found.against.null == as_null(name)
    assert found.heads()["null_throughput"].null_count() == 0
    if name == "heads":
        assert found.against.to_dict()["ratio"] == pytest.approx(1.0)
        assert found.against.rank == 16
    else:
        assert (found.against.draws != found.total).any()


def test_distance_asks_what_the_moved_source_would_get():
    graph = chain()
    expected = [influence(graph).influence[blocks].sum() for blocks in matched_blocks(question(graph), 4)]
    found = throughput(graph, "needle", null=Null(name="distance", draws=4)).against
    assert found is not None
    np.testing.assert_allclose(found.draws, expected)


@pytest.mark.parametrize("ask", [throughput, prune, minimum_cut])
def test_a_null_without_alternatives_is_refused(ask):
    whole = chain(blocks=4)
    with pytest.raises(GraphError, match=r"'distance' moves the source .* blocks 2 to 3 have no room before block 3"):
        ask(whole, "needle", null="distance")
    with pytest.raises(GraphError, match=r"'targets' .* 'block:1' is in block 1 and only the sink lies before it"):
        ask(diamond(), "needle", "block:1", null="targets")


def test_a_null_without_a_source_to_move_is_refused():
    with pytest.raises(GraphError, match="'distance' moves the source, but this question has none"):
        prune(chain(), None, null="distance")


def test_bad_nulls():
    with pytest.raises(ConfigError, match="null='shuffled' is not one of uniform, edges, heads, distance, targets"):
        throughput(chain(), "needle", null="shuffled")
    with pytest.raises(ConfigError, match="draws=0 alternatives"):
        Null(name="edges", draws=0)


ASKED: dict[str, tuple[Callable[..., ComparedAnswer], set[str]]] = {
    "betweenness": (lambda null: betweenness(chain(), null=null), {"uniform", "edges", "targets"}),
    "counted": (lambda null: betweenness(chain(), paths="counted", null=null), {"edges", "targets"}),
    "bottlenecks": (lambda null: bottlenecks(chain(), "needle", null=null), {*ALL_BUT_HEADS}),
    "current_flow": (lambda null: current_flow(chain(), "needle", null=null), {*ALL_BUT_HEADS}),
    "curvature": (lambda null: curvature(chain(), "needle", edges=3, null=null), {*ALL_BUT_HEADS}),
    "dominators": (lambda null: dominators(chain(), "needle", threshold=0.01, null=null), {*ALL_BUT_HEADS}),
    "dominators of all steps": (
        lambda null: dominators(chain(), "needle", null=null),
        {"edges", "distance", "targets"},
    ),
    "minimum_cut": (lambda null: minimum_cut(chain(), "needle", null=null), {*ALL_BUT_HEADS}),
    "minimum_cut of all steps": (
        lambda null: minimum_cut(chain(blocks=8), "needle", threshold=0, null=null),
        {"edges", "distance", "targets"},
    ),
    "profile of a target": (
        lambda null: influence_profile(chain(), target="output", null=null),
        {"uniform", "edges", "targets"},
    ),
    "profile of a source": (
        lambda null: influence_profile(chain(), source="needle", null=null),
        {"uniform", "edges", "distance"},
    ),
    "prune": (lambda null: prune(chain(), "needle", null=null), {*ALL_BUT_HEADS}),
    "reach": (lambda null: reach(sparse_chain(), "needle", null=null), {"edges", "distance"}),
    "routes": (lambda null: routes(chain(), "needle", null=null), {*ALL_BUT_HEADS}),
    "sequence_weight": (lambda null: sequence_weight(chain(), ["block:12", "output"], null=null), {*ALL_BUT_HEADS}),
    "sequence_weight of a head": (
        lambda null: sequence_weight(chain(), ["block:12", "output"], [1], null=null),
        {*ALL_BUT_HEADS, "heads"},
    ),
}


def sparse_chain() -> AttentionGraph:
    """Every block reads the sink, itself and one other at random, so that little is reached in two layers."""
    random = np.random.default_rng(0)
    rows = [
        (0, row, key, 1.0 + random.random()) for row in range(24) for key in {0, row, int(random.integers(row + 1))}
    ]
    layer = layer_arrays(rows, [(0, 0, 5, 1.0)], residual=np.full(24, 0.5), target_residual=np.array([0.5]))
    spans = {"needle": ((24, 27),)}
    source = ArraySource(arrays=[layer] * 2, heads=1, tokens=48, block_size=2, targets=(47,), spans=spans)
    return AttentionGraph(source)


@pytest.mark.parametrize("name", ASKED)
def test_every_answer_takes_the_nulls_that_can_change_it_and_no_others(name: str):
    ask, possible = ASKED[name]
    for null in get_args(NullName):
        if null in possible:
            found = ask(Null(name=null, draws=8)).against
            assert found is not None
            assert found.null.name == null
            assert found.draws.shape[1:] == np.shape(found.value) == found.rank.shape == found.ratio.shape
            # Two layers of all edges are dominated by the ends alone, whatever is left to chance.
            assert name.startswith("dominators") or (found.draws != found.value).any()
        else:
            others = ", ".join(other for other in get_args(NullName) if other in possible and other != "heads")
            with pytest.raises(ConfigError, match=rf"null='{null}' can't change .*\. Nulls that can: {others}"):
                ask(null)
    assert ask(None).against is None


def test_the_draws_are_the_same_question_of_the_alternatives():
    graph, uniform = chain(), chain().uniform()
    moved = [f"block:{blocks[0]}" for blocks in matched_blocks(Question(graph, np.array([12]), "output"), 3)]
    distance, targets = Null(name="distance", draws=3), Null(name="targets", draws=2)

    np.testing.assert_allclose(betweenness(graph, null="uniform").against.draws, [betweenness(uniform).block])
    others = [betweenness(graph, other).block for other in ("block:22", "block:21")]
    np.testing.assert_allclose(betweenness(graph, null=targets).against.draws, others)
    means = [curvature(graph, block, edges=3).curvature.mean() for block in moved]
    np.testing.assert_allclose(curvature(graph, "block:12", edges=3, null=distance).against.draws, means)
    counts = [len(dominators(graph, block, threshold=0.01).block) for block in moved]
    found = dominators(graph, "block:12", threshold=0.01, null=distance)
    assert (found.against.draws.tolist(), found.against.value) == (counts, len(found.block))
    shares = [influence_profile(graph, source=block).share for block in moved]
    np.testing.assert_allclose(influence_profile(graph, source="block:12", null=distance).against.draws, shares)
    totals = [sequence_weight(graph, [block, "block:20", "output"]).total for block in moved]
    found = sequence_weight(graph, ["block:12", "block:20", "output"], null=distance)
    np.testing.assert_allclose(found.against.draws, totals)
    ends = [sequence_weight(graph, ["block:12", end], [1]).total for end in ("block:22", "block:21")]
    np.testing.assert_allclose(sequence_weight(graph, ["block:12", "output"], [1], null=targets).against.draws, ends)
    few = sparse_chain()
    np.testing.assert_allclose(
        reach(few, "block:12", null=distance).against.draws, [reach(few, block).count for block in moved]
    )


def test_the_sinks_shares_have_their_nulls():
    graph, uniform = chain(), chain().uniform()
    found, other = sink_effect(graph, "needle"), sink_effect(uniform, "needle")
    table = found.shares()
    assert table["share"].to_list() == [
        found.share, found.share_excluded, found.source_share, found.source_share_excluded
    ]  # fmt: skip
    expected = [other.share, other.share_excluded, other.source_share, other.source_share_excluded]
    np.testing.assert_allclose(found.against.draws, [expected])
    assert table.columns == ["of", "sink", "share", "null_share", "ratio", "rank"]
    assert table["ratio"].to_list()[1] is None  # without its edges the sink is read by nobody
    distance = sink_effect(graph, "needle", null=Null(name="distance", draws=3)).against
    moved = [influence(graph).influence[blocks].sum() for blocks in matched_blocks(question(graph), 3)]
    np.testing.assert_allclose(distance.draws[:, 2], moved)
    np.testing.assert_allclose(distance.draws[:, 0], found.share)
    with pytest.raises(ConfigError, match="null='heads' can't change influence"):
        sink_effect(graph, "needle", null="heads")


def test_tables_have_the_null_beside_every_number():
    found = betweenness(chain(), null="uniform")
    table = found.blocks()
    assert table.columns == ["block", "betweenness", "null_betweenness", "ratio", "rank"]
    np.testing.assert_allclose(table["null_betweenness"], found.against.mean)
    assert betweenness(chain()).blocks().columns == ["block", "betweenness"]
    profile = influence_profile(chain(), target="output", null="uniform").to_polars()
    assert profile.columns == ["level", "block", "target", "share", "null_share", "ratio", "rank"]
    ratio = (profile["share"] / profile["null_share"]).to_list()
    assert profile["ratio"].to_list() == pytest.approx(ratio)
    levels = reach(sparse_chain(), "needle", null=Null(name="edges", draws=2)).levels()
    assert levels.columns == ["level", "count", "share", "null_count", "ratio", "rank"]
    assert levels.row(0) == (0, 2, 2 / 25, 2.0, 1.0, 2)
    assert reach(sparse_chain(), "needle").levels()["count"].to_list() == levels["count"].to_list()
