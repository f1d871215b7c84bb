"""Do walks follow the chain more often than chance, over many runs, and where the model fails as well?

Every run gives a percentile of its chain among chains with other places, and one per hop (`chains.py`). Where the hops
are nothing special, percentiles lie evenly around 0.5, so over the runs of a group:

1. *p* is that of Wilcoxon's signed rank test (1945) of percentile - 0.5, two-sided; *q* is Benjamini & Hochberg's
   (1995) over all tests.
2. *mean* has a bootstrap interval over the runs; *above* is the share of runs whose chain ranks in the upper half,
   *first* the share in which it exceeds all its controls.

Runs count, not blocks: those of one run depend on one another. Groups are never mixed, successes and failures are told
apart within them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import scipy

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import Policy
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import FloatArray
from attngraph.store import Run
from attngraph_analyses.chains import chain
from attngraph_analyses.groups import OUTCOMES, field_of
from attngraph_analyses.permutation import false_discovery_rates
from attngraph_analyses.variable_chains import other_chains

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = "all"
CHANCE = 0.5
FEWEST = 6
"""Runs without which no two-sided p can be below .05: 2 / 2⁶ = .03."""
LEVEL, RESAMPLES = 0.95, 9_999
POLICY = Policy()


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainTest(ArrowTable):
    """What `chain_test` found.

    Parameters
    ----------
    by
        The fields that tell groups apart.
    ranks
        One row per run, stop and control: run, the fields, outcome (null where the run has none), the columns of
        `Chain.to_polars`, completeness.
    tests
        One row per group, stop, control and outcome (``"all"``, ``"success"``, ``"failure"``) with any percentile: the
        fields, stop, control, outcome, runs, mean, low, high (of the mean), above, first, p, q; p and q are null for
        fewer than 6 runs.
    """

    by: tuple[str, ...]
    ranks: pl.DataFrame
    tests: pl.DataFrame

    def to_polars(self) -> pl.DataFrame:
        """The table of tests."""
        return self.tests

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return {"by": list(self.by), "tests": self.tests.to_dicts(), "ranks": self.ranks.to_dicts()}

    def figure(self) -> Figure:
        """Every run's percentiles by stop, with means, successes and failures apart; a panel per control and group.

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        """
        from attngraph_analyses.chain_figure import draw

        return draw(self)


def chain_test(
    runs: Iterable[Run],
    hops: Sequence[str] = (),
    target: str = "output",
    *,
    by: Sequence[str] = ("model",),
    before: str = "question",
    draws: int = 199,
    seed: int = 0,
    policy: Policy = POLICY,
) -> ChainTest:
    """Test over many runs whether walks follow the chain more than they would follow other places.

    Other chains are those of variable-tracking prompts; for other tasks there is the haystack alone.

    Parameters
    ----------
    runs
        A store, or any runs of prompts with a chain; at least 6 of a group.
    hops, target, before, draws, seed
        As for `chain`.
    by
        Fields that the runs of a group share, see `attngraph_analyses.groups`; not the outcome, which is told apart in
        any case.
    policy
        How edges become probabilities.

    Raises
    ------
    ConfigError
        If a run lacks a field, or `by` names the outcome.
    GraphError
        If no group has 6 runs with a percentile; as `chain`.

    Examples
    --------
    >>> found = chain_test(open_store("runs/variable_tracking"))           # doctest: +SKIP
    >>> found.tests.filter(stop="chain", outcome="failure")                # doctest: +SKIP
    """
    fields = tuple(by)
    if "outcome" in fields:
        raise ConfigError(f"by={list(fields)!r} names the outcome, which is told apart in any case; leave it out.")
    described = [(run, _described(run, fields)) for run in runs]
    parts = [
        about.join(ranks_of(run, hops, target, policy, before=before, draws=draws, seed=seed), how="cross")
        for run, about in described
    ]
    ranks = pl.concat(parts) if parts else pl.DataFrame()
    rows = list(_tests(ranks, fields)) if parts else []
    if max((row["runs"] for row in rows), default=0) < FEWEST:
        raise GraphError(
            f"No group of {', '.join(fields) or 'all runs'} has {FEWEST} runs with a percentile among {len(parts)}, "
            f"and fewer can't tell a chain from chance. Capture more seeds, or put runs together by fewer fields."
        )
    tests = pl.DataFrame(rows, infer_schema_length=None)
    p = tests["p"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    q = pl.Series("q", false_discovery_rates(p)).fill_nan(None)
    return ChainTest(by=fields, ranks=ranks, tests=tests.with_columns(q))


def _described(run: Run, fields: Sequence[str]) -> pl.DataFrame:
    """One row of what tells a run apart: run, the fields, outcome."""
    values = {name: field_of(run.manifest, name) for name in fields}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        known = ", ".join(sorted(run.manifest.prompt.metadata)) or "none"
        raise ConfigError(
            f"Run {run.id} has no field {missing[0]!r} to group by. There are model, task, length, config; metadata: "
            f"{known}; and paths into the manifest such as config.block_size."
        )
    row = {"run": run.id, **values, "outcome": field_of(run.manifest, "outcome")}
    return pl.DataFrame([row], schema=dict.fromkeys(row, pl.String))


def ranks_of(run: Run, hops: Sequence[str], target: str, policy: Policy, **options: Any) -> pl.DataFrame:
    """The columns of `Chain.to_polars` for the chain of one run, and completeness; `options` as for `chain`."""
    found = chain(run.graph(**vars(policy)), hops, target, others=other_chains(run), **options)
    return found.to_polars().with_columns(completeness=pl.lit(found.completeness, pl.Float64))


def _tests(ranks: pl.DataFrame, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row per group, stop, control and outcome."""
    known = ranks.filter(pl.col("percentile").is_not_null())
    keys = [*fields, "stop", "control"]
    for values, group in known.group_by(keys, maintain_order=True):
        for outcome in (EVERY, *OUTCOMES):
            own = group if outcome == EVERY else group.filter(outcome=outcome)
            if len(own):
                percentile = own["percentile"].to_numpy()
                mean, low, high = mean_interval(percentile)
                yield {
                    **dict(zip(keys, values, strict=True)),
                    "outcome": outcome,
                    "runs": len(own),
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "above": float((percentile > CHANCE).mean()),
                    "first": own["first"].mean(),
                    "p": signed_rank_p(percentile),
                }


def signed_rank_p(percentile: FloatArray) -> float | None:
    """Two-sided p of percentiles lying evenly around 0.5 (Wilcoxon 1945); None for fewer than 6 runs."""
    if len(percentile) < FEWEST:
        return None
    apart = percentile - CHANCE
    return float(scipy.stats.wilcoxon(apart).pvalue) if apart.any() else 1.0


def mean_interval(values: FloatArray) -> tuple[float, float, float]:
    """The mean of some values, and the ends of its percentile bootstrap interval at 95 %."""
    times = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    low, high = np.quantile(times @ values / len(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)
