"""A study's tables, made of what its tasks have left, in the order of the plan.

Every row begins with the columns that tell tasks apart (model, task, config, the task's options) and the key of its
run. Nothing in them depends on when, where or in which order the runs were made; that is in the table `folders` alone,
which leads from a key to its run's folder. So two stores made from one study file can be compared table by table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import msgspec
import polars as pl

from attngraph.store import KeyIndex, Run, open_run
from attngraph.study.plan import Study
from attngraph.study.records import (
    Record,
    Step,
    failures_document,
    part_file,
    table_file,
    write_frame,
    write_whole,
)

RUNS_SUMMARY = ("success", "next_tokens_match", "kl", "margin", "pruned_causal")
"""What a summary says of the table `runs`; of other tables with one row per run it says everything."""
FIRST_ROWS = 10
"""Rows of a table of all runs together that a summary shows."""


class Captured(NamedTuple):
    """A task whose run is there: its place in the plan, the key of its run, and the run."""

    number: int
    key: str
    run: Run


def captured_tasks(steps: Sequence[Step], index: KeyIndex) -> list[Captured]:
    """The tasks of a study whose run is there, in the order of the plan; files of runs aren't checked again."""
    return [
        Captured(number, record.key, open_run(index.folder(record.key), verify="none"))
        for number, (_, _, record) in enumerate(steps)
        if record is not None and record.key is not None and record.key in index
    ]


def write_tables(study: Study, captured: Sequence[Captured], without: AbstractSet[str] = frozenset()) -> None:
    """Write the tables of every run's facts, folders and answers, and remove those that the study has no more.

    Parameters
    ----------
    captured
        Whose runs are there. Where an analysis failed for a run, its table lacks it.
    without
        Tables of all runs together that could not be made.
    """
    frames = dict(_frames(study, captured)) if captured else {}
    for analysis in study.analyses:
        if analysis.of == "store" and captured and analysis.table not in without:
            part = part_file(study.output, analysis, [key for _, key, _ in captured])
            frames[analysis.table] = pl.read_parquet(part)
    for table, frame in frames.items():
        write_frame(table_file(study.output, table), frame)
    for file in (study.output / "tables").glob("*.parquet"):
        if file.stem not in frames:
            file.unlink()


def _frames(study: Study, captured: Sequence[Captured]) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables with the columns that tell tasks apart."""
    labels = _labels(study)
    tables = {
        "runs": [(one, pl.DataFrame([_facts(one.run)], schema_overrides=_FACTS)) for one in captured],
        "folders": [(one, pl.DataFrame([_whereabouts(one.run)])) for one in captured],
    }
    for analysis in study.analyses:
        if analysis.of != "store":
            files = ((one, part_file(study.output, analysis, one.key)) for one in captured)
            tables[analysis.table] = [(one, pl.read_parquet(file)) for one, file in files if file.exists()]
    for table, parts in tables.items():
        rows = [number for (number, _, _), part in parts for _ in range(len(part))]
        keys = [key for (_, key, _), part in parts for _ in range(len(part))]
        said = pl.concat([part for _, part in parts], how="diagonal_relaxed") if parts else pl.DataFrame()
        labelled = labels[rows].with_columns(key=pl.Series(keys, dtype=pl.String))
        yield table, pl.concat([labelled, said], how="horizontal")


def write_summary(study: Study, steps: Sequence[Step], failed: Iterable[Record] = ()) -> None:
    """Write ``failures.jsonl``, also of what `failed` beside the tasks, and ``summary.json``."""
    write_whole(study.output / "failures.jsonl", failures_document(steps, failed))
    document = msgspec.json.format(msgspec.json.encode(_summary(study, steps)), indent=2)
    write_whole(study.output / "summary.json", document + b"\n")


def group_names(study: Study) -> list[str]:
    """The columns by which runs are put together: all that tell tasks apart, but for the seed and what never varies."""
    fixed = {"model", "task", "config"}
    varied = {name for name in study.label_names if len({repr(task.labels.get(name)) for task in study.tasks}) > 1} - {
        "seed"
    }
    return [name for name in study.label_names if name in fixed | varied]


def _summary(study: Study, steps: Sequence[Step]) -> dict[str, Any]:
    states = [state for _, state, _ in steps]
    tables = {file.stem: pl.read_parquet(file) for file in sorted((study.output / "tables").glob("*.parquet"))}
    names = group_names(study)
    told = {one["table"]: one for one in _findings(study, tables, names)}
    groups: dict[str, dict[str, Any]] = {}
    for table, frame in tables.items():
        if table == "folders" or table in told or not _one_row_per_task(frame, study):
            continue
        chosen = RUNS_SUMMARY if table == "runs" else [c for c in frame.columns if c not in (*study.label_names, "key")]
        for row in _grouped(frame, names, chosen).to_dicts():
            group = {name: row.pop(name) for name in names}
            runs = row.pop("runs")
            entry = groups.setdefault(repr(group), {**group, "runs": runs, "values": {}})
            entry["values"] |= {column if table == "runs" else f"{table}.{column}": row[column] for column in row}
    return {
        "study": study.name,
        "description": study.description,
        "tasks": len(steps),
        **{state: states.count(state) for state in ("done", "failed", "left")},
        "group_by": names,
        "groups": list(groups.values()),
        "findings": list(told.values()),
        "tables": [{"table": name, "rows": len(frame)} for name, frame in tables.items()],
    }


def _findings(study: Study, tables: Mapping[str, pl.DataFrame], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the questions themselves say is to be told of their tables (`Analysis.by`, `Analysis.show`)."""
    for analysis in study.analyses:
        frame = tables.get(analysis.table)
        if frame is None or not (analysis.by or analysis.show or analysis.of == "store"):
            continue
        by = [*(names if analysis.of != "store" else ()), *analysis.by]
        finding = {"table": analysis.table, "rows": len(frame), "group_by": by}
        if not set(by) <= set(frame.columns):  # a table without any answer has no columns of its own
            yield finding | {"told": []}
        elif by:
            shown = [name for name in analysis.show if name in frame.columns]
            yield finding | {"told": _grouped(_together(frame, names, by), by, shown).to_dicts()}
        else:
            shown = [name for name in analysis.show or frame.columns if name in frame.columns]
            yield finding | {"told": frame.select(shown).head(FIRST_ROWS).to_dicts()}


