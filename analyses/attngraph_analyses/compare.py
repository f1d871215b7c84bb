"""Models side by side: how far apart are the heads of two groups of runs, and how far apart are runs of one group?

1. Every run becomes a summary that knows no head by its number (`summaries.py`): quantile functions of head scores by
   relative depth. Scores that some run doesn't have are left out, and named.
2. The distance of two runs is the mean over scores and bins of depth of the Wasserstein distance between their heads'
   values (mean absolute difference of the quantile functions), in units of the score's standard deviation over all
   heads of all runs.
3. Only runs of one *stratum* are compared: same task, and lengths nearest the same power of two (where groups are
   tasks, same model). *between*: mean distance of a run of one group from one of the other; *within*: of two runs of
   one group.
4. *energy* is 2 · between − within of the one − within of the other (Székely & Rizzo 2013, unbiased form): 0 on average
   where the groups are alike. Its p is that of labels permuted within strata (`permutation.py`), one-sided; over
   several pairs of groups q is Benjamini & Hochberg's.
5. Where they differ: for every score and bin the difference of means, with p, family-wise p (max-T) and q.

What this compares are runs under the same settings on alike prompts: another task may order models otherwise. Different
tokenizers cut the same text into different tokens, so that models differ by that too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log2
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import polars as pl
import scipy

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run
from attngraph_analyses.distances import TIE, Pair, compared_pair
from attngraph_analyses.permutation import check_permutations, false_discovery_rates
from attngraph_analyses.summaries import LEVELS, HeadSummary, head_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

By = Literal["model", "fingerprint", "task"]
ALIKE = ("block_size", "budget", "selector", "forward", "allocation")
"""Settings that must be the same in all runs: what heads keep depends on them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison(ArrowTable):
    """What `compare` found.

    Parameters
    ----------
    by
        What runs were grouped by.
    groups
        Number of runs of each group.
    scores
        What heads were compared by.
    left_out
        Scores that some run doesn't have.
    bins, permutations
        What was asked.
    strata
        How many strata hold runs of several groups.
    distances
        One row per pair of groups: one, other, runs_one, runs_other, between, within_one, within_other, ratio (between
        over the mean of both withins), energy, p, q; null where fewer than two runs of a group share a stratum.
    differences
        One row per pair of groups, score and bin: one, other, score, depth_start, depth_end, mean_one, mean_other, t
        (with stratum means removed; positive where the one has more), p, p_family, q. Smallest p first.
    profiles
        One row per group, score and bin: group, score, depth (middle), mean, low, high (quantiles .1 and .9 over
        heads), means over the group's runs.
    """

    by: By
    groups: dict[str, int]
    scores: tuple[str, ...]
    left_out: tuple[str, ...]
    bins: int
    permutations: int
    strata: int
    distances: pl.DataFrame
    differences: pl.DataFrame
    profiles: pl.DataFrame

    def to_polars(self) -> pl.DataFrame:
        """The table of distances."""
        return self.distances

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "by": self.by,
            "groups": self.groups,
            "scores": list(self.scores),
            "left_out": list(self.left_out),
            "bins": self.bins,
            "permutations": self.permutations,
            "strata": self.strata,
            "distances": self.distances.to_dicts(),
            "differences": self.differences.to_dicts(),
            "profiles": self.profiles.to_dicts(),
        }

    def figure(self) -> Figure:
        """Every score over relative depth by group, and the distances between and within groups.

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        """
        from attngraph_analyses.compare_figure import draw

        return draw(self)


def compare(
    runs: Iterable[Run],
    by: By = "model",
    *,
    source: str | None = "needle",
    target: str = "output",
    bins: int = 5,
    permutations: int = 9_999,
    seed: int = 0,
) -> Comparison:
    """Compare the heads of groups of runs, such as those of different models, by what they attend to.

    Parameters
    ----------
    runs
        A store, or any runs; of every group at least two that share a stratum (other seeds or prompts of one task).
    by
        ``"model"`` (id), ``"fingerprint"`` (weights) or ``"task"``.
    source, target
        The two ends of retrieval; None for prompts without a source.
    bins
        Bins of relative depth, from 1 to the fewest layers of a model.
    permutations, seed
        Of the labels; at least 19.

    Raises
    ------
    ConfigError
        If a setting is out of range, or the runs were captured with different settings.
    GraphError
        If there are fewer than two groups, or no two of them have two runs each in common strata.
    UnknownNodeError
        If a run lacks the source or the target.
    """
    if by not in get_args(By):
        raise ConfigError(f"by={by!r} is not one of {', '.join(get_args(By))}.")
    check_permutations(permutations)
    every = list(runs)
    _check_alike(every)
    group = [_group(run, by) for run in every]
    names = sorted(set(group))
    if len(names) < 2:
        raise GraphError(
            f"All {len(every)} runs are of one {by} ({', '.join(names) or 'none'}); a comparison needs two or more."
        )
    summaries = [head_summary(run, bins=bins, source=source, target=target) for run in every]
    scores, left_out = _in_common(summaries)
    cloud = _cloud(summaries, scores)
    between = scipy.spatial.distance.pdist(cloud.quantiles.reshape(len(every), -1), "cityblock")
    distance = scipy.spatial.distance.squareform(between / cloud.quantiles[0].size)
    stratum = _strata(every, by)
    pairs = [
        compared_pair(names, pair, np.array(group), stratum, distance, cloud.mean, permutations, seed)
        for pair in combinations(range(len(names)), 2)
    ]
    p = np.array([pair.distances["p"] for pair in pairs], np.float64)
    if np.isnan(p).all():
        raise GraphError(
            f"No two groups have two runs each in a common stratum (same {'model' if by == 'task' else 'task'}, like "
            f"length); runs: {', '.join(f'{name} {group.count(name)}' for name in names)}. Capture more seeds."
        )
    q = pl.Series("q", false_discovery_rates(p)).fill_nan(None)
    return Comparison(
        by=by,
        groups={name: group.count(name) for name in names},
        scores=scores,
        left_out=left_out,
        bins=bins,
        permutations=permutations,
        strata=_shared_strata(group, stratum),
        distances=pl.DataFrame([pair.distances for pair in pairs], infer_schema_length=None).with_columns(q),
        differences=_differences([pair for pair in pairs if pair.differences is not None], scores, bins),
        profiles=_profiles(summaries, scores, np.array(group), bins),
    )


