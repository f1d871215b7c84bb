"""Running a study: what is left of it, by whichever engine, then its tables.

1. What is done is known from the files alone; if that is everything, no model is loaded.
2. The rest is checked (`attngraph.study.checks`) before the first task starts.
3. The engine carries out the tasks. What becomes of each is recorded when it ends, so that a study that is stopped,
   however that happens, goes on where it was. Two processes can work on one study: each key has a lock.
4. The analyses of all runs together are asked, where the runs have changed since.
5. The tables and the summary are written, of whatever is done.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attngraph.errors import StudyError
from attngraph.store import KeyIndex, remove_idle_locks
from attngraph.study.engines import Died, Finished, SerialWorkers, Workers, carry_out, cores
from attngraph.study.plan import Study
from attngraph.study.records import (
    Record,
    State,
    Step,
    part_file,
    steps_of,
    write_frame,
    write_record,
)
from attngraph.study.worker import Answer, Job, WorkerPlan

if TYPE_CHECKING:
    import polars as pl

    from attngraph.study.tables import Captured

logger = logging.getLogger(__name__)


class Report(NamedTuple):
    """How a study stands after a run: numbers of tasks, of runs captured by this one, and of retries.

    `failed_tables` are the analyses of all runs together that failed.
    """

    done: int
    failed: int
    left: int
    captured: int
    retries: int
    failed_tables: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not (self.failed or self.left or self.failed_tables)


class Group(NamedTuple):
    """How far the tasks are that have the same model, task, config and options but the seed."""

    labels: dict[str, Any]
    done: int
    failed: int
    left: int


def run(study: Study, *, retry_failed: bool = True, progress: bool | None = None) -> Report:
    """Carry out what is left of a study, and write its tables.

    Parameters
    ----------
    study
        From `load`.
    retry_failed
        Also try the tasks again that have failed before.
    progress
        Show a progress bar on stderr; by default where stderr is a terminal.

    Returns
    -------
    Report
        Failures of single tasks are in it, and in the study's ``failures.jsonl``; they stop nothing else.

    Raises
    ------
    StudyError
        If something that the study needs isn't there; nothing has run.
    KeyboardInterrupt
        On Ctrl-C; what was complete by then stays, and the next call goes on from there.
    """
    from attngraph.study.checks import check
    from attngraph.study.tables import captured_tasks, write_summary, write_tables

    index = KeyIndex(study.store)
    index.refresh()
    before = steps_of(study, index)
    waiting = [one for one in before if one.state == "left" or (one.state == "failed" and retry_failed)]
    captured = retries = 0
    if waiting:
        check(study, [one.task for one in waiting])
        with closing(_carried_out(study, waiting, progress)) as ended:
            for finished in ended:
                captured += int(isinstance(finished.answer, Answer) and finished.answer.captured)
                retries += finished.attempts - 1
                _note(study, waiting[finished.number], finished)
        remove_idle_locks(study.store)
        index.refresh()
    after = steps_of(study, index)
    there = captured_tasks(after, index)
    failed = _over_all_runs(study, there)
    write_tables(study, there, without=set(failed))
    write_summary(study, after, failed.values())
    counts = Counter(state for _, state, _ in after)
    return Report(counts["done"], counts["failed"], counts["left"], captured, retries, tuple(failed))


def status(study: Study) -> list[Group]:
    """How far a study is, by groups in the order of the plan; reads files alone, no model."""
    from attngraph.study.tables import group_names

    index = KeyIndex(study.store)
    index.refresh()
    names = group_names(study)
    counts: dict[str, tuple[dict[str, Any], Counter[State]]] = {}
    for task, state, _ in steps_of(study, index):
        labels = {name: task.labels.get(name) for name in names}
        counts.setdefault(repr(labels), (labels, Counter()))[1][state] += 1
    return [Group(labels, found["done"], found["failed"], found["left"]) for labels, found in counts.values()]


def summary(study: Study) -> dict[str, Any]:
    """The summary of a study as it was last written.

    Raises
    ------
    StudyError
        If the study hasn't been run yet.
    """
    file = study.output / "summary.json"
    try:
        document: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise StudyError(f"There is no {file}: run the study first (attngraph study run {study.file}).") from error
    return document


def read_table(study: Study, table: str) -> pl.DataFrame:
    """A table of a study, as it was last written.

    Raises
    ------
    StudyError
        If there is none of this name.
    """
    import polars as pl

    files = {file.stem: file for file in sorted((study.output / "tables").glob("*.parquet"))}
    if table not in files:
        raise StudyError(f"{table!r} is no table of this study; it has {', '.join(files) or 'none yet'}.")
    return pl.read_parquet(files[table])


def workers_of(study: Study) -> Workers:
    """The workers of a study's engine.

    Raises
    ------
    StudyError, MissingDependencyError
        If the engine can't give what is asked for.
    """
    settings = study.engine

    def plan(threads: int | None) -> WorkerPlan:
        return WorkerPlan(study.store.absolute(), study.output.absolute(), study.analyses, threads)

    if settings.kind == "serial":
        return SerialWorkers(plan(settings.threads))
    if settings.kind == "processes":
        from attngraph.study.processes import ProcessWorkers

        count = settings.workers or cores()
        threads = settings.threads or max(1, cores() // count)
        return ProcessWorkers(plan(threads), count, threads=threads, timeout=settings.timeout)
    from attngraph.study.ray_engine import RayWorkers

    return RayWorkers(plan(settings.threads or max(1, int(settings.cpus))), settings)


def _carried_out(study: Study, waiting: Sequence[Step], show: bool | None) -> Generator[Finished, None, None]:
    """What comes of the waiting tasks, as they end, with a bar."""
    jobs = [Job(one.task, one.record.key if one.record else None) for one in waiting]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (sys.stderr.isatty() if show is None else show),
    )
    models = [one.task.model.name for one in waiting]
    ended = carry_out(workers_of(study), jobs, models, retries=study.engine.retries, busy=_is_busy)
    with bar, closing(ended):
        shown = bar.add_task(study.name, total=len(jobs))
        for finished in ended:
            bar.update(shown, advance=1, description=f"{study.name}: {models[finished.number]}")
            yield finished


def _is_busy(answer: Any) -> bool:
    return isinstance(answer, Answer) and answer.record is None


def _note(study: Study, one: Step, finished: Finished) -> None:
    """Record what became of a task."""
    if isinstance(finished.answer, Died):
        key = one.record.key if one.record else None
        message = f"{finished.answer.reason}; tried {finished.attempts} time(s)."
        record = Record(status="failed", key=key, stage="worker", error="WorkerDied", message=message)
    else:
        record = finished.answer.record
    write_record(study.output, one.task, msgspec.structs.replace(record, attempts=finished.attempts))
    if record.status == "failed":
        logger.warning("%s failed at %s: %s: %s", one.task, record.stage, record.error, record.message)


def _over_all_runs(study: Study, captured: Sequence[Captured]) -> dict[str, Record]:
    """Ask the analyses of all runs together, where these runs haven't been asked yet; returns the failures by table."""
    failed: dict[str, Record] = {}
    for analysis in study.analyses:
        if analysis.of != "store" or not captured:
            continue
        part = part_file(study.output, analysis, [key for _, key, _ in captured])
        try:
            if not part.exists():
                write_frame(part, analysis.function([run for _, _, run in captured], **analysis.options))
        except Exception as error:  # noqa: BLE001 - one analysis that fails leaves the others and all tables
            failed[analysis.table] = Record.of(error, analysis.table)
            logger.warning("The analysis %s failed: %s: %s", analysis.table, type(error).__name__, error)
    return failed
