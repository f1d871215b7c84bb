"""Permutation tests against enumeration, scipy and linear models; planted differences, silence, strata."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attngraph.errors import ConfigError, GraphError
from attngraph_analyses.permutation import Labels, assignments, labels_within, max_t, standardised


def labels_of(first: list[bool] | np.ndarray, stratum: list[int] | np.ndarray | None = None) -> Labels:
    first = np.asarray(first, bool)
    return Labels(first=first, stratum=np.zeros(len(first), int) if stratum is None else np.asarray(stratum))


HALF = labels_of([True] * 4 + [False] * 4)
TWO_STRATA = labels_of([True, True, False, False, True, False, False], [0, 0, 0, 0, 1, 1, 1])


def linear_model_t(x: np.ndarray, labels: Labels) -> float:
    """t of the group in ordinary least squares with one intercept per stratum."""
    strata = np.unique(labels.stratum)
    design = np.column_stack([labels.first, *(labels.stratum == number for number in strata)]).astype(float)
    beta, rest, _, _ = np.linalg.lstsq(design, x, rcond=None)
    variance = rest[0] / (len(x) - design.shape[1]) * np.linalg.inv(design.T @ design)[0, 0]
    return float(beta[0] / np.sqrt(variance))


def every_placing(labels: Labels) -> list[np.ndarray]:
    choices = [
        [(runs, chosen) for chosen in combinations(runs, int(labels.first[runs].sum()))] for runs in labels.strata
    ]
    placed = []
    for choice in product(*choices):
        first = np.zeros(len(labels.first), bool)
        for _, chosen in choice:
            first[list(chosen)] = True
        placed.append(first)
    return placed


@pytest.mark.parametrize("labels", [HALF, TWO_STRATA])
def test_t_is_that_of_a_linear_model(labels: Labels):
    values = np.random.default_rng(0).normal(size=(len(labels.first), 5))
    found = max_t(values, labels, statistic="t")
    expected = [linear_model_t(values[:, feature], labels) for feature in range(5)]
    np.testing.assert_allclose(found.t, expected, rtol=1e-9)


def test_one_stratum_is_the_classical_test():
    values = np.random.default_rng(1).normal(size=(8, 3))
    found = max_t(values, HALF, statistic="t")
    np.testing.assert_allclose(found.t, stats.ttest_ind(values[:4], values[4:]).statistic)
    for feature in range(3):
        theirs = stats.permutation_test(
            (values[:4, feature], values[4:, feature]),
            lambda one, other: abs(one.mean() - other.mean()),
            alternative="greater",
        )
        assert found.p[feature] == pytest.approx(theirs.pvalue)
    ranked = max_t(values, HALF)
    exact = stats.mannwhitneyu(values[:4], values[4:], method="exact").pvalue
    np.testing.assert_allclose(ranked.p, exact)


def test_a_small_case_by_hand():
    """Runs 1, 2 | 3, 4: of the 6 placings 2 are as extreme; the second feature separates nothing."""
    found = max_t(np.array([[1.0, 1.0], [2.0, 4.0], [3.0, 2.0], [4.0, 3.0]]), labels_of([True, True, False, False]))
    assert found.exact
    assert found.permutations == 5
    assert found.t.tolist() == pytest.approx([-2.0 / np.sqrt(0.5), 0.0])
    assert found.p.tolist() == pytest.approx([2 / 6, 1.0])
    # 4 of the 6 placings separate one of the two features fully: 12|34, 34|12, 13|24 and 24|13.
    assert found.p_family.tolist() == pytest.approx([4 / 6, 1.0])
    assert found.q.tolist() == pytest.approx([4 / 6, 1.0])


@pytest.mark.parametrize("statistic", ["rank", "t"])
@pytest.mark.parametrize("labels", [HALF, TWO_STRATA])
def test_step_down_max_t_against_enumeration(labels: Labels, statistic):
    values = np.random.default_rng(2).normal(size=(len(labels.first), 6))
    values[:, 0] += 3 * labels.first
    found = max_t(values, labels, statistic=statistic)
    if statistic == "rank":
        values = np.concatenate([stats.rankdata(values[runs], axis=0) for runs in labels.strata])
    ways = every_placing(labels)
    assert len(ways) == labels.ways

    def absolute(first: np.ndarray) -> np.ndarray:
        moved = labels_of(first, labels.stratum)
        return np.abs([linear_model_t(values[:, feature], moved) for feature in range(6)])

    with np.errstate(divide="ignore"):
        permuted = np.stack([absolute(first) for first in ways])
        observed = absolute(labels.first)
    observed = observed - 1e-9 * (1 + observed)
    np.testing.assert_allclose(found.p, (permuted >= observed).mean(0))
    order = np.argsort(-observed, kind="stable")
    adjusted, least = np.empty(6), 0.0
    for place, feature in enumerate(order):
        rest = permuted[:, order[place:]].max(1)
        least = max(least, (rest >= observed[feature]).mean())
        adjusted[feature] = least
    np.testing.assert_allclose(found.p_family, adjusted)


def test_q_is_benjamini_and_hochbergs():
    labels = labels_of([True] * 10 + [False] * 10)
    values = np.random.default_rng(3).normal(size=(20, 40))
    values[:10, :5] += 2
    found = max_t(values, labels, permutations=499)
    order = np.argsort(found.p)
    by_hand = np.minimum.accumulate((found.p[order] * 40 / np.arange(1, 41))[::-1])[::-1]
    np.testing.assert_allclose(found.q[order], np.minimum(by_hand, 1.0))


def test_a_planted_difference_is_found():
    random = np.random.default_rng(4)
    labels = labels_of(np.arange(40) % 2 == 0, np.arange(40) // 20)
    values = random.normal(size=(40, 5_000)) + 5 * labels.stratum[:, None]
    planted = random.choice(5_000, 8, replace=False)
    values[np.ix_(labels.first, planted)] += 3.0
    found = max_t(values, labels, permutations=999)
    assert set(np.argsort(-np.abs(found.t))[:8]) == set(planted)
    assert set(np.flatnonzero(found.p_family <= 0.05)) == set(planted)
    assert (found.t[planted] > 0).all()


@pytest.mark.parametrize("statistic", ["rank", "t"])
def test_shuffled_labels_are_silent_at_the_stated_rate(statistic):
    """Of 200 comparisons of nothing, the share with any family-wise p ≤ .05 is .05 within binomial limits."""
    random = np.random.default_rng(5)
    stratum = np.arange(24) // 8
    alarms = 0
    for seed in range(200):
        # Features that depend on one another and on the stratum, with heavy tails.
        values = random.standard_t(3, size=(24, 4)) @ random.normal(size=(4, 60)) + random.normal(size=(24, 60))
        first = np.concatenate([random.permutation(np.arange(8) < count) for count in (2, 4, 6)])
        labels = labels_of(first, stratum)
        found = max_t(values + 3.0 * stratum[:, None], labels, permutations=99, seed=seed, statistic=statistic)
        alarms += bool((found.p_family <= 0.05).any())
    low, high = stats.binom.interval(0.999, 200, 0.05)
    assert low <= alarms <= high


def test_a_pure_confound_is_not_reported():
    """Long prompts fail more often and read more; within a length nothing differs."""
    random = np.random.default_rng(6)
    stratum = np.repeat([0, 1], 20)
    first = np.concatenate([np.arange(20) < 16, np.arange(20) < 4])
    values = random.normal(size=(40, 200)) + 4.0 * stratum[:, None]
    assert np.median(max_t(values, labels_of(first), permutations=499).p_family) <= 0.05
    assert max_t(values, labels_of(first, stratum), permutations=499).p_family.min() > 0.05


def test_labels_stay_within_strata():
    labels = labels_of(np.arange(30) % 3 == 0, np.arange(30) // 10)
    placed, exact = assignments(labels, 50, seed=0)
    assert not exact
    assert placed.shape == (50, 30)
    assert len(np.unique(placed, axis=0)) == 50
    for runs in labels.strata:
        assert (placed[:, runs].sum(1) == labels.first[runs].sum()).all()
    every, exact = assignments(TWO_STRATA, 50, seed=0)
    assert exact
    assert len(np.unique(every, axis=0)) == len(every) == 6 * 3 == TWO_STRATA.ways


@given(
    st.integers(3, 6),
    st.integers(2, 5),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)
def test_laws(one: int, other: int, features: int, seed: int):
    random = np.random.default_rng(seed)
    labels = labels_of(random.permutation(np.arange(one + other) < one))
    values = random.integers(0, 5, size=(one + other, features)).astype(float)
    values[:, 0] = random.normal(size=one + other)
    found = max_t(values, labels, permutations=200)
    varies = ~np.isnan(found.t)
    np.testing.assert_array_equal(varies, np.ptp(values, axis=0) > 0)
    p, family, q = found.p[varies], found.p_family[varies], found.q[varies]
    assert (p > 0).all()
    assert (p <= family + 1e-12).all()
    assert (p <= q + 1e-12).all()
    assert family.max() <= 1
    # Ranks know nothing of the scale, and the other group's view is the same with the sign turned.
    np.testing.assert_allclose(max_t(np.exp(values), labels, permutations=200).p_family, found.p_family)
    turned = max_t(values, labels_of(~labels.first), permutations=200)
    np.testing.assert_allclose(turned.t, -found.t, atol=1e-9)
    if found.exact:
        order = random.permutation(one + other)
        again = max_t(values[order], labels_of(labels.first[order]), permutations=200)
        np.testing.assert_allclose(again.p_family, found.p_family)


def test_constant_features_are_no_news():
    values = np.array([[1.0, 0.3], [2.0, 0.3], [5.0, 0.3], [3.0, 0.3], [4.0, 0.3]])
    found = max_t(values, labels_of([True, True, False, False, False]))
    assert np.isnan([found.t[1], found.p[1], found.p_family[1], found.q[1]]).all()
    assert found.p_family[0] == found.p[0]
    _, varies = standardised(values, labels_of([True] * 2 + [False] * 3, [0, 0, 1, 1, 1]), "t")
    assert varies.tolist() == [True, False]


def test_strata_with_one_group_are_left_out():
    labels, kept = labels_within([True, False, True, False, True, True], [0, 0, 0, 0, 1, 1])
    assert kept.tolist() == [0, 1, 2, 3]
    assert labels.first.tolist() == [True, False, True, False]
    with pytest.raises(GraphError, match="No stratum has runs of both groups"):
        labels_within([True, True, False, False], [0, 0, 1, 1])
    with pytest.raises(GraphError, match="Only 1 and 3 runs of the two groups share 1 strata"):
        labels_within([True, False, False, False], [0, 0, 0, 0])


def test_bad_input():
    values = np.zeros((8, 2))
    with pytest.raises(ConfigError, match="permutations=9 can't give a p"):
        max_t(values, HALF, permutations=9)
    with pytest.raises(ConfigError, match="statistic='z' is not one of rank, t"):
        max_t(values, HALF, statistic="z")  # type: ignore[arg-type]
    values[0, 0] = np.nan
    with pytest.raises(GraphError, match="not finite"):
        max_t(values, HALF)
