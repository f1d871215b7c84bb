"""What the heads of a run are like, without saying which head is which: summaries that models can be compared by.

1. Every head gets scores: the shares of its mass on the zones sink, own, previous, near and far, the excess of
   retrieval and induction over their nulls (`head_roles`), its *width* (effective number of key blocks per row,
   1 / Σ m², over the number kept), and the mean mass between roles of spans (``question→needle``; names that differ by
   a number only share a role).
2. Layers are put into bins of relative depth, layer / layers: a third of the way up is the same place in any model.
3. Within a bin the heads of a score become its quantile function at `LEVELS`: sorted values, for any number of heads.
   Heads may be permuted within a bin without any change, and no head is ever set against one of another model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run
from attngraph_analyses.heads import ZONES, head_roles

LEVELS = (np.arange(16) + 0.5) / 16
"""Where quantile functions are taken; the mean absolute difference of two is about their Wasserstein distance."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadSummary:
    """Scores of a run's heads by relative depth.

    Parameters
    ----------
    names
        Of the scores.
    quantiles
        ``[scores, bins, levels]``; NaN where a score isn't defined.
    mean
        ``[scores, bins]``: mean over the heads of a bin.
    """

    names: tuple[str, ...]
    quantiles: FloatArray
    mean: FloatArray


def head_summary(run: Run, *, bins: int = 5, source: str | None = "needle", target: str = "output") -> HeadSummary:
    """Summarise the heads of a run, whatever their order.

    Parameters
    ----------
    run
        Of any model.
    bins
        Bins of relative depth, from 1 to the number of layers.
    source, target
        The two ends of retrieval, as for `head_roles`; without a source retrieval is left out.

    Raises
    ------
    ConfigError
        If there are more bins than layers, or none.
    UnknownNodeError
        If the run lacks the source or the target.
    """
    layers = run.manifest.model.layers
    if not 1 <= bins <= layers:
        raise ConfigError(f"bins={bins!r} of depth for {layers} layers ({run.manifest.model.id}); give 1 to {layers}.")
    scores = head_scores(run, source=source, target=target)
    return summarised(scores, bins)


def summarised(scores: dict[str, FloatArray], bins: int) -> HeadSummary:
    """Scores ``[layers, heads]`` by name, their layers in bins of relative depth, their heads without order."""
    values = np.stack(list(scores.values()))
    bin_of = depth_bins(values.shape[1], bins)
    parts = [values[:, bin_of == number].reshape(len(values), -1) for number in range(bins)]
    return HeadSummary(
        names=tuple(scores),
        quantiles=np.stack([np.quantile(part, LEVELS, axis=1).T for part in parts], axis=1),
        mean=np.stack([part.mean(1) for part in parts], axis=1),
    )


def depth_bins(layers: int, bins: int) -> IntArray:
    """The bin of every layer; no bin is empty while there are at most as many as layers."""
    return np.asarray(np.arange(layers) * bins // layers, np.int64)


def head_scores(run: Run, *, source: str | None = "needle", target: str = "output") -> dict[str, FloatArray]:
    """Every score of every head, ``[layers, heads]`` by name; NaN where a score isn't defined for the run."""
    if source is None:
        roles = head_roles(run, "block:0", target, null="uniform")
    else:
        roles = head_roles(run, source, target)
    scores = {zone: getattr(roles, zone) for zone in ZONES}
    if source is not None:
        scores["retrieval"] = roles.retrieval_excess
    scores["induction"] = roles.induction - roles.induction_null
    scores["width"] = _width(run)
    return scores | _between_roles(run)


def _width(run: Run) -> FloatArray:
    """Mean over the rows of 1 / Σ m² over the number of blocks kept, ``[layers, heads]``."""
    source = run.layer_source()
    width = np.empty((source.layers, source.heads))
    for layer in range(source.layers):
        arrays = source.layer(layer)
        row = arrays.head.astype(np.int64) * source.blocks + arrays.query_block
        mass = arrays.mass.astype(np.float64)
        total, squares, kept = (
            np.bincount(row, weight, minlength=source.heads * source.blocks) for weight in (mass, mass**2, None)
        )
        rows = np.divide(total**2, squares * kept, out=np.zeros(len(total)), where=squares > 0)
        width[layer] = rows.reshape(source.heads, source.blocks).mean(1)
    return width


def _between_roles(run: Run) -> dict[str, FloatArray]:
    """Mean mass that a span of one role has on all spans of another that begin before it ends, by pair of roles."""
    spans, model = run.manifest.prompt.spans, run.manifest.model
    role = [span.name.partition(":")[0] for span in spans]
    names = sorted(set(role))
    if not names:
        return {}
    number = np.array([names.index(name) for name in role])
    count = len(names)
    found = np.zeros((model.layers, model.heads * count * count))
    for layer in range(model.layers):
        table = run.span_edges().filter(pl.col("layer") == layer).collect()
        head, query, key = (table[name].to_numpy().astype(np.int64) for name in ("head", "query_span", "key_span"))
        cell = (head * count + number[query]) * count + number[key]
        found[layer] = np.bincount(cell, table["mass"].to_numpy().astype(np.float64), minlength=found.shape[1])
    masses = found.reshape(model.layers, model.heads, count, count) / np.bincount(number)[:, None]
    first = {name: min(span.start for span, own in zip(spans, role, strict=True) if own == name) for name in names}
    last = {name: max(span.end for span, own in zip(spans, role, strict=True) if own == name) for name in names}
    return {
        f"{query}→{key}": masses[:, :, names.index(query), names.index(key)]
        for query in names
        for key in names
        if query != key and first[key] < last[query]
    }