def _together(frame: pl.DataFrame, names: Sequence[str], by: Sequence[str]) -> pl.DataFrame:
    """The rows in the order of the study's groups, and in these in the order in which `by` first has its values."""
    first = [pl.int_range(pl.len()).min().over(columns) for columns in (set(names) & set(by), by) if columns]
    return frame.sort(first, maintain_order=True)


def _one_row_per_task(frame: pl.DataFrame, study: Study) -> bool:
    """Whether a table has the columns that tell tasks apart, and no two rows of the same task."""
    if not set(study.label_names) <= set(frame.columns):
        return False
    return bool(frame.select(study.label_names).is_unique().all())


def _grouped(frame: pl.DataFrame, names: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
    """Per group the number of runs, the share of every truth value that is true, the median of every number.

    In a table of all runs together it is the number of rows.
    """
    schema = frame.schema
    said = [pl.col(name).mean() for name in columns if schema[name] == pl.Boolean]
    said += [pl.col(name).median() for name in columns if schema[name].is_numeric()]
    count = pl.col("key").n_unique().alias("runs") if "key" in schema else pl.len().alias("rows")
    return frame.group_by(names, maintain_order=True).agg(count, *said)


def _labels(study: Study) -> pl.DataFrame:
    """One row per task: the columns that tell it from the others, null where its task has no such option."""
    rows = [{name: task.labels.get(name) for name in study.label_names} for task in study.tasks]
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


_FACTS: dict[str, Any] = {
    "tokens": pl.Int64,
    "blocks": pl.Int64,
    "budget": pl.Int64,
    "edges": pl.Int64,
    "pruned_causal": pl.Float64,
    "pruned_visible": pl.Float64,
    "next_tokens_match": pl.Boolean,
    "kl": pl.Float64,
    "answer_tokens": pl.Int64,
    "answer_tokens_kept": pl.Int64,
    "dense_answer_tokens_kept": pl.Int64,
    "expected": pl.String,
    "dense_answer": pl.String,
    "sparse_answer": pl.String,
    "dense_score": pl.Float64,
    "sparse_score": pl.Float64,
    "success": pl.Boolean,
    "margin": pl.Float64,
}


_MATCHED = ("next_tokens_match", "kl", "answer_tokens", "answer_tokens_kept", "dense_answer_tokens_kept")
"""Those that the fidelity tells."""


def _facts(run: Run) -> dict[str, Any]:
    """What a run's manifest says of its prompt, its size, its fidelity and its outcome; None where it says nothing."""
    manifest = run.manifest
    known = {
        "tokens": manifest.prompt.tokens,
        "blocks": manifest.prompt.blocks,
        "budget": manifest.budget,
        "edges": manifest.cost.edges,
        "pruned_causal": manifest.cost.pruned.causal,
        "pruned_visible": manifest.cost.pruned.visible,
    }
    # The answers as text are the outcome's; the fidelity's are token ids, and there without an outcome too.
    said = {name: getattr(manifest.outcome, name) for name in _FACTS if hasattr(manifest.outcome, name)}
    matched = {name: getattr(manifest.fidelity, name, None) for name in _MATCHED}
    return {name: (known | matched | said).get(name) for name in _FACTS}


def _whereabouts(run: Run) -> dict[str, Any]:
    return {"run": run.id, "created": run.created, "capture_seconds": run.cost.capture_seconds}
