"""`attngraph influence`: in which blocks does what the target reads start?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

import attngraph as ag
from attngraph.cli.answers import document_of, policy_line, show
from attngraph.cli.options import (
    HeadsPolicy,
    Json,
    ResidualPolicy,
    RunFolder,
    SinkPolicy,
    Target,
    WeightPolicy,
    graph_of,
)

SHOWN = 20
"""Blocks in the table for people; the JSON document has all of them."""


def influence(
    run: RunFolder,
    target: Target = "output",
    weight: WeightPolicy = "contribution",
    residual: ResidualPolicy = "measured",
    heads: HeadsPolicy = "sum",
    sink: SinkPolicy = "keep",
    json: Json = False,
) -> None:
    """Rank the blocks by their influence on a target, in excess of what uniform weights would give.

    Example: attngraph influence runs/run=01J9Z --target output
    """
    found = ag.influence(graph_of(run, weight, residual, heads, sink), target)
    document = {
        **document_of(run, found),
        "blocks": found.to_polars().to_dicts(),
    }
    show(document, _table, json)


def _table(document: Mapping[str, Any]) -> Table:
    table = Table(title=f"influence on {document['target']}", caption=policy_line(document))
    for name in ("rank", "block", "influence", "null", "excess"):
        table.add_column(name, justify="right")
    table.add_column("spans", overflow="fold")
    for block in sorted(document["blocks"], key=lambda block: block["rank"])[:SHOWN]:
        shares = (f"{block[name]:.3g}" for name in ("influence", "null", "excess"))
        table.add_row(str(block["rank"]), str(block["block"]), *shares, ", ".join(block["spans"]))
    return table
