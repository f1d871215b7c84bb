"""How great a difference between two groups is, within strata, with bootstrap intervals.

- `difference`: Σ_s c_s (mean of the first − mean of the second) / Σ_s c_s, with c_s = n₁n₂ / (n₁ + n₂), the
  least-squares difference with one intercept per stratum; `median_difference` the same of medians.
- *d* (Cohen): the difference over the standard deviation pooled over the groups of all strata; NaN where that is 0.
- *rank_biserial* (Cureton 1956): share of pairs of one run of each group, in the same stratum, in which the first has
  more, less the share in which the second has; from −1 to 1, 0 for no difference.

Intervals are percentiles over resamples of the runs within each group of each stratum. Of features that were picked for
their differences they are too far from 0; fresh runs tell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from attngraph.graph.source import FloatArray
from attngraph_analyses.permutation import Labels

CHUNK = 16
"""Features whose pairs of runs are compared at once."""


class Intervals(NamedTuple):
    """Ends of the intervals of *d* and of the rank-biserial correlation, ``[features]`` each."""

    d_low: FloatArray
    d_high: FloatArray
    rank_biserial_low: FloatArray
    rank_biserial_high: FloatArray


def effects(values: FloatArray, labels: Labels) -> pl.DataFrame:
    """Effect sizes of all features: mean_first, mean_second, difference, median_difference, d, rank_biserial.

    Parameters
    ----------
    values
        ``[runs, features]``, finite.
    labels
        The groups and strata of these runs.
    """
    medians = [(np.median(values[one], axis=0), np.median(values[other], axis=0)) for one, other in labels.cells]
    weights = _weights(labels)
    once = np.ones((1, len(labels.first)))
    difference, d = _mean_difference(values, labels, once)
    return pl.DataFrame(
        {
            "mean_first": values[labels.first].mean(0),
            "mean_second": values[~labels.first].mean(0),
            "difference": difference[0],
            "median_difference": weights @ np.stack([one - other for one, other in medians]),
            "d": pl.Series(d[0]).fill_nan(None),
            "rank_biserial": _rank_biserial(values, labels, once)[0],
        }
    )


def intervals(values: FloatArray, labels: Labels, *, level: float, resamples: int, seed: int) -> Intervals:
    """Bootstrap intervals of the effect sizes at a confidence level; values ``[runs, features]``."""
    random = np.random.default_rng(seed)
    times = np.zeros((resamples, len(labels.first)))
    for cell in (cell for cells in labels.cells for cell in cells):
        times[:, cell] = random.multinomial(len(cell), np.full(len(cell), 1.0 / len(cell)), size=resamples)
    ends = [50 * (1 - level), 50 * (1 + level)]
    _, d = _mean_difference(values, labels, times)
    d_ends = np.nanpercentile(np.where(np.isnan(d).all(0), 0.0, d), ends, axis=0)
    d_ends[:, np.isnan(d).all(0)] = np.nan
    rank_ends = np.percentile(_rank_biserial(values, labels, times), ends, axis=0)
    return Intervals(*d_ends, *rank_ends)


def _weights(labels: Labels) -> FloatArray:
    """c_s / Σ c_s, ``[strata]``."""
    weights = np.array([len(one) * len(other) / (len(one) + len(other)) for one, other in labels.cells])
    return np.asarray(weights / weights.sum())


def _mean_difference(values: FloatArray, labels: Labels, times: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Difference and d with every run counted `times` ``[resamples, runs]``: ``[resamples, features]`` each."""
    difference = np.zeros((len(times), values.shape[1]))
    squares = np.zeros_like(difference)
    centred = values - values.mean(0)
    for weight, cells in zip(_weights(labels), labels.cells, strict=True):
        means = []
        for cell in cells:
            means.append(times[:, cell] @ centred[cell] / len(cell))
            squares += times[:, cell] @ centred[cell] ** 2 - len(cell) * means[-1] ** 2
        difference += weight * (means[0] - means[1])
    freedom = len(labels.first) - 2 * len(labels.strata)
    deviation = np.sqrt(np.maximum(squares, 0.0) / max(freedom, 1))
    tiny = 1e-9 * np.maximum(np.abs(values).max(0, initial=0.0), np.finfo(np.float64).tiny)
    known = (deviation > tiny) & (freedom > 0)
    return difference, np.divide(difference, deviation, out=np.full_like(difference, np.nan), where=known)


def _rank_biserial(values: FloatArray, labels: Labels, times: FloatArray) -> FloatArray:
    """Rank-biserial correlation with every run counted `times` ``[resamples, runs]``: ``[resamples, features]``."""
    total = np.zeros((len(times), values.shape[1]))
    pairs = 0
    for one, other in labels.cells:
        pairs += len(one) * len(other)
        for start in range(0, values.shape[1], CHUNK):
            part = values[:, start : start + CHUNK]
            signs = np.sign(part[one][:, None] - part[other][None])
            total[:, start : start + CHUNK] += np.einsum(
                "ri,ijf,rj->rf", times[:, one], signs, times[:, other], optimize=True
            )
    return np.asarray(total / pairs)
