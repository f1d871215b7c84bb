"""`attngraph routes`: along which heads and blocks did a source reach the target?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import end_of, null_line, policy_line
from attngraph.cli.options import NullOption, Source, Target
from attngraph.cli.questions import Reply, question

if TYPE_CHECKING:
    from attngraph.graph import AttentionGraph


@question
def routes(
    graph: AttentionGraph,
    source: Source = "needle",
    target: Target = "output",
    k: Annotated[int, typer.Option("-k", help="Number of routes, best first.")] = 10,
    kind: Annotated[str, typer.Option(help="best: by product; widest: by the smallest step.")] = "best",
    distinct: Annotated[str, typer.Option(help="Routes differ in their edges or in their nodes.")] = "edges",
    reuse: Annotated[
        float, typer.Option(help="Worth of what an earlier route used: 1 all of it, 0 nothing (disjoint routes).")
    ] = 1.0,
    null: NullOption = None,
) -> Reply:
    """Show the strongest routes from a source to a target: layer, head and blocks of every hop.

    Example: attngraph routes runs/run=01J9Z --source needle --target output -k 5
    """
    # The analyses live one floor up: this room reaches them through the lazy door `ag`.
    found = ag.routes(graph, source, target, k, kind=kind, distinct=distinct, reuse=reuse, null=null)
    return Reply(found.to_dict(), found.to_polars(), routes_table)


def routes_table(document: Mapping[str, Any]) -> Table:
    """The document of `Routes.to_dict` as a table, one route per line, hops in the model's direction."""
    table = Table(
        title=f"{document['source']} → {document['target']}", caption=f"{policy_line(document)}{null_line(document)}"
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
    return " ".join([str(hops[0]["key_block"]), *(f"—{hop['layer']}.{hop['head']}→ {end_of(hop)}" for hop in hops)])
