"""What a worker does with a task: load, prompt, capture, analyse; each step only where its result isn't there yet.

1. Load the model, unless it is the one at hand: a worker keeps one.
2. Make the prompt, which gives the task's key.
3. Hold the key's lock. Where another process holds it, the task is busy: it is put off, not done twice.
4. Find the run with this key in the store, or capture it.
5. Answer the analyses that have no answer yet, each written as soon as it is known, also where another one fails.

Steps 1 and 2 are left out where the key is known from an earlier time, the run is there, and no question needs the
model. Whatever a step raises becomes part of the task's record; the worker goes on with the next task.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attngraph.errors import PromptError, StudyError
from attngraph.store import KeyIndex, Run, working_on
from attngraph.study.file import ModelSpec
from attngraph.study.plan import PlannedAnalysis, StudyTask
from attngraph.study.records import Record, part_file, write_frame
from attngraph.tasks import make

if TYPE_CHECKING:
    import polars as pl

    from attngraph.models import LanguageModel
    from attngraph.tasks import Prompt


class Job(NamedTuple):
    """A task for a worker, with its run's key where that is known."""

    task: StudyTask
    key: str | None = None


class Answer(NamedTuple):
    """What came of a job; `record` is None where another process works on the task."""

    record: Record | None
    captured: bool = False


@dataclass
class _Course:
    """How far a job has come."""

    key: str | None
    stage: str = "model"
    captured: bool = False


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker needs to know, to be sent to its process; calling it makes the worker there."""

    store: Path
    output: Path
    analyses: tuple[PlannedAnalysis, ...]
    threads: int | None = None

    def __call__(self) -> Worker:
        return Worker(self)


class Worker:
    """Carries out jobs one after the other, and keeps the last model."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self._index = KeyIndex(plan.store)
        self._at_hand: tuple[ModelSpec, LanguageModel | Exception] | None = None

    def __call__(self, job: Job) -> Answer:
        """Do what is missing of a job; what it raises becomes its record."""
        course = _Course(job.key)
        try:
            held = self._without_model(job, course) or self._with_model(job, course)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is this task's, and the others go on
            return Answer(Record.of(error, course.stage, course.key), course.captured)
        return Answer(Record(status="done", key=course.key) if held else None, course.captured)

    def _without_model(self, job: Job, course: _Course) -> bool:
        """Answer what is open where that takes no model; False where it takes one, or the task is busy."""
        if job.key is None or any(analysis.of == "model" for analysis in self._open(job.key)):
            return False
        with working_on(self.plan.store, job.key) as held:
            run = self._found(job.key) if held else None
            if run is not None:
                self._analyse(None, run, job, course)
            return run is not None

    def _with_model(self, job: Job, course: _Course) -> bool:
        """Do the whole job; False where the task is busy."""
        task = job.task
        lm = self._load(task.model)
        course.stage = "prompt"
        prompt, course.key = _prompt(lm, task)
        with working_on(self.plan.store, course.key) as held:
            if held:
                run = self._found(course.key)
                if run is None:
                    from attngraph.capture import capture

                    course.stage = "capture"
                    run = capture(lm, prompt, task.config, store=self.plan.store, progress=False)
                    course.captured = True
                self._analyse(lm, run, job, course)
            return held

    def _load(self, model: ModelSpec) -> LanguageModel:
        """The model, or what went wrong when it was loaded first: that isn't tried for every task again."""
        if self._at_hand is None or self._at_hand[0] != model:
            self._at_hand = None  # two models at a time may be one too many
            self._at_hand = (model, _loaded(model, self.plan.threads))
        lm = self._at_hand[1]
        if isinstance(lm, Exception):
            raise lm
        return lm

    def _found(self, key: str) -> Run | None:
        self._index.refresh()
        return self._index.find(key)

    def _open(self, key: str) -> list[PlannedAnalysis]:
        """The analyses that have no answer for the run of this key."""
        asked = (analysis for analysis in self.plan.analyses if analysis.of != "store")
        return [analysis for analysis in asked if not part_file(self.plan.output, analysis, key).exists()]

    def _analyse(self, lm: LanguageModel | None, run: Run, job: Job, course: _Course) -> None:
        """Answer what is open; an analysis that fails leaves the others, and its error is raised when they are done."""
        failed: list[tuple[str, Exception]] = []
        for analysis in self._open(run.manifest.key):
            try:
                given = (lm, run) if analysis.of == "model" else (run,)
                frame: pl.DataFrame = analysis.function(*given, **analysis.options)
                _check_columns(frame, analysis, job.task)
                write_frame(part_file(self.plan.output, analysis, run.manifest.key), frame)
            except Exception as error:  # noqa: BLE001 - the other questions of this run can still be answered
                failed.append((analysis.table, error))
        if failed:
            course.stage, first = failed[0]
            raise first


def _check_columns(frame: pl.DataFrame, analysis: PlannedAnalysis, task: StudyTask) -> None:
    taken = {"key", *task.labels} & set(frame.columns)
    if taken:
        raise StudyError(
            f"The analysis {analysis.name!r} has a column {min(taken)!r}, which tells a study's tasks apart; "
            "give it another name."
        )


def _loaded(model: ModelSpec, threads: int | None) -> LanguageModel | Exception:
    import torch

    from attngraph.models import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return load_model(model.name, revision=model.revision, dtype=model.dtype, device=model.device)
    except Exception as error:  # noqa: BLE001 - raised for every task of the model
        return error


def _prompt(lm: LanguageModel, task: StudyTask) -> tuple[Prompt, str]:
    """The task's prompt, and the key of its run."""
    from attngraph.capture.description import task_key

    if lm.tokenizer is None:
        raise PromptError(f"The model {lm.id!r} has no tokenizer, so no prompt of {task.task!r} can be made for it.")
    prompt = make(task.task, lm.tokenizer, **task.options)
    return prompt, task_key(lm, prompt, task.config)
