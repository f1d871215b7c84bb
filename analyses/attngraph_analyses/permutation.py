"""Permutation tests of two groups over many features at once, within strata.

1. Runs are exchangeable only within a stratum (same model, task, length …), so labels move within strata alone, and
   every feature is compared with the means of its strata. Strata that hold one group only are left out.
2. The statistic is the t of the group in a linear model with one intercept per stratum. With x the feature and g the
   label, both less their stratum means, and r = g·x / (‖g‖‖x‖): t = r·√(df / (1 − r²)), df = runs − strata − 1. Moving
   labels within strata changes neither norm, so all permutations of all features are one matrix product, and |r| orders
   as |t| does. ``"rank"`` puts ranks within the stratum in the place of x (Van Elteren's extension of the rank sum).
3. p is the share of permutations whose |t| is at least as great, the labels as they are counted among them:
   (c + 1) / (P + 1) (Phipson & Smyth 2010). Where there are no more than P + 1 ways to place the labels, each is tried
   once and p is exact.
4. Family-wise p: step-down max-T (Westfall & Young 1993; Ge, Dudoit & Speed 2003). Features stand in the order of |t|;
   each is compared with the greatest permuted |t| of itself and all below it, and p never falls down the order. It
   holds however features depend on one another.
5. q: Benjamini & Hochberg (1995) of the plain p, whose smallest value is 1 / (P + 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
Correlations = npt.NDArray[np.float32]
Statistic = Literal["rank", "t"]

TIE = 1e-5
"""Correlations that differ by no more count as equal: products are taken in float32."""
SAME = 1e-6
"""Values that differ by less than this share of the greatest are the same: runs are kept in float32."""
CHUNK = 8_000_000
"""Permuted statistics held at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels:
    """Which runs are in the first group, and which are exchangeable.

    Parameters
    ----------
    first
        ``[runs]``: whether a run is in the first group; the others are in the second.
    stratum
        ``[runs]``: number of the run's stratum; every stratum has runs of both groups.
    """

    first: BoolArray
    stratum: IntArray

    @property
    def strata(self) -> list[IntArray]:
        """The runs of each stratum."""
        return [np.flatnonzero(self.stratum == number) for number in np.unique(self.stratum)]

    @property
    def cells(self) -> list[tuple[IntArray, IntArray]]:
        """The runs of each stratum: those of the first group, those of the second."""
        return [(runs[self.first[runs]], runs[~self.first[runs]]) for runs in self.strata]

    @property
    def freedom(self) -> int:
        """Degrees of freedom of t: runs − strata − 1."""
        return len(self.first) - len(self.strata) - 1

    @property
    def ways(self) -> int:
        """In how many ways the labels can be placed within strata."""
        ways = 1
        for one, other in self.cells:
            ways *= comb(len(one) + len(other), len(one))
        return ways

    def shares(self) -> FloatArray:
        """The first group's share of each run's stratum, ``[runs]``."""
        shares = np.empty(len(self.first))
        for runs in self.strata:
            shares[runs] = self.first[runs].mean()
        return shares


@dataclass(frozen=True, eq=False, kw_only=True)
class Tested:
    """What `max_t` found; ``[features]`` each, NaN for a feature that doesn't vary within strata.

    `t` is positive where the first group has more; `p` is two-sided, `p_family` its step-down max-T, `q` its
    Benjamini-Hochberg value. `permutations` were tried beside the labels as they are, all there are if `exact`.
    """

    t: FloatArray
    p: FloatArray
    p_family: FloatArray
    q: FloatArray
    permutations: int
    exact: bool


def check_permutations(permutations: int) -> None:
    """ConfigError for too few permutations."""
    if permutations < 19:
        raise ConfigError(f"permutations={permutations!r} can't give a p below .05; ask for at least 19.")


def check_statistic(statistic: str) -> None:
    """ConfigError for an unknown statistic."""
    if statistic not in get_args(Statistic):
        raise ConfigError(f"statistic={statistic!r} is not one of {', '.join(get_args(Statistic))}.")


def labels_within(first: Sequence[bool] | BoolArray, stratum: Sequence[int] | IntArray) -> tuple[Labels, IntArray]:
    """The labels of those runs whose stratum has both groups, and which runs these are.

    Raises
    ------
    GraphError
        If no stratum has both groups, a group has fewer than two runs in those that have, or too few runs are left.
    """
    labels = Labels(first=np.asarray(first, bool), stratum=np.asarray(stratum, np.int64))
    mixed = [runs for runs in labels.strata if labels.first[runs].any() and not labels.first[runs].all()]
    kept = np.sort(np.concatenate([np.zeros(0, np.int64), *mixed]))
    if not len(kept):
        raise GraphError(
            "No stratum has runs of both groups, so nothing tells the groups from their strata. Capture runs of both "
            "under the same conditions, or give fewer strata."
        )
    labels = Labels(first=labels.first[kept], stratum=labels.stratum[kept])
    counts = int(labels.first.sum()), int((~labels.first).sum())
    if min(counts) < 2 or labels.freedom < 1:
        raise GraphError(
            f"Only {counts[0]} and {counts[1]} runs of the two groups share {len(labels.strata)} strata; a comparison "
            f"needs at least 2 of each, and 2 more runs than strata. Capture more seeds, or give fewer strata."
        )
    return labels, kept


