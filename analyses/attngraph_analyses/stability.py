"""Do the heads found in one run come back in the others? Roles over a store, and how far runs agree.

Runs are grouped by their model, heads of different models have nothing to do with each other. Agreement is the mean
overlap of the `count` best retrieval heads over all pairs of a group's runs: shared heads divided by `count`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl

from attngraph.errors import ConfigError, GraphError
from attngraph.store import Run
from attngraph_analyses.heads import HeadRoles, head_roles
from attngraph_analyses.nulls import Null, NullName

SCORES = ("retrieval", "retrieval_excess", "sink", "own", "previous", "near", "far", "induction")


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadStability:
    """What `head_stability` found.

    Parameters
    ----------
    count
        Retrieval heads compared.
    runs
        One row per run: run, model, tokens, best (layer and head of the best retrieval heads), completeness and
        completeness_source (of `HeadRoles`); these are null where the run lacks an end or a null's alternatives.
    heads
        One row per model and head: model, layer, head, runs, role (the most frequent), role_share, and the mean and
        the standard deviation over the runs of every score, with how often the head is among the best.
    overlap
        Mean overlap of the best heads by model; None for a model with fewer than two runs.
    """

    count: int
    runs: pl.DataFrame
    heads: pl.DataFrame
    overlap: dict[str, float | None]


def head_stability(
    runs: Iterable[Run],
    source: str = "needle",
    target: str = "output",
    *,
    count: int = 5,
    reach: int = 8,
    rare: int = 8,
    threshold: float = 0.1,
    null: Null | NullName = "distance",
) -> HeadStability:
    """Head roles of several runs, such as those of a store, and how far they agree.

    Parameters
    ----------
    runs
        A store, or any runs of it.
    source, target, reach, rare, threshold, null
        As for `head_roles`. A run that lacks an end has a null in the table of runs and no part in the rest.
    count
        How many of the best retrieval heads are compared, at least 1.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """
    if count < 1:
        raise ConfigError(f"count={count!r} heads are to be compared; give at least 1.")
    rows, found = [], defaultdict(list)
    for run in runs:
        roles = _roles(run, source, target, reach, rare, threshold, null)
        best = None if roles is None else [list(head) for head in roles.best(count)]
        known = {name: getattr(roles, name, None) for name in ("completeness", "completeness_source")}
        rows.append(
            {"run": run.id, "model": run.manifest.model.id, "tokens": run.manifest.prompt.tokens, "best": best, **known}
        )
        if roles is not None:
            found[run.manifest.model.id].append(roles)
    columns = {
        "run": pl.String(),
        "model": pl.String(),
        "tokens": pl.Int64(),
        "best": pl.List(pl.List(pl.Int64)),
        "completeness": pl.Float64(),
        "completeness_source": pl.String(),
    }
    tables = [_summary(model, group, count) for model, group in found.items()]
    return HeadStability(
        count=count,
        runs=pl.DataFrame(rows, schema=columns),
        heads=pl.concat(tables) if tables else pl.DataFrame(),
        overlap={model: overlap([set(roles.best(count)) for roles in group]) for model, group in found.items()},
    )


def overlap(best: list[set[tuple[int, int]]]) -> float | None:
    """Mean share of heads that two sets have in common, over all pairs; None for fewer than two sets."""
    shares = [len(one & other) / max(len(one), len(other)) for one, other in combinations(best, 2)]
    return float(np.mean(shares)) if shares else None


def _roles(
    run: Run, source: str, target: str, reach: int, rare: int, threshold: float, null: Null | NullName
) -> HeadRoles | None:
    try:
        return head_roles(run, source, target, reach=reach, rare=rare, threshold=threshold, null=null)
    except GraphError:
        return None


def _summary(model: str, group: list[HeadRoles], count: int) -> pl.DataFrame:
    layers, heads = group[0].retrieval.shape
    layer, head = np.divmod(np.arange(layers * heads), heads)
    roles = [Counter(names).most_common(1)[0] for names in zip(*(found.roles.ravel() for found in group), strict=True)]
    best = Counter(chosen for found in group for chosen in found.best(count))
    columns = {
        "model": [model] * len(layer),
        "layer": layer,
        "head": head,
        "runs": np.full(len(layer), len(group)),
        "role": [str(name) for name, _ in roles],
        "role_share": np.array([times / len(group) for _, times in roles]),
        "among_best": np.array(
            [best[chosen] / len(group) for chosen in zip(layer.tolist(), head.tolist(), strict=True)]
        ),
    }
    for score in SCORES:
        values = np.stack([getattr(found, score).ravel() for found in group])
        columns[score] = pl.Series(values.mean(0)).fill_nan(None)
        columns[f"{score}_deviation"] = pl.Series(values.std(0)).fill_nan(None)
    return pl.DataFrame(columns).sort("retrieval_excess", descending=True, nulls_last=True, maintain_order=True)
