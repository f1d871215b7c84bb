"""Thought anchors: sentences of a chain of thought that later sentences keep coming back to (Bogdan et al. 2025).

For every head, with s and t sentences and p the `proximity` (arXiv 2506.19143, its white-box part):

1. A[s, t] is the mean attention of a token of s to a token of t: the mass on the span t, divided by t's tokens. A pair
   of sentences between which nothing was kept has 0.
2. Only sentences p or more further on count: A[s, t] with t ≤ s − p. With `depth_control` each row s is replaced by
   the ranks of its entries divided by their number, so that rows weigh the same however many sentences they see.
3. The vertical score v[t] is the mean of A[s, t] over those s; undefined for the last p sentences.
4. A head's kurtosis is that of v over t (m₄/m₂² − 3): high where few sentences draw most. The `top` heads of greatest
   kurtosis are the *receiver heads*, and a sentence's score is the mean of v over them.

The published code has two sets of defaults, `PUBLISHED`; those of this module are its receiver heads'.

**What dropped mass could change.** The rows of sentence s drop the share δ_s of their dense attention, over the same
hidden states. Nobody knows on which keys it lay, so the dense mass of t lies between m − δ_s and m + δ_s, with m as
recorded (beside a dense pass between m and m + δ_s), and within 0 and 1. `lower` and `upper` are the scores with every
row at that end: each sentence's own worst case, of the same heads. `normalise` says what becomes of δ in the score:
nothing (``"recorded"``), kept masses as shares of the dense softmax, m·(1 − δ_s) (``"dense"``), or with δ_s spread
evenly over all tokens that s sees on top of it (``"spread"``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import scipy

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.source import FloatArray
from attngraph.store import Run
from attngraph_analyses.sentences import Sentences, dropped_shares, sentence_masses, sentences_of
from attngraph_analyses.vertical import (
    AnchorSettings,
    Head,
    Normalise,
    greatest,
    kurtosis_of,
    layer_scores,
)

PUBLISHED: dict[str, dict[str, Any]] = {
    "receiver heads": {"proximity": 4, "depth_control": False, "top": 20},
    "vertical scores": {"proximity": 20, "depth_control": True, "top": 20},
}
"""Defaults of the published code: where it looks for receiver heads, and where it computes vertical scores alone."""
FEWEST = 3
"""Scored sentences without which a kurtosis says nothing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Anchors(ArrowTable):
    """What `anchors` found.

    Parameters
    ----------
    run, prompt
        The run's id, and the hash of its token ids.
    settings
        How sentences were scored.
    sentences
        Their tokens, categories and importance.
    vertical
        ``[layers, heads, sentences]``: v, per token of t, from 0 to 1 (with `depth_control` of ranks); NaN for the last
        `proximity` sentences.
    kurtosis
        ``[layers, heads]``; NaN for a head whose v is the same everywhere.
    receiver_heads
        (layer, head), greatest kurtosis first.
    score
        ``[sentences]``: mean of v over the receiver heads.
    lower, upper
        ``[sentences]``: what dropped mass could make of the score; NaN where not known, and with `depth_control`.
    dropped
        ``[layers, heads]``: mean share of the dense attention that the sentences' rows drop; NaN where not known.
    dropped_source
        Whether all of that is audited, or some only estimated; None where it isn't known.
    block_size
        Tokens per block.
    """

    run: str
    prompt: str
    settings: AnchorSettings
    sentences: Sentences
    vertical: FloatArray
    kurtosis: FloatArray
    receiver_heads: tuple[Head, ...]
    score: FloatArray
    lower: FloatArray
    upper: FloatArray
    dropped: FloatArray
    dropped_source: CompletenessSource | None
    block_size: int

    @property
    def all_heads(self) -> FloatArray:
        """Mean of v over all heads, ``[sentences]``: what a score has that no choice of heads makes."""
        return np.asarray(self.vertical.mean((0, 1)))

    def score_of(self, heads: Iterable[Head]) -> FloatArray:
        """Mean of v over other heads, ``[sentences]``."""
        layers, chosen = np.array(list(heads), np.int64).reshape(-1, 2).T
        return np.asarray(self.vertical[layers, chosen].mean(0))

    def to_polars(self) -> pl.DataFrame:
        """One row per sentence, in order.

        sentence, token_start, token_end, category, importance, score, lower, upper, all_heads, rank (0 is the
        greatest score); what isn't defined is null.
        """
        sentences = self.sentences
        known = np.isfinite(self.score)
        rank = np.full(len(sentences), -1)
        rank[known] = scipy.stats.rankdata(-self.score[known], "ordinal") - 1
        columns = {
            "importance": sentences.importance,
            "score": self.score,
            "lower": self.lower,
            "upper": self.upper,
            "all_heads": self.all_heads,
        }
        return pl.DataFrame(
            {
                "sentence": sentences.number,
                "token_start": sentences.start,
                "token_end": sentences.end,
                "category": pl.Series(sentences.categories, dtype=pl.String),
                **{name: pl.Series(values).fill_nan(None) for name, values in columns.items()},
                "rank": pl.Series([None if place < 0 else int(place) for place in rank], dtype=pl.Int64),
            }
        )

    def heads(self) -> pl.DataFrame:
        """One row per head, greatest kurtosis first: layer, head, kurtosis, receiver, dropped."""
        layers, heads = self.kurtosis.shape
        layer, head = np.divmod(np.arange(layers * heads), heads)
        chosen = set(self.receiver_heads)
        return pl.DataFrame(
            {
                "layer": layer,
                "head": head,
                "kurtosis": pl.Series(self.kurtosis.ravel()).fill_nan(None),
                "receiver": [each in chosen for each in zip(layer.tolist(), head.tolist(), strict=True)],
                "dropped": pl.Series(self.dropped.ravel()).fill_nan(None),
            }
        ).sort("kurtosis", descending=True, nulls_last=True, maintain_order=True)


