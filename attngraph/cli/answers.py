"""What the commands that question a graph share: how an answer is laid out and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from attngraph.cli.output import print_json, print_screen

if TYPE_CHECKING:
    from attngraph.graph import Policy


def document_of(run: Path, target: str, policy: Policy, block_size: int, completeness: float | None) -> dict[str, Any]:
    """What every answer says of the graph that it was asked of."""
    return {
        "run": str(run),
        "target": target,
        "policy": asdict(policy),
        "block_size": block_size,
        "completeness": completeness,
    }


def show(document: Mapping[str, Any], table: Callable[[Mapping[str, Any]], Table], json: bool) -> None:
    """Print an answer: one JSON document, or a table for people."""
    if json:
        print_json(document)
    else:
        print_screen(table(document))


def policy_line(document: Mapping[str, Any]) -> str:
    """How a graph's edges became probabilities, for the foot of a table."""
    policy = document["policy"]
    return f"{policy['weight']} weights, residual {policy['residual']}, blocks of {document['block_size']} tokens"


def end_of(edge: Mapping[str, Any]) -> str:
    """Where a hop or an edge ends: a block, or a target token."""
    return str(edge["query_block"]) if edge["target"] is None else f"token {edge['target']}"
