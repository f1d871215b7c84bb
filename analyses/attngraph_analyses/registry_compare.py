"""What a study can ask of its models side by side (`compare`).

One result fills several tables, so the last one is kept while they are asked for in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import polars as pl

from attngraph.store import Run
from attngraph_analyses.compare import By, Comparison, compare
from attngraph_analyses.selection import EVERYTHING, SameRuns, Where, selected


def compare_table(
    runs: Sequence[Run],
    where: Where = EVERYTHING,
    by: By = "model",
    source: str = "needle",
    target: str = "output",
    bins: int = 5,
    permutations: int = 9_999,
    seed: int = 0,
) -> pl.DataFrame:
    """How far groups of runs are apart beside how far their own runs are; as `attngraph_analyses.compare`.

    `source` may be ``""`` for prompts without one.
    """
    return _comparison(runs, where, by, source, target, bins, permutations, seed).distances


def compare_differences(
    runs: Sequence[Run],
    where: Where = EVERYTHING,
    by: By = "model",
    source: str = "needle",
    target: str = "output",
    bins: int = 5,
    permutations: int = 9_999,
    seed: int = 0,
) -> pl.DataFrame:
    """In which scores and at which relative depths groups of runs differ, smallest p first."""
    return _comparison(runs, where, by, source, target, bins, permutations, seed).differences


def compare_profiles(
    runs: Sequence[Run],
    where: Where = EVERYTHING,
    by: By = "model",
    source: str = "needle",
    target: str = "output",
    bins: int = 5,
) -> pl.DataFrame:
    """Every score over relative depth, by group: mean and quantiles .1 and .9 over heads."""
    # Profiles know no chance; with the usual permutations they are those of the other tables' comparison.
    return _comparison(runs, where, by, source, target, bins, permutations=9_999, seed=0).profiles


def _comparison(
    runs: Sequence[Run],
    where: Where,
    by: By,
    source: str,
    target: str,
    bins: int,
    permutations: int,
    seed: int,
) -> Comparison:
    return _compared(SameRuns(selected(runs, where)), by, source or None, target, bins, permutations, seed)


@lru_cache(maxsize=1)
def _compared(
    same: SameRuns, by: By, source: str | None, target: str, bins: int, permutations: int, seed: int
) -> Comparison:
    return compare(same.runs, by, source=source, target=target, bins=bins, permutations=permutations, seed=seed)
