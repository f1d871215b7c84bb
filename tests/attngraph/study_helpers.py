"""What tests of studies share: study files, analyses that worker processes find by name, and tables to compare."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

import attngraph as ag


class Entry(NamedTuple):
    """An analysis as a registry has it."""

    function: Any
    of: str
    by: tuple[str, ...] = ()
    show: tuple[str, ...] = ()


def study_file(folder: Path, model: Path | str, *, text: str | None = None, **changes: str) -> Path:
    """A study of a tiny model: by default two prompts, two settings and one question.

    `changes` are TOML texts that take the place of the parts of their names.
    """
    parts = {
        "head": f'name = "tiny"\nstore = "{folder / "runs"}"\nmodels = ["{model}"]\n',
        "tasks": '[[tasks]]\nname = "needle"\nlength = 700\nseed = { first = 0, last = 1 }\n',
        "configs": "[[configs]]\nbudget = [4, 6]\nn_match = 1\n",
        "analyses": '[[analyses]]\nname = "influence_rank"\nnull = "uniform"\n',
        "engine": "[engine]\nthreads = 1\n",
    }
    file = folder / "study.toml"
    file.write_text(text if text is not None else "\n".join((parts | changes).values()))
    return file


def tables(study: Any) -> dict[str, pl.DataFrame]:
    """All tables of a study but the one that says where its runs are."""
    files = sorted((study.output / "tables").glob("*.parquet"))
    return {file.stem: pl.read_parquet(file) for file in files if file.stem != "folders"}


def same_tables(one: Any, other: Any) -> bool:
    """Whether two studies have the same tables, to the last bit."""
    ours, theirs = tables(one), tables(other)
    return ours.keys() == theirs.keys() and all(ours[name].equals(theirs[name]) for name in ours)


def tokens(run: ag.Run) -> pl.DataFrame:
    return pl.DataFrame({"tokens": [run.manifest.prompt.tokens]})


def refuse(run: ag.Run, budget: int = 4) -> pl.DataFrame:
    """Fails for runs of this budget."""
    if run.manifest.budget == budget:
        raise ag.errors.GraphError(f"no answer with budget {budget}")
    return tokens(run)


def die_once(run: ag.Run, flag: str) -> pl.DataFrame:
    """Kills the process that asks it first."""
    if not Path(flag).exists():
        Path(flag).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return tokens(run)


def parameters(lm: ag.LanguageModel, run: ag.Run) -> pl.DataFrame:
    return pl.DataFrame({"parameters": [lm.model.num_parameters()], "run_tokens": [run.manifest.prompt.tokens]})


def count(runs: Any, at_least: int = 1) -> pl.DataFrame:
    if len(runs) < at_least:
        raise ag.errors.StoreError(f"only {len(runs)} runs")
    return pl.DataFrame({"runs": [len(runs)], "edges": [sum(run.cost.edges for run in runs)]})


def collide(run: ag.Run) -> pl.DataFrame:
    return pl.DataFrame({"seed": [1]})


ANALYSES = {
    **ag.ANALYSES,
    "tokens": Entry(tokens, "run"),
    "refuse": Entry(refuse, "run"),
    "die_once": Entry(die_once, "run"),
    "parameters": Entry(parameters, "model"),
    "count": Entry(count, "store"),
    "collide": Entry(collide, "run"),
}
