"""`attngraph compare`: how far apart are the heads of two models?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.figures import FigureOption, check_figure, save
from attngraph.cli.options import Json, Target
from attngraph.cli.questions import FileOption, FormatOption, Reply, check_delivery, deliver

SHOWN = 15
"""Differences in the table for people; the JSON document has all of them."""


def compare(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.", show_default=False)],
    by: Annotated[Literal["model", "fingerprint", "task"], typer.Option(help="What tells the groups apart.")] = "model",
    source: Annotated[str, typer.Option(help="Where retrieval starts; none for prompts without a source.")] = "needle",
    target: Target = "output",
    bins: Annotated[int, typer.Option(help="Bins of relative depth.")] = 5,
    permutations: Annotated[int, typer.Option(help="Of the labels, at least 19.")] = 9_999,
    of: Annotated[
        Literal["distances", "differences", "profiles"], typer.Option(help="The table that -o and csv write.")
    ] = "distances",
    figure: FigureOption = None,
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Compare what the heads of models attend to by relative depth, beside what tells runs of one model apart.

    Example: attngraph compare runs --by model
    """
    check_delivery(json, format, file)
    check_figure(figure)
    found = ag.compare(
        ag.open_store(store),
        by,
        source=None if source == "none" else source,
        target=target,
        bins=bins,
        permutations=permutations,
    )
    if figure is not None:
        save(found.figure(), figure)
    frame = {"distances": found.distances, "differences": found.differences, "profiles": found.profiles}[of]
    deliver(Reply({"store": str(store), **found.to_dict()}, frame, _table), json, format, file)


def _table(document: Mapping[str, Any]) -> Table:
    groups = ", ".join(f"{name} ({runs} runs)" for name, runs in document["groups"].items())
    lines = [
        f"{pair['one']} and {pair['other']}: distance {_number(pair['between'])}, within "
        f"{_number(pair['within_one'])} and {_number(pair['within_other'])}; p {_number(pair['p'])}"
        for pair in document["distances"]
    ]
    table = Table(title=f"{document['by']}s compared: {groups}", caption="\n".join(lines))
    for name in ("one", "other", "score", "depth", "mean of one", "of other", "t", "p", "q"):
        table.add_column(name, justify="left" if name in ("one", "other", "score") else "right")
    for each in document["differences"][:SHOWN]:
        depth = f"{each['depth_start']:.2g}–{each['depth_end']:.2g}"
        numbers = (_number(each[name]) for name in ("mean_one", "mean_other", "t", "p", "q"))
        table.add_row(each["one"], each["other"], each["score"], depth, *numbers)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
