"""`attngraph throughput`: which edges carry what a target reads of a source?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import document_of, end_of, policy_line, show
from attngraph.cli.options import (
    HeadsPolicy,
    Json,
    ResidualPolicy,
    RunFolder,
    SinkPolicy,
    Source,
    Target,
    WeightPolicy,
    graph_of,
)


def throughput(
    run: RunFolder,
    source: Source = "needle",
    target: Target = "output",
    top: Annotated[int, typer.Option(help="Number of edges, best first.")] = 30,
    weight: WeightPolicy = "contribution",
    residual: ResidualPolicy = "measured",
    heads: HeadsPolicy = "sum",
    sink: SinkPolicy = "keep",
    json: Json = False,
) -> None:
    """Show the edges that carry most of what a target reads of a source.

    Example: attngraph throughput runs/run=01J9Z --source needle --target output --top 10
    """
    found = ag.throughput(graph_of(run, weight, residual, heads, sink), source, target, top=top)
    document = {
        **document_of(run, found),
        "source": found.source,
        "total": found.total,
        "edges": found.to_polars().to_dicts(),
    }
    show(document, _table, json)


def _table(document: Mapping[str, Any]) -> Table:
    title = f"{document['source']} → {document['target']}: {document['total']:.3g} of the target's walks"
    table = Table(title=title, caption=policy_line(document))
    for name in ("throughput", "layer.head", "from block", "to"):
        table.add_column(name, justify="right")
    for edge in document["edges"]:
        head = f"{edge['layer']}.{edge['head']}"
        table.add_row(f"{edge['throughput']:.3g}", head, str(edge["key_block"]), end_of(edge))
    return table
