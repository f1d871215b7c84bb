"""`attngraph study`: many runs from one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.options import Json
from attngraph.cli.output import note, print_json, print_screen

study = typer.Typer(
    name="study",
    help="Carry out a study: many runs and analyses from one TOML file, resumed where they stopped.\n\n"
    "Example: attngraph study run analyses/studies/needle.toml",
    no_args_is_help=True,
)

StudyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The study, a TOML file.", show_default=False)]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Folder of runs, in place of the file's.")]
EngineOption = Annotated[
    Literal["serial", "processes", "ray"] | None, typer.Option("--engine", help="Who works, in place of the file's.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="How many, in place of the file's.")]

FAILED = 1
"""Exit code of a study that ran, but lacks something in the end."""


@study.command()
def run(
    file: StudyFile,
    store: StoreOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    retry: Annotated[bool, typer.Option("--retry/--no-retry", help="Try again what failed before.")] = True,
    json: Json = False,
) -> None:
    """Do what is left of a study, and write its tables.

    Ctrl-C stops it, the same command goes on. Exits with 1 if anything failed; the failures are in failures.jsonl.

    Example: attngraph study run analyses/studies/needle.toml --engine processes --workers 2
    """
    plan = ag.study.load(file, ag.ANALYSES, store=store, engine=engine, workers=workers)
    report = ag.study.run(plan, retry_failed=retry, progress=False if json else None)
    document = {**_whereabouts(plan), "tasks": len(plan.tasks), **report._asdict()}
    if json:
        print_json(document)
    else:
        print_screen(
            f"{plan.name}: {report.done} of {len(plan.tasks)} done, {report.failed} failed, {report.left} left "
            f"({report.captured} captured now, {report.retries} retries)",
            f"tables in {plan.output / 'tables'}",
        )
    if not report.ok:
        note(f"What failed is in {plan.output / 'failures.jsonl'}; the same command tries it again.")
        raise typer.Exit(FAILED)


@study.command()
def status(file: StudyFile, store: StoreOption = None, json: Json = False) -> None:
    """Say how far a study is, by model, task, settings and options; loads no model.

    Example: attngraph study status analyses/studies/needle.toml
    """
    plan = ag.study.load(file, ag.ANALYSES, store=store)
    groups = ag.study.status(plan)
    totals = {state: sum(getattr(group, state) for group in groups) for state in ("done", "failed", "left")}
    if json:
        print_json(
            {**_whereabouts(plan), "tasks": len(plan.tasks), **totals, "groups": [group._asdict() for group in groups]}
        )
        return
    table = Table(title=plan.name, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in (*groups[0].labels, "done", "failed", "left"):
        table.add_column(name, justify="right" if name in totals else "left")
    for group in groups:
        table.add_row(*map(_cell, group.labels.values()), str(group.done), str(group.failed), str(group.left))
    print_screen(table, f"{totals['done']} of {len(plan.tasks)} done, {totals['failed']} failed, {totals['left']} left")


@study.command()
def summary(
    file: StudyFile,
    store: StoreOption = None,
    table: Annotated[str | None, typer.Option("--table", help="Show the first rows of this table.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many of them.")] = 20,
    json: Json = False,
) -> None:
    """Show what a study found, from its tables on disk: shares of what is true or false, medians of numbers.

    Example: attngraph study summary analyses/studies/needle.toml --table influence_rank
    """
    plan = ag.study.load(file, ag.ANALYSES, store=store)
    document = ag.study.summary(plan)
    if table is not None:
        document = {"table": table, "rows": ag.study.read_table(plan, table).head(rows).to_dicts()}
    document = {**_whereabouts(plan), **document}
    if json:
        print_json(document)
    elif table is not None:
        print_screen(_rows(document["rows"], table))
    else:
        states = ", ".join(f"{document[state]} {state}" for state in ("done", "failed", "left"))
        shown = [*_groups(document), *map(_finding, document["findings"])]
        print_screen(f"{plan.name}: {states}; below shares of runs and medians", *shown, _tables(document))


def _whereabouts(plan: ag.study.Study) -> dict[str, Any]:
    return {"study": plan.name, "store": str(plan.store), "output": str(plan.output)}


def _groups(document: Mapping[str, Any]) -> list[Table]:
    """One table for the runs and one per analysis: the groups, by what varies, and what is said of them."""
    groups = document["groups"]
    varied = [name for name in document["group_by"] if len({repr(group[name]) for group in groups}) > 1]
    sources: dict[str, list[str]] = {}
    for value in dict.fromkeys(name for group in groups for name in group["values"]):
        sources.setdefault(value.rpartition(".")[0] or "runs", []).append(value)
    return [
        _rows(
            [
                {
                    **{name: group[name] for name in varied},
                    "runs": group["runs"],
                    **{value.rpartition(".")[2]: group["values"].get(value) for value in values},
                }
                for group in groups
            ],
            source,
        )
        for source, values in sources.items()
    ]


def _finding(finding: Mapping[str, Any]) -> Table:
    """What a question's table says: medians by groups, without what all groups share, or its first rows."""
    told, by = finding["told"], finding["group_by"]
    if not by:
        return _rows(told, f"{finding['table']}: first {len(told)} of {finding['rows']:,} rows")
    same = {name for name in by if len(told) > 1 and len({repr(row[name]) for row in told}) == 1}
    kept = [{name: value for name, value in row.items() if name not in same} for row in told]
    return _rows(kept, f"{finding['table']}: {finding['rows']:,} rows, by {', '.join(n for n in by if n not in same)}")


def _rows(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ():
        number = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _tables(document: Mapping[str, Any]) -> str:
    tables = (
        f"  {Path(document['output']) / 'tables' / one['table']}.parquet: {one['rows']:,} rows"
        for one in document["tables"]
    )
    return "\n".join(["tables", *tables])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
