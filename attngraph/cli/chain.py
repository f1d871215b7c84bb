"""`attngraph chain` and `chain-test`: does the walk from the answer follow a chain of hops, in a run and in many?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import policy_line
from attngraph.cli.figures import FigureOption, check_figure, save
from attngraph.cli.options import (
    HeadsPolicy,
    Json,
    ResidualPolicy,
    RunFolder,
    SinkPolicy,
    Target,
    WeightPolicy,
    policies_of,
)
from attngraph.cli.questions import FileOption, FormatOption, Reply, check_delivery, deliver

Hops = Annotated[
    list[str] | None, typer.Option("--hop", help="A hop, in the order of the text; once each. [default: hop:0, …]")
]
Before = Annotated[str, typer.Option(help="Other places end before this span.")]
Draws = Annotated[int, typer.Option(help="Places in the haystack for each hop, at most.")]


def chain(
    run: RunFolder,
    hops: Hops = None,
    target: Target = "output",
    before: Before = "question",
    draws: Draws = 199,
    weight: WeightPolicy = "contribution",
    residual: ResidualPolicy = "measured",
    heads: HeadsPolicy = "sum",
    sink: SinkPolicy = "keep",
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Rank the walks through every hop of a chain among those through other places in their stead.

    Example: attngraph chain runs/run=01J9Z --json
    """
    check_delivery(json, format, file)
    opened = ag.open_run(run)
    graph = opened.graph(**policies_of(weight, residual, heads, sink))
    found = ag.chain(graph, hops or (), target, others=ag.other_chains(opened), before=before, draws=draws)
    deliver(Reply({"run": str(run), **found.to_dict()}, found.to_polars(), _ranks), json, format, file)


def chain_test(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.", show_default=False)],
    hops: Hops = None,
    target: Target = "output",
    by: Annotated[
        list[str] | None, typer.Option("--by", help="A field that tells groups apart. [default: model]")
    ] = None,
    before: Before = "question",
    draws: Draws = 199,
    figure: FigureOption = None,
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Test over the runs of a store whether their chains rank above chance, successes and failures apart.

    Example: attngraph chain-test runs --figure chains.png
    """
    check_delivery(json, format, file)
    check_figure(figure)
    found = ag.chain_test(ag.open_store(store), hops or (), target, by=by or ("model",), before=before, draws=draws)
    if figure is not None:
        save(found.figure(), figure)
    deliver(Reply({"store": str(store), **found.to_dict()}, found.tests, _tests), json, format, file)


def _ranks(document: Mapping[str, Any]) -> Table:
    hops = " → ".join(f"{hop['hop']} ({', '.join(map(str, hop['blocks']))})" for hop in document["hops"])
    title = f"{hops} → {document['target']}: {document['weight']:.3g} of the walks"
    table = Table(title=title, caption=policy_line(document))
    _columns(table, ("replaced", "by places in", "places", "their median", "percentile", "first"))
    for rank in document["ranks"]:
        numbers = (_number(rank[name]) for name in ("control_weight", "percentile"))
        first = "–" if rank["first"] is None else "yes" if rank["first"] else "no"
        table.add_row(rank["stop"], rank["control"], str(rank["controls"]), *numbers, first)
    return table


def _tests(document: Mapping[str, Any]) -> Table:
    table = Table(title="chains among chains with other places", caption="percentiles: 0.5 is chance")
    names = (*document["by"], "replaced", "by places in", "outcome")
    _columns(table, (*names, "runs", "mean", "interval", "upper half", "first", "p", "q"), texts=len(names))
    for test in document["tests"]:
        texts = (test[name] for name in (*document["by"], "stop", "control", "outcome"))
        interval = f"{test['low']:.2f}–{test['high']:.2f}"
        shares = (f"{test[name]:.0%}" for name in ("above", "first"))
        chance = (_number(test[name]) for name in ("p", "q"))
        table.add_row(*texts, str(test["runs"]), f"{test['mean']:.3f}", interval, *shares, *chance)
    return table


def _columns(table: Table, names: tuple[str, ...], texts: int = 2) -> None:
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < texts else "right")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
