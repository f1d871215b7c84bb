"""Found in some runs, confirmed in others: what remains of a difference between groups when it is looked for again.

1. `diff` names the features of the first runs whose corrected p is at most a level, over all features.
2. These alone are tested on fresh runs. A feature is *confirmed* if it differs in the same direction there, with a
   family-wise p of at most the level over those that were named.
3. Control (`shuffled`): features are exchanged among the first runs of a stratum, so that labels mean nothing, and step
   1 is done again and again. A share of about the level may still name something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph.arrow import ArrowTable
from attngraph_analyses.diff import Diff, diff
from attngraph_analyses.groups import STRATA, grouped
from attngraph_analyses.permutation import Statistic
from attngraph_analyses.role_features import RoleFeatures
from attngraph_analyses.run_features import FEATURES, KEYS

COMPARED = ("difference", "rank_biserial", "rank_biserial_low", "rank_biserial_high", "t", "p_family")
"""What is said of a feature for either part."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Confirmation(ArrowTable):
    """What `confirm` found.

    Parameters
    ----------
    found
        The differences of the first runs.
    fresh
        The named ones in the fresh runs; None where nothing was named that these have.
    level
        Greatest p_family of a feature that is named, and of one that is confirmed.
    table
        One row per named feature, see `to_polars`.
    not_covered
        What the result does not say, one sentence each.
    """

    found: Diff
    fresh: Diff | None
    level: float
    table: pl.DataFrame
    not_covered: tuple[str, ...]

    def to_polars(self) -> pl.DataFrame:
        """One row per feature named in the first runs, least p_family of the fresh ones first.

        feature, layer, head, query_role, key_role; difference, rank_biserial (with its interval, _low and _high), t,
        p_family; the same with _fresh, null where a fresh run lacks the feature or it does not vary there;
        same_direction, confirmed.
        """
        return self.table


def confirm(
    found: Diff,
    fresh: RoleFeatures,
    *,
    level: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
    resamples: int = 1_000,
) -> Confirmation:
    """Test on fresh runs what was named in others.

    Parameters
    ----------
    found
        The differences of the first runs.
    fresh
        Features of runs of other prompts, read with the same source, target and k. That the prompts are others is not
        checked here.
    level
        Greatest p_family of a named and of a confirmed feature, between 0 and 1.
    permutations, seed, resamples
        As for `diff`, of the fresh runs; groups, strata and statistic are those of `found`.

    Raises
    ------
    ConfigError
        If the features were read otherwise, or `level` is out of range.
    GraphError
        If the fresh runs can't be compared; see `diff`.
    """
    check_level(level)
    asked = [(part.source, part.target, part.k, part.policy) for part in (found, fresh)]
    if asked[0] != asked[1]:
        raise ConfigError(f"The fresh runs' features are of {asked[1]}, those found of {asked[0]}; read both alike.")
    named = found.table.filter(pl.col("p_family") <= level)
    known = named.join(fresh.keys, on=KEYS, how="semi", nulls_equal=True, maintain_order="left")
    again = None
    if len(known):
        again = diff(
            fresh,
            found.by,
            groups=found.groups,
            strata=found.strata,
            only=known,
            statistic=found.statistic,
            permutations=permutations,
            seed=seed,
            network=found.network,
            threshold=found.threshold,
            gap=found.gap,
            level=found.level,
            top=len(known),
            resamples=resamples,
        )
    rest = (found.table.clear() if again is None else again.table).select(*KEYS, *COMPARED)
    both = named.select(*KEYS, *COMPARED).join(
        rest, on=KEYS, how="left", nulls_equal=True, suffix="_fresh", maintain_order="left"
    )
    same = (pl.col("t").sign() == pl.col("t_fresh").sign()).fill_null(False)
    table = both.with_columns(same_direction=same).with_columns(
        confirmed=(pl.col("same_direction") & (pl.col("p_family_fresh") <= level)).fill_null(False)
    )
    tell = [
        "What is confirmed holds for prompts made like these; other tasks, lengths and models were not asked.",
        "Fresh runs repeat the association, not its cause: that takes a knockout.",
    ]
    if len(known) < len(named):
        tell.append(f"{len(named) - len(known)} named features are those of no fresh run: not confirmed.")
    return Confirmation(
        found=found,
        fresh=again,
        level=level,
        table=table.sort("p_family_fresh", "p_family", nulls_last=True, maintain_order=True),
        not_covered=(*tell, *found.not_covered),
    )


def shuffled(
    runs: RoleFeatures,
    by: str = "outcome",
    *,
    groups: tuple[str, str] | None = None,
    strata: Sequence[str] = STRATA,
    features: Sequence[str] = FEATURES,
    statistic: Statistic = "rank",
    shuffles: int = 40,
    permutations: int = 499,
    level: float = 0.05,
    seed: int = 0,
) -> pl.DataFrame:
    """How often groups that mean nothing differ: the control of `diff` on the same runs.

    Parameters
    ----------
    runs, by, groups, strata, features, statistic
        As for `diff`.
    shuffles
        How often features are exchanged among the runs of each stratum, at least 1.
    permutations, seed
        Of each test, at least 19; and the seed of shuffles and tests.
    level
        Greatest p_family of a feature that counts as named.

    Returns
    -------
    polars.DataFrame
        One row per shuffle: shuffle, named (features), least_p_family, alarm (whether any was named).

    Raises
    ------
    ConfigError, GraphError
        As `diff`, and for a number out of range.
    """
    check_level(level)
    if shuffles < 1:
        raise ConfigError(f"shuffles={shuffles!r} must be at least 1.")
    compared = grouped(runs.manifests, by, groups, strata)
    strata_of = [compared.runs[members] for members in compared.labels.strata]
    random = np.random.default_rng(seed)
    rows = []
    for number in range(shuffles):
        order = np.arange(len(runs.manifests))
        for members in strata_of:
            order[members] = random.permutation(members)
        found = diff(
            replace(runs, values=runs.values[order]),
            by,
            groups=groups,
            strata=strata,
            features=features,
            statistic=statistic,
            permutations=permutations,
            seed=seed,
            top=1,
            resamples=1,
        )
        named = int((found.table["p_family"] <= level).sum())
        rows.append((number, named, float(found.table["p_family"][0]), named > 0))
    schema = {"shuffle": pl.Int64, "named": pl.Int64, "least_p_family": pl.Float64, "alarm": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def check_level(level: float) -> None:
    """ConfigError for a level that is no probability."""
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level!r} is the greatest p_family of what is named, between 0 and 1.")