class _Cloud(NamedTuple):
    """Of all runs: quantile functions in units of a score's deviation ``[runs, scores, bins, levels]``, and means."""

    quantiles: FloatArray
    mean: FloatArray


def _check_alike(runs: Sequence[Run]) -> None:
    for name in ALIKE:
        values = sorted({str(getattr(run.manifest.config, name)) for run in runs})
        if len(values) > 1:
            raise ConfigError(
                f"The runs were captured with different settings: {name} is {', '.join(values)}. Give runs of one "
                f"setting, such as [run for run in store if run.manifest.config.{name} == …]."
            )


def _group(run: Run, by: By) -> str:
    model = run.manifest.model
    return {"model": model.id, "fingerprint": model.fingerprint, "task": run.manifest.prompt.task or "none"}[by]


def _strata(runs: Sequence[Run], by: By) -> IntArray:
    """The stratum of each run, a number: task and length, or model and length where groups are tasks."""
    keys = [(_group(run, "model" if by == "task" else "task"), round(log2(run.manifest.prompt.tokens))) for run in runs]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], np.int64)


def _shared_strata(group: Sequence[str], stratum: IntArray) -> int:
    groups = np.array(group)
    return sum(len(set(groups[stratum == number])) > 1 for number in np.unique(stratum))


def _in_common(summaries: Sequence[HeadSummary]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Scores that every run has, and those that only some have, in order."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.names))

    def known(summary: HeadSummary, name: str) -> bool:
        return name in summary.names and bool(np.isfinite(summary.quantiles[summary.names.index(name)]).all())

    common = tuple(name for name in names if all(known(summary, name) for summary in summaries))
    return common, tuple(name for name in names if name not in common)


def _cloud(summaries: Sequence[HeadSummary], scores: Sequence[str]) -> _Cloud:
    """All summaries side by side; a score that never varies has no distances."""
    index = [[summary.names.index(name) for name in scores] for summary in summaries]
    quantiles = np.stack([summary.quantiles[own] for summary, own in zip(summaries, index, strict=True)])
    mean = np.stack([summary.mean[own] for summary, own in zip(summaries, index, strict=True)])
    scale = np.sqrt(((quantiles - quantiles.mean((0, 2, 3), keepdims=True)) ** 2).mean((0, 2, 3)))
    scale = np.where(scale > TIE, scale, 1.0)
    return _Cloud(quantiles / scale[:, None, None], mean)


def _differences(pairs: Iterable[Pair], scores: Sequence[str], bins: int) -> pl.DataFrame:
    cells = [(score, number / bins, (number + 1) / bins) for score in scores for number in range(bins)]
    where = pl.DataFrame(cells, schema=["score", "depth_start", "depth_end"], orient="row")
    tables = []
    for pair in pairs:
        assert pair.differences is not None, "a pair with distances has differences"
        columns = {name: value for name, value in pair.differences.items() if name not in ("one", "other")}
        values = pl.DataFrame({name: pl.Series(value).fill_nan(None) for name, value in columns.items()})
        names = [pl.lit(pair.differences[name]).alias(name) for name in ("one", "other")]
        tables.append(pl.concat([where.select(*names, pl.all()), values], how="horizontal"))
    return pl.concat(tables).sort("p", nulls_last=True, maintain_order=True)


def _profiles(
    summaries: Sequence[HeadSummary],
    scores: Sequence[str],
    group: np.ndarray[Any, np.dtype[np.str_]],
    bins: int,
) -> pl.DataFrame:
    low, high = (int(np.abs(LEVELS - level).argmin()) for level in (0.1, 0.9))

    def rows() -> Iterator[tuple[Any, ...]]:
        for name in np.unique(group):
            own = [summaries[run] for run in np.flatnonzero(group == name).tolist()]
            for score in scores:
                quantiles = np.mean([each.quantiles[each.names.index(score)] for each in own], axis=0)
                mean = np.mean([each.mean[each.names.index(score)] for each in own], axis=0)
                for number in range(bins):
                    ends = (float(quantiles[number, low]), float(quantiles[number, high]))
                    yield (str(name), score, (number + 0.5) / bins, float(mean[number]), *ends)

    return pl.DataFrame(list(rows()), schema=["group", "score", "depth", "mean", "low", "high"], orient="row")
