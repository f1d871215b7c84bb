"""Sentences of a run: which tokens they are, how much each reads of the others, and how much of that is missing.

Sentences are the spans ``sentence:N``. Masses come from sums over spans (`Run.span_edges`), never from masses of
blocks, with which sentences don't line up; only the dropped shares are known per block, and are carried over to
sentences here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from attngraph.errors import GraphError
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run

_NAME = re.compile(r"sentence:(\d+)")


@dataclass(frozen=True, eq=False, kw_only=True)
class Sentences:
    """The sentences of a prompt, in its order.

    Parameters
    ----------
    number
        ``[sentences]``: the N of ``sentence:N``.
    span
        ``[sentences]``: row numbers of the run's spans.
    start, end
        ``[sentences]``: token ranges, half open.
    categories
        What each sentence does, None where unknown.
    importance
        ``[sentences]``: counterfactual importance, NaN where unknown.
    """

    number: IntArray
    span: IntArray
    start: IntArray
    end: IntArray
    categories: tuple[str | None, ...]
    importance: FloatArray

    def __len__(self) -> int:
        return len(self.number)

    @property
    def length(self) -> IntArray:
        """Tokens of each sentence."""
        return self.end - self.start


class Dropped(NamedTuple):
    """Shares of the dense attention of sentences that their rows' dropped keys hold, ``[heads, sentences]``.

    `mean` takes every token of a block to drop what the block drops on average; `most` is the most that a sentence's
    tokens can have dropped of that. `audited` tells whether all of it is exact.
    """

    mean: FloatArray
    most: FloatArray
    audited: bool


def sentences_of(run: Run) -> Sentences:
    """The sentences of a run, with what its prompt's metadata say of each.

    These are lists with one entry per sentence, in the order of the prompt: ``categories`` and ``importance``
    (values or nulls), or ``sentences`` (objects with a ``category`` and an ``importance`` or ``counterfactual_kl``).

    Raises
    ------
    GraphError
        If there are no sentences, a number comes twice, or a list has another length.
    """
    found = []
    for index, span in enumerate(run.manifest.prompt.spans):
        named = _NAME.fullmatch(span.name)
        if named:
            found.append((span.start, span.end, int(named[1]), index))
    if not found:
        names = ", ".join(dict.fromkeys(span.name for span in run.manifest.prompt.spans)) or "none"
        raise GraphError(
            f"{run.path} has no spans sentence:N; its spans are: {names}. Capture a prompt whose sentences are spans "
            f"sentence:0, sentence:1, …"
        )
    start, end, number, span_rows = (np.array(column, np.int64) for column in zip(*sorted(found), strict=True))
    repeated = [str(one) for one, times in zip(*np.unique(number, return_counts=True), strict=True) if times > 1]
    if repeated:
        raise GraphError(f"{run.path} has several spans sentence:{repeated[0]}; give every sentence its own number.")
    metadata = run.manifest.prompt.metadata
    categories = _per_sentence(run, metadata, "categories", ("category",), len(number))
    importance = _per_sentence(run, metadata, "importance", ("importance", "counterfactual_kl"), len(number))
    return Sentences(
        number=number,
        span=span_rows,
        start=start,
        end=end,
        categories=tuple(None if name is None else str(name) for name in categories),
        importance=np.array([np.nan if value is None else float(value) for value in importance]),
    )


def _per_sentence(run: Run, metadata: dict[str, Any], key: str, fields: Sequence[str], count: int) -> Sequence[Any]:
    """The list `key` of the metadata, else the first of `fields` that each entry of its ``sentences`` has."""
    if key not in metadata and "sentences" in metadata:
        entries = _per_sentence(run, {"sentences": metadata["sentences"]}, "sentences", (), count)
        return [next((entry[name] for name in fields if name in entry), None) for entry in entries]
    values = metadata.get(key)
    if values is None:
        return [None] * count
    if not isinstance(values, list) or len(values) != count:
        size = len(values) if isinstance(values, list) else repr(values)
        raise GraphError(
            f"prompt.metadata[{key!r}] of {run.path} has {size} values for {count} sentences; give one (or null) each."
        )
    return values


def sentence_masses(run: Run, sentences: Sentences) -> Iterator[FloatArray]:
    """Mass on sentence t, mean over the tokens of sentence s, as recorded: ``[heads, s, t]`` of each layer."""
    position = np.full(len(run.manifest.prompt.spans), -1)
    position[sentences.span] = np.arange(len(sentences))
    shape = run.manifest.model.heads, len(sentences), len(sentences)
    columns = ("head", "query_span", "key_span", "mass")
    for layer in range(run.manifest.model.layers):
        table = run.span_edges().filter(pl.col("layer") == layer).select(columns).collect()
        head, query, key, mass = (table[name].to_numpy() for name in columns)
        query, key = position[query], position[key]
        both = (query >= 0) & (key >= 0)
        masses = np.zeros(shape)
        masses[head[both], query[both], key[both]] = mass[both]
        yield masses


def dropped_shares(run: Run, sentences: Sentences) -> Iterator[Dropped]:
    """What each sentence's rows drop, layer by layer; NaN where neither audited nor estimated."""
    size, blocks = run.manifest.config.block_size, run.manifest.prompt.blocks
    first = np.arange(blocks) * size
    last = np.minimum(first + size, run.manifest.prompt.tokens)
    covered = np.minimum(sentences.end[:, None], last) - np.maximum(sentences.start[:, None], first)
    covered = np.maximum(covered, 0).astype(np.float64)
    met = covered.any(0)
    for layer in range(run.manifest.model.layers):
        rows = run.rows().filter(pl.col("layer") == layer).sort("head", "query_block").collect()
        exact, estimate = (
            rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy().reshape(-1, blocks)
            for name in ("kept_mass", "kept_mass_estimate")
        )
        dropped = np.clip(1.0 - np.where(np.isnan(exact), estimate, exact), 0.0, 1.0)[:, met]
        tokens, rows_of = covered[:, met], (last - first)[met]
        most = np.minimum((rows_of * dropped)[:, None], tokens).sum(-1)
        yield Dropped(
            mean=dropped @ tokens.T / sentences.length,
            most=most / sentences.length,
            audited=not np.isnan(exact[:, met]).any(),
        )
