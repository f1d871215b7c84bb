"""`attngraph cuts`: what would have to be blocked so that nothing of a source reaches a target?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import end_of, null_line, policy_line
from attngraph.cli.options import NullOption, Source, Target
from attngraph.cli.questions import Reply, question

if TYPE_CHECKING:
    from attngraph.graph import AttentionGraph

SHOWN = 30
"""Edges, nodes or blocks in the table for people; the JSON document has all of them."""


@question
def cuts(
    graph: AttentionGraph,
    source: Source = "needle",
    target: Target = "output",
    of: Annotated[Literal["edges", "nodes", "blocks"], typer.Option(help="What is cut.")] = "edges",
    capacity: Annotated[
        Literal["mass", "unit", "throughput"], typer.Option(help="What a cut costs: attention, number, or share.")
    ] = "mass",
    threshold: Annotated[float, typer.Option(help="Leave out steps that carry less than this share.")] = 0.001,
    stream: Annotated[Literal["keep", "cut"], typer.Option(help="Whether residual streams can be cut.")] = "keep",
    null: NullOption = None,
) -> Reply:
    """Find the least that every route from a source to a target goes through, and the blocks that all of them pass.

    Example: attngraph cuts runs/run=01J9Z --source needle --target output --of nodes --capacity unit
    """
    found = ag.minimum_cut(
        graph, source, target, of=of, capacity=capacity, threshold=threshold, residual=stream, null=null
    )
    passed = ag.dominators(graph, source, target, threshold=threshold)
    dominators = {"blocks": passed.block.tolist(), "nodes": passed.to_polars().to_dicts()}
    return Reply({**found.to_dict(), "dominators": dominators}, found.to_polars(), _table)


def _table(document: Mapping[str, Any]) -> Table:
    value = "no finite cut" if document["value"] is None else f"{document['value']:.4g} {document['capacity']}"
    blocks = ", ".join(map(str, document["dominators"]["blocks"])) or "none"
    title = f"{document['source']} → {document['target']}: {len(document['cut'])} {document['of']}, {value}"
    notes = f"threshold {document['threshold']:g}, every route passes block {blocks}{null_line(document)}"
    table = Table(title=title, caption=f"{policy_line(document)}, {notes}", min_width=76)
    if document["of"] == "edges":
        for name in ("throughput", "mass", "layer.head", "from block", "to"):
            table.add_column(name, justify="right")
        for edge in document["cut"][:SHOWN]:
            mass = "" if edge["mass"] is None else f"{edge['mass']:.3g}"
            head = f"{edge['layer']}.{'stay' if edge['head'] is None else edge['head']}"
            table.add_row(f"{edge['throughput']:.3g}", mass, head, str(edge["key_block"]), end_of(edge))
        return table
    columns = ("level", "block") if document["of"] == "nodes" else ("block",)
    for name in columns:
        table.add_column(name, justify="right")
    for node in document["cut"][:SHOWN]:
        end = end_of({"query_block": node["block"], "target": node["target"]})
        table.add_row(*([str(node["level"]), end] if document["of"] == "nodes" else [end]))
    return table
