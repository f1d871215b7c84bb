"""The tables of a run: names, types, order, and how they are laid out in Parquet.

A run is nine tables. Six are *layer tables* (``edges``, ``target_edges``, ``rows``, ``target_rows``, ``shares``,
``span_edges``): they are written one layer at a time, and every layer is one row group, so that reading a
layer reads one row group. Three describe the prompt (``tokens``, ``blocks``, ``spans``).

Integers are delta encoded (a table's heads repeat, so they are dictionary encoded), floats are
byte-stream-split, all is zstd. Every file carries the key ``attngraph`` in its Parquet metadata: JSON with
the schema's version, the table's name and what its columns mean. Versions follow GeoParquet's rules: readers
ignore fields they don't know; a new table, optional column or field is a new minor version, anything that changes
the meaning of an old one is a new major version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = "1.2.0"
FORMAT = "attngraph-run"
METADATA_KEY = b"attngraph"
ROW_GROUP_LIMIT = 64 * 1024 * 1024
"""Rows that Parquet writers put into one row group at most."""

COMPRESSION = "zstd"
COMPRESSION_LEVEL = 12
"""5 % less per edge than level 3, for 4 ms more per layer of 36,000 edges; reading takes the same time."""


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether it may be null, and whether its mantissa is rounded on writing."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False
    rounded: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of a numeric column's values."""
        return np.asarray(pa.array([], type=self.type)).dtype

    @property
    def is_integer(self) -> bool:
        return bool(pa.types.is_integer(self.type))

    @property
    def is_floating(self) -> bool:
        return bool(pa.types.is_floating(self.type))


@dataclass(frozen=True)
class Table:
    """One table of a run: its columns, the columns by which its rows are sorted (nulls last), and the schema version
    that brought it.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    sort: tuple[str, ...]
    since: str = "1.0.0"

    @property
    def file(self) -> str:
        """Name of the table's file in the run's folder."""
        return f"{self.name}.parquet"

    @property
    def by_layer(self) -> bool:
        """Whether the table is written one layer at a time, one row group per layer."""
        return self.columns[0].name == "layer"

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema, with the table's description under the metadata key ``attngraph``."""
        described = {column.name: _column_metadata(column) for column in self.columns}
        document = {
            "version": SCHEMA_VERSION,
            "table": self.name,
            "description": self.description,
            "columns": described,
            "sorted_by": list(self.sort),
        }
        fields = [pa.field(column.name, column.type, nullable=column.nullable) for column in self.columns]
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(document).encode()})

    def writer_options(self) -> dict[str, Any]:
        """Keyword arguments of ``pyarrow.parquet.ParquetWriter`` that give the documented layout."""
        names = [column.name for column in self.columns]
        integers = [column.name for column in self.columns if column.is_integer]
        delta = {name: "DELTA_BINARY_PACKED" for name in integers if name != "head"}
        split = {column.name: "BYTE_STREAM_SPLIT" for column in self.columns if column.is_floating}
        return {
            "compression": COMPRESSION,
            "compression_level": COMPRESSION_LEVEL,
            "column_encoding": {**delta, **split},
            "use_dictionary": [name for name in names if name not in delta and name not in split],
            "write_statistics": integers,
            "write_page_index": True,
            "write_page_checksum": True,
            "sorting_columns": [pq.SortingColumn(names.index(name), nulls_first=False) for name in self.sort],
        }


def _column_metadata(column: Column) -> dict[str, Any]:
    described: dict[str, Any] = {"description": column.description, "nullable": column.nullable}
    if column.rounded:
        described["mantissa_bits"] = 12
    return described


_LAYER = Column("layer", pa.uint16(), "Layer, 0 to L-1; it moves information from level `layer` to level `layer`+1.")
_HEAD = Column("head", pa.uint16(), "Attention head, 0 to H-1.")
_KEY_BLOCK = Column("key_block", pa.uint32(), "Block that is attended to.")
_QUERY_BLOCK = Column("query_block", pa.uint32(), "Block that attends.")
_TARGET = Column("target", pa.uint32(), "Token position of the target.")
_KEPT = Column("kept", pa.uint16(), "Number of kept key blocks.")
_KEPT_MASS = Column(
    "kept_mass",
    pa.float32(),
    "Share of the dense softmax that is not on dropped key blocks, exact; null where not audited.",
    nullable=True,
)
_MASS = Column(
    "mass",
    pa.float32(),
    "Mean over the query tokens of the attention probability on the key tokens; softmax over the kept keys, or over "
    "all visible ones where the run's `forward` is dense.",
    rounded=True,
)
_CONTRIBUTION = Column(
    "contribution",
    pa.float32(),
    "The same with each probability multiplied by ‖v W_O‖₂, the norm of the key's projected value.",
    rounded=True,
)

