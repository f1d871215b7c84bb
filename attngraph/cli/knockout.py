"""`attngraph knockout`: does the model still answer when the edges that a graph points at are taken away?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import completeness_line, document_of, end_of
from attngraph.cli.options import (
    HeadsPolicy,
    Json,
    ResidualPolicy,
    RunFolder,
    SinkPolicy,
    Source,
    Target,
    WeightPolicy,
    policies_of,
)
from attngraph.cli.output import note
from attngraph.cli.questions import FileOption, FormatOption, Reply, check_delivery, deliver

SHOWN = 5
"""Edges in the table for people; the JSON document has all of them."""


def knockout(
    run: RunFolder,
    source: Source = "needle",
    target: Target = "output",
    edges: Annotated[int, typer.Option(help="Edges removed: so many of greatest throughput.")] = 30,
    forward: Annotated[
        Literal["sparse", "dense"] | None,
        typer.Option(help="Remove them from the pruned or from the dense pass.", show_default="as captured"),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="mass_matched, random, distance_matched or row_matched. May be repeated.",
            show_default="the first three",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Sets drawn for each control.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="The other way round: remove all but these edges and the forced blocks.")
    ] = False,
    curves: Annotated[
        bool, typer.Option("--curves", help="Also by degrees: fewer edges removed, and nothing but a sub-graph kept.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Where to load the run's model from.", show_default="its name in the run")
    ] = None,
    weight: WeightPolicy = "contribution",
    residual: ResidualPolicy = "measured",
    heads: HeadsPolicy = "sum",
    sink: SinkPolicy = "keep",
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Read the prompt again without the edges that carry most, and see what the answer's log-probability loses.

    Example: attngraph knockout runs/run=01J9Z --source needle --target output --edges 30
    """
    check_delivery(json, format, file)
    opened = ag.open_run(run)
    graph = opened.graph(**policies_of(weight, residual, heads, sink))
    name = model or opened.manifest.model.id
    note(f"Loading {name} …")
    lm = ag.load_model(name)
    ends = {"source": source, "target": target, "graph": graph, "forward": forward, "seed": seed}
    chosen = {} if control is None else {"controls": control}
    found = ag.knockout(lm, opened, edges, draws=draws, keep=keep, **chosen, **ends)
    document = {"run": str(run), **document_of(found), **found.to_dict()}
    if curves:
        both = (ag.necessity(lm, opened, **ends), ag.sufficiency(lm, opened, **ends))
        document["curves"] = {curve.kind: curve.to_dict() for curve in both}
    deliver(Reply(document, found.to_polars(), _table), json, format, file)


def _table(document: Mapping[str, Any]) -> Table:
    edges = document["edges"]
    removed = f"{'all but ' if document['keep'] else ''}{len(edges)} edges"
    title = (
        f"{document['source']} → {document['target']}: {removed} out of the {document['forward']} pass, "
        f"log-probability of the first token of {document['answer']!r}"
    )
    table = Table(title=title, caption=_caption(document))
    for column in ("removed", "log-probability", "loses", "95 % of draws", "first choice"):
        table.add_column(column, justify="left" if column == "removed" else "right")
    base = document["base"]
    table.add_row("nothing", f"{base:.3f}", "", "", "")
    table.add_row(removed, *_numbers(document["knocked_out"], base), "", "yes" if document["survives"] else "no")
    for name, draws in document["control_draws"].items():
        interval = f"{draws['low']:.3f} to {draws['high']:.3f}" if draws["draws"] else "–"
        first = f"{sum(draws['survives'])} of {draws['draws']}"
        table.add_row(name.replace("_", " "), *_numbers(draws["median"], base), interval, first)
    for kind, curve in document.get("curves", {}).items():
        table.add_section()
        verb = "removed" if kind == "necessity" else "kept alone"
        for point in curve["points"]:
            first = "yes" if point["survives"] else "no"
            table.add_row(f"{point['edges']:,} {verb}", *_numbers(point["log_probability"], base), "", first)
    return table


def _numbers(value: float, base: float) -> tuple[str, str]:
    return ("–", "–") if value != value else (f"{value:.3f}", f"{base - value:.3f}")


def _caption(document: Mapping[str, Any]) -> str:
    best = (f"{edge['layer']}.{edge['head']} from {edge['key_block']} to {end_of(edge)}" for edge in document["edges"])
    shown = ", ".join(edge for edge, _ in zip(best, range(SHOWN), strict=False))
    more = f" and {len(document['edges']) - SHOWN} more" if len(document["edges"]) > SHOWN else ""
    return f"{shown}{more}; {completeness_line(document)}; {document['forwards']:.1f} forward passes"
