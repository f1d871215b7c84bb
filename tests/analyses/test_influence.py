"""Influence: hand-computed walks, enumeration, laws, and the needle's rank."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import GraphError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import BLOCK_SIZE, all_paths, layer_arrays, sources
from attngraph_analyses import influence


def star(weights: list[float], spans: dict[str, tuple[tuple[int, int], ...]] | None = None) -> AttentionGraph:
    """One layer: the target, in the last block, reads every block with these weights and stays with ½."""
    layer = layer_arrays(
        [],
        [(0, 0, block, weight) for block, weight in enumerate(weights)],
        residual=np.zeros(len(weights)),
        target_residual=np.array([0.5]),
    )
    tokens = 2 * len(weights)
    return AttentionGraph(
        ArraySource(arrays=[layer], heads=1, tokens=tokens, block_size=2, targets=(tokens - 1,), spans=spans or {})
    )


def test_a_star_by_hand():
    found = influence(star([1.0, 6.0, 0.0, 1.0], {"needle": ((2, 4),), "question": ((4, 8),)}))
    third, share = 0.5 / 3, 0.5 / 8
    np.testing.assert_allclose(found.influence, [share, 6 * share, 0, 0.5 + share])
    np.testing.assert_allclose(found.null, [third, third, 0, 0.5 + third])
    np.testing.assert_allclose(
        found.excess,
        [share * np.log(share / third), 6 * share * np.log(6 * share / third), 0,
         (0.5 + share) * np.log((0.5 + share) / (0.5 + third))],
    )  # fmt: skip
    assert found.rank.tolist() == [2, 0, 1, 3]
    assert found.spans == ((), ("needle",), ("question",), ("question",))
    assert found.completeness is None
    assert found.policy.weight == "contribution"
    assert found.block_size == 2


def test_a_chain_by_hand():
    """Two layers: block 1 reads block 0 in the first, the target reads block 1 in the second."""
    first = layer_arrays([(0, 1, 0, 1.0)], residual=np.array([1.0, 0.25]), target_residual=np.array([1.0]))
    second = layer_arrays([], [(0, 0, 1, 1.0)], residual=np.ones(2), target_residual=np.array([0.4]))
    graph = AttentionGraph(ArraySource(arrays=[first, second], heads=1, tokens=4, block_size=2, targets=(3,)))
    np.testing.assert_allclose(influence(graph).influence, [0.6 * 0.75, 0.4 + 0.6 * 0.25])
    np.testing.assert_allclose(influence(graph, "block:1").influence, [0.75, 0.25])
    np.testing.assert_allclose(influence(graph, "block:0").influence, [1, 0])


@given(sources(), st.sampled_from(["output", "block:0", "span:0"]))
def test_influence_sums_the_enumerated_paths(source: ArraySource, target: str):
    graph = AttentionGraph(source)
    found = influence(graph, target)
    np.testing.assert_allclose(found.influence.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.null.sum(), 1.0, rtol=1e-12)
    for block in range(graph.blocks):
        paths = all_paths(graph, f"block:{block}", target)
        np.testing.assert_allclose(found.influence[block], sum(weight for weight, _ in paths), atol=1e-12)


@given(sources())
def test_ranks_order_the_excess(source: ArraySource):
    found = influence(AttentionGraph(source))
    assert sorted(found.rank.tolist()) == list(range(len(found.block)))
    assert (np.diff(found.excess[np.argsort(found.rank)]) <= 0).all()
    assert np.isfinite(found.excess).all()
    assert (found.excess[found.influence == 0] == 0).all()


@given(sources())
def test_uniform_weights_have_no_excess(source: ArraySource):
    found = influence(AttentionGraph(source, weight="uniform"))
    np.testing.assert_array_equal(found.excess, 0.0)
    assert found.rank.tolist() == found.block.tolist()


@given(sources())
def test_residual_one_leaves_the_target_in_its_place(source: ArraySource):
    graph = AttentionGraph(source, residual=1.0)
    assert influence(graph).influence.tolist() == [0.0] * (graph.blocks - 1) + [1.0]


@given(sources())
def test_an_excluded_sink_is_reached_by_nothing_behind_it(source: ArraySource):
    graph = AttentionGraph(source, sink="exclude")
    found = influence(graph)
    if graph.targets[-1] >= BLOCK_SIZE:
        assert found.influence[0] == 0


def test_to_polars():
    frame = influence(star([1.0, 6.0, 0.0, 1.0], {"a": ((0, 3),), "b": ((2, 3),)})).to_polars()
    assert frame.schema == pl.Schema(
        {"block": pl.Int64, "influence": pl.Float64, "null": pl.Float64, "excess": pl.Float64,
         "rank": pl.Int64, "spans": pl.List(pl.String)}
    )  # fmt: skip
    assert frame["spans"].to_list() == [["a"], ["a", "b"], [], []]
    assert frame["rank"][1] == 0


SPANS = {
    "sink": ((0, 1),),
    "needle": ((6, 9),),
    "question": ((10, 12),),
    "late": ((11, 12),),
    "wide": ((1, 12),),
}


@pytest.mark.parametrize(
    ("weights", "rank"),
    [
        ([1.0, 1.0, 1.0, 9.0, 1.0, 1.0], 0),
        ([1.0, 1.0, 1.0, 1.0, 9.0, 1.0], 0),  # the needle's second block
        ([40.0, 1.0, 1.0, 20.0, 1.0, 40.0], 0),  # neither sink nor question compete
        ([1.0, 9.0, 1.0, 3.0, 2.0, 1.0], 1),
        ([1.0, 9.0, 8.0, 4.0, 2.0, 1.0], 2),
    ],
)
def test_rank_of_the_needle(weights: list[float], rank: int):
    assert influence(star(weights, SPANS)).rank_of("needle", before="question") == rank


def test_rank_of_counts_only_the_blocks_of_a_span_that_compete():
    assert influence(star([1.0, 9.0, 2.0, 1.0, 1.0, 90.0], SPANS)).rank_of("wide", before="question") == 0


@given(sources(), st.data())
def test_rank_of_is_the_place_among_the_candidates(source: ArraySource, data: st.DataObject):
    found = influence(AttentionGraph(source))
    if len(found.block) < 3:
        return
    end = data.draw(st.integers(2, len(found.block) - 1))
    block = data.draw(st.integers(1, end - 1))
    order = sorted(range(1, end), key=lambda candidate: (-found.excess[candidate], candidate))
    assert found.rank_of(f"span:{block}", before=f"span:{end}") == order.index(block)


@pytest.mark.parametrize(
    ("span", "before", "error", "message"),
    [
        (
            "sink",
            "question",
            GraphError,
            r"before 'question' \(block 5\) are ranked, but 'sink' lies in block\(s\) 0",
        ),
        ("late", "question", GraphError, r"'late' lies in block\(s\) 5"),
        (
            "needle",
            "sink",
            GraphError,
            r"before 'sink' \(block 0\) are ranked, but 'needle' lies in block\(s\) 3, 4",
        ),
        (
            "needles",
            "question",
            UnknownNodeError,
            r"'needles' is no span.*Spans: late, needle, question, sink, wide",
        ),
        ("needle", "answer", UnknownNodeError, r"'answer' is no span"),
    ],
)
def test_a_span_that_cannot_be_ranked(span: str, before: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        influence(star([1.0] * 6, SPANS)).rank_of(span, before=before)


def test_unknown_target():
    with pytest.raises(UnknownNodeError, match=r"'answer' names nothing in this graph. Spans: none"):
        influence(star([1.0, 1.0]), "answer")


@given(sources())
def test_influence_depends_on_blocks_not_on_edge_order(source: ArraySource):
    """Shuffling the edges of every layer changes nothing but rounding."""
    columns: dict[str, tuple[str, ...]] = {
        "head": ("head", "query_block", "key_block", "mass", "contribution"),
        "target_head": ("target_head", "target", "target_key_block", "target_mass", "target_contribution"),
    }
    shuffled = []
    for arrays in source.arrays:
        fields = defaultdict(lambda: None, vars(arrays))
        for first, names in columns.items():
            order = np.random.default_rng(0).permutation(len(fields[first]))
            fields.update({name: fields[name][order] for name in names})
        shuffled.append(type(arrays)(**fields))
    other = ArraySource(**(vars(source) | {"arrays": shuffled}))
    np.testing.assert_allclose(
        influence(AttentionGraph(other)).influence,
        influence(AttentionGraph(source)).influence,
        rtol=1e-12,
        atol=1e-300,
    )
