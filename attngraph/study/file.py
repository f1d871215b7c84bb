"""A study file as TOML has it, before the names in it are looked up."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from attngraph.errors import StudyError
from attngraph.study.options import converted

EngineKind = Literal["serial", "processes", "ray"]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as `attngraph.load_model` takes it."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    device: str = "auto"


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which engine carries the tasks, and with what.

    `workers` and `threads` (of each worker) are shares of this machine's cores where they are None. A task whose worker
    dies or takes longer than `timeout` seconds is tried `retries` times more. `address`, `cpus`, `gpus` (per task) and
    `object_store_bytes` (of a cluster started here) are Ray's.
    """

    kind: EngineKind = "serial"
    workers: Positive | None = None
    threads: Positive | None = None
    retries: Annotated[int, msgspec.Meta(ge=0)] = 1
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None
    address: str | None = None
    cpus: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    gpus: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    object_store_bytes: Annotated[int, msgspec.Meta(ge=80_000_000)] = 200_000_000


class StudyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a study file; docs/studies.md says what they mean."""

    name: Name
    store: Annotated[str, msgspec.Meta(min_length=1)]
    models: Annotated[list[str | ModelSpec], msgspec.Meta(min_length=1)]
    tasks: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    description: str = ""
    output: str | None = None
    configs: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [{}])
    analyses: list[dict[str, Any]] = []
    engine: EngineSettings = EngineSettings()


def read(path: Path) -> StudyFile:
    """The study file at `path`; StudyError if it can't be read, or a key is unknown, lacking or of another kind."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"The study {path} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} isn't valid TOML: {error}.") from error
    asked: StudyFile = converted(document, StudyFile, "")
    return asked
