"""Reading a run one layer at a time, as NumPy arrays: one row group per table and layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from attngraph.errors import IntegrityError, StoreError
from attngraph.store.schema import TABLES, Table

if TYPE_CHECKING:
    from attngraph.graph.source import KeptMass, LayerArrays
    from attngraph.store.manifest import Manifest


class LayerTable:
    """One layer table of a run; the footer is read once, each layer on demand, its page checksums verified.

    Parameters
    ----------
    folder
        Folder of the run.
    table
        The table to read.

    Raises
    ------
    IntegrityError
        If the file is missing or isn't readable as Parquet, now or when a layer is read.
    """

    def __init__(self, folder: Path, table: Table) -> None:
        self.path = folder / table.file
        self.table = table

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """The file's footer."""
        try:
            return pq.read_metadata(self.path)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.path, error) from error

    @cached_property
    def group_layers(self) -> tuple[tuple[int, int], ...]:
        """Least and greatest layer of every row group, from the statistics."""
        column = [field.name for field in self.table.columns].index("layer")
        statistics = [
            self.metadata.row_group(group).column(column).statistics for group in range(self.metadata.num_row_groups)
        ]
        if not all(found is not None and found.has_min_max for found in statistics):
            raise IntegrityError(f"{self.path} has no statistics on its layers: it was not written by attngraph.")
        return tuple((found.min, found.max) for found in statistics)

    @cached_property
    def _group_of(self) -> Mapping[int, int]:
        return {least: group for group, (least, _) in enumerate(self.group_layers)}

    def read(self, layer: int) -> dict[str, npt.NDArray[Any]]:
        """The layer's columns but ``layer`` itself; nullable integers come masked, null floats as NaN.

        A layer that the table holds nothing of gives empty arrays.
        """
        names = [column.name for column in self.table.columns if column.name != "layer"]
        group = self._group_of.get(layer)
        try:
            with pq.ParquetFile(
                self.path, metadata=self.metadata, memory_map=True, page_checksum_verification=True
            ) as file:
                rows = (
                    file.schema_arrow.empty_table().select(names)
                    if group is None
                    else file.read_row_group(group, columns=names, use_threads=False)
                )
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.path, error) from error
        return {name: _to_numpy(rows[name]) for name in names}


