"""What sentence scores are worth: against those of a dense pass, by category, and against counterfactual importance.

Each answer has a control beside it:

1. `compare_anchors`: rank correlation of two runs' scores, and the overlap of their receiver heads. Any heads look back
   at sentences in much the same way (early ones, long before), so the correlation stands beside that of the reference
   with random sets of its own heads, and the overlap beside the one of random heads.
2. `category_profile`: is a category scored above the others? p is from permutations of the categories.
3. `importance_correlation`: Spearman's ρ with the importance that resampling gave the sentences, p from permutations.

Scores depend on where a sentence lies, and so do categories and importance. So permutations move sentences only among
those nearby: of one of `stretches` parts of the text. `importance_correlation` also says the p of moving them freely.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import scipy

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.anchors import Anchors
from attngraph_analyses.permutation import check_permutations, false_discovery_rates

FEWEST = 5
"""Sentences without which a correlation isn't computed."""
TIE = 1e-9
"""Statistics that differ by less count as equal."""


@dataclass(frozen=True, kw_only=True)
class AnchorAgreement:
    """How the sentence scores of one run agree with those of a reference.

    Parameters
    ----------
    spearman
        Rank correlation of the scores, each by its own receiver heads.
    spearman_same_heads
        The same with the reference's receiver heads in both.
    spearman_random_heads
        Control: mean rank correlation of the reference's scores with those of as many random heads of its own.
    overlap
        Share of the reference's receiver heads that are receiver heads of the run.
    overlap_chance
        What random heads would share.
    kurtosis_spearman
        Rank correlation of the kurtosis over all heads that have one in both; None where fewer than 5 have.
    within
        Share of the reference's scores, by the run's heads, that lie between the run's `lower` and `upper`; None where
        the run doesn't know what it dropped.
    sentences
        How many were scored.
    """

    spearman: float
    spearman_same_heads: float
    spearman_random_heads: float
    overlap: float
    overlap_chance: float
    kurtosis_spearman: float | None
    within: float | None
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ImportanceCorrelation:
    """Spearman's ρ between scores and importance; p two-sided, moving sentences freely and within stretches."""

    spearman: float
    p: float
    p_within_stretches: float
    sentences: int
    permutations: int
    stretches: int


def compare_anchors(found: Anchors, reference: Anchors, *, draws: int = 100, seed: int = 0) -> AnchorAgreement:
    """How far a run's anchors are those of another run of the same prompt and model, such as a dense one.

    Parameters
    ----------
    found, reference
        Scored with the same settings but for `normalise`.
    draws, seed
        Random sets of heads of the control, at least 1.

    Raises
    ------
    ConfigError
        If prompts, models' heads or settings differ.
    GraphError
        If fewer than 5 sentences are scored.
    """
    _check_comparable(found, reference)
    if draws < 1:
        raise ConfigError(f"draws={draws!r} sets of random heads were asked for; give at least 1.")
    heads, count = reference.receiver_heads, len(reference.receiver_heads)
    shape = reference.kurtosis.shape
    random = np.random.default_rng(seed)
    others = [np.divmod(random.choice(reference.kurtosis.size, count, replace=False), shape[1]) for _ in range(draws)]
    control = [spearman(reference.score, reference.score_of(zip(*drawn, strict=True))) for drawn in others]
    both = np.isfinite(found.kurtosis) & np.isfinite(reference.kurtosis)
    target = reference.score_of(found.receiver_heads)
    known = np.isfinite(found.lower) & np.isfinite(found.upper) & np.isfinite(target)
    inside = (found.lower[known] <= target[known] + TIE) & (target[known] <= found.upper[known] + TIE)
    return AnchorAgreement(
        spearman=spearman(found.score, reference.score),
        spearman_same_heads=spearman(found.score_of(heads), reference.score),
        spearman_random_heads=float(np.mean(control)),
        overlap=len(set(heads) & set(found.receiver_heads)) / count,
        overlap_chance=len(found.receiver_heads) / reference.kurtosis.size,
        kurtosis_spearman=spearman(found.kurtosis[both], reference.kurtosis[both]) if both.sum() >= FEWEST else None,
        within=float(inside.mean()) if known.any() else None,
        sentences=int(np.isfinite(reference.score).sum()),
    )


