"""Sets of a graph's edges: which ones an experiment is about, from whatever names them.

An edge is (layer, head, node, key block); a node is a query block, or the number of blocks plus the index of a target.
Tables say where an edge ends in two columns: `query_block`, and `target`, the token position where it ends in a target,
else null or -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from attngraph.errors import GraphError
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import IntArray

if TYPE_CHECKING:
    import polars as pl

    from attngraph.graph.layered import AttentionGraph

COLUMNS = ("layer", "head", "query_block", "key_block")
NO_TARGET = -1


class EdgeSet(NamedTuple):
    """Edges, ``[edges]`` each."""

    layer: IntArray
    head: IntArray
    node: IntArray
    key_block: IntArray

    @property
    def size(self) -> int:
        """Number of edges."""
        return len(self.layer)

    def only(self, which: Any) -> EdgeSet:
        """Some of them: those of a mask, of a slice, or of indices in their order."""
        return EdgeSet(*(column[which] for column in self))

    def of_layer(self, layer: int) -> EdgeSet:
        """Those of one layer."""
        return self.only(self.layer == layer)

    def to_polars(self, graph: AttentionGraph) -> pl.DataFrame:
        """One row per edge: layer, head, key_block, query_block, target (null for an edge into a block)."""
        import polars as pl

        return pl.DataFrame(
            {
                "layer": self.layer,
                "head": self.head,
                "key_block": self.key_block,
                "query_block": graph.node_blocks()[self.node],
                "target": pl.Series(graph.node_targets(), dtype=pl.Int64).gather(self.node),
            }
        )


def joined(parts: Sequence[EdgeSet]) -> EdgeSet:
    """Several sets as one; no edges for no sets."""
    if not parts:
        return EdgeSet(*(np.zeros(0, np.int64) for _ in EdgeSet._fields))
    return EdgeSet(*map(np.concatenate, zip(*parts, strict=True)))


def edge_set(graph: AttentionGraph, edges: Any) -> EdgeSet:
    """The edges that a table, a list or an analysis names, each once, in their order.

    Parameters
    ----------
    graph
        Whose edges they are.
    edges
        A table that speaks Arrow or a mapping of columns (layer, head, query_block, key_block, and target where there
        are any); a sequence of (layer, head, query_block, key_block) or (layer, head, query_block, key_block, target);
        a route; or what an analysis found (routes, a throughput, a sub-graph), of which residual steps and attention
        within a block are left out, since they are nothing that can be taken away.

    Raises
    ------
    GraphError
        If there are no edges, a column is missing or broken, or an id is outside the graph.
    """
    answer = isinstance(edges, ArrowTable) or hasattr(edges, "hops")
    found = _numbered(graph, _frame(edges))
    if answer:
        found = found.only(graph.node_blocks()[found.node] != found.key_block)
    if not found.size:
        raise GraphError("There are no edges to ask about; give at least one that leads from one block to another.")
    _, first = np.unique(np.stack(found, axis=1), axis=0, return_index=True)
    return found.only(np.sort(first))


def _frame(edges: Any) -> pl.DataFrame:
    """The edges as columns, residual steps (no head) left out."""
    import polars as pl

    if hasattr(edges, "hops"):
        edges = [(hop.layer, hop.head, hop.query_block, hop.key_block, hop.target) for hop in edges.hops]
    if isinstance(edges, pl.LazyFrame):
        edges = edges.collect()
    if isinstance(edges, Mapping) or hasattr(edges, "__arrow_c_stream__"):
        frame = edges.to_polars() if isinstance(edges, ArrowTable) else pl.DataFrame(edges)
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise GraphError(
                f"These edges have no {' and no '.join(missing)}. Columns needed: {', '.join(COLUMNS)}, and target "
                f"where there are any. Found: {', '.join(frame.columns) or 'none'}."
            )
        return frame.filter(pl.col("head").is_not_null()) if isinstance(edges, ArrowTable) else frame
    if not isinstance(edges, Iterable):
        raise GraphError(f"{edges!r} is no set of edges: give a table, a list of tuples, or what an analysis found.")
    rows = [tuple(edge) for edge in edges]
    whole = [row if len(row) == 5 else (*row, None) for row in rows]
    wrong = next((row for row, five in zip(rows, whole, strict=True) if not _is_edge(five)), None)
    if wrong is not None:
        raise GraphError(f"{wrong} is no edge: give ({', '.join(COLUMNS)}) and, for an edge into a target, its token.")
    return pl.DataFrame(whole, schema=dict.fromkeys((*COLUMNS, "target"), pl.Int64), orient="row")


def _is_edge(row: tuple[Any, ...]) -> bool:
    """Whether these are four whole numbers, and a fifth or None."""
    return len(row) == 5 and all(isinstance(value, int | np.integer) for value in (*row[:4], row[4] or 0))


def _numbered(graph: AttentionGraph, frame: pl.DataFrame) -> EdgeSet:
    """Columns as an edge set, every id looked at."""
    import polars as pl

    for name in (*COLUMNS, "target"):
        if name in frame.columns and not frame[name].dtype.is_integer() and frame[name].dtype != pl.Null:
            raise GraphError(f"{name} holds {frame[name].dtype} values; ids are whole numbers.")
        if name in COLUMNS and frame[name].null_count():
            raise GraphError(f"{name} has {frame[name].null_count()} nulls; only target may be null, for a block.")
    layer, head, query, key = (frame[name].cast(pl.Int64).to_numpy() for name in COLUMNS)
    limits = {"layer": graph.layers, "head": graph.heads, "query_block": graph.blocks, "key_block": graph.blocks}
    for (name, limit), values in zip(limits.items(), (layer, head, query, key), strict=True):
        if (outside := values[(values < 0) | (values >= limit)]).size:
            raise GraphError(f"{name}={outside[0]} is outside the graph: give a number from 0 to {limit - 1}.")
    node = query.copy()
    if "target" in frame.columns:
        target = frame["target"].cast(pl.Int64).fill_null(NO_TARGET).to_numpy()
        into = target != NO_TARGET
        unknown = sorted(set(target[into].tolist()) - set(graph.targets))
        if unknown:
            raise GraphError(f"target={unknown[0]} is not a target of this graph, whose targets are {graph.targets}.")
        number = {position: graph.blocks + index for index, position in enumerate(graph.targets)}
        node[into] = [number[position] for position in target[into].tolist()]
        if (apart := np.flatnonzero(graph.node_blocks()[node] != query)).size:
            raise GraphError(
                f"target={target[apart[0]]} is in block {target[apart[0]] // graph.block_size}, not in "
                f"query_block={query[apart[0]]}."
            )
    return EdgeSet(layer, head, node, key)
