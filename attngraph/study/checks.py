"""What is checked of a study before its first task runs: store, output, models, and prompts with their real tokenizers.

One prompt is made for every model, task and set of options but the seed, so that a length too short for a task, or a
depth outside its range, is refused at once and not by every run.
"""

from __future__ import annotations

from collections.abc import Iterable

from attngraph.errors import AttngraphError, StudyError
from attngraph.models import load_tokenizer
from attngraph.store import RunWriter
from attngraph.study.file import ModelSpec
from attngraph.study.plan import Study, StudyTask, digest
from attngraph.study.records import write_whole
from attngraph.tasks import make


def check(study: Study, tasks: Iterable[StudyTask]) -> None:
    """Check what these tasks of a study need.

    Raises
    ------
    StudyError
        Naming the key of the study file.
    """
    try:
        with RunWriter(study.store):
            pass
    except AttngraphError as error:
        raise StudyError(f"store: {error}") from error
    by_model: dict[ModelSpec, list[StudyTask]] = {}
    for task in tasks:
        by_model.setdefault(task.model, []).append(task)
    for model, theirs in by_model.items():
        _check_model(model, theirs)
    try:
        write_whole(study.output / "study.toml", study.file.read_bytes())
    except AttngraphError as error:
        raise StudyError(f"output: {error}") from error


def _check_model(model: ModelSpec, tasks: Iterable[StudyTask]) -> None:
    try:
        tokenizer = load_tokenizer(model.name, revision=model.revision)
    except AttngraphError as error:
        raise StudyError(f"models, {model.name!r}: {error}") from error
    if tokenizer is None:
        raise StudyError(f"models, {model.name!r}: it has no tokenizer, so no prompt can be made for it.")
    distinct = {
        digest((task.task, {**task.options, "seed": None}, task.config)): task for task in reversed(list(tasks))
    }
    for task in reversed(distinct.values()):
        try:
            prompt = make(task.task, tokenizer, **task.options)
            task.config.budget_for(len(prompt))
        except AttngraphError as error:
            raise StudyError(f"tasks, {task}: {error}") from error
