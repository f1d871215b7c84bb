"""`attngraph bottlenecks`: through how few blocks does what a target reads of a source pass?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import end_of, null_line, policy_line
from attngraph.cli.options import NullOption, Source, Target
from attngraph.cli.questions import Reply, question

if TYPE_CHECKING:
    from attngraph.graph import AttentionGraph

WIDEST = 20
"""Characters of the longest bar."""


@question
def bottlenecks(
    graph: AttentionGraph,
    source: Source = "needle",
    target: Target = "output",
    order: Annotated[int, typer.Option(help="Width: 2 for 1 / Σp², 1 for the exponential of the entropy.")] = 2,
    null: NullOption = None,
) -> Reply:
    """Show how many blocks carry what a target reads of a source, level by level, and where the fewest do.

    Example: attngraph bottlenecks runs/run=01J9Z --source needle --target output
    """
    found = ag.bottlenecks(graph, source, target, order=order, null=null)
    return Reply(found.to_dict(), found.to_polars(), _table)


def _table(document: Mapping[str, Any]) -> Table:
    least, squash = document["bottleneck"], document["squash"]
    title = (
        f"{document['source']} → {document['target']}: narrowest at level {least['level']}, {least['width']:.2f} wide"
    )
    ratio = None if squash is None else squash["ratio"]
    squashed = "" if ratio is None else f", squash ratio {ratio:.2g}"
    table = Table(title=title, caption=f"{policy_line(document)}{squashed}{null_line(document)}")
    for name in ("level", "width", "carrier", "share", "hops"):
        table.add_column(name, justify="right")
    table.add_column("")
    widest = max(level["width"] for level in document["levels"])
    for level in reversed(document["levels"]):
        hops = "" if level["hops"] is None else f"{level['hops']:.2f}"
        carrier = end_of({"query_block": level["carrier"], "target": level["target"]})
        bar = "█" * max(1, round(WIDEST * level["width"] / widest))
        table.add_row(str(level["level"]), f"{level['width']:.2f}", carrier, f"{level['carrier_share']:.2f}", hops, bar)
    return table
