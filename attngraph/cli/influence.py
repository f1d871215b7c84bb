"""`attngraph influence`: in which blocks does what the target reads start?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import document_of, policy_line
from attngraph.cli.options import RankingNull, Target
from attngraph.cli.questions import Reply, question

if TYPE_CHECKING:
    from attngraph.graph import AttentionGraph

SHOWN = 20
"""Blocks in the table for people; the JSON document has all of them."""


@question
def influence(graph: AttentionGraph, target: Target = "output", null: RankingNull = "uniform") -> Reply:
    """Rank the blocks by their influence on a target, in excess of what a null would give.

    Example: attngraph influence runs/run=01J9Z --target output --null targets
    """
    found = ag.influence(graph, target, null=null)
    document = {**document_of(found), "null": found.against.name, "blocks": found.to_polars().to_dicts()}
    return Reply(document, found.to_polars(), _table)


def _table(document: Mapping[str, Any]) -> Table:
    title = f"influence on {document['target']}, null: {document['null']}"
    table = Table(title=title, caption=policy_line(document))
    for name in ("rank", "block", "influence", "null", "excess"):
        table.add_column(name, justify="right")
    table.add_column("spans", overflow="fold")
    for block in sorted(document["blocks"], key=lambda block: block["rank"])[:SHOWN]:
        shares = (f"{block[name]:.3g}" for name in ("influence", "null", "excess"))
        table.add_row(str(block["rank"]), str(block["block"]), *shares, ", ".join(block["spans"]))
    return table
