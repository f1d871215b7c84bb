"""`attngraph throughput`: which edges, heads and nodes carry what a target reads of a source?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import document_of, end_of, null_line, policy_line
from attngraph.cli.options import NullOption, Source, Target
from attngraph.cli.questions import Reply, question

if TYPE_CHECKING:
    from attngraph.graph import AttentionGraph

Of = Literal["edges", "heads", "nodes"]


@question
def throughput(
    graph: AttentionGraph,
    source: Source = "needle",
    target: Target = "output",
    top: Annotated[int, typer.Option(help="Number of edges, best first.")] = 30,
    of: Annotated[Of, typer.Option(help="What the table lists; the JSON document has edges and heads.")] = "edges",
    null: NullOption = None,
) -> Reply:
    """Show the edges, heads or nodes that carry most of what a target reads of a source.

    Example: attngraph throughput runs/run=01J9Z --source needle --target output --top 10
    """
    found = ag.throughput(graph, source, target, top=top, heads=True, null=null)
    frames = {"edges": found.to_polars, "heads": found.heads, "nodes": found.nodes}
    document = {
        **document_of(found),
        "source": found.source,
        "total": found.total,
        "null": found.against and found.against.to_dict(),
        "edges": found.to_polars().to_dicts(),
        "heads": found.heads().to_dicts(),
    }
    frame = frames[of]()
    return Reply(document, frame, lambda document: _table(document, of, frame.head(top).to_dicts()))


def _table(document: Mapping[str, Any], of: Of, rows: list[dict[str, Any]]) -> Table:
    title = f"{document['source']} → {document['target']}: {document['total']:.3g} of the target's walks"
    table = Table(title=title, caption=f"{policy_line(document)}{null_line(document)}")
    columns = {
        "edges": ("throughput", "layer.head", "from block", "to"),
        "heads": ("throughput", "layer.head"),
        "nodes": ("throughput", "level", "block"),
    }[of]
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        share = f"{row['throughput']:.3g}"
        if of == "nodes":
            table.add_row(share, str(row["level"]), end_of({"query_block": row["block"], "target": row["target"]}))
        else:
            ends = (str(row["key_block"]), end_of(row)) if of == "edges" else ()
            table.add_row(share, f"{row['layer']}.{row['head']}", *ends)
    return table
