"""`attngraph routes`: along which heads and blocks did a source reach the target?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

import attngraph as ag
from attngraph.cli.options import Json

if TYPE_CHECKING:  # at run time the graph's libraries would slow `attngraph --help` down
    from attngraph.graph.transition import Heads, Residual, Sink, Weight


def routes(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    source: Annotated[str, typer.Option(help="Where routes start: a span, block:N, token:N or output.")] = "needle",
    target: Annotated[
        str, typer.Option(help="Where routes end: a span, block:N, a recorded token:N or output.")
    ] = "output",
    k: Annotated[int, typer.Option("-k", help="Number of routes, best first.")] = 10,
    weight: Annotated[str, typer.Option(help="Edge weights: contribution, mass or uniform.")] = "contribution",
    residual: Annotated[str, typer.Option(help="Residual shares: measured, half or a number.")] = "measured",
    heads: Annotated[str, typer.Option(help="Parallel heads: sum, or max (the strongest alone).")] = "sum",
    sink: Annotated[str, typer.Option(help="Edges from block 0: keep or exclude.")] = "keep",
    as_json: Json = False,
) -> None:
    """Show the strongest routes from a source to a target: layer, head and blocks of every hop.

    Example: attngraph routes runs/run=01J9Z --source needle --target output -k 5
    """
    graph = ag.open_run(run).graph(
        weight=cast("Weight", weight),
        residual=as_residual(residual),
        heads=cast("Heads", heads),
        sink=cast("Sink", sink),
    )
    # The analyses live one floor up: this room reaches them through the lazy door `ag`.
    document = {"run": str(run), **ag.routes(graph, source, target, k).to_dict()}
    if as_json:
        typer.echo(json.dumps(document))
    else:
        Console().print(routes_table(document))


def as_residual(text: str) -> Residual:
    """A residual policy as typed: a number where the text is one, else the word, for `Policy` to judge."""
    try:
        return float(text)
    except ValueError:
        return cast("Residual", text)


def routes_table(document: Mapping[str, Any]) -> Table:
    """The document of `Routes.to_dict` as a table, one route per line, hops in the model's direction."""
    policy = document["policy"]
    table = Table(
        title=f"{document['source']} → {document['target']}",
        caption=f"{policy['weight']} weights, residual {policy['residual']}, blocks of {document['block_size']} tokens",
    )
    table.add_column("route", justify="right")
    table.add_column("weight", justify="right")
    table.add_column("hops", justify="right")
    table.add_column("block —layer.head→ block …", overflow="fold")
    for number, route in enumerate(document["routes"]):
        table.add_row(str(number), f"{route['weight']:.3g}", str(len(route["hops"])), _trail(route["hops"]))
    return table


def _trail(hops: Sequence[Mapping[str, Any]]) -> str:
    if not hops:
        return "stays in place"
    steps = [str(hops[0]["key_block"])]
    for hop in hops:
        end = hop["query_block"] if hop["target"] is None else f"token {hop['target']}"
        steps.append(f"—{hop['layer']}.{hop['head']}→ {end}")
    return " ".join(steps)
