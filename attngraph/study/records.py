"""A study's folder: what became of each task, and the answers of the analyses.

    OUTPUT/state/<task>.json                   what became of a task the last time it was tried
    OUTPUT/parts/<table>/<part>.parquet        the answer of one analysis for one run (or for all of them)
    OUTPUT/tables/<table>.parquet              all answers of an analysis, made of the parts
    OUTPUT/failures.jsonl  OUTPUT/summary.json

The store decides what is done (a complete run with the task's key, and all parts); a record only remembers which key
a task has, so that nobody has to load a model to find out, and why a task failed. Every file is written aside and
renamed, so that a process killed at any moment leaves whole files.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from attngraph.store import KeyIndex
from attngraph.store.partial import reported
from attngraph.study.plan import PlannedAnalysis, Study, StudyTask

if TYPE_CHECKING:
    import polars as pl

State = Literal["done", "failed", "left"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task.

    `key` is its run's key, None where it failed before that was known; `attempts` counts tries since the study was last
    started. A failed task has the `stage` that failed (``"model"``, ``"prompt"``, ``"capture"``, the name of an
    analysis's table, or ``"worker"`` where the process itself ended), the kind of `error`, its message and traceback.
    """

    status: Literal["done", "failed"]
    key: str | None = None
    attempts: int = 1
    stage: str | None = None
    error: str | None = None
    message: str | None = None
    traceback: str | None = None

    @classmethod
    def of(cls, error: Exception, stage: str, key: str | None = None) -> Record:
        """The record of what an error ended."""
        trace = "".join(traceback.format_exception(error))
        kind, message = type(error).__name__, str(error)
        return cls(status="failed", key=key, stage=stage, error=kind, message=message, traceback=trace)


class Step(NamedTuple):
    """A task, how far it is, and what was recorded of it."""

    task: StudyTask
    state: State
    record: Record | None


def read_record(output: Path, task: StudyTask) -> Record | None:
    """What was recorded of a task; None where nothing was."""
    try:
        return msgspec.json.decode(_record_file(output, task).read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None


def write_record(output: Path, task: StudyTask, record: Record) -> None:
    """Remember what became of a task."""
    write_whole(_record_file(output, task), msgspec.json.encode(record))


def part_file(output: Path, analysis: PlannedAnalysis, keys: str | list[str]) -> Path:
    """Where the answer of an analysis for the run of this key, or for the runs of these, is kept."""
    return output / "parts" / analysis.table / analysis.part(keys)


def table_file(output: Path, table: str) -> Path:
    """Where a table of the study is kept."""
    return output / "tables" / f"{table}.parquet"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there with all of its content, or not at all.

    Raises
    ------
    StoreError
        If it can't be written.
    """
    with _aside(path) as aside:
        aside.write_bytes(content)


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all; StoreError if it can't be written."""
    with _aside(path) as aside:
        frame.write_parquet(aside)


def steps_of(study: Study, index: KeyIndex) -> list[Step]:
    """How far every task of a study is, in the order of the plan, by its files alone."""
    wanted = [analysis for analysis in study.analyses if analysis.of != "store"]
    parts = {
        analysis.table: {path.name for path in (study.output / "parts" / analysis.table).glob("*.parquet")}
        for analysis in wanted
    }

    def complete(key: str) -> bool:
        return key in index and all(analysis.part(key) in parts[analysis.table] for analysis in wanted)

    def found(task: StudyTask) -> Step:
        record = read_record(study.output, task)
        if record is not None and record.key is not None and complete(record.key):
            return Step(task, "done", record)
        return Step(task, "failed" if record is not None and record.status == "failed" else "left", record)

    return [found(task) for task in study.tasks]


def failures_document(steps: Iterable[Step], others: Iterable[Record]) -> bytes:
    """One line of JSON per failed task, its labels and its record, and per other record."""
    rows = [{**task.labels, **msgspec.to_builtins(record)} for task, state, record in steps if state == "failed"]
    rows += [msgspec.to_builtins(record) for record in others]
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _record_file(output: Path, task: StudyTask) -> Path:
    return output / "state" / f"{task.id}.json"


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with reported(f"Writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
