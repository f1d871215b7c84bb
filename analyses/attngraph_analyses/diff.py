"""Differences between two groups of runs: what do successes do that failures don't?

1. Every run becomes a vector of features by layer, head and role (`attngraph_analyses.run_features`), so that prompts
   of different lengths and needle depths can be compared.
2. Every feature is tested by permutation within strata (task, model, length, config), with a family-wise p over all of
   them by max-T and a false discovery rate by Benjamini & Hochberg (`attngraph_analyses.permutation`), and gets effect
   sizes (`attngraph_analyses.effects`).
3. Differences that hang together are tested as components, by the network-based statistic
   (`attngraph_analyses.networks`).
4. Which hops, and which whole sequences of hops, are among the best routes of one group's runs and not of the other's
   (`attngraph_analyses.route_differences`)?

The null is the permutations: the same runs with their labels exchanged. Test what was found on fresh runs, with
``only=found.significant()``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import Policy
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run
from attngraph_analyses.effects import effects, intervals
from attngraph_analyses.groups import STRATA, grouped
from attngraph_analyses.networks import component_table
from attngraph_analyses.permutation import BoolArray, Statistic, Tested, check_permutations, check_statistic, max_t
from attngraph_analyses.role_features import RoleFeatures, role_features
from attngraph_analyses.roles import OUTPUT
from attngraph_analyses.route_differences import route_differences
from attngraph_analyses.run_features import FEATURES, HOP_FEATURES, KEYS

STRATUM = {"stratum": pl.String(), "first": pl.Int64(), "second": pl.Int64()}


@dataclass(frozen=True, eq=False, kw_only=True)
class Diff(ArrowTable):
    """What `diff` found. The first group less the second: positive where the first has more.

    Parameters
    ----------
    by, groups
        The field that tells the groups apart, and its two values.
    strata
        Fields within which labels were exchanged.
    runs
        One row per stratum: stratum, first, second (how many runs of either group).
    table
        One row per tested feature, least p_family first; see `to_polars`.
    components
        One row per hop of a component of differing hops, the largest component first: component, size, p, layer, head,
        query_role, key_role, t.
    routes
        One row per hop (``kind="hop"``) or sequence of hops (``"route"``) that some runs' best routes have and others'
        don't: kind, route, hops, share_first and share_second (of the group's runs), p, p_family, q.
    statistic, permutations, exact, seed
        How it was tested; `exact` if these are all the ways to place the labels.
    network, threshold, gap
        The feature, the least |t| and the levels bridged of the components.
    level
        Confidence level of the intervals.
    source, target, k, policy
        Of throughput, width and routes; see `attngraph_analyses.run_features`.
    completeness, completeness_source
        Median over the runs of the share of the target's walk that never leaves the recorded edges, and how it is
        known; None where some run's isn't known.
    completeness_by_group
        The same median of either group: where they differ, so does what the graphs lack.
    not_covered
        What the result does not say, one sentence each.
    """

    by: str
    groups: tuple[str, str]
    strata: tuple[str, ...]
    runs: pl.DataFrame
    table: pl.DataFrame
    components: pl.DataFrame
    routes: pl.DataFrame
    statistic: Statistic
    permutations: int
    exact: bool
    seed: int
    network: str
    threshold: float
    gap: int
    level: float
    source: str
    target: str
    k: int
    policy: Policy
    completeness: float | None
    completeness_source: CompletenessSource | None
    completeness_by_group: tuple[float, float] | None
    not_covered: tuple[str, ...]

    def to_polars(self) -> pl.DataFrame:
        """One row per tested feature, least p_family first, greater |t| first on ties.

        feature, layer, head, query_role, key_role; mean_first, mean_second, difference, median_difference, d,
        rank_biserial; t, p, p_family, q; d_low, d_high, rank_biserial_low, rank_biserial_high (null but for the first
        ones).
        """
        return self.table

    def significant(self, level: float = 0.05, correction: str = "p_family") -> pl.DataFrame:
        """The features whose p_family (or q, with ``correction="q"``) is at most `level`.

        Raises
        ------
        ConfigError
            For another correction.
        """
        if correction not in ("p_family", "q"):
            raise ConfigError(f"correction={correction!r} is not 'p_family' or 'q'.")
        return self.table.filter(pl.col(correction) <= level)

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """The result as plain values for JSON, with at most `top` features and routes (all by default)."""
        return {
            "by": self.by,
            "groups": list(self.groups),
            "strata": list(self.strata),
            "runs": self.runs.to_dicts(),
            "tested": len(self.table),
            "significant": {name: len(self.significant(correction=name)) for name in ("p_family", "q")},
            "statistic": self.statistic,
            "permutations": self.permutations,
            "exact": self.exact,
            "seed": self.seed,
            "level": self.level,
            "source": self.source,
            "target": self.target,
            "k": self.k,
            "policy": vars(self.policy),
            "features": self.table.head(len(self.table) if top is None else top).to_dicts(),
            "network": {"feature": self.network, "threshold": self.threshold, "gap": self.gap},
            "components": self.components.to_dicts(),
            "routes": self.routes.head(len(self.routes) if top is None else top).to_dicts(),
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
            "completeness_by_group": self.completeness_by_group,
            "not_covered": list(self.not_covered),
        }


def diff(
    runs: Iterable[Run] | RoleFeatures,
    by: str = "outcome",
    *,
    groups: tuple[str, str] | None = None,
    strata: Sequence[str] = STRATA,
    source: str = "needle",
    target: str = OUTPUT,
    k: int = 10,
    features: Sequence[str] = FEATURES,
    only: pl.DataFrame | None = None,
    statistic: Statistic = "rank",
    permutations: int = 9_999,
    seed: int = 0,
    network: str = "contribution",
    threshold: float = 3.0,
    gap: int = 1,
    level: float = 0.95,
    top: int = 100,
    resamples: int = 1_000,
) -> Diff:
    """How two groups of runs differ, by layer, head and role.

    Parameters
    ----------
    runs
        A store, any runs of it, or their features read before (whose `source`, `target` and `k` then hold).
    by
        The field that tells the groups apart: ``"outcome"``, ``"model"``, a metadata key, or another field; see
        `attngraph_analyses.groups`.
    groups
        Its two values, where it has more than two.
    strata
        Fields that exchangeable runs share; labels move within them alone.
    source, target, k
        Ends of throughput, width and routes, and how many best routes of every run are looked at.
    features
        Kinds of features to test: all by default, see `attngraph_analyses.run_features`. Fewer make a smaller family.
    only
        A table with the columns feature, layer, head, query_role, key_role: test these alone.
    statistic
        ``"rank"`` or ``"t"``; see `attngraph_analyses.permutation`.
    permutations, seed
        Placings of the labels that are tried, at least 19, and the seed of random ones.
    network, threshold, gap
        For the components: which of the features that are hops, the least |t|, and how many levels of the residual
        stream join two hops; see `attngraph_analyses.networks`.
    level, top, resamples
        Bootstrap intervals: confidence level, for how many of the first features, from how many resamples.

    Raises
    ------
    ConfigError
        If a setting is out of range, a run lacks a field, there are not two groups, or models are mixed.
    GraphError
        If a group has fewer than two comparable runs, or nothing is left to test.
    UnknownNodeError
        If a run lacks the target.
    """
    _check(features, network, level, top, resamples)
    check_permutations(permutations)
    check_statistic(statistic)
    if not isinstance(runs, RoleFeatures):
        chosen = sorted({run.id: run for run in runs}.values(), key=lambda run: run.id)
        if not chosen:
            raise GraphError("There are no runs to compare; capture some into the store.")
        members = grouped([run.manifest for run in chosen], by, groups, strata)  # before any layer is read
        runs = role_features([chosen[run] for run in members.runs], source, target, k=k)
        found, left_out = grouped(runs.manifests, by, members.names, strata), members.left_out
    else:
        found = grouped(runs.manifests, by, groups, strata)
        left_out = found.left_out
    chance: dict[str, Any] = {"permutations": permutations, "seed": seed, "statistic": statistic}
    keys, values, lacking = _family(runs, found.runs, features, only)
    tested = max_t(values, found.labels, **chance)
    varies = ~np.isnan(tested.t)
    if not varies.any():
        raise GraphError("None of the features varies within a stratum, so there is nothing to test.")
    table = pl.concat([keys, effects(values, found.labels), _tests(tested)], how="horizontal")
    order = np.lexsort((-np.abs(tested.t), tested.p_family))  # NaN comes last
    order = order[: int(varies.sum())]
    ends = intervals(values[:, order[:top]], found.labels, level=level, resamples=resamples, seed=seed)
    table = table[order].with_columns(
        pl.Series(name, [*column.tolist(), *[None] * (len(order) - len(column))], dtype=pl.Float64).fill_nan(None)
        for name, column in ends._asdict().items()
    )
    known = runs.completeness[found.runs]
    return Diff(
        by=by,
        groups=found.names,
        strata=tuple(name for name in strata if name != by),
        runs=pl.DataFrame(found.strata, schema=STRATUM, orient="row"),
        table=table,
        components=component_table(runs, found, network, threshold, gap, **chance),
        routes=route_differences(runs, found, permutations=permutations, seed=seed),
        statistic=statistic,
        permutations=tested.permutations,
        exact=tested.exact,
        seed=seed,
        network=network,
        threshold=threshold,
        gap=gap,
        level=level,
        source=runs.source,
        target=runs.target,
        k=runs.k,
        policy=runs.policy,
        completeness=None if np.isnan(known).any() else float(np.median(known)),
        completeness_source=None if np.isnan(known).any() else runs.completeness_source,
        completeness_by_group=None if np.isnan(known).any() else _medians(known, found.labels.first),
        not_covered=_not_covered(runs, by, left_out, lacking, int((~varies).sum()), tested),
    )


def _medians(values: FloatArray, first: BoolArray) -> tuple[float, float]:
    """The median of the first group, and of the second."""
    return float(np.median(values[first])), float(np.median(values[~first]))


def _check(features: Sequence[str], network: str, level: float, top: int, resamples: int) -> None:
    for name in features:
        if name not in FEATURES:
            raise ConfigError(f"features={name!r} is not one of {', '.join(FEATURES)}.")
    if network not in HOP_FEATURES:
        raise ConfigError(f"network={network!r} is not a feature of hops: {', '.join(HOP_FEATURES)}.")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level!r} is the intervals' confidence, between 0 and 1.")
    for name, value in (("top", top), ("resamples", resamples)):
        if value < 1:
            raise ConfigError(f"{name}={value!r} must be at least 1.")


def _family(
    runs: RoleFeatures, members: IntArray, features: Sequence[str], only: pl.DataFrame | None
) -> tuple[pl.DataFrame, FloatArray, int]:
    """The features to test, their values ``[runs, features]``, and how many are left out that some run lacks."""
    keys = runs.keys.with_row_index("number").filter(pl.col("feature").is_in(list(features)))
    if only is not None:
        missing = [name for name in KEYS if name not in only.columns]
        if missing:
            raise ConfigError(f"only= lacks the columns {', '.join(missing)}; give those that name features: {KEYS}.")
        wanted = only.select(KEYS).unique()
        keys = keys.join(wanted, on=KEYS, how="semi", nulls_equal=True, maintain_order="left")
        if len(keys) < len(wanted):
            raise ConfigError(f"only= names {len(wanted)} features, of which these runs have {len(keys)}.")
    values = runs.values[members][:, keys["number"].to_numpy()].astype(np.float64)
    common = ~np.isnan(values).any(0)
    if not common.any():
        raise GraphError("The runs have none of the wanted features in common, so there is nothing to test.")
    return keys.drop("number")[np.flatnonzero(common)], values[:, common], int((~common).sum())


def _tests(tested: Tested) -> pl.DataFrame:
    return pl.DataFrame({"t": tested.t, "p": tested.p, "p_family": tested.p_family, "q": tested.q})


def _not_covered(
    runs: RoleFeatures, by: str, left_out: int, lacking: int, constant: int, tested: Tested
) -> tuple[str, ...]:
    tell = [
        "A difference is an association: whether it makes the difference takes a knockout.",
        "What differs inside a stratum beside the groups, such as the needle's depth, is not held fixed.",
    ]
    count, least = len(tested.t) - constant, 1 / (tested.permutations + 1)
    if count * least > 0.05:
        tell.append(f"No p is below {least:.2g}, so no lone feature among {count} reaches a q of .05; p_family can.")
    if left_out:
        tell.append(f"{left_out} runs of other groups, or of strata with one group only, have no part in this.")
    if lacking:
        tell.append(f"{lacking} features that not all runs have were left out.")
    if constant:
        tell.append(f"{constant} features that don't vary within strata were left out.")
    if runs.without_walks:
        tell.append(
            f"{len(runs.without_walks)} runs have no walk from {runs.target!r} to {runs.source!r}: throughput, width "
            f"and routes were left out for all."
        )
    if by == "model":
        tell.append("That head 3 of one model does what head 3 of another does is an assumption.")
    if np.isnan(runs.completeness).any():
        tell.append("Dropped attention was not audited in all runs: a group may differ in what is missing.")
    return tuple(tell)
