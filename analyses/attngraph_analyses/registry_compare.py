"""What a study can ask of its models side by side (`compare`)."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from attngraph.store import Run
from attngraph_analyses.compare import By, Comparison, compare
from attngraph_analyses.selection import Where, selected

EVERYTHING: Where = {}


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
    # Profiles know no chance: as few permutations as are taken.
    return _comparison(runs, where, by, source, target, bins, permutations=19, seed=0).profiles


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
    chosen = selected(runs, where)
    return compare(chosen, by, source=source or None, target=target, bins=bins, permutations=permutations, seed=seed)
