"""What a study can ask of two groups of its runs: how they differ, and whether it is so again (`diff`, `confirm`).

One result fills several tables, so the last ones are kept while they are asked for in turn. Runs are taken in the order
of the study's plan and not in that of their making, since permutations are drawn by place: two stores made from one
file have the same tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.store import Run
from attngraph_analyses.confirm import Confirmation, check_level, confirm, shuffled
from attngraph_analyses.diff import Diff, diff
from attngraph_analyses.groups import STRATA
from attngraph_analyses.permutation import Statistic
from attngraph_analyses.role_features import RoleFeatures, role_features
from attngraph_analyses.run_features import FEATURES
from attngraph_analyses.selection import EVERYTHING, SameRuns, Where, selected


@dataclass(frozen=True, kw_only=True)
class DiffSettings:
    """How groups are compared; see `attngraph_analyses.diff`. The same for all tables of one comparison."""

    by: str = "outcome"
    groups: tuple[str, str] | None = None
    strata: tuple[str, ...] = STRATA
    source: str = "needle"
    target: str = "output"
    k: int = 10
    features: tuple[str, ...] = FEATURES
    statistic: Statistic = "rank"
    permutations: int = 9_999
    seed: int = 0
    network: str = "contribution"
    threshold: float = 3.0
    gap: int = 1
    top: int = 100
    resamples: int = 1_000


SETTINGS = DiffSettings()


def diff_table(runs: Sequence[Run], where: Where = EVERYTHING, settings: DiffSettings = SETTINGS) -> pl.DataFrame:
    """The features in which two groups of the selected runs differ, least family-wise p first."""
    return _differences(selected(runs, where), settings).to_polars()


def diff_components(runs: Sequence[Run], where: Where = EVERYTHING, settings: DiffSettings = SETTINGS) -> pl.DataFrame:
    """The connected hops in which two groups of the selected runs differ, the largest component first."""
    return _differences(selected(runs, where), settings).components


def diff_routes(runs: Sequence[Run], where: Where = EVERYTHING, settings: DiffSettings = SETTINGS) -> pl.DataFrame:
    """The hops and routes that one group's runs have among their best and the other's lack."""
    return _differences(selected(runs, where), settings).routes


def diff_confirmed(
    runs: Sequence[Run], found: Where, fresh: Where, level: float = 0.05, settings: DiffSettings = SETTINGS
) -> pl.DataFrame:
    """The features that differ in the runs `found`, tested alone in the runs `fresh`; no rows where nothing differs.

    No prompt may be in both parts.
    """
    return _confirmation(runs, found, fresh, level, settings).to_polars()


def diff_totals(
    runs: Sequence[Run], found: Where, fresh: Where, level: float = 0.05, settings: DiffSettings = SETTINGS
) -> pl.DataFrame:
    """How much differs, and how much of it again: one row for the runs `found`, one for the runs `fresh`.

    part, groups, first and second (how many runs of either group are compared), completeness, tested, named (p_family
    at most `level`), named_by_q, same_direction and confirmed (of the features that the first part names; null there),
    components and component_p (of the largest), routes (p_family at most `level`; these two of the first part alone).
    """
    answer = _confirmation(runs, found, fresh, level, settings)
    first, again = answer.found, answer.fresh
    rows = [
        {
            **_part("found", first, level),
            "same_direction": None,
            "confirmed": None,
            "components": first.components["component"].n_unique(),
            "component_p": first.components["p"].min(),
            "routes": int((first.routes["p_family"] <= level).sum()),
        }
    ]
    if again is not None:
        sums = {name: int(answer.table[name].sum()) for name in ("same_direction", "confirmed")}
        rows.append(_part("fresh", again, level) | sums | dict.fromkeys(("components", "component_p", "routes")))
    return pl.DataFrame(rows, infer_schema_length=None)


def diff_shuffled(
    runs: Sequence[Run],
    where: Where = EVERYTHING,
    shuffles: int = 40,
    permutations: int = 499,
    level: float = 0.05,
    settings: DiffSettings = SETTINGS,
) -> pl.DataFrame:
    """How often the same comparison names anything where groups mean nothing; one row per shuffle.

    `permutations` take the place of those of the settings. The column `by` says which groups were shuffled.
    """
    chosen = selected(runs, where)
    names = ("groups", "strata", "features", "statistic", "seed")
    options = {name: getattr(settings, name) for name in names}
    found = shuffled(
        _features_of(chosen, settings),
        settings.by,
        shuffles=shuffles,
        permutations=permutations,
        level=level,
        **options,
    )
    return found.select(pl.lit(settings.by).alias("by"), pl.all())


def _part(name: str, found: Diff, level: float) -> dict[str, object]:
    first, second = found.runs.select("first", "second").sum().row(0)
    return {
        "part": name,
        "groups": ", ".join(found.groups),
        "first": first,
        "second": second,
        "completeness": found.completeness,
        "tested": len(found.table),
        "named": len(found.significant(level)),
        "named_by_q": len(found.significant(level, "q")),
    }


def _confirmation(
    runs: Sequence[Run], found: Where, fresh: Where, level: float, settings: DiffSettings
) -> Confirmation:
    check_level(level)
    parts = [selected(runs, where) for where in (found, fresh)]
    one, other = ({run.manifest.prompt.sha256 for run in part} for part in parts)
    if one & other:
        raise ConfigError(
            f"{len(one & other)} prompts are in both parts: what is found has to be confirmed on other prompts. Let "
            f"found= and fresh= name different seeds."
        )
    return confirm(
        _differences(parts[0], settings),
        _features_of(parts[1], settings),
        level=level,
        permutations=settings.permutations,
        seed=settings.seed,
        resamples=settings.resamples,
    )


def _features_of(runs: Sequence[Run], settings: DiffSettings) -> RoleFeatures:
    return _read(SameRuns(runs), settings.source, settings.target, settings.k)


def _differences(runs: Sequence[Run], settings: DiffSettings) -> Diff:
    return _compared(SameRuns(runs), settings)


@lru_cache(maxsize=2)
def _read(same: SameRuns, source: str, target: str, k: int) -> RoleFeatures:
    """The features of runs, in the order of the runs."""
    found = role_features(same.runs, source, target, k=k)
    place = {manifest.run: number for number, manifest in enumerate(found.manifests)}
    order = np.array([place[run.id] for run in same.runs])
    return replace(
        found,
        manifests=tuple(found.manifests[number] for number in order),
        values=found.values[order],
        completeness=found.completeness[order],
    )


@lru_cache(maxsize=1)
def _compared(same: SameRuns, settings: DiffSettings) -> Diff:
    return diff(
        _features_of(same.runs, settings),
        settings.by,
        groups=settings.groups,
        strata=settings.strata,
        features=settings.features,
        statistic=settings.statistic,
        permutations=settings.permutations,
        seed=settings.seed,
        network=settings.network,
        threshold=settings.threshold,
        gap=settings.gap,
        top=settings.top,
        resamples=settings.resamples,
    )
