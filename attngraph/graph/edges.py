"""A graph from edges that somebody else made: columns in, a `LayerSource` out.

1. Take the columns as NumPy arrays, from a mapping or from anything that speaks Arrow (polars, pyarrow,
   DuckDB), without copying what is contiguous already.
2. Refuse what no graph has: missing or broken columns, ids out of range, weights that are no weights.
3. Cut them into layers: edges sorted by layer, as a run stores them, into views; others are sorted first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attngraph.errors import GraphError
from attngraph.graph.source import AnyFloats, ArraySource, LayerArrays, SpanRanges

Column = npt.NDArray[Any]
Columns = dict[str, Column]
Spans = Mapping[str, tuple[int, int] | Sequence[tuple[int, int]]]

NO_TARGET = -1
"""In place of a token position: this edge leads into a block."""

_IDS = ("layer", "head", "query_block", "key_block")
_WEIGHTS = ("mass", "contribution")


def source_from_edges(
    edges: Any,
    *,
    shares: AnyFloats | None,
    layers: int | None = None,
    tokens: int | None = None,
    block_size: int = 1,
    targets: Sequence[int] | None = None,
    spans: Spans | None = None,
) -> ArraySource:
    """Edges as a source of layers; `AttentionGraph.from_edges` tells what the parameters mean.

    Weights and the ids of heads and blocks are checked when a layer is read, by `check_layer`.

    Raises
    ------
    GraphError
        Naming the column, the first bad value and what is allowed.
    """
    columns = _by_layer(_columns(edges))
    first, last = int(columns["layer"][0]), int(columns["layer"][-1])
    layers = last + 1 if layers is None else layers
    if first < 0 or last >= layers:
        raise GraphError(f"layer={first if first < 0 else last} is outside the graph's layers 0 to {layers - 1}.")
    positions, ranges = _positions(columns, targets), _ranges(spans)
    if block_size < 1:
        raise GraphError(f"block_size={block_size} must be at least 1 token.")
    least, greatest = _extremes([columns["query_block"], columns["key_block"]])
    least_head, greatest_head = _extremes([columns["head"]])
    if tokens is None:
        ends = [position + 1 for position in positions] + [end for found in ranges.values() for _, end in found]
        tokens = max((greatest + 1) * block_size, *ends, 0)
    blocks = -(-tokens // block_size)
    shape = (layers, blocks + len(positions))
    if shares is not None and shares.shape != shape:
        raise GraphError(
            f"Residual shares of shape {shares.shape} don't fit this graph: give {shape}, one row per layer, one "
            f"column per block and then per target; or a single number."
        )
    # In the column's own type: else all of it would be converted for a handful of cuts.
    known = np.arange(last + 1, dtype=columns["layer"].dtype)
    cuts = [*np.searchsorted(columns["layer"], known).tolist(), *[len(columns["layer"])] * (layers - last)]
    arrays = []
    for layer in range(layers):
        part = _share({name: column[cuts[layer] : cuts[layer + 1]] for name, column in columns.items()}, columns)
        residual = None if shares is None else shares[layer]
        arrays.append(_layer_arrays(part, np.array(positions, np.int64), residual, blocks))
    return ArraySource(
        arrays=arrays,
        heads=greatest_head + 1,
        tokens=tokens,
        block_size=block_size,
        targets=positions,
        spans=ranges,
        in_range=min(least, least_head) >= 0 and greatest < blocks,
    )


def _extremes(ids: Sequence[Column]) -> tuple[int, int]:
    """The least and the greatest of some columns; 0 for the least of unsigned ones, which can't be less."""
    least = [0 if column.dtype.kind == "u" else int(column.min()) for column in ids]
    return min(least), max(int(column.max()) for column in ids)


