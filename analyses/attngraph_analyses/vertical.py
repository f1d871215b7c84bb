"""Vertical scores of sentences, the kurtosis of heads, and what dropped mass makes of them; see `anchors.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import scipy

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import FloatArray
from attngraph.store import Run
from attngraph_analyses.sentences import Dropped, Sentences

Normalise = Literal["recorded", "dense", "spread"]
Head = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """How sentences are scored; see `anchors.py`.

    Parameters
    ----------
    proximity
        Sentences at least this many further on count, at least 1.
    depth_control
        Whether rows are replaced by ranks.
    top
        Receiver heads, at least 1; fewer where the model has fewer.
    normalise
        What becomes of dropped mass.

    Raises
    ------
    ConfigError
        Naming the setting that is out of range.
    """

    proximity: int = 4
    depth_control: bool = False
    top: int = 20
    normalise: Normalise = "recorded"

    def __post_init__(self) -> None:
        for name in ("proximity", "top"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be at least 1.")
        if self.normalise not in get_args(Normalise):
            raise ConfigError(f"normalise={self.normalise!r} is not one of {', '.join(get_args(Normalise))}.")


def vertical_scores(attention: FloatArray, proximity: int, *, depth_control: bool = False) -> FloatArray:
    """v of every head, ``[heads, sentences]``, from mean attention A ``[heads, s, t]``; NaN for the last sentences."""
    count = attention.shape[-1]
    counts = _far(count, proximity)
    if depth_control:
        attention = attention.copy()
        for s in range(proximity, count):
            seen = s - proximity + 1
            attention[:, s, :seen] = scipy.stats.rankdata(attention[:, s, :seen], axis=-1) / seen
    rows = counts.sum(0)
    total = np.where(counts, attention, 0.0).sum(-2)
    return np.asarray(np.divide(total, rows, out=np.full_like(total, np.nan), where=rows > 0))


def kurtosis_of(vertical: FloatArray) -> FloatArray:
    """Excess kurtosis m₄/m₂² − 3 over the last axis, biased moments, NaN left out; NaN where all values are equal."""
    values = vertical[..., np.isfinite(vertical).reshape(-1, vertical.shape[-1]).all(0)]
    varies = np.ptp(values, axis=-1) > 1e-12 * np.abs(values).max(-1)
    peaked = np.full(varies.shape, np.nan)
    peaked[varies] = scipy.stats.kurtosis(values[varies], axis=-1)
    return peaked


def greatest(peaked: FloatArray, top: int) -> list[Head]:
    """The `top` heads of greatest kurtosis ``[layers, heads]``, the lower layer and head on ties; without a NaN."""
    flat = peaked.ravel()
    order = np.argsort(-flat, kind="stable")
    return [divmod(int(index), peaked.shape[1]) for index in order[: min(top, int(np.isfinite(flat).sum()))]]


class LayerScores(NamedTuple):
    """v, its ends ``[heads, sentences]``, the mean dropped share ``[heads]``, and whether that is exact."""

    vertical: FloatArray
    low: FloatArray
    high: FloatArray
    dropped: FloatArray
    audited: bool


def layer_scores(
    run: Run,
    masses: FloatArray,
    dropped: Dropped,
    sentences: Sentences,
    settings: AnchorSettings,
    window: int | None,
) -> LayerScores:
    """Score a layer.

    Parameters
    ----------
    run
        Tells whether masses were recorded beside a dense pass.
    masses, dropped
        Of this layer, ``[heads, s, t]`` and ``[heads, s]``.
    sentences, settings
        What is scored, and how.
    window
        Tokens that a query of the layer sees at most.

    Raises
    ------
    GraphError
        If `normalise` needs kept masses that the run doesn't have.
    """
    length, p = sentences.length, settings.proximity
    beside_dense = run.manifest.config.forward == "dense"
    scored = _normalised(run, masses, dropped, sentences, settings.normalise, window)
    most = dropped.most[:, :, None]
    if settings.depth_control:
        most = np.full_like(most, np.nan)  # ranks of worst cases are no worst cases of ranks
    least = np.where(np.isnan(most), np.nan, 0.0) if beside_dense else most
    low, high = masses - least, masses + most
    return LayerScores(
        vertical=vertical_scores(scored / length, p, depth_control=settings.depth_control),
        low=vertical_scores(low.clip(0, 1) / length, p),
        high=vertical_scores(high.clip(0, 1) / length, p),
        dropped=dropped.mean.mean(-1),
        audited=dropped.audited,
    )


def _normalised(
    run: Run, masses: FloatArray, dropped: Dropped, sentences: Sentences, normalise: Normalise, window: int | None
) -> FloatArray:
    """Masses ``[heads, s, t]`` with what `normalise` makes of the dropped ones."""
    if normalise == "recorded":
        return masses
    if not np.isfinite(dropped.mean).all():
        raise GraphError(
            f"normalise={normalise!r} needs the kept mass of every row, but in {run.path} some are neither audited nor "
            f"estimated; capture with audit='full' or forward='dense'."
        )
    beside_dense = run.manifest.config.forward == "dense"
    dense = masses if beside_dense else masses * (1.0 - dropped.mean)[:, :, None]
    if normalise == "dense":
        return dense
    middle = ((sentences.start + sentences.end) // 2)[:, None]
    first = 0 if window is None else np.maximum(middle + 1 - window, 0)
    seen = np.minimum(sentences.end, middle + 1) - np.maximum(sentences.start, first)
    return np.asarray(dense + dropped.mean[:, :, None] * np.maximum(seen, 0) / (middle + 1 - first))


def _far(count: int, proximity: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which pairs (s, t) count: t at least `proximity` sentences before s."""
    return np.asarray(np.arange(count)[:, None] - np.arange(count) >= proximity)
