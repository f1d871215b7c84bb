"""The questions that a study can ask by name: `ANALYSES`.

An entry is a function and what it is asked of:

- ``"run"``: ``function(run, **options)``, for every run;
- ``"model"``: ``function(lm, run, **options)``, for every run, with its model loaded;
- ``"store"``: ``function(runs, **options)``, once, for all runs of the study in the order of its plan.

It returns a polars table; the study adds the columns that tell runs apart. Its options are its other parameters, with
annotations of what a TOML file can hold, and it is found again by its name in its module, because workers are other
processes. To add a question: write such a function, and enter it here.

`by` and `show` say what a study's summary tells of the table: the columns to put rows together by, beside those of the
study, and the columns to take shares and medians of. A table of all runs without `by` is told by its first rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import polars as pl

from attngraph.errors import GraphError, NoRouteError
from attngraph.graph import Policy
from attngraph.graph.paths import Distinct, Kind
from attngraph.store import Run
from attngraph_analyses.bottlenecks import Order, bottlenecks
from attngraph_analyses.heads import head_roles
from attngraph_analyses.influence import influence
from attngraph_analyses.nulls import Null, NullName
from attngraph_analyses.registry_anchors import (
    anchor_agreement,
    anchor_heads,
    anchors_table,
    category_profile_table,
    importance_correlation_table,
)
from attngraph_analyses.registry_chains import chain_ranks, chain_test_table
from attngraph_analyses.registry_compare import compare_differences, compare_profiles, compare_table
from attngraph_analyses.registry_diff import (
    diff_components,
    diff_confirmed,
    diff_routes,
    diff_shuffled,
    diff_table,
    diff_totals,
)
from attngraph_analyses.registry_knockout import knockout_table, necessity_table, sufficiency_table
from attngraph_analyses.routes import routes
from attngraph_analyses.stability import head_stability
from attngraph_analyses.throughput import throughput

DEFAULT_POLICY = Policy()


class Analysis(NamedTuple):
    """A function, what it is asked of, and what a summary tells of its table."""

    function: Callable[..., pl.DataFrame]
    of: Literal["run", "model", "store"]
    by: tuple[str, ...] = ()
    show: tuple[str, ...] = ()


def influence_table(
    run: Run, target: str = "output", null: Null | NullName = "uniform", policy: Policy = DEFAULT_POLICY
) -> pl.DataFrame:
    """Every block's influence on a target, its null, excess and rank; as `attngraph_analyses.influence`."""
    return influence(run.graph(**vars(policy)), target, null=null).to_polars()


def influence_rank(
    run: Run,
    span: str = "needle",
    before: str = "question",
    target: str = "output",
    null: Null | NullName = "targets",
    policy: Policy = DEFAULT_POLICY,
) -> pl.DataFrame:
    """Where a span's best block ranks by excess influence among the blocks between the sink and another span.

    One row: rank (0 is best; null where the span has no block there), first (whether the rank is 0), candidates (blocks
    that are ranked), chance (the rank that a random order would give the best of as many blocks, on average), influence
    and excess of the span (the latter of its best block), completeness.
    """
    found = influence(run.graph(**vars(policy)), target, null=null)
    blocks, end = found.blocks_of(span), int(found.blocks_of(before)[0])
    competing = blocks[(blocks >= 1) & (blocks < end)]
    try:
        rank: int | None = found.rank_of(span, before=before)
    except GraphError:
        rank = None
    return pl.DataFrame(
        {
            "rank": [rank],
            "first": [None if rank is None else rank == 0],
            "candidates": [end - 1],
            # The mean of the smallest of k numbers drawn from 0 … n − 1 without putting back.
            "chance": [None if rank is None else (end - 1 - len(competing)) / (len(competing) + 1)],
            "influence": [float(found.influence[blocks].sum())],
            "excess": [None if rank is None else float(found.excess[competing].max())],
            "completeness": [found.completeness],
        },
        schema_overrides={"rank": pl.Int64, "first": pl.Boolean, "chance": pl.Float64, "excess": pl.Float64},
    )


def routes_table(
    run: Run,
    source: str = "needle",
    target: str = "output",
    k: int = 10,
    kind: Kind = "best",
    distinct: Distinct = "edges",
    reuse: float = 1.0,
    policy: Policy = DEFAULT_POLICY,
) -> pl.DataFrame:
    """The hops of the best routes; as `attngraph_analyses.routes`. No rows where there is no route."""
    graph = run.graph(**vars(policy))
    with suppress(NoRouteError):
        return routes(graph, source, target, k, kind=kind, distinct=distinct, reuse=reuse).to_polars()
    return pl.DataFrame()


def throughput_table(
    run: Run, source: str = "needle", target: str = "output", top: int = 30, policy: Policy = DEFAULT_POLICY
) -> pl.DataFrame:
    """The edges of greatest throughput, best first; as `attngraph_analyses.throughput`. No rows without a route."""
    with suppress(NoRouteError):
        return throughput(run.graph(**vars(policy)), source, target, top=top).to_polars()
    return pl.DataFrame()