def _columns(edges: Any) -> Columns:
    """The columns by name: ids, mass, contribution, and target where there are any."""
    given = edges if isinstance(edges, Mapping) else _arrow_columns(edges)
    found = {str(name): given[name] for name in given}
    if "weight" in found:
        found["mass"] = found["contribution"] = np.asarray(found["weight"])
    missing = [name for name in ("layer", "query_block", "key_block", *_WEIGHTS) if name not in found]
    if missing:
        raise GraphError(
            f"These edges have no {' and no '.join(missing)}. Columns needed: layer, query_block, key_block, and "
            f"weight or mass and contribution; head and target (token positions) where there are any. Found: "
            f"{', '.join(found) or 'none'}."
        )
    columns = {name: np.asarray(found[name]) for name in (*_IDS, *_WEIGHTS, "target") if name in found}
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or columns["layer"].ndim != 1:
        raise GraphError(f"Edges are columns of one length; these have the shapes {lengths}.")
    if not len(columns["layer"]):
        raise GraphError("There are no edges; a graph needs at least one.")
    for name, column in columns.items():
        if column.dtype.kind not in ("fiu" if name in _WEIGHTS else "iu"):
            kind = "weights are numbers" if name in _WEIGHTS else "ids are whole numbers"
            raise GraphError(f"{name} holds {column.dtype} values; {kind}.")
    columns.setdefault("head", np.zeros(len(columns["layer"]), np.uint8))
    return columns


def _arrow_columns(edges: Any) -> Mapping[str, Column]:
    if not hasattr(edges, "__arrow_c_stream__"):
        hint = " Collect the LazyFrame first." if hasattr(edges, "collect") else ""
        raise GraphError(
            f"Edges of type {type(edges).__name__} can't be read: give a mapping of arrays, or a table that speaks "
            f"Arrow (polars, pyarrow, DuckDB).{hint}"
        )
    import pyarrow as pa

    table = pa.table(edges)
    columns: Columns = {}
    for name in (*_IDS, "target", "weight", *_WEIGHTS):
        if name in table.column_names:
            column = table[name]
            if column.null_count and name != "target":
                raise GraphError(f"{name} has {column.null_count} nulls; only target may be null, for a block.")
            columns[name] = np.asarray(column.cast(pa.int64()).fill_null(NO_TARGET) if name == "target" else column)
    return columns


def _positions(columns: Columns, targets: Sequence[int] | None) -> tuple[int, ...]:
    """The targets as they are given, or those that the edges name."""
    if "target" not in columns:
        return tuple(targets or ())
    used = np.unique(columns["target"])
    used = used[used != NO_TARGET]
    if targets is None:
        return tuple(used.tolist())
    unknown = sorted(set(used.tolist()) - set(targets))
    if unknown:
        raise GraphError(f"target={unknown[0]} is not among targets={tuple(targets)}.")
    return tuple(targets)


def _ranges(spans: Spans | None) -> SpanRanges:
    """Spans as lists of ranges, be they given as one range or several."""
    return {name: tuple(map(tuple, np.reshape(given, (-1, 2)).tolist())) for name, given in (spans or {}).items()}


def _by_layer(columns: Columns) -> Columns:
    layer = columns["layer"]
    if (layer[1:] >= layer[:-1]).all():
        return columns
    order = np.argsort(layer, kind="stable")
    return _share({name: column[order] for name, column in columns.items()}, columns)


def _share(columns: Columns, like: Columns) -> Columns:
    """Make one array of equal weights again, so that it is checked and held once."""
    return columns | {"contribution": columns["mass"]} if like["contribution"] is like["mass"] else columns


def _layer_arrays(part: Columns, positions: npt.NDArray[np.int64], residual: Any, blocks: int) -> LayerArrays:
    target = part.get("target")
    into_target = np.zeros(len(part["layer"]), bool) if target is None else target != NO_TARGET
    none = not into_target.any()

    def split(name: str) -> tuple[Column, Column]:
        column = part[name]
        return (column, column[:0]) if none else (column[~into_target], column[into_target])

    index = np.zeros(0, np.int64)
    if target is not None and not none:
        order = np.argsort(positions)
        index = order[np.searchsorted(positions, target[into_target], sorter=order)]
    head, query_block, key_block, mass, contribution = map(
        split, ("head", "query_block", "key_block", "mass", "contribution")
    )
    return LayerArrays(
        head=head[0],
        query_block=query_block[0],
        key_block=key_block[0],
        mass=mass[0],
        contribution=mass[0] if part["contribution"] is part["mass"] else contribution[0],
        target_head=head[1],
        target=index,
        target_key_block=key_block[1],
        target_mass=mass[1],
        target_contribution=contribution[1],
        residual=None if residual is None else residual[:blocks],
        target_residual=None if residual is None else residual[blocks:],
    )
