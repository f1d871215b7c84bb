"""Writing a run: all of it or nothing.

1. Claim an id: lock, then make ``STORE/.partial-<ULID>/``. Partials whose writer is gone are removed on the
   way.
2. Append tables, layer by layer; one call is one row group.
3. Commit: close and fsync every file, hash it, write ``run.json`` last, fsync it and the folder, rename the
   folder to ``STORE/run=<ULID>``, fsync the store.

Leaving the context before the commit, by whatever exception, removes the partial. So a folder named ``run=…``
is complete, always.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from attngraph.errors import StoreError
from attngraph.store import partial
from attngraph.store.encoding import encode_table
from attngraph.store.manifest import MANIFEST_FILE, FileInfo, Manifest, encode_manifest
from attngraph.store.run import Run
from attngraph.store.schema import ROW_GROUP_LIMIT, TABLES, Table

_EVERY_LAYER = ("edges", "rows", "shares")
"""Layer tables that hold rows of every layer in every run."""


@dataclass
class _OpenTable:
    """A file that is being written, with what has gone into it."""

    table: Table
    writer: pq.ParquetWriter
    rows: int = 0
    layers: list[int] = field(default_factory=list)


class RunWriter:
    """Write one run into a store; a context manager.

    Parameters
    ----------
    store
        Folder of the store; made if missing, and removed again if nothing is committed.

    Raises
    ------
    StoreError
        On entering, if the store can't be written; by the methods, if the data break the schema or the disk
        is full.

    Examples
    --------
    >>> with RunWriter(Path("runs")) as writer:                                    # doctest: +SKIP
    ...     for layer in range(layers):
    ...         writer.append("edges", {"layer": layer, "head": head, ...})
    ...     run = writer.commit(manifest)
    """

    def __init__(self, store: Path | str) -> None:
        self.store = Path(store)
        self._partial: partial.Partial | None = None
        self._tables: dict[str, _OpenTable] = {}

    def __enter__(self) -> RunWriter:
        if self._partial is not None:
            raise StoreError("This RunWriter is already open; one writer writes one run.")
        self._tables = {}
        self._partial = partial.claim(self.store)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        claimed, self._partial = self._partial, None
        if claimed is None:
            return
        for opened in self._tables.values():
            with contextlib.suppress(OSError, pa.ArrowException):  # the file is thrown away whether it closes or not
                opened.writer.close()
        claimed.discard()

    @property
    def run(self) -> str:
        """The run's id, a ULID."""
        return str(self._claimed().ulid)

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Append rows to a table as one row group; no rows append none.

        Parameters
        ----------
        table
            One of ``attngraph.store.TABLES``.
        columns
            Name to values: a NumPy array (masked where null), a list (None where null), or one value for all
            rows. Rows are sorted here; mass and contribution are rounded to 12 mantissa bits. A layer table
            takes one layer per call, in ascending order.

        Raises
        ------
        StoreError
            If the columns break the schema, the layer isn't above the last one, or the disk is full.
        """
        claimed = self._claimed()
        if table not in TABLES:
            raise StoreError(f"There is no table {table!r}; a run has {', '.join(TABLES)}.")
        encoded = encode_table(TABLES[table], columns)
        if encoded.num_rows > ROW_GROUP_LIMIT:
            raise StoreError(
                f"{table}: {encoded.num_rows} rows in one layer are over the {ROW_GROUP_LIMIT} that a "
                f"Parquet row group holds; capture with a smaller budget or bigger blocks."
            )
        opened = self._tables.get(table)
        layer = _layer_of(TABLES[table], encoded)
        if opened is not None and layer is not None and opened.layers and layer <= opened.layers[-1]:
            raise StoreError(
                f"{table}: layer {layer} comes after layer {opened.layers[-1]}; append each layer once, "
                f"in ascending order."
            )
        with partial.reported(f"Writing {table} in {claimed.folder}"):
            if opened is None:
                opened = self._tables[table] = _open_table(claimed.folder, TABLES[table])
            if encoded.num_rows:
                opened.writer.write_table(encoded, row_group_size=encoded.num_rows)
        opened.rows += encoded.num_rows
        if layer is not None:
            opened.layers.append(layer)

    def restart(self) -> None:
        """Throw away all that was appended; the run keeps its id, and the writer stays open."""
        claimed = self._claimed()
        with partial.reported(f"Removing tables in {claimed.folder}"):
            for opened in self._tables.values():
                opened.writer.close()
                (claimed.folder / opened.table.file).unlink()
        self._tables = {}

    def commit(self, manifest: Manifest) -> Run:
        """Make the run durable under its final name, and return it.

        Tables that nothing was appended to are written empty. Of the manifest, `run`, `created`, `files`,
        `cost.edges`, `cost.target_edges` and `cost.run_bytes` (all Parquet files, without ``run.json``) are
        filled in.

        Raises
        ------
        StoreError
            If the tables don't hold what the manifest says (every layer of ``edges``, ``rows`` and
            ``shares``, every token, block and span), if the manifest can't be written as JSON, or if the disk
            is full.
        """
        claimed = self._claimed()
        self._check_complete(manifest)
        with partial.reported(f"Committing {claimed.folder}"):
            for name in TABLES:
                if name not in self._tables:
                    self._tables[name] = _open_table(claimed.folder, TABLES[name])
            files = {opened.table.file: _finish(claimed.folder, opened) for opened in self._tables.values()}
            complete = _fill(manifest, claimed, files)
            _write_durably(claimed.folder / MANIFEST_FILE, encode_manifest(complete))
            partial.sync_folder(claimed.folder)
            final = self.store / f"run={claimed.ulid}"
            claimed.folder.replace(final)
            self._partial = None  # from here on there is nothing to discard
            claimed.release()
            partial.sync_folder(self.store)
        return Run(final, complete)

    def _claimed(self) -> partial.Partial:
        if self._partial is None:
            raise StoreError(
                "This RunWriter isn't open: use it as `with RunWriter(store) as writer:`, and commit once."
            )
        return self._partial

    def _check_complete(self, manifest: Manifest) -> None:
        layers = list(range(manifest.model.layers))
        for name in (*_EVERY_LAYER, *(("target_edges", "target_rows") if manifest.prompt.targets else ())):
            written = self._tables[name].layers if name in self._tables else []
            if written != layers:
                raise StoreError(
                    f"{name} holds {len(written)} of the model's {len(layers)} layers; append every layer."
                )
        sizes = {
            "tokens": manifest.prompt.tokens,
            "blocks": manifest.prompt.blocks,
            "spans": len(manifest.prompt.spans),
        }
        for name, size in sizes.items():
            rows = self._tables[name].rows if name in self._tables else 0
            if rows != size:
                raise StoreError(f"{name} holds {rows} rows, the manifest's prompt has {size}.")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _layer_of(table: Table, encoded: pa.Table) -> int | None:
    if not table.by_layer or not encoded.num_rows:
        return None
    layers = encoded["layer"].to_numpy()
    if layers[0] != layers[-1]:
        raise StoreError(
            f"{table.name}: one call holds layers {layers[0]} to {layers[-1]}; append one layer at a time."
        )
    return int(layers[0])


def _open_table(folder: Path, table: Table) -> _OpenTable:
    return _OpenTable(table, pq.ParquetWriter(folder / table.file, table.arrow_schema(), **table.writer_options()))


def _finish(folder: Path, opened: _OpenTable) -> FileInfo:
    opened.writer.close()
    path = folder / opened.table.file
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return FileInfo(bytes=path.stat().st_size, rows=opened.rows, sha256=sha256_of(path))


def _fill(manifest: Manifest, claimed: partial.Partial, files: dict[str, FileInfo]) -> Manifest:
    cost = msgspec.structs.replace(
        manifest.cost,
        edges=files["edges.parquet"].rows,
        target_edges=files["target_edges.parquet"].rows,
        run_bytes=sum(file.bytes for file in files.values()),
    )
    created = claimed.ulid.datetime.isoformat(timespec="milliseconds")
    return msgspec.structs.replace(manifest, run=str(claimed.ulid), created=created, files=files, cost=cost)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