def bottlenecks_table(
    run: Run, source: str = "needle", target: str = "output", order: Order = 2, policy: Policy = DEFAULT_POLICY
) -> pl.DataFrame:
    """The width of every level between two ends; as `attngraph_analyses.bottlenecks`. No rows without a route."""
    with suppress(NoRouteError):
        return bottlenecks(run.graph(**vars(policy)), source, target, order=order).to_polars()
    return pl.DataFrame()


def head_roles_table(
    run: Run,
    source: str = "needle",
    target: str = "output",
    reach: int = 8,
    rare: int = 8,
    threshold: float = 0.1,
    null: Null | NullName = "distance",
) -> pl.DataFrame:
    """What every head attends to; as `attngraph_analyses.head_roles`."""
    found = head_roles(run, source, target, reach=reach, rare=rare, threshold=threshold, null=null)
    return found.to_polars()


def head_stability_table(
    runs: Sequence[Run],
    source: str = "needle",
    target: str = "output",
    count: int = 5,
    threshold: float = 0.1,
    null: Null | NullName = "distance",
) -> pl.DataFrame:
    """Per model and head its role over all runs; `heads` of `attngraph_analyses.head_stability`, with `overlap`.

    `overlap` is the model's: the mean share of the `count` best retrieval heads that two of its runs have in common.
    """
    found = head_stability(runs, source, target, count=count, threshold=threshold, null=null)
    overlap: dict[str, Any] = {"model": list(found.overlap), "overlap": list(found.overlap.values())}
    shares = pl.DataFrame(overlap, schema={"model": pl.String, "overlap": pl.Float64})
    return found.heads.join(shares, on="model", how="left", maintain_order="left") if len(found.heads) else found.heads


NAMED = ("feature", "layer", "head", "query_role", "key_role")
SUMMED = ("effect", "survives")
CHAINED = ("runs", "mean", "low", "high", "above", "first", "p", "q")
COMPARED = ("within_one", "between", "within_other", "ratio", "energy", "p", "q")
AGREED = ("pruned_causal", "spearman", "spearman_same_heads", "spearman_random_heads", "overlap", "overlap_chance")

ANALYSES: dict[str, Analysis] = {
    "anchor_agreement": Analysis(anchor_agreement, "store", by=("model", "config"), show=(*AGREED, "within")),
    "anchor_heads": Analysis(anchor_heads, "run", by=("receiver",), show=("kurtosis", "dropped")),
    "anchors": Analysis(anchors_table, "run", by=("category",), show=("score", "lower", "upper", "all_heads")),
    "bottlenecks": Analysis(bottlenecks_table, "run"),
    "category_profile": Analysis(
        category_profile_table, "run", by=("category",), show=("sentences", "percentile", "excess", "p")
    ),
    "chain_ranks": Analysis(
        chain_ranks, "run", by=("stop", "control"), show=("controls", "weight", "control_weight", "percentile", "first")
    ),
    "chain_test": Analysis(chain_test_table, "store", by=("model", "stop", "control", "outcome"), show=CHAINED),
    "compare": Analysis(compare_table, "store", show=("one", "other", "runs_one", "runs_other", *COMPARED)),
    "compare_differences": Analysis(compare_differences, "store"),
    "compare_profiles": Analysis(compare_profiles, "store", by=("score", "group"), show=("mean", "low", "high")),
    "diff": Analysis(diff_table, "store", show=(*NAMED, "mean_first", "mean_second", "rank_biserial", "p_family", "q")),
    "diff_components": Analysis(diff_components, "store"),
    "diff_confirmed": Analysis(
        diff_confirmed,
        "store",
        show=(*NAMED, "rank_biserial", "rank_biserial_fresh", "p_family", "p_family_fresh", "confirmed"),
    ),
    "diff_routes": Analysis(
        diff_routes, "store", show=("kind", "route", "share_first", "share_second", "p", "p_family")
    ),
    "diff_shuffled": Analysis(diff_shuffled, "store", by=("by",), show=("alarm", "named", "least_p_family")),
    "diff_totals": Analysis(diff_totals, "store"),
    "head_roles": Analysis(head_roles_table, "run"),
    "head_stability": Analysis(head_stability_table, "store"),
    "importance_correlation": Analysis(importance_correlation_table, "run"),
    "influence": Analysis(influence_table, "run"),
    "influence_rank": Analysis(influence_rank, "run"),
    "knockout": Analysis(knockout_table, "model", by=("removed",), show=("edges", "mass", *SUMMED)),
    "necessity": Analysis(necessity_table, "model", by=("edges",), show=(*SUMMED, "control_effect")),
    "routes": Analysis(routes_table, "run"),
    "sufficiency": Analysis(sufficiency_table, "model", by=("share",), show=("edges", *SUMMED, "control_effect")),
    "throughput": Analysis(throughput_table, "run"),
}
