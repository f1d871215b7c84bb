"""A committed run: its manifest, its tables, and the graph they make."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from attngraph.errors import ConfigError, IntegrityError
from attngraph.store.layers import RunLayers
from attngraph.store.manifest import Cost, Fidelity, Manifest, read_manifest
from attngraph.store.schema import TABLES

if TYPE_CHECKING:
    from attngraph.graph.layered import AttentionGraph
    from attngraph.graph.transition import Heads, Residual, Sink, Weight

Verify = Literal["size", "none", "full"]


@dataclass(frozen=True)
class Run:
    """One captured forward pass on disk; tables come as lazy frames, read when collected.

    Polars' default engine doesn't promise the order of rows after joins and group-bys: sort what you need
    sorted.
    """

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The run's ULID."""
        return self.manifest.run

    @property
    def created(self) -> datetime:
        """When the capture began, UTC."""
        return datetime.fromisoformat(self.manifest.created)

    @property
    def fidelity(self) -> Fidelity | None:
        """Whether the sparse model still says what the dense one says; None where it wasn't checked."""
        return self.manifest.fidelity

    @property
    def cost(self) -> Cost:
        """Seconds, bytes, edges and pruned shares."""
        return self.manifest.cost

    def edges(self) -> pl.LazyFrame:
        """Kept block pairs: layer, head, query_block, key_block, mass, contribution."""
        return self._scan("edges")

    def target_edges(self) -> pl.LazyFrame:
        """Kept key blocks of targets: layer, head, target (token position), key_block, mass, contribution."""
        return self._scan("target_edges")

    def rows(self) -> pl.LazyFrame:
        """What rows keep: layer, head, query_block, kept, kept_mass (null: not audited) and its estimate."""
        return self._scan("rows")

    def target_rows(self) -> pl.LazyFrame:
        """What targets keep: layer, head, target (token position), kept, kept_mass (null: not audited)."""
        return self._scan("target_rows")

    def shares(self) -> pl.LazyFrame:
        """Shares of a node's update: layer, block or position (targets), residual, attention, mlp."""
        return self._scan("shares")

    def span_edges(self) -> pl.LazyFrame:
        """Attention between spans: layer, head, query_span, key_span, mass, contribution."""
        return self._scan("span_edges")

    def tokens(self) -> pl.LazyFrame:
        """The prompt's tokens: position, token_id, block, text."""
        return self._scan("tokens")

    def blocks(self) -> pl.LazyFrame:
        """The prompt's blocks: block, token_start, token_end, text."""
        return self._scan("blocks")

    def spans(self) -> pl.LazyFrame:
        """The prompt's spans: span, name, token_start, token_end."""
        return self._scan("spans")

    def layer_source(self) -> RunLayers:
        """The run as the graph reads it: one layer at a time, as NumPy arrays."""
        return RunLayers(self.path, self.manifest)

    def graph(
        self,
        *,
        weight: Weight = "contribution",
        residual: Residual = "measured",
        heads: Heads = "sum",
        sink: Sink = "keep",
    ) -> AttentionGraph:
        """The run as a layered graph, read lazily; parameters as in ``attngraph.graph.AttentionGraph``."""
        from attngraph.graph.layered import AttentionGraph

        return AttentionGraph(self.layer_source(), weight=weight, residual=residual, heads=heads, sink=sink)

    def _scan(self, table: str) -> pl.LazyFrame:
        if table not in self.manifest.tables:  # written before there was this table
            return pl.LazyFrame(pl.from_arrow(TABLES[table].arrow_schema().empty_table()))
        # Without hive parsing: the folder's name says which run this is, and the caller knows.
        return pl.scan_parquet(self.path / TABLES[table].file, hive_partitioning=False)


def open_run(path: Path | str, *, verify: Verify = "size") -> Run:
    """Open the run in the folder `path`.

    Parameters
    ----------
    path
        Folder named ``run=<ULID>``.
    verify
        ``"size"``: every file is there and has its size; ``"full"``: all that ``attngraph verify`` checks;
        ``"none"``: only the manifest is read.

    Raises
    ------
    RunNotFoundError
        If there is no complete run at `path`.
    IntegrityError
        If a file is missing or isn't the one that the manifest describes.
    StoreError
        If the run was written by an attngraph with another major schema version.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify={verify!r} is not one of {', '.join(get_args(Verify))}.")
    run = Run(Path(path), read_manifest(Path(path)))
    if verify == "size":
        problems = size_problems(run)
    elif verify == "full":
        from attngraph.store.integrity import verify_run

        problems = verify_run(run.path).problems
    else:
        problems = ()
    if problems:
        raise IntegrityError(f"{run.path} is damaged, capture it again: {'; '.join(problems)}.")
    return run


def size_problems(run: Run) -> tuple[str, ...]:
    """What is wrong with the presence and sizes of the run's files, one sentence each."""
    problems = []
    for table in run.manifest.tables.values():
        info = run.manifest.files.get(table.file)
        path = run.path / table.file
        if info is None:
            problems.append(f"{table.file} is not in the manifest")
        elif not path.is_file():
            problems.append(f"{table.file} is missing")
        elif (size := path.stat().st_size) != info.bytes:
            problems.append(f"{table.file} has {size} bytes instead of {info.bytes}")
    return tuple(problems)
