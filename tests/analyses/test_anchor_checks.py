"""Agreement of anchors with a reference, category profile and correlation with importance, and their controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from attngraph.errors import ConfigError, GraphError
from attngraph.testing import write_random_run
from attngraph_analyses import Anchors, anchors, category_profile, compare_anchors, importance_correlation
from attngraph_analyses.anchor_checks import spearman

COUNT = 60


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Anchors:
    run = write_random_run(tmp_path_factory.mktemp("checks"), layers=3, heads=4, blocks=30, budget=6, sentences=COUNT)
    return anchors(run, top=3)


def told(found: Anchors, **changes: object) -> Anchors:
    """The same anchors with other categories or importance."""
    return replace(found, sentences=replace(found.sentences, **changes))


def test_a_run_agrees_with_itself(found: Anchors):
    agreement = compare_anchors(found, found)
    assert (agreement.spearman, agreement.overlap, agreement.within) == (pytest.approx(1), 1.0, 1.0)
    assert agreement.overlap_chance == 3 / 12
    assert agreement.spearman_random_heads < 0.9
    assert agreement.sentences == COUNT - 4


def test_agreement_by_hand(found: Anchors):
    other = replace(found, receiver_heads=(*found.receiver_heads[:1], (0, 0), (0, 1)), score=found.score**2)
    other = replace(other, lower=np.full(COUNT, 0.0), upper=np.full(COUNT, np.nan))
    agreement = compare_anchors(other, found)
    assert agreement.spearman == pytest.approx(1)
    assert agreement.overlap == len({*other.receiver_heads} & {*found.receiver_heads}) / 3
    assert agreement.within is None
    known = np.isfinite(found.score)
    expected = spearmanr(found.score[known], other.score_of(other.receiver_heads)[known]).statistic
    own = replace(other, score=other.score_of(other.receiver_heads))
    assert compare_anchors(own, found).spearman == pytest.approx(expected)


def test_spearman_is_scipys():
    random = np.random.default_rng(0)
    one, other = random.integers(0, 9, (2, 40)).astype(float)
    one[3] = other[7] = np.nan
    both = np.isfinite(one) & np.isfinite(other)
    assert spearman(one, other) == pytest.approx(spearmanr(one[both], other[both]).statistic)
    assert np.isnan(spearman(np.ones(9), np.arange(9.0)))
    with pytest.raises(GraphError, match="4 values to correlate; at least 5"):
        spearman(np.arange(4.0), np.arange(4.0))


def test_a_category_that_draws_attention_is_found(found: Anchors):
    """Its sentences are the best third of every stretch; another is wherever its neighbours are."""
    best = np.zeros(COUNT, bool)
    scored = np.flatnonzero(np.isfinite(found.score))
    for stretch in np.array_split(scored, 5):
        best[stretch[np.argsort(-found.score[stretch])[: len(stretch) // 3]]] = True
    table = category_profile(told(found, categories=tuple(np.where(best, "plan", "rest").tolist())), permutations=499)
    assert table["category"].to_list() == ["plan", "rest"]
    assert (table["excess"] > 0).to_list() == [True, False]
    assert table["p"].to_list() == [pytest.approx(1 / 500)] * 2
    assert table["sentences"].sum() == COUNT - 4


def test_what_only_follows_the_position_is_no_category(found: Anchors):
    """Scores that fall from stretch to stretch, and a category for the first third: like its neighbours."""
    steps = np.random.default_rng(0).random(COUNT) - 5 * (np.arange(COUNT) * 5 // (COUNT - 4))
    falling = replace(found, score=np.where(np.isfinite(found.score), steps, np.nan))
    names = tuple("start" if index < 18 else "rest" for index in range(COUNT))
    free = category_profile(told(falling, categories=names), stretches=1, permutations=499)
    near = category_profile(told(falling, categories=names), permutations=499)
    assert free["p"].max() < 0.01
    assert near["p"].min() > 0.05


def test_importance_that_is_the_score(found: Anchors):
    correlation = importance_correlation(told(found, importance=found.score * 3), permutations=499)
    assert correlation.spearman == pytest.approx(1)
    assert correlation.p == correlation.p_within_stretches == pytest.approx(1 / 500)
    assert correlation.sentences == COUNT - 4


def test_chance_is_significant_at_the_stated_rate(found: Anchors):
    random = np.random.default_rng(1)
    p = [
        importance_correlation(told(found, importance=random.random(COUNT)), permutations=99, seed=seed)
        for seed in range(200)
    ]
    for values in ([each.p for each in p], [each.p_within_stretches for each in p]):
        significant = int(np.sum(np.array(values) <= 0.05))
        assert binomtest(significant, 200, 0.05).pvalue > 0.001


def test_bad_input(found: Anchors, tmp_path: Path):
    other = anchors(write_random_run(tmp_path, layers=3, heads=4, blocks=30, budget=6, sentences=20), top=3)
    with pytest.raises(ConfigError, match="different prompts or sentences"):
        compare_anchors(other, found)
    with pytest.raises(ConfigError, match=r"\(3, 4\) layers and heads; compare runs"):
        compare_anchors(replace(found, kurtosis=found.kurtosis[:2]), found)
    with pytest.raises(ConfigError, match="proximity is 3 in one and 4"):
        compare_anchors(replace(found, settings=replace(found.settings, proximity=3)), found)
    with pytest.raises(ConfigError, match="draws=0"):
        compare_anchors(found, found, draws=0)
    with pytest.raises(GraphError, match=r"No scored sentence has a category; give the prompt metadata"):
        category_profile(found)
    with pytest.raises(GraphError, match="0 scored sentences have an importance"):
        importance_correlation(found)
    named = told(found, categories=("plan",) * COUNT)
    with pytest.raises(ConfigError, match="permutations=5"):
        category_profile(named, permutations=5)
    with pytest.raises(ConfigError, match="stretches=0"):
        category_profile(named, stretches=0)
    assert category_profile(named)["p"].to_list() == [None]