def category_profile(found: Anchors, *, stretches: int = 5, permutations: int = 9_999, seed: int = 0) -> pl.DataFrame:
    """How the scores of each category of sentences compare with the others'.

    Parameters
    ----------
    found
        With categories.
    stretches
        Parts of the text, of equal numbers of sentences, within which categories are permuted; 1 for freely.
    permutations, seed
        At least 19, and the seed.

    Returns
    -------
    polars.DataFrame
        category, sentences, score (mean), percentile (mean rank, from 0 to 1), excess (mean rank above that of the
        stretches that the sentences lie in), p (two-sided), q (Benjamini & Hochberg 1995, over the categories);
        greatest excess first. p and q are null where nothing can be permuted.

    Raises
    ------
    ConfigError
        If a number is out of range.
    GraphError
        If no scored sentence has a category.
    """
    known = np.isfinite(found.score) & np.array([name is not None for name in found.sentences.categories])
    if not known.any():
        raise GraphError(
            "No scored sentence has a category; give the prompt metadata['categories'], one name or null per sentence."
        )
    names = np.array(found.sentences.categories, dtype=object)[known].astype(str)
    percentile = _percentiles(found.score[known])
    stretch = _stretches(known, stretches)
    expected = np.array([percentile[stretch == own].mean() for own in stretch])
    orders = _orders(stretch, permutations, seed)
    rows = []
    for name in np.unique(names):
        own = names == name
        excess = float((percentile - expected)[own].mean())
        drawn = (percentile - expected)[orders][:, own].mean(1)
        p = _p_value(excess, drawn) if np.ptp(drawn) > TIE else None
        score, share = float(found.score[known][own].mean()), float(percentile[own].mean())
        rows.append((name, int(own.sum()), score, share, excess, p))
    table = pl.DataFrame(
        rows, schema=["category", "sentences", "score", "percentile", "excess", "p"], orient="row"
    ).cast({"p": pl.Float64})
    q = false_discovery_rates(table["p"].fill_null(np.nan).to_numpy())
    return table.with_columns(pl.Series("q", q).fill_nan(None)).sort("excess", descending=True, maintain_order=True)


def importance_correlation(
    found: Anchors, *, stretches: int = 5, permutations: int = 9_999, seed: int = 0
) -> ImportanceCorrelation:
    """Do sentences that draw attention matter to the outcome? Spearman's ρ with their counterfactual importance.

    Parameters
    ----------
    found
        With importance.
    stretches, permutations, seed
        As for `category_profile`.

    Raises
    ------
    ConfigError
        If a number is out of range.
    GraphError
        If fewer than 5 scored sentences have an importance.
    """
    known = np.isfinite(found.score) & np.isfinite(found.sentences.importance)
    if known.sum() < FEWEST:
        raise GraphError(
            f"{int(known.sum())} scored sentences have an importance, a correlation needs {FEWEST}; give the prompt "
            f"metadata['importance'], one number or null per sentence."
        )
    score, importance = found.score[known], found.sentences.importance[known]
    one, other = _standard(score), _standard(importance)
    rho = float(one @ other)
    free, near = (
        _p_value(rho, one[_orders(_stretches(known, parts), permutations, seed)] @ other) for parts in (1, stretches)
    )
    return ImportanceCorrelation(
        spearman=rho,
        p=free,
        p_within_stretches=near,
        sentences=int(known.sum()),
        permutations=permutations,
        stretches=stretches,
    )


def spearman(one: FloatArray, other: FloatArray) -> float:
    """Spearman's ρ over the entries that are finite in both; NaN where one of them is constant.

    Raises
    ------
    GraphError
        If fewer than 5 are.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < FEWEST:
        raise GraphError(f"{int(both.sum())} values to correlate; at least {FEWEST} are needed.")
    return float(_standard(one[both]) @ _standard(other[both]))


def _standard(values: FloatArray) -> FloatArray:
    """Ranks less their mean, of norm 1; NaN where all are equal."""
    ranks = scipy.stats.rankdata(values)
    ranks -= ranks.mean()
    norm = np.sqrt((ranks**2).sum())
    return np.asarray(ranks / norm if norm > 0 else np.full_like(ranks, np.nan))


def _percentiles(values: FloatArray) -> FloatArray:
    """Mid-ranks from 0 to 1."""
    return np.asarray((scipy.stats.rankdata(values) - 0.5) / len(values))


def _stretches(known: np.ndarray[Any, np.dtype[np.bool_]], parts: int) -> IntArray:
    """Which of `parts` parts of the text each known sentence lies in, parts of equal numbers of them."""
    if parts < 1:
        raise ConfigError(f"stretches={parts!r} must be at least 1.")
    count = int(known.sum())
    return np.asarray(np.arange(count) * parts // count, np.int64)


def _orders(stretch: IntArray, permutations: int, seed: int) -> IntArray:
    """Permutations of sentences within their stretches, ``[permutations, sentences]``."""
    check_permutations(permutations)
    keys = np.random.default_rng(seed).random((permutations, len(stretch))) + stretch
    return np.asarray(np.argsort(keys, axis=1), np.int64)


def _p_value(value: float, drawn: FloatArray) -> float:
    """Two-sided, the value counted among its permutations (Phipson & Smyth 2010)."""
    return float((np.sum(np.abs(drawn) >= abs(value) - TIE) + 1) / (len(drawn) + 1))


def _check_comparable(found: Anchors, reference: Anchors) -> None:
    if found.prompt != reference.prompt or len(found.sentences) != len(reference.sentences):
        raise ConfigError("The two runs are of different prompts or sentences; compare runs of the same prompt.")
    if found.kurtosis.shape != reference.kurtosis.shape:
        raise ConfigError(
            f"The two runs have {found.kurtosis.shape} and {reference.kurtosis.shape} layers and heads; compare runs "
            f"of the same model."
        )
    for name in ("proximity", "depth_control", "top"):
        one, other = getattr(found.settings, name), getattr(reference.settings, name)
        if one != other:
            raise ConfigError(f"{name} is {one!r} in one and {other!r} in the other; score both alike.")