def standardised(values: FloatArray, labels: Labels, statistic: Statistic) -> tuple[FloatArray, BoolArray]:
    """Features less their stratum means (of ranks, for ``"rank"``), of norm 1; and which of them vary at all.

    Parameters
    ----------
    values
        ``[runs, features]``, finite.
    """
    centred, ranked = np.empty_like(values), np.empty_like(values)
    for runs in labels.strata:
        centred[runs] = values[runs] - values[runs].mean(0)
        ranked[runs] = scipy.stats.rankdata(values[runs], axis=0) if statistic == "rank" else 0.0
        ranked[runs] -= ranked[runs].mean(0)
    varies = np.abs(centred).max(0, initial=0.0) > SAME * np.abs(values).max(0, initial=0.0)
    chosen = ranked if statistic == "rank" else centred
    norm = np.sqrt((chosen**2).sum(0))
    return np.where(varies, chosen / np.where(varies, norm, 1.0), 0.0), varies


def assignments(labels: Labels, permutations: int, seed: int) -> tuple[BoolArray, bool]:
    """Ways to place the labels within strata, ``[ways, runs]``, and whether these are all there are.

    All ways, the one that is real included, if there are at most `permutations` + 1; else `permutations` random ones.
    """
    if labels.ways <= permutations + 1:
        return _every_way(labels), True
    random = np.random.default_rng(seed)
    placed = np.empty((permutations, len(labels.first)), bool)
    for runs in labels.strata:
        order = np.argsort(random.random((permutations, len(runs))), axis=1)
        placed[:, runs] = labels.first[runs][order]
    return placed, False


def _every_way(labels: Labels) -> BoolArray:
    placed = np.zeros((1, len(labels.first)), bool)
    for runs in labels.strata:
        chosen = list(combinations(runs.tolist(), int(labels.first[runs].sum())))
        here = np.zeros((len(chosen), placed.shape[1]), bool)
        here[np.arange(len(chosen))[:, None], np.array(chosen)] = True
        placed = (placed[:, None] | here[None]).reshape(-1, placed.shape[1])
    return placed


def correlations(placed: BoolArray, unit: FloatArray, labels: Labels) -> Correlations:
    """r of every placing of the labels with every standardised feature, ``[ways, features]``."""
    group = placed - labels.shares()
    group /= np.sqrt((group[0] ** 2).sum())
    return np.asarray(group.astype(np.float32) @ unit.astype(np.float32))


def observed_correlations(unit: FloatArray, labels: Labels) -> FloatArray:
    """r of the labels as they are, in full precision, ``[features]``."""
    group = labels.first - labels.shares()
    return np.asarray((group / np.sqrt((group**2).sum())) @ unit)


def t_of(correlation: FloatArray, labels: Labels) -> FloatArray:
    """t of correlations."""
    rest = np.maximum(1.0 - correlation**2, np.finfo(np.float64).tiny)
    return np.asarray(correlation * np.sqrt(labels.freedom / rest))


def correlation_of(t: float, labels: Labels) -> float:
    """The correlation at which t has this value."""
    return float(t / np.sqrt(labels.freedom + t**2))


def max_t(
    values: FloatArray,
    labels: Labels,
    *,
    permutations: int = 9_999,
    seed: int = 0,
    statistic: Statistic = "rank",
) -> Tested:
    """Test every feature for a difference between two groups, and correct for testing them all.

    Parameters
    ----------
    values
        ``[runs, features]``, finite.
    labels
        The groups and strata of these runs.
    permutations
        How many placings of the labels are tried, at least 19; fewer where there are fewer.
    seed
        Seed of random placings.
    statistic
        ``"rank"`` or ``"t"``; see the module.

    Raises
    ------
    ConfigError
        If there are too few permutations, or the statistic is unknown.
    GraphError
        If a value isn't finite.
    """
    check_permutations(permutations)
    check_statistic(statistic)
    if not np.isfinite(values).all():
        raise GraphError("A feature has values that are not finite; leave out features that some runs don't have.")
    unit, varies = standardised(values, labels, statistic)
    placed, exact = assignments(labels, permutations, seed)
    observed = observed_correlations(unit, labels)
    order = np.argsort(np.abs(observed), kind="stable")  # ascending, so that running maxima are successive ones
    floor = (np.abs(observed[order]) - TIE).astype(np.float32)
    single, family = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    for ways in chunks(placed, len(order)):
        found = correlations(ways, unit[:, order], labels)
        np.abs(found, out=found)
        single += np.count_nonzero(found >= floor, axis=0)
        np.maximum.accumulate(found, axis=1, out=found)
        family += np.count_nonzero(found >= floor, axis=0)
    extra = 0 if exact else 1
    p = np.full(len(order), np.nan)
    p_family = np.full(len(order), np.nan)
    p[order] = (single + extra) / (len(placed) + extra)
    stepped = (family + extra) / (len(placed) + extra)
    p_family[order] = np.maximum.accumulate(stepped[::-1])[::-1]
    p[~varies] = p_family[~varies] = np.nan
    return Tested(
        t=np.where(varies, t_of(observed, labels), np.nan),
        p=p,
        p_family=p_family,
        q=false_discovery_rates(p),
        permutations=len(placed) - (1 if exact else 0),
        exact=exact,
    )


def false_discovery_rates(p: FloatArray) -> FloatArray:
    """q of every p (Benjamini & Hochberg 1995), over those that aren't NaN; NaN for the others."""
    known = np.isfinite(p)
    q = np.full(len(p), np.nan)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known])
    return q


def chunks(placed: BoolArray, features: int) -> Iterator[BoolArray]:
    """Placings of the labels, as many at once as keeps the statistics of that many features small."""
    size = max(1, CHUNK // max(features, 1))
    return (placed[start : start + size] for start in range(0, len(placed), size))
