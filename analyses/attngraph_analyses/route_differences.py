"""The routes that one group of runs shares and the other lacks.

1. Every run has its k best routes from source to target. A hop is named by layer, head and the roles that it joins, a
   route by the sequence of its hops, so that runs of different prompts can have the same.
2. For each hop and each route: the share of either group's runs that have it among their best. Those that fewer than
   two runs have, or all, are left out; that takes no labels.
3. Having it, 1 or 0, is tested by permutation within strata, all hops and routes as one family.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from attngraph_analyses.groups import Grouped
from attngraph_analyses.permutation import max_t
from attngraph_analyses.role_features import RoleFeatures

SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "route": pl.String(),
    "hops": pl.Int64(),
    "share_first": pl.Float64(),
    "share_second": pl.Float64(),
    "p": pl.Float64(),
    "p_family": pl.Float64(),
    "q": pl.Float64(),
}


def route_differences(runs: RoleFeatures, found: Grouped, *, permutations: int, seed: int) -> pl.DataFrame:
    """Hops and routes that only some runs have, tested on having them: `SCHEMA`, least p_family first.

    Empty where some run has no walks at all: to have no route and to have another one are different things.

    Parameters
    ----------
    runs
        Their hops are compared.
    found
        The groups and strata.
    permutations, seed
        As for `attngraph_analyses.permutation.max_t`.
    """
    ids = [runs.manifests[run].run for run in found.runs]
    if set(ids) & set(runs.without_walks):
        return pl.DataFrame(schema=SCHEMA)
    arrow = pl.format("{} —{}.{}→ {}", "key_role", "layer", "head", "query_role")
    hops = runs.hops.filter(pl.col("run").is_in(ids)).with_columns(arrow.alias("route_hop"))
    whole = (
        hops.sort("run", "route", "hop")
        .group_by("run", "route", maintain_order=True)
        .agg(pl.col("route_hop").str.join(", "), pl.len().alias("hops"))
    )
    seen = pl.concat(
        [
            hops.select("run", pl.lit("hop").alias("kind"), pl.col("route_hop").alias("name"), pl.lit(1).alias("hops")),
            whole.select("run", pl.lit("route").alias("kind"), pl.col("route_hop").alias("name"), pl.col("hops")),
        ],
        how="vertical_relaxed",
    ).unique()
    number = {id: place for place, id in enumerate(ids)}
    names = seen.select("kind", "name", "hops").unique().sort("kind", "name")
    place = seen.join(names.with_row_index("column"), on=["kind", "name"], how="left")["column"].to_numpy()
    has = np.zeros((len(ids), len(names)))
    has[[number[id] for id in seen["run"]], place] = 1.0
    # What one run has can't be news, nor what all have; neither count depends on the labels.
    kept = (has.sum(0) >= 2) & (has.sum(0) < len(ids))
    if not kept.any():
        return pl.DataFrame(schema=SCHEMA)
    has = has[:, kept]
    tested = max_t(has, found.labels, permutations=permutations, seed=seed, statistic="t")
    named = names.filter(kept)
    frame = pl.DataFrame(
        {
            "kind": named["kind"],
            "route": named["name"],
            "hops": named["hops"].cast(pl.Int64),
            "share_first": has[found.labels.first].mean(0),
            "share_second": has[~found.labels.first].mean(0),
            **{name: getattr(tested, name) for name in ("p", "p_family", "q")},
        }
    )
    gap = (pl.col("share_first") - pl.col("share_second")).abs()
    varying = frame.filter(pl.col("p").is_not_nan())
    return varying.sort("p_family", "p", -gap, "kind", "route")
