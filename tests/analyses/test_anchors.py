"""Thought anchors: scores by hand, what they don't depend on, planted receiver heads, what dropped mass could do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kurtosis

from attngraph.errors import ConfigError, GraphError
from attngraph.store import Run
from attngraph.testing import ANCHOR, write_random_run
from attngraph_analyses import anchors, receiver_heads
from attngraph_analyses.sentences import dropped_shares, sentence_masses, sentences_of
from attngraph_analyses.vertical import greatest, kurtosis_of, vertical_scores

PLANTED = ((1, 2), (3, 0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    metadata = {"categories": ["plan", None] * 8, "importance": [0.5, None] * 8}
    return write_random_run(
        tmp_path_factory.mktemp("anchors"),
        layers=4,
        heads=4,
        blocks=20,
        budget=6,
        sentences=16,
        receivers=PLANTED,
        metadata=metadata,
    )


def attention(count: int = 6, heads: int = 3) -> st.SearchStrategy[np.ndarray]:
    """Mean attention of some heads, causal."""
    return arrays(np.float64, (heads, count, count), elements=st.integers(0, 100).map(float)).map(np.tril)


def test_vertical_scores_by_hand():
    """Rows s see t ≤ s − 2: of five sentences the first three are seen, by 3, 2 and 1 of them."""
    a = np.array(
        [
            [
                [9.0, 0, 0, 0, 0],
                [9.0, 9, 0, 0, 0],
                [0.1, 9, 9, 0, 0],
                [0.4, 0.2, 9, 9, 0],
                [0.1, 0.6, 0.3, 9, 9],
            ]
        ]
    )
    np.testing.assert_allclose(vertical_scores(a, 2), [[0.2, 0.4, 0.3, np.nan, np.nan]])
    np.testing.assert_allclose(
        vertical_scores(a, 2, depth_control=True),
        [[(1 + 2 / 2 + 1 / 3) / 3, (1 / 2 + 3 / 3) / 2, 2 / 3, np.nan, np.nan]],
    )


def test_ranks_of_equal_entries_are_shared():
    a = np.zeros((1, 3, 3))
    np.testing.assert_allclose(vertical_scores(a, 1, depth_control=True)[0, :2], [(1 + 0.75) / 2, 0.75])


@given(arrays(np.float64, (4, 9), elements=st.floats(0, 1, width=16)))
def test_kurtosis_is_scipys(values: np.ndarray):
    values[:, -2:] = np.nan
    found = kurtosis_of(values)
    for row, peaked in zip(values, found, strict=True):
        if np.isnan(peaked):
            assert np.ptp(row[:-2]) == pytest.approx(0, abs=1e-9)
        else:
            expected = kurtosis(row, fisher=True, bias=True, nan_policy="omit")
            assert peaked == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


@given(attention(), st.permutations(range(3)), st.floats(0.01, 100), st.booleans())
def test_heads_may_be_permuted_and_scaled(a: np.ndarray, order: list[int], scale: float, control: bool):
    plain = vertical_scores(a, 2, depth_control=control)
    np.testing.assert_allclose(vertical_scores(a[order], 2, depth_control=control), plain[order])
    scaled = vertical_scores(a * scale, 2, depth_control=control)
    np.testing.assert_allclose(scaled, plain if control else plain * scale)
    np.testing.assert_allclose(kurtosis_of(scaled), kurtosis_of(plain), rtol=1e-6, atol=1e-6)


def test_the_greatest_heads_in_order_without_undefined_ones():
    peaked = np.array([[1.0, np.nan], [3.0, 1.0]])
    assert greatest(peaked, 2) == [(1, 0), (0, 0)]
    assert greatest(peaked, 20) == [(1, 0), (0, 0), (1, 1)]


def test_scores_are_those_of_the_table(run: Run):
    """The definition once more, over the rows of the table, for a few heads."""
    found = anchors(run, proximity=3, top=2)
    spans = run.spans().collect().filter(pl.col("name").str.starts_with("sentence:"))
    length = (spans["token_end"] - spans["token_start"]).to_list()
    rows = {
        (head, query, key): mass
        for head, query, key, mass in run.span_edges()
        .filter(layer=1)
        .collect()
        .select("head", "query_span", "key_span", "mass")
        .rows()
    }
    first = int(spans["span"][0])
    for head in range(4):
        for t in range(13):
            seen = [rows.get((head, first + s, first + t), 0.0) / length[t] for s in range(t + 3, 16)]
            assert found.vertical[1, head, t] == pytest.approx(np.mean(seen), rel=1e-9)
    assert np.isnan(found.vertical[..., 13:]).all()
    expected = np.mean([found.vertical[head] for head in found.receiver_heads], axis=0)
    np.testing.assert_allclose(found.score, expected)


def test_planted_receiver_heads_and_their_anchor_are_found(run: Run):
    found = anchors(run, top=2)
    assert set(found.receiver_heads) == set(PLANTED)
    table = found.to_polars()
    assert table.filter(rank=0)["sentence"].to_list() == [ANCHOR]
    assert table["category"].to_list() == ["plan", None] * 8
    assert table["importance"].to_list() == [0.5, None] * 8
    assert table["score"].null_count() == table["rank"].null_count() == 4
    heads = found.heads()
    assert heads.filter("receiver").select("layer", "head").rows() == list(found.receiver_heads)
    assert heads.head(2)["receiver"].to_list() == [True, True]


def test_labels_may_come_with_each_sentence(tmp_path: Path):
    known = [{"category": "plan", "counterfactual_kl": 0.5}, {"category": None, "importance": 2, "depends_on": []}] * 5
    sentences = sentences_of(write_random_run(tmp_path, sentences=10, metadata={"sentences": known}))
    assert sentences.categories == ("plan", None) * 5
    assert sentences.importance.tolist() == [0.5, 2.0] * 5
    with pytest.raises(GraphError, match=r"prompt.metadata\['sentences'\] of .* has 9 values for 10 sentences"):
        sentences_of(write_random_run(tmp_path, sentences=10, metadata={"sentences": known[:9]}))


def test_a_run_without_planted_heads_has_none_that_stand_out(tmp_path: Path):
    plain = anchors(write_random_run(tmp_path, layers=4, heads=4, blocks=20, budget=6, sentences=16))
    assert np.nanmax(plain.kurtosis) < 6 < sorted(anchors_of_planted(tmp_path).kurtosis.ravel())[-2]


def anchors_of_planted(folder: Path):
    return anchors(
        write_random_run(folder, layers=4, heads=4, blocks=20, budget=6, sentences=16, receivers=PLANTED), top=2
    )


def test_heads_of_other_runs(run: Run, tmp_path: Path):
    other = write_random_run(tmp_path, layers=4, heads=4, blocks=20, budget=6, sentences=16, receivers=PLANTED, seed=1)
    shared = receiver_heads([anchors(run), anchors(other)], top=2)
    assert set(shared) == set(PLANTED)
    found = anchors(run, heads=[(0, 0), (2, 1)])
    np.testing.assert_allclose(found.score, found.vertical[[0, 2], [0, 1]].mean(0))
    np.testing.assert_allclose(found.score, anchors(run).score_of([(0, 0), (2, 1)]))


def test_dropped_shares_by_hand(run: Run):
    """Sentence 1 has 17 tokens, 17 to 34: 15 of block 1, all of block 2 but 14 of its 16."""
    sentences = sentences_of(run)
    start, end = int(sentences.start[1]), int(sentences.end[1])
    covered = {block: len(set(range(start, end)) & set(range(16 * block, 16 * block + 16))) for block in (1, 2)}
    assert sum(covered.values()) == end - start
    layer = next(dropped_shares(run, sentences))
    rows = run.rows().filter(layer=0, head=2).collect()
    estimate = dict(rows.select("query_block", "kept_mass_estimate").rows())
    dropped = {block: 1 - estimate[block] for block in covered}
    mean = sum(covered[block] * dropped[block] for block in covered) / (end - start)
    most = sum(min(16 * dropped[block], covered[block]) for block in covered) / (end - start)
    assert layer.mean[2, 1] == pytest.approx(mean, rel=1e-6)
    assert layer.most[2, 1] == pytest.approx(most, rel=1e-6)
    assert not layer.audited


@pytest.mark.parametrize("normalise", ["recorded", "dense", "spread"])
def test_scores_lie_within_their_interval(run: Run, normalise: str):
    found = anchors(run, normalise=normalise)
    known = np.isfinite(found.score)
    assert found.dropped_source == "estimated"
    assert (found.lower[known] <= found.score[known]).all()
    assert (found.score[known] <= found.upper[known]).all()


def test_normalised_masses_by_hand(run: Run):
    sentences = sentences_of(run)
    masses, dropped = next(sentence_masses(run, sentences)), next(dropped_shares(run, sentences))
    dense = masses * (1 - dropped.mean[:, :, None]) / sentences.length
    np.testing.assert_allclose(anchors(run, normalise="dense").vertical[0], vertical_scores(dense, 4))
    middle = (sentences.start + sentences.end) // 2
    spread = dense.copy()  # far sentences are seen whole: of them each token has one share of what was dropped
    spread += dropped.mean[:, :, None] / (middle[:, None] + 1)
    np.testing.assert_allclose(anchors(run, normalise="spread").vertical[0], vertical_scores(spread, 4))


def test_ranks_have_no_interval(run: Run):
    found = anchors(run, depth_control=True)
    assert np.isnan(found.lower).all()
    assert np.isfinite(found.score[:12]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proximity": 0}, "proximity=0 must be at least 1"),
        ({"top": 0}, "top=0 must be at least 1"),
        ({"normalise": "kept"}, "normalise='kept' is not one of recorded, dense, spread"),
        ({"heads": [(4, 0)]}, r"\(4, 0\) is not one of 4 layers × 4 heads"),
    ],
)
def test_settings_out_of_range(run: Run, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        anchors(run, **options)


def test_runs_that_cannot_be_scored(run: Run, tmp_path: Path):
    with pytest.raises(GraphError, match="no spans sentence:N; its spans are: sink, needle, question"):
        anchors(write_random_run(tmp_path))
    with pytest.raises(GraphError, match="16 sentences, of which 2 are followed by others at proximity=14"):
        anchors(run, proximity=14)
    wrong = write_random_run(tmp_path, sentences=10, metadata={"categories": ["plan"]})
    with pytest.raises(GraphError, match=r"prompt.metadata\['categories'\] of .* has 1 values for 10 sentences"):
        anchors(wrong)
    with pytest.raises(ConfigError, match="got 2 runs with 2 different"):
        receiver_heads([anchors(run), anchors(write_random_run(tmp_path, sentences=10))])
