"""A study file, read and checked, and the tasks that it asks for.

A study crosses models, tasks and settings (`attngraph.study.options` says how lists are read); each combination is one
run, of which the analyses ask their questions. Everything that can be known without a model is checked here, with the
file's own keys in the errors; what needs a tokenizer is checked by `attngraph.study.checks` before anything runs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from attngraph.config import StreamConfig
from attngraph.errors import ConfigError, StudyError
from attngraph.store import SCHEMA_VERSION
from attngraph.study.file import EngineKind, EngineSettings, ModelSpec, Name, StudyFile, read
from attngraph.study.options import check_names, complete_options, converted, described, expanded
from attngraph.tasks import TASKS
from attngraph.version import __version__

Scope = Literal["run", "model", "store"]
GIVEN: dict[str, int] = {"run": 1, "model": 2, "store": 1}
"""How many parameters of an analysis don't come from the study file: the run; model and run; all runs."""
RESERVED_TABLES = ("runs", "folders")
"""Tables that every study has, whatever it asks."""


class Analysis(Protocol):
    """A question that a study can ask, by name.

    `function` returns a polars table. `of` says what it is asked of: ``"run"``, a function of a run; ``"model"``, of
    the loaded model and a run; ``"store"``, of all the study's runs, in the order of the plan. Its other parameters are
    the options that a study file may set. It is sent to worker processes by its name, so it has one, in a module.

    `by` and `show` are for summaries: columns of its table to put rows together by, and to take shares and medians of.
    """

    @property
    def function(self) -> Callable[..., Any]: ...
    @property
    def of(self) -> Scope: ...
    @property
    def by(self) -> tuple[str, ...]: ...
    @property
    def show(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class StudyTask:
    """One run that a study asks for: a model, a prompt and settings.

    `options` are those of the task's maker, complete; `config_name` is what the settings are called in tables.
    """

    model: ModelSpec
    task: str
    options: Mapping[str, Any]
    config_name: str
    config: StreamConfig

    @cached_property
    def id(self) -> str:
        """What identifies the task before its model is loaded; it changes with the files of a local model."""
        parts = (self.model, _stamp(self.model.name), self.task, self.options, self.config, SCHEMA_VERSION, __version__)
        return digest(parts)

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that tell the task's rows from others': model, task, config, and the task's options.

        Options that are no single value are JSON text.
        """
        options = {name: value if _is_plain(value) else _json(value) for name, value in self.options.items()}
        return {"model": self.model.name, "task": self.task, "config": self.config_name, **options}

    def __str__(self) -> str:
        return ", ".join([self.model.name, self.task, self.config_name, *(f"{k}={v}" for k, v in self.options.items())])


@dataclass(frozen=True)
class PlannedAnalysis:
    """An analysis with its options, and the table that it fills."""

    table: str
    name: str
    of: Scope
    function: Callable[..., Any]
    options: Mapping[str, Any]
    by: tuple[str, ...] = ()
    show: tuple[str, ...] = ()

    def part(self, keys: str | Sequence[str]) -> str:
        """The name of the file that holds the answer for the run of this key, or for the runs of these."""
        return f"{digest((keys, self.name, self.options, __version__))}.parquet"


@dataclass(frozen=True)
class Study:
    """What a study file asks for; `load` makes one."""

    file: Path
    name: str
    description: str
    store: Path
    output: Path
    tasks: tuple[StudyTask, ...]
    analyses: tuple[PlannedAnalysis, ...]
    engine: EngineSettings

    @property
    def label_names(self) -> list[str]:
        """The columns that tell tasks apart, in order: model, task, config, and all options of all tasks."""
        return list(dict.fromkeys(name for task in self.tasks for name in task.labels))


def load(
    file: Path | str,
    analyses: Mapping[str, Analysis],
    *,
    store: Path | str | None = None,
    engine: EngineKind | None = None,
    workers: int | None = None,
) -> Study:
    """Read a study file and check it.

    Parameters
    ----------
    file
        TOML, see docs/studies.md. A store or output named in it is relative to the working directory.
    analyses
        The questions that it may ask, by name; `attngraph.ANALYSES`.
    store, engine, workers
        Take the place of what the file says.

    Raises
    ------
    StudyError
        Naming the key that is unknown, lacking or wrong.
    """
    path = Path(file)
    asked = read(path)
    settings = msgspec.structs.replace(
        asked.engine, kind=engine or asked.engine.kind, workers=workers or asked.engine.workers
    )
    if settings.kind == "serial" and settings.timeout is not None:
        raise StudyError("engine.timeout: the serial engine can't end a task; use processes, or leave the timeout out.")
    folder = Path(store if store is not None else asked.store)
    output = Path(asked.output) if asked.output is not None and store is None else folder / "studies" / asked.name
    planned = tuple(_analysis(entry, f"analyses[{i}]", analyses) for i, entry in enumerate(asked.analyses))
    _check_distinct([analysis.table for analysis in planned], "analyses", "table")
    return Study(
        file=path,
        name=asked.name,
        description=asked.description,
        store=folder,
        output=output,
        tasks=_tasks(asked),
        analyses=planned,
        engine=settings,
    )


def digest(parts: Any) -> str:
    """A short name for anything that JSON can hold, the same on every machine."""
    return hashlib.sha256(_json(parts).encode()).hexdigest()[:32]


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def _tasks(asked: StudyFile) -> tuple[StudyTask, ...]:
    """Every combination, models outermost, so that one is loaded for a stretch of tasks."""
    models = [ModelSpec(model) if isinstance(model, str) else model for model in asked.models]
    _check_distinct([model.name for model in models], "models", "name")
    prompts = [prompt for i, entry in enumerate(asked.tasks) for prompt in _prompts(entry, f"tasks[{i}]")]
    configs = [config for i, entry in enumerate(asked.configs) for config in _configs(entry, f"configs[{i}]")]
    _check_distinct([name for name, _ in configs], "configs", "name")
    tasks = tuple(
        StudyTask(model, task, options, name, config)
        for model in models
        for task, options in prompts
        for name, config in configs
    )
    for task in tasks:
        if isinstance(task.options.get("length"), int):
            try:
                task.config.budget_for(task.options["length"])
            except ConfigError as error:
                raise StudyError(
                    f"configs, {task.config_name!r} with length {task.options['length']}: {error}"
                ) from None
    _check_distinct([str(task) for task in tasks], "tasks", "combination")
    return tasks


def _prompts(entry: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    options = dict(entry)
    name = options.pop("name", None)
    if name not in TASKS:
        raise StudyError(f"{where}.name: {name!r} is no task; known: {', '.join(TASKS)}.")
    reserved = {"model", "task", "config", "key"} & options.keys()
    if reserved:
        raise StudyError(f"{where}.{min(reserved)}: there is no such option.")
    return [(name, complete_options(TASKS[name].make, 1, one, where)) for one in expanded(options, where)]


def _configs(entry: Mapping[str, Any], where: str) -> list[tuple[str, StreamConfig]]:
    options = dict(entry)
    name = converted(options.pop("name"), Name, f"{where}.name") if "name" in options else ""
    check_names(options, [field.name for field in fields(StreamConfig)], where)
    alternatives = expanded(options, where)
    varied = [key for key in options if len({repr(one[key]) for one in alternatives}) > 1]

    def label(one: Mapping[str, Any]) -> str:
        return " ".join([*([name] if name else []), *(f"{key}={one[key]}" for key in varied)]) or "default"

    return [(label(one), _config(one, where)) for one in alternatives]


def _config(options: Mapping[str, Any], where: str) -> StreamConfig:
    try:
        return msgspec.convert(options, StreamConfig)
    except msgspec.ValidationError as error:
        raise StudyError(described(error, where)) from error


def _analysis(entry: Mapping[str, Any], where: str, known: Mapping[str, Analysis]) -> PlannedAnalysis:
    options = dict(entry)
    name = options.pop("name", None)
    if name not in known:
        raise StudyError(f"{where}.name: {name!r} is no analysis; known: {', '.join(known)}.")
    table = converted(options.pop("table", name), Name, f"{where}.table")
    if table in RESERVED_TABLES:
        raise StudyError(f"{where}.table: {table!r} is a table of every study; give another name.")
    analysis = known[name]
    complete = complete_options(analysis.function, GIVEN[analysis.of], options, where)
    return PlannedAnalysis(table, name, analysis.of, analysis.function, complete, analysis.by, analysis.show)


def _check_distinct(names: Sequence[str], where: str, what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise StudyError(f"{where}: the {what} {twice[0]!r} comes twice; give each once.")


def _stamp(name: str) -> Any:
    """What changes when the files of a local model do: their names, sizes and times; None for other models."""
    path = Path(name).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