class RunLayers:
    """A run as the graph layer reads it: implements ``attngraph.graph.source.LayerSource``.

    Parameters
    ----------
    folder
        Folder of the run.
    manifest
        Its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self._edges = LayerTable(folder, TABLES["edges"])
        self._target_edges = LayerTable(folder, TABLES["target_edges"])
        self._shares = LayerTable(folder, TABLES["shares"])
        self._rows = LayerTable(folder, TABLES["rows"])
        self._target_rows = LayerTable(folder, TABLES["target_rows"])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self._manifest.model.layers

    @property
    def heads(self) -> int:
        """Number of heads per layer."""
        return self._manifest.model.heads

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self._manifest.prompt.blocks

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return self._manifest.prompt.tokens

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._manifest.config.block_size

    @property
    def targets(self) -> tuple[int, ...]:
        """Token positions of the targets."""
        return self._manifest.prompt.targets

    @cached_property
    def spans(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Half-open token ranges by span name."""
        ranges: dict[str, tuple[tuple[int, int], ...]] = {}
        for span in self._manifest.prompt.spans:
            ranges[span.name] = (*ranges.get(span.name, ()), (span.start, span.end))
        return ranges

    def layer(self, layer: int) -> LayerArrays:
        """One layer's edges, target edges and residual shares; reads one row group of each table.

        Raises
        ------
        StoreError
            If there is no such layer.
        IntegrityError
            If a file can't be read, or lacks shares of a block or target.
        """
        from attngraph.graph.source import LayerArrays

        self._check(layer)
        edges = self._edges.read(layer)
        target_edges = self._target_edges.read(layer)
        residual, target_residual = self._residual(layer)
        return LayerArrays(
            head=edges["head"],
            query_block=edges["query_block"],
            key_block=edges["key_block"],
            mass=edges["mass"],
            contribution=edges["contribution"],
            target_head=target_edges["head"],
            target=_index_in(np.asarray(self.targets, dtype=np.int64), target_edges["target"], self._target_edges.path),
            target_key_block=target_edges["key_block"],
            target_mass=target_edges["mass"],
            target_contribution=target_edges["contribution"],
            residual=residual,
            target_residual=target_residual,
        )

    def kept_mass(self, layer: int) -> KeptMass | None:
        """How much of the dense attention a layer's rows keep; None for a run written before targets were audited.

        Raises
        ------
        StoreError
            If there is no such layer.
        IntegrityError
            If a file can't be read, or names unknown blocks, heads or targets.
        """
        from attngraph.graph.source import KeptMass

        self._check(layer)
        if self._target_rows.table.name not in self._manifest.tables:
            return None
        rows, target_rows = self._rows.read(layer), self._target_rows.read(layer)
        block = _index_in(np.arange(self.blocks), rows["query_block"], self._rows.path)
        target = _index_in(np.asarray(self.targets, dtype=np.int64), target_rows["target"], self._target_rows.path)
        return KeptMass(
            blocks=self._by_head(rows, "kept_mass", block, self.blocks),
            estimate=self._by_head(rows, "kept_mass_estimate", block, self.blocks),
            targets=self._by_head(target_rows, "kept_mass", target, len(self.targets)),
            dense_masses=self._manifest.config.forward == "dense",
        )

    def _by_head(
        self, columns: Mapping[str, npt.NDArray[Any]], name: str, index: npt.NDArray[np.int64], size: int
    ) -> npt.NDArray[np.float32]:
        found = np.full((self.heads, size), np.nan, dtype=np.float32)
        found[columns["head"], index] = np.clip(columns[name], 0, 1)  # the last bit of a sum may be above 1
        return found

    def _check(self, layer: int) -> None:
        if not 0 <= layer < self.layers:
            raise StoreError(f"Layer {layer} is outside the run's layers 0 to {self.layers - 1}.")

    def _residual(self, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        shares = self._shares.read(layer)
        block, position, value = (
            np.ma.asarray(shares["block"]),
            np.ma.asarray(shares["position"]),
            shares["residual"],
        )
        is_block = ~np.ma.getmaskarray(block)
        residual = np.full(self.blocks, np.nan, dtype=np.float32)
        target_residual = np.full(len(self.targets), np.nan, dtype=np.float32)
        path = self._shares.path
        residual[_index_in(np.arange(self.blocks), block.data[is_block], path)] = value[is_block]
        targets = np.asarray(self.targets, dtype=np.int64)
        target_residual[_index_in(targets, position.data[~is_block], path)] = value[~is_block]
        if np.isnan(residual).any() or np.isnan(target_residual).any():
            raise IntegrityError(f"{path} lacks shares of some block or target in layer {layer}.")
        return residual, target_residual


def unreadable(path: Path, error: Exception) -> IntegrityError:
    """The error for a file that can't be read, with the way to find out more."""
    if isinstance(error, FileNotFoundError):
        return IntegrityError(f"{path} is missing; its run is damaged, capture it again.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return IntegrityError(f"{path} can't be read: {reason} Its run is damaged; `attngraph verify` tells more.")


def _to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if not pa.types.is_integer(column.type) or column.null_count == 0:
        return np.asarray(column.to_numpy())
    null = np.asarray(column.is_null().to_numpy())
    return np.ma.MaskedArray(np.asarray(column.fill_null(0).to_numpy()), mask=null)


def _index_in(known: npt.NDArray[np.int64], values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int64]:
    """Where each value stands in `known`, whose order is free."""
    order = np.argsort(known)
    if not known.size and not values.size:
        return np.zeros(0, dtype=np.int64)
    index = np.searchsorted(known, values, sorter=order) if known.size else np.zeros(values.size, dtype=np.int64)
    if not known.size or bool((known[order[np.minimum(index, known.size - 1)]] != values).any()):
        raise IntegrityError(f"{path} names a block or target that the run's manifest doesn't.")
    return order[index]
