"""One layer as a transition matrix: hand-computed rows, the policies, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import ArraySource, AttentionGraph, LayerArrays, Policy
from attngraph.graph.testing import layer_arrays, random_source, sources

POLICIES = st.fixed_dictionaries(
    {
        "weight": st.sampled_from(["contribution", "mass", "uniform"]),
        "residual": st.sampled_from(["measured", "half"]) | st.floats(0, 1),
        "heads": st.sampled_from(["sum", "max"]),
        "sink": st.sampled_from(["keep", "exclude"]),
    }
)

# Three blocks of two tokens, two heads, one target (token 5, in block 2).
ARRAYS = layer_arrays(
    [
        (0, 0, 0, 1.0),
        (0, 1, 0, 1.0),
        (0, 1, 1, 3.0),
        (0, 2, 0, 2.0),
        (0, 2, 1, 1.0),
        (1, 2, 1, 3.0),
        (1, 2, 2, 2.0),
    ],
    [(0, 0, 1, 1.0), (1, 0, 2, 3.0)],
    residual=np.array([0.5, 0.2, 0.6]),
    target_residual=np.array([0.9]),
)


def source(arrays: LayerArrays = ARRAYS, **changes: object) -> ArraySource:
    settings = {"heads": 2, "tokens": 6, "block_size": 2, "targets": (5,)} | changes
    return ArraySource(arrays=[arrays], **settings)


def matrix(arrays: LayerArrays = ARRAYS, **policy: object) -> np.ndarray:
    return AttentionGraph(source(arrays), **policy).to_scipy(0).toarray()


def test_rows_by_hand():
    expected = [
        [1.0, 0, 0, 0],
        [0.8 * 1 / 4, 0.2 + 0.8 * 3 / 4, 0, 0],
        [0.4 * 2 / 8, 0.4 * 4 / 8, 0.6 + 0.4 * 2 / 8, 0],
        [0, 0.1 * 1 / 4, 0.1 * 3 / 4, 0.9],
    ]
    np.testing.assert_allclose(matrix(), expected, rtol=1e-15)


def test_heads_max_keeps_the_strongest_of_parallel_edges():
    np.testing.assert_allclose(matrix(heads="max")[2], [0.4 * 2 / 7, 0.4 * 3 / 7, 0.6 + 0.4 * 2 / 7, 0])
    transition = AttentionGraph(source(), heads="max").transition(0)
    assert transition.head[(transition.query == 2) & (transition.key_block == 1)].tolist() == [1]


def test_heads_max_takes_the_lowest_head_on_ties():
    tied = layer_arrays([(1, 1, 0, 2.0), (0, 1, 0, 2.0)], residual=np.zeros(3), target_residual=np.zeros(1))
    assert AttentionGraph(source(tied), heads="max").transition(0).head.tolist() == [0]


def test_sink_exclude_drops_edges_from_block_0_but_into_itself():
    rows = matrix(sink="exclude")
    np.testing.assert_allclose(rows[:3], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.4 * 4 / 6, 0.6 + 0.4 * 2 / 6, 0]])


def test_sink_exclude_keeps_what_block_0_reads_of_itself():
    in_the_sink = AttentionGraph(source(targets=(1,)), sink="exclude").transition(0)
    first = in_the_sink.query == 0
    assert (in_the_sink.key_block[first].tolist(), in_the_sink.probability[first].tolist()) == ([0], [0.5])
    arrays = replace(ARRAYS, target_key_block=np.array([0, 0]))
    target = AttentionGraph(source(arrays, targets=(1,)), sink="exclude").to_scipy(0).toarray()[3]
    np.testing.assert_allclose(target, [0.1, 0, 0, 0.9])


def test_a_row_without_weight_stays():
    arrays = layer_arrays([(0, 1, 0, 0.0), (0, 2, 0, 4.0)], residual=np.full(3, 0.3), target_residual=np.full(1, 0.3))
    np.testing.assert_allclose(matrix(arrays), [[1, 0, 0, 0], [0, 1, 0, 0], [0.7, 0, 0.3, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(matrix(arrays, sink="exclude"), np.eye(4))


def test_residual_policies():
    assert matrix(residual="half")[3, 3] == 0.5
    assert matrix(residual=0.25)[3, 3] == 0.25
    np.testing.assert_array_equal(matrix(residual=1.0), np.eye(4))
    assert matrix(residual=0)[3].tolist() == [0, 0.25, 0.75, 0]


def test_weight_policies_read_their_column():
    arrays = replace(ARRAYS, mass=ARRAYS.mass[::-1].copy(), target_mass=ARRAYS.target_mass[::-1].copy())
    np.testing.assert_allclose(matrix(arrays, weight="contribution"), matrix())
    np.testing.assert_allclose(matrix(arrays, weight="mass")[3], [0, 0.1 * 3 / 4, 0.1 * 1 / 4, 0.9])
    np.testing.assert_allclose(matrix(arrays, weight="uniform")[3], [0, 0.05, 0.05, 0.9])


def test_uniform_gives_edges_of_no_weight_nothing():
    arrays = layer_arrays(
        [(0, 2, 0, 5.0), (0, 2, 1, 0.0), (0, 2, 2, 1.0)], residual=np.zeros(3), target_residual=np.zeros(1)
    )
    assert matrix(arrays, weight="uniform")[2].tolist() == [0.5, 0, 0.5, 0]


def test_uniform_graph_keeps_the_other_policies():
    graph = AttentionGraph(source(), weight="mass", residual=0.3, heads="max", sink="exclude")
    assert graph.uniform().policy == Policy(weight="uniform", residual=0.3, heads="max", sink="exclude")
    assert graph.policy == Policy(weight="mass", residual=0.3, heads="max", sink="exclude")


@given(sources(), POLICIES)
def test_rows_sum_to_one(drawn: ArraySource, policy: dict[str, object]):
    graph = AttentionGraph(drawn, **policy)
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        assert (transition.probability >= 0).all()
        sums = np.bincount(transition.query, transition.probability, minlength=graph.nodes) + transition.stay
        np.testing.assert_allclose(sums, 1.0, rtol=1e-12)
        np.testing.assert_allclose(transition.matrix().sum(axis=1), 1.0, rtol=1e-12)


@given(sources(), POLICIES)
def test_heads_max_leaves_one_edge_per_pair(drawn: ArraySource, policy: dict[str, object]):
    transition = AttentionGraph(drawn, **(policy | {"heads": "max"})).transition(0)
    pairs = list(zip(transition.query.tolist(), transition.key_block.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"weight": "logits"}, r"weight='logits' is not one of contribution, mass, uniform"),
        ({"heads": "mean"}, r"heads='mean' is not one of sum, max"),
        ({"sink": "drop"}, r"sink='drop' is not one of keep, exclude"),
        ({"residual": "third"}, r"residual='third' is not 'measured', 'half' or a number from 0 to 1"),
        ({"residual": 1.5}, r"residual=1\.5 is not"),
        ({"residual": -0.1}, r"residual=-0\.1 is not"),
        ({"residual": float("nan")}, r"residual=nan is not"),
        ({"residual": True}, r"residual=True is not"),
        ({"residual": None}, r"residual=None is not"),
    ],
)
def test_unknown_policies_are_refused(policy: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        AttentionGraph(source(), **policy)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            replace(ARRAYS, residual=None),
            r"Layer 0 has none of the 3 measured residual shares, one per block.*'half'",
        ),
        (replace(ARRAYS, target_residual=None), r"none of the 1 measured residual shares, one per target"),
        (replace(ARRAYS, residual=np.ones(2)), r"Layer 0 has 2 of the 3 measured residual shares"),
        (
            replace(ARRAYS, residual=np.array([0.1, np.nan, 0])),
            r"the residual share nan at block 1; shares are from 0 to 1",
        ),
        (replace(ARRAYS, target_residual=np.array([1.1])), r"the residual share 1\.1 at target 0"),
    ],
)
def test_measured_shares_are_never_assumed(arrays: LayerArrays, message: str):
    graph = AttentionGraph(source(arrays))
    with pytest.raises(GraphError, match=message):
        graph.transition(0)
    assert AttentionGraph(source(arrays), residual="half").transition(0).stay.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": np.full(7, 2)}, r"Layer 0 has head=2, but the source has 2 of them"),
        ({"key_block": np.full(7, -1)}, r"Layer 0 has key_block=-1, but the source has 3 of them"),
        ({"query_block": np.full(7, 3)}, r"Layer 0 has query_block=3, but"),
        ({"target": np.array([0, 1])}, r"Layer 0 has target=1, but the source has 1 of them"),
        (
            {"mass": np.array([0, 0, np.nan, 0, 0, 0, 0])},
            r"Layer 0 has mass=nan on edge 2; weights are finite",
        ),
        ({"target_contribution": np.array([0, -1.0])}, r"target_contribution=-1\.0 on edge 1; .* at least 0"),
        ({"mass": np.ones(3)}, r"Layer 0 has columns of different lengths: .*'mass': 3"),
    ],
)
def test_bad_arrays_are_refused(changes: dict[str, np.ndarray], message: str):
    with pytest.raises(GraphError, match=message):
        AttentionGraph(source(replace(ARRAYS, **changes))).transition(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, r"A graph needs at least one layer, one head.*got 1, 0, 6 and 2"),
        ({"tokens": 0}, r"got 1, 2, 0 and 2"),
        ({"targets": (6,)}, r"Target 6 is not a position in the prompt's tokens 0 to 5"),
        ({"spans": {"needle": ((2, 2),)}}, r"Span 'needle' has the range 2 to 2, which is empty or outside"),
        ({"spans": {"needle": ((0, 1), (4, 7))}}, r"Span 'needle' has the range 4 to 7.*6 tokens"),
    ],
)
def test_contradictory_sources_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(GraphError, match=message):
        AttentionGraph(source(**changes))


def test_a_source_with_a_wrong_number_of_blocks_is_refused():
    class Wrong(ArraySource):
        @property
        def blocks(self) -> int:
            return 4

    with pytest.raises(GraphError, match=r"6 tokens in blocks of 2 make 3 blocks, but the source says 4"):
        AttentionGraph(Wrong(arrays=[ARRAYS], heads=2, tokens=6, block_size=2, targets=(5,)))


@pytest.mark.parametrize("layer", [-1, 1])
def test_a_layer_out_of_range_is_refused(layer: int):
    with pytest.raises(GraphError, match=rf"layer={layer} is outside this graph's layers 0 to 0"):
        AttentionGraph(source()).transition(layer)


def test_layers_are_read_when_asked_for_and_sources_stay_untouched():
    drawn = random_source(seed=1)
    read: list[int] = []

    class Counting(ArraySource):
        def layer(self, layer: int) -> LayerArrays:
            read.append(layer)
            return super().layer(layer)

    before = [array.copy() for array in vars(drawn.arrays[2]).values()]
    graph = AttentionGraph(Counting(**vars(drawn)))
    assert read == []
    graph.transition(2)
    assert read == [2]
    for old, new in zip(before, vars(drawn.arrays[2]).values(), strict=True):
        np.testing.assert_array_equal(old, new)
