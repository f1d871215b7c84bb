"""`attngraph heads`: what do the heads of a run attend to, and do those of a store's runs agree?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import completeness_line
from attngraph.cli.options import HeadNull, Json, Source, Target
from attngraph.cli.questions import FileOption, FormatOption, Reply, check_delivery, deliver

SCORES = ("sink", "own", "previous", "near", "far", "induction", "retrieval")
SHOWN = 20
"""Heads in the table for people; the JSON document has all of them."""


def heads(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|STORE", help="Folder of a run, or of a store.", show_default=False)
    ],
    source: Source = "needle",
    target: Target = "output",
    top: Annotated[int, typer.Option(help="Best retrieval heads that a store's runs are compared by.")] = 5,
    null: HeadNull = "distance",
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Show every head's role: retrieval, induction-like, sink, local, long-range; over a store, how far runs agree.

    Example: attngraph heads runs/run=01J9Z --source needle --target output
    """
    check_delivery(json, format, file)
    is_store = path.is_dir() and not path.name.startswith("run=") and not (path / ag.store.MANIFEST_FILE).exists()
    reply = _of_store(path, source, target, top, null) if is_store else _of_run(path, source, target, null)
    deliver(reply, json, format, file)


def _of_run(path: Path, source: str, target: str, null: HeadNull) -> Reply:
    found = ag.head_roles(ag.open_run(path), source, target, null=null)
    frame = found.to_polars()
    document = {
        "run": str(path),
        "source": source,
        "target": target,
        "null": found.retrieval_against.null.name,
        "block_size": found.block_size,
        "completeness": found.completeness,
        "completeness_source": found.completeness_source,
        "heads": frame.to_dicts(),
    }
    return Reply(document, frame, _table)


def _of_store(path: Path, source: str, target: str, top: int, null: HeadNull) -> Reply:
    found = ag.head_stability(ag.open_store(path), source, target, count=top, null=null)
    document = {
        "store": str(path),
        "source": source,
        "target": target,
        "top": top,
        "overlap": found.overlap,
        "runs": found.runs.to_dicts(),
        "heads": found.heads.to_dicts(),
    }
    return Reply(document, found.heads, _store_table)


def _table(document: Mapping[str, Any]) -> Table:
    title = f"heads: retrieval of {document['source']} at {document['target']}, null: {document['null']}"
    caption = f"of the target's rows: {completeness_line(document)}"
    table = Table(title=title, caption=caption, box=None, padding=(0, 1, 0, 0))
    table.add_column("layer.head", justify="right")
    table.add_column("role")
    for name in (*SCORES, "null"):
        table.add_column(name, justify="right")
    for head in document["heads"][:SHOWN]:
        scores = (_share(head[name]) for name in (*SCORES, "retrieval_null"))
        table.add_row(f"{head['layer']}.{head['head']}", head["role"], *scores)
    return table


def _store_table(document: Mapping[str, Any]) -> Table:
    agreement = ", ".join(f"{model} {_share(share)}" for model, share in document["overlap"].items()) or "no runs"
    title = f"heads: retrieval of {document['source']} at {document['target']}"
    table = Table(title=title, caption=f"mean overlap of the best {document['top']}: {agreement}")
    for name in ("model", "layer.head", "role", "runs", "among best", "retrieval", "±"):
        table.add_column(name, justify="left" if name in ("model", "role") else "right")
    for head in document["heads"][:SHOWN]:
        scores = (_share(head[name]) for name in ("among_best", "retrieval", "retrieval_deviation"))
        table.add_row(head["model"], f"{head['layer']}.{head['head']}", head["role"], str(head["runs"]), *scores)
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
