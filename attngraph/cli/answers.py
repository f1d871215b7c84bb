"""What the commands that question a graph share: how an answer is laid out and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table

from attngraph.cli.output import print_json, print_screen

if TYPE_CHECKING:
    from attngraph.graph import Policy
    from attngraph.graph.audit import CompletenessSource


class Answer(Protocol):
    """The fields that every result of an analysis has."""

    @property
    def target(self) -> str: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def block_size(self) -> int: ...
    @property
    def completeness(self) -> float | None: ...
    @property
    def completeness_source(self) -> CompletenessSource | None: ...


def document_of(run: Path, found: Answer) -> dict[str, Any]:
    """What every answer says of the graph that it was asked of."""
    return {
        "run": str(run),
        "target": found.target,
        "policy": asdict(found.policy),
        "block_size": found.block_size,
        "completeness": found.completeness,
        "completeness_source": found.completeness_source,
    }


def show(document: Mapping[str, Any], table: Callable[[Mapping[str, Any]], Table], json: bool) -> None:
    """Print an answer: one JSON document, or a table for people."""
    if json:
        print_json(document)
    else:
        print_screen(table(document))


def policy_line(document: Mapping[str, Any]) -> str:
    """How a graph's edges became probabilities, and how much of the walk they hold, for the foot of a table."""
    policy = document["policy"]
    weights = f"{policy['weight']} weights, residual {policy['residual']}, blocks of {document['block_size']} tokens"
    return f"{weights}, {completeness_line(document)}"


def completeness_line(document: Mapping[str, Any]) -> str:
    """The share of the walk that the recorded edges hold, and how it is known."""
    if document["completeness"] is None:
        return "dropped attention not audited"
    return f"completeness {document['completeness']:.3f} ({document['completeness_source']})"


def end_of(edge: Mapping[str, Any]) -> str:
    """Where a hop or an edge ends: a block, or a target token."""
    return str(edge["query_block"]) if edge["target"] is None else f"token {edge['target']}"
