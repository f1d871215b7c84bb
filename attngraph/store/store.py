"""A store: a folder of runs, and its catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from attngraph.errors import RunNotFoundError, StoreError
from attngraph.store.run import Run, open_run

RUN_PREFIX = "run="

CATALOGUE_SCHEMA: dict[str, pl.DataType] = {
    "run": pl.String(),
    "created": pl.Datetime("ms", "UTC"),
    "model": pl.String(),
    "fingerprint": pl.String(),
    "task": pl.String(),
    "tokens": pl.Int64(),
    "blocks": pl.Int64(),
    "block_size": pl.Int64(),
    "budget": pl.Int64(),
    "selector": pl.String(),
    "edges": pl.Int64(),
    "bytes": pl.Int64(),
    "pruned_causal": pl.Float64(),
    "next_tokens_match": pl.Boolean(),
    "answer_tokens": pl.Int64(),
    "answer_tokens_kept": pl.Int64(),
    "capture_seconds": pl.Float64(),
    "key": pl.String(),
    "path": pl.String(),
}


@dataclass(frozen=True)
class Store:
    """A folder of runs; iterating yields them from the oldest, ``len`` counts them."""

    path: Path

    def __len__(self) -> int:
        return len(self._folders())

    def __iter__(self) -> Iterator[Run]:
        return (open_run(folder) for folder in self._folders())

    def runs(self) -> pl.DataFrame:
        """The catalogue: one row per run, from the manifests alone; columns as in ``CATALOGUE_SCHEMA``.

        `budget` is in blocks (``"all"`` is the run's number of blocks, ``"auto"`` what was found); fidelity columns
        are null where it wasn't checked.

        Raises
        ------
        StoreError
            If a run's manifest can't be read.
        """
        rows = [_catalogue_row(open_run(folder, verify="none")) for folder in self._folders()]
        return pl.DataFrame(rows, schema=CATALOGUE_SCHEMA, orient="row")

    def run(self, id: str) -> Run:
        """The run whose id is `id` or starts with it.

        Raises
        ------
        RunNotFoundError
            If there is none.
        StoreError
            If there are several.
        """
        folders = [folder for folder in self._folders() if folder.name.startswith(RUN_PREFIX + id)]
        if not folders:
            raise RunNotFoundError(
                f"No run of {self.path} starts with {id!r}; it holds {len(self)} runs (attngraph ls)."
            )
        if len(folders) > 1:
            names = ", ".join(folder.name.removeprefix(RUN_PREFIX) for folder in folders[:3])
            raise StoreError(
                f"{len(folders)} runs of {self.path} start with {id!r}, such as {names}; give more of the id."
            )
        return open_run(folders[0])

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.path.glob(f"{RUN_PREFIX}*") if path.is_dir())


def open_store(path: Path | str) -> Store:
    """Open the store in the folder `path`; StoreError if there is no such folder, or it is a run."""
    folder = Path(path)
    if not folder.exists():
        raise StoreError(f"There is no store at {folder}; a capture into it makes one.")
    if not folder.is_dir():
        raise StoreError(f"{folder} is a file, not a store; a store is a folder of runs.")
    if folder.name.startswith(RUN_PREFIX):
        raise StoreError(f"{folder} is a run, not a store; its store is {folder.parent}.")
    return Store(folder)


def _catalogue_row(run: Run) -> tuple[Any, ...]:
    manifest, fidelity, cost = run.manifest, run.fidelity, run.cost
    prompt, config = manifest.prompt, manifest.config
    return (
        manifest.run,
        run.created,
        manifest.model.id,
        manifest.model.fingerprint,
        prompt.task,
        prompt.tokens,
        prompt.blocks,
        config.block_size,
        manifest.budget,
        config.selector,
        cost.edges,
        cost.run_bytes,
        cost.pruned.causal,
        fidelity.next_tokens_match if fidelity else None,
        fidelity.answer_tokens if fidelity else None,
        fidelity.answer_tokens_kept if fidelity else None,
        cost.capture_seconds,
        manifest.key,
        str(run.path),
    )
