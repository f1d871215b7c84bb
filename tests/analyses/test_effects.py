"""Effect sizes by hand and against scipy; intervals that hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attngraph_analyses.effects import effects, intervals
from attngraph_analyses.permutation import Labels


def labels_of(first: list[bool] | np.ndarray, stratum: list[int] | np.ndarray | None = None) -> Labels:
    first = np.asarray(first, bool)
    return Labels(first=first, stratum=np.zeros(len(first), int) if stratum is None else np.asarray(stratum))


def test_one_stratum_by_hand():
    """1, 2, 6 against 2, 3: means 3 and 2.5, deviation √((14 + 0.5) / 3), 1 of 6 pairs a tie, 2 more, 3 less."""
    found = effects(np.array([[1.0], [2.0], [6.0], [2.0], [3.0]]), labels_of([True, True, True, False, False]))
    row = found.row(0, named=True)
    assert row["mean_first"] == 3.0
    assert row["mean_second"] == 2.5
    assert row["difference"] == pytest.approx(0.5)
    assert row["median_difference"] == -0.5
    assert row["d"] == pytest.approx(0.5 / np.sqrt(14.5 / 3))
    assert row["rank_biserial"] == pytest.approx((2 - 3) / 6)


def test_rank_biserial_is_the_rank_sums():
    values = np.random.default_rng(0).integers(0, 9, size=(17, 40)).astype(float)
    found = effects(values, labels_of(np.arange(17) < 7))
    sums = stats.mannwhitneyu(values[:7], values[7:]).statistic
    np.testing.assert_allclose(found["rank_biserial"], 2 * sums / 70 - 1)


def test_strata_are_compared_within_themselves():
    """What lies between strata counts for nothing: 1 more in one, 3 more in the other, weights 1 and 2/3."""
    values = np.array([[1.0], [2.0], [0.0], [1.0], [103.0], [100.0], [100.0]])
    labels = labels_of([True, True, False, False, True, False, False], [0, 0, 0, 0, 1, 1, 1])
    row = effects(values, labels).row(0, named=True)
    expected = (1 * 1 + 2 / 3 * 3) / (1 + 2 / 3)
    assert row["difference"] == pytest.approx(expected)
    assert row["median_difference"] == pytest.approx(expected)
    assert row["d"] == pytest.approx(expected / np.sqrt(1.0 / 3))  # squares ½ + ½ + 0 + 0 over 7 runs − 4 groups
    assert row["rank_biserial"] == pytest.approx((3 + 2) / 6)


def test_no_spread_has_no_d():
    values = np.array([[1.0], [1.0], [0.0], [0.0]])
    labels = labels_of([True, True, False, False])
    assert effects(values, labels)["d"].to_list() == [None]
    found = intervals(values, labels, level=0.9, resamples=20, seed=0)
    assert np.isnan([found.d_low[0], found.d_high[0]]).all()
    assert (found.rank_biserial_low[0], found.rank_biserial_high[0]) == (1.0, 1.0)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Of 300 features with a true difference of one deviation, nine in ten intervals hold it, give or take."""
    random = np.random.default_rng(1)
    labels = labels_of(np.arange(60) % 2 == 0, np.arange(60) // 20)
    values = random.normal(size=(60, 300)) + labels.first[:, None]
    found = intervals(values, labels, level=0.9, resamples=400, seed=2)
    truth = 2 * stats.norm.cdf(1 / np.sqrt(2)) - 1
    assert 0.8 <= np.mean((found.d_low <= 1) & (found.d_high >= 1)) <= 0.97
    assert 0.8 <= np.mean((found.rank_biserial_low <= truth) & (found.rank_biserial_high >= truth)) <= 0.97
    again = intervals(values, labels, level=0.9, resamples=400, seed=2)
    np.testing.assert_array_equal(found.d_low, again.d_low)
    wider = intervals(values, labels, level=0.99, resamples=400, seed=2)
    assert (wider.d_low <= found.d_low).all()
    assert (wider.d_high >= found.d_high).all()