EDGES = Table(
    "edges",
    "The kept block pairs: an edge runs from (layer, key_block) to (layer+1, query_block).",
    (_LAYER, _HEAD, _QUERY_BLOCK, _KEY_BLOCK, _MASS, _CONTRIBUTION),
    ("layer", "query_block", "head", "key_block"),
)
TARGET_EDGES = Table(
    "target_edges",
    "The kept key blocks of single query tokens, the targets.",
    (_LAYER, _HEAD, _TARGET, _KEY_BLOCK, _MASS, _CONTRIBUTION),
    ("layer", "target", "head", "key_block"),
)
ROWS = Table(
    "rows",
    "What was kept for every query block of every head.",
    (
        _LAYER,
        _HEAD,
        _QUERY_BLOCK,
        _KEPT,
        _KEPT_MASS,
        Column(
            "kept_mass_estimate",
            pa.float32(),
            "The same, estimated from the key pyramid; null where not estimated.",
            nullable=True,
        ),
    ),
    ("layer", "query_block", "head"),
)
TARGET_ROWS = Table(
    "target_rows",
    "What was kept for every target of every head.",
    (_LAYER, _HEAD, _TARGET, _KEPT, _KEPT_MASS),
    ("layer", "target", "head"),
    since="1.1.0",
)
SHARES = Table(
    "shares",
    "How much of a node's update comes from each part (L1 proximity); per block, and per target token.",
    (
        _LAYER,
        Column("block", pa.uint32(), "Block; null in the rows of targets.", nullable=True),
        Column("position", pa.uint32(), "Token position of a target; null in the rows of blocks.", nullable=True),
        Column("residual", pa.float32(), "Share of the residual stream; residual + attention = 1."),
        Column("attention", pa.float32(), "Share of the attention sub-layer."),
        Column("mlp", pa.float32(), "Share of the MLP against the stream that it is added to."),
    ),
    ("layer", "block", "position"),
)
SPAN_EDGES = Table(
    "span_edges",
    "Kept token pairs per pair of spans: probability on the key span, mean over the query span's tokens.",
    (
        _LAYER,
        _HEAD,
        Column("query_span", pa.uint32(), "Span that attends; a row number of `spans`."),
        Column("key_span", pa.uint32(), "Span that is attended to; a row number of `spans`."),
        _MASS,
        _CONTRIBUTION,
    ),
    ("layer", "query_span", "head", "key_span"),
)
TOKENS = Table(
    "tokens",
    "The prompt's tokens.",
    (
        Column("position", pa.uint32(), "Position in the prompt, from 0."),
        Column("token_id", pa.uint32(), "Id in the model's vocabulary."),
        Column("block", pa.uint32(), "Block of the token: position // block_size."),
        Column("text", pa.string(), "The token as text."),
    ),
    ("position",),
)
BLOCKS = Table(
    "blocks",
    "The partition of the prompt into blocks.",
    (
        Column("block", pa.uint32(), "Block, from 0."),
        Column("token_start", pa.uint32(), "First token of the block."),
        Column("token_end", pa.uint32(), "One past the last token of the block."),
        Column("text", pa.string(), "The block as text."),
    ),
    ("block",),
)
SPANS = Table(
    "spans",
    "Named token ranges of the prompt.",
    (
        Column("span", pa.uint32(), "Row number."),
        Column("name", pa.string(), "Name; several spans may share one."),
        Column("token_start", pa.uint32(), "First token of the span."),
        Column("token_end", pa.uint32(), "One past the last token of the span."),
    ),
    ("span",),
)

TABLES: dict[str, Table] = {
    table.name: table for table in (EDGES, TARGET_EDGES, ROWS, TARGET_ROWS, SHARES, SPAN_EDGES, TOKENS, BLOCKS, SPANS)
}


def tables_of(version: str) -> dict[str, Table]:
    """The tables of a run that was written with schema `version`: those that came later are missing from it."""
    return {name: table for name, table in TABLES.items() if not is_older(version, table.since)}


def is_older(version: str, than: str) -> bool:
    """Whether a schema version came before another."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
