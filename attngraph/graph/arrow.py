"""Graphs and results as Arrow tables, taken as they are by polars, pyarrow and DuckDB.

Whatever has `__arrow_c_stream__` (the Arrow PyCapsule interface) is a table to them: `pl.DataFrame(graph)`,
`pa.table(routes)`, `duckdb.sql("FROM graph")`. A graph streams one layer at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl

    from attngraph.graph.layered import AttentionGraph

EDGES = pa.schema(
    {
        "layer": pa.uint16(),
        "head": pa.uint16(),
        "query_block": pa.uint32(),
        "target": pa.uint32(),
        "key_block": pa.uint32(),
        "mass": pa.float32(),
        "contribution": pa.float32(),
        "probability": pa.float64(),
    }
)
"""The columns of a graph's table of edges."""


class ArrowTable(ABC):
    """A result that is a table: Arrow libraries take it as what `to_polars` returns."""

    @abstractmethod
    def to_polars(self) -> pl.DataFrame:
        """The result as a table."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.to_polars().__arrow_c_stream__(requested_schema)


def edge_reader(graph: AttentionGraph) -> pa.RecordBatchReader:
    """All attention edges of a graph, a batch per layer; see `edges_table`."""
    return pa.RecordBatchReader.from_batches(EDGES, _layers(graph))


def edges_table(graph: AttentionGraph) -> pa.Table:
    """All attention edges of a graph, one chunk per layer.

    Returns
    -------
    pyarrow.Table
        layer, head, query_block, target (token position; null for an edge into a block), key_block, mass,
        contribution, probability. A target's `query_block` is the block that holds it. Residual steps aren't
        edges of this table.
    """
    return edge_reader(graph).read_all()


def _layers(graph: AttentionGraph) -> Iterator[pa.RecordBatch]:
    blocks, targets = graph.node_blocks(), pa.array(graph.node_targets(), pa.uint32())
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        columns: dict[str, Any] = {
            "layer": np.full(len(transition.query), layer),
            "head": transition.head,
            "query_block": blocks[transition.query],
            "target": targets.take(pa.array(transition.query)),
            "key_block": transition.key_block,
            "mass": transition.mass,
            "contribution": transition.contribution,
            "probability": transition.probability,
        }
        yield pa.record_batch([pa.array(columns[field.name], field.type) for field in EDGES], schema=EDGES)
