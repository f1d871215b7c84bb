"""Distances between and within two groups of runs, and the scores that differ; see `compare.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from attngraph.errors import GraphError
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.permutation import BoolArray, Labels, assignments, labels_within, max_t

TIE = 1e-9
"""Energies that differ by less count as equal."""


class Pair(NamedTuple):
    """Two groups: their row of distances, and their part of the differences, columns of ``[scores · bins]``."""

    distances: dict[str, Any]
    differences: dict[str, Any] | None


def compared_pair(
    names: Sequence[str],
    pair: tuple[int, int],
    group: np.ndarray[Any, np.dtype[np.str_]],
    stratum: IntArray,
    distance: FloatArray,
    mean: FloatArray,
    permutations: int,
    seed: int,
) -> Pair:
    """Distances and differences of two groups.

    Parameters
    ----------
    names, pair
        All groups, and the numbers of the two.
    group, stratum
        ``[runs]``: of every run.
    distance
        ``[runs, runs]``.
    mean
        ``[runs, scores, bins]``.
    permutations, seed
        Of the labels.

    Returns
    -------
    Pair
        Nulls and no differences where fewer than two runs of a group share a stratum with the other.
    """
    one, other = (names[number] for number in pair)
    members = np.flatnonzero((group == one) | (group == other))
    row: dict[str, Any] = {"one": one, "other": other}
    row |= {"runs_one": int((group == one).sum()), "runs_other": int((group == other).sum())}
    unknown = dict.fromkeys(("between", "within_one", "within_other", "ratio", "energy", "p"))
    try:
        labels, kept = labels_within(group[members] == one, stratum[members])
    except GraphError:
        return Pair(row | unknown, None)
    members = members[kept]
    own = distance[np.ix_(members, members)]
    between, within, within_other = (float(value[0]) for value in mean_distances(own, labels.first[None], labels))
    if np.isnan([between, within, within_other]).any():
        return Pair(row | unknown, None)
    placed, exact = assignments(labels, permutations, seed)
    observed = 2 * between - within - within_other
    extra = 0 if exact else 1
    p = (int((energy(own, placed, labels) >= observed - TIE).sum()) + extra) / (len(placed) + extra)
    typical = (within + within_other) / 2
    row |= {"between": between, "within_one": within, "within_other": within_other}
    row |= {"ratio": between / typical if typical > 0 else None, "energy": observed, "p": p}
    values = mean[members].reshape(len(members), -1)
    tested = max_t(values, labels, permutations=permutations, seed=seed, statistic="t")
    differences = {
        "one": one,
        "other": other,
        "mean_one": values[labels.first].mean(0),
        "mean_other": values[~labels.first].mean(0),
        **{name: getattr(tested, name) for name in ("t", "p", "p_family", "q")},
    }
    return Pair(row, differences)


def energy(distance: FloatArray, placed: BoolArray, labels: Labels) -> FloatArray:
    """2 · between − within of the first − within of the second, over pairs of runs of one stratum, ``[ways]``.

    Parameters
    ----------
    distance
        ``[runs, runs]``.
    placed
        ``[ways, runs]``: placings of the labels within strata.
    labels
        The strata.
    """
    between, one, other = mean_distances(distance, placed, labels)
    return np.asarray(2 * between - one - other)


def mean_distances(
    distance: FloatArray, placed: BoolArray, labels: Labels
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean distance between the groups, within the first and within the second, ``[ways]`` each; NaN without a pair."""
    same = (labels.stratum[:, None] == labels.stratum) & ~np.eye(len(distance), dtype=bool)
    first, second = placed.astype(np.float64), (~placed).astype(np.float64)

    def mean(rows: FloatArray, columns: FloatArray) -> FloatArray:
        total = ((rows @ (distance * same)) * columns).sum(1)
        count = ((rows @ same) * columns).sum(1)
        return np.asarray(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))

    return mean(first, second), mean(first, first), mean(second, second)