def anchors(
    run: Run,
    *,
    proximity: int = 4,
    depth_control: bool = False,
    top: int = 20,
    normalise: Normalise = "recorded",
    heads: Sequence[Head] | None = None,
) -> Anchors:
    """Score every sentence of a run by the attention that receiver heads pay to it from afar.

    Parameters
    ----------
    run
        Of a prompt with spans ``sentence:N``; categories and importance are read from its metadata.
    proximity, depth_control, top, normalise
        As in `AnchorSettings`; the defaults are the published ones for receiver heads (`PUBLISHED`).
    heads
        Receiver heads found elsewhere (`receiver_heads`), in the place of the run's own.

    Raises
    ------
    ConfigError
        If a setting is out of range, or a head isn't one of the model's.
    GraphError
        If the run has no or too few sentences, no head tells them apart, or `normalise` needs kept masses that it
        doesn't have.

    References
    ----------
    Bogdan et al. 2025, Thought Anchors, arXiv 2506.19143.
    """
    settings = AnchorSettings(proximity=proximity, depth_control=depth_control, top=top, normalise=normalise)
    sentences = sentences_of(run)
    if len(sentences) < proximity + FEWEST:
        raise GraphError(
            f"{run.path} has {len(sentences)} sentences, of which {max(len(sentences) - proximity, 0)} are followed by "
            f"others at proximity={proximity}; a kurtosis needs {FEWEST}. Take a longer text or a smaller proximity."
        )
    layers = [
        layer_scores(run, masses, dropped, sentences, settings, window)
        for masses, dropped, window in zip(
            sentence_masses(run, sentences), dropped_shares(run, sentences), run.manifest.model.windows, strict=True
        )
    ]
    vertical, low, high, missing = (
        np.stack([getattr(layer, name) for layer in layers]) for name in ("vertical", "low", "high", "dropped")
    )
    peaked = kurtosis_of(vertical)
    chosen = _checked(heads, run) if heads is not None else greatest(peaked, top)
    if not chosen:
        raise GraphError(
            f"No head of {run.path} attends to sentences {proximity} or more back differently from one to another, so "
            f"there are no receiver heads. Take a smaller proximity."
        )
    index = tuple(np.array(chosen).T)
    known = not np.isnan(missing).any()
    audited = all(layer.audited for layer in layers)
    return Anchors(
        run=run.id,
        prompt=run.manifest.prompt.sha256,
        settings=settings,
        sentences=sentences,
        vertical=vertical,
        kurtosis=peaked,
        receiver_heads=tuple(chosen),
        score=vertical[index].mean(0),
        lower=low[index].mean(0),
        upper=high[index].mean(0),
        dropped=missing,
        dropped_source=("audited" if audited else "estimated") if known else None,
        block_size=run.manifest.config.block_size,
    )


def receiver_heads(found: Iterable[Anchors], top: int = 20) -> list[Head]:
    """The heads of greatest mean kurtosis over several runs of one model, at most `top`.

    This is what the published code calls receiver heads; those of a single run are far less stable.

    Raises
    ------
    ConfigError
        Without runs, or if they have different numbers of heads.
    """
    every = [each.kurtosis for each in found]
    if len({each.shape for each in every}) != 1:
        raise ConfigError(
            f"Receiver heads are those of one model; got {len(every)} runs with {len({each.shape for each in every})} "
            f"different numbers of heads."
        )
    return greatest(np.mean(every, axis=0), top)


def _checked(heads: Sequence[Head], run: Run) -> list[Head]:
    model = run.manifest.model
    for layer, head in heads:
        if not (0 <= layer < model.layers and 0 <= head < model.heads):
            raise ConfigError(f"heads: ({layer}, {head}) is not one of {model.layers} layers × {model.heads} heads.")
    return [(int(layer), int(head)) for layer, head in heads]
