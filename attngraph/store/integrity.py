"""Checking that a run is what its manifest says: files, layout, and the numbers in the tables.

1. Sizes and SHA-256 of all files against the manifest; what fails here isn't opened.
2. Schema, number of rows, and one row group per layer, from the Parquet footers.
3. The values, one layer at a time: see :mod:`attngraph.store.checks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from attngraph.errors import IntegrityError, StoreError
from attngraph.store import checks
from attngraph.store.layers import LayerTable, unreadable
from attngraph.store.manifest import Manifest, read_manifest
from attngraph.store.run import Run, size_problems
from attngraph.store.schema import METADATA_KEY, TABLES, Table
from attngraph.store.store import RUN_PREFIX, open_store
from attngraph.store.writer import sha256_of


@dataclass(frozen=True)
class Verification:
    """What verifying a run found: one sentence per problem, each starting with the file it is about."""

    run: str
    path: Path
    problems: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_run(path: Path | str) -> Verification:
    """Verify the run in the folder `path`; reads all of it, one layer at a time.

    Raises
    ------
    RunNotFoundError
        If there is no run at `path`.
    IntegrityError, StoreError
        If its manifest can't be read.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    problems = list(_manifest_problems(folder, manifest))
    altered = [*size_problems(Run(folder, manifest)), *_hash_problems(folder, manifest)]
    problems += altered or _table_problems(folder, manifest)
    files = tuple(table.file for table in manifest.tables.values())
    return Verification(manifest.run, folder, tuple(problems), files)


def verify_store(path: Path | str) -> tuple[Verification, ...]:
    """Verify every run of a store; a run whose manifest is missing or unreadable counts as a problem.

    Raises
    ------
    StoreError
        If there is no store at `path`.
    """
    folders = sorted(folder for folder in open_store(path).path.glob(f"{RUN_PREFIX}*") if folder.is_dir())
    return tuple(_verify_folder(folder) for folder in folders)


def _verify_folder(folder: Path) -> Verification:
    try:
        return verify_run(folder)
    except StoreError as error:
        return Verification(folder.name.removeprefix(RUN_PREFIX), folder, (f"run.json: {error}",), ())


def _manifest_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    name = folder.resolve().name
    if name != f"{RUN_PREFIX}{manifest.run}":
        yield f"run.json: the folder is named {name}, but it holds run {manifest.run}"
    rows = {name: info.rows for name, info in manifest.files.items()}
    counts = {
        "cost.edges": (manifest.cost.edges, rows.get("edges.parquet")),
        "cost.target_edges": (manifest.cost.target_edges, rows.get("target_edges.parquet")),
        "cost.run_bytes": (manifest.cost.run_bytes, sum(info.bytes for info in manifest.files.values())),
        "prompt.tokens": (manifest.prompt.tokens, rows.get("tokens.parquet")),
        "prompt.blocks": (manifest.prompt.blocks, rows.get("blocks.parquet")),
        "prompt.spans": (len(manifest.prompt.spans), rows.get("spans.parquet")),
    }
    for count, (said, found) in counts.items():
        if said != found:
            yield f"run.json: {count} is {said}, but the files listed hold {found}"


def _hash_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name in (table.file for table in manifest.tables.values()):
        path, info = folder / name, manifest.files.get(name)
        if info is None or not path.is_file() or path.stat().st_size != info.bytes:
            continue  # size_problems says so
        if sha256_of(path) != info.sha256:
            yield f"{name}: its bytes were altered, the SHA-256 isn't the one of the manifest"


def _table_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    try:
        yield from _content_problems(folder, manifest)
    except IntegrityError as error:
        yield str(error)


def _content_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    tables = manifest.tables.values()
    by_layer = {table.name: LayerTable(folder, table) for table in tables if table.by_layer}
    layout = [problem for table in tables for problem in _layout_problems(folder, table, manifest)]
    layout += [problem for layers in by_layer.values() for problem in _row_group_problems(layers, manifest)]
    yield from layout
    if layout:
        return  # values of an unexpected layout can't be read by name and layer
    for layer in range(manifest.model.layers):
        columns = {name: layers.read(layer) for name, layers in by_layer.items()}
        for name, problem in checks.check_layer(columns, manifest):
            yield f"{TABLES[name].file}: layer {layer}: {problem}"
    prompt_checks: dict[str, Callable[[checks.Columns, Manifest], Iterator[str]]] = {
        "tokens": checks.check_tokens,
        "blocks": checks.check_blocks,
        "spans": checks.check_spans,
    }
    for name, check in prompt_checks.items():
        yield from (f"{TABLES[name].file}: {problem}" for problem in check(_read(folder, TABLES[name]), manifest))


def _layout_problems(folder: Path, table: Table, manifest: Manifest) -> Iterator[str]:
    path = folder / table.file
    try:
        metadata = pq.read_metadata(path)
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    expected = table.arrow_schema()
    if not schema.equals(expected, check_metadata=False):
        yield f"{table.file}: its columns are {_columns(schema)} instead of {_columns(expected)}"
    if _described_table(schema) != table.name:
        yield f"{table.file}: its metadata doesn't say that it is the table {table.name!r}"
    if metadata.num_rows != manifest.files[table.file].rows:
        yield f"{table.file}: it has {metadata.num_rows} rows instead of {manifest.files[table.file].rows}"


def _row_group_problems(layers: LayerTable, manifest: Manifest) -> Iterator[str]:
    groups = layers.group_layers
    found = [least for least, greatest in groups if least == greatest]
    if len(found) != len(groups) or sorted(set(found)) != found:
        yield f"{layers.table.file}: its row groups are not one per layer in ascending order: {groups}"
    expected = set(range(manifest.model.layers))
    is_complete = layers.table.name in {"edges", "rows", "shares"} or (
        layers.table.name in {"target_edges", "target_rows"} and bool(manifest.prompt.targets)
    )
    if is_complete and expected - set(found):
        yield f"{layers.table.file}: layers {sorted(expected - set(found))} are missing"
    if set(found) - expected:
        extra = sorted(set(found) - expected)
        yield f"{layers.table.file}: layers {extra} are not in the model's {len(expected)}"


def _read(folder: Path, table: Table) -> checks.Columns:
    path = folder / table.file
    try:
        rows = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    return {name: rows[name].to_numpy() for name in rows.column_names}


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}{'?' if field.nullable else ''}" for field in schema)


def _described_table(schema: pa.Schema) -> str | None:
    try:
        document = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError:
        return None
    return document.get("table") if isinstance(document, dict) else None
