"""What the commands that question a graph share: how an answer is laid out and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

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


def document_of(found: Answer) -> dict[str, Any]:
    """What every answer says of the graph that it was asked of."""
    return {
        "target": found.target,
        "policy": asdict(found.policy),
        "block_size": found.block_size,
        "completeness": found.completeness,
        "completeness_source": found.completeness_source,
    }


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


def null_line(document: Mapping[str, Any]) -> str:
    """How an answer stands against its null, for the end of a foot; nothing where there is none."""
    null = document.get("null")
    if null is None:
        return ""
    ratio = "undefined" if null["ratio"] is None else f"{null['ratio']:.3g}"
    return (
        f", {ratio} times the null {null['name']!r}, {null['rank']} of {null['draws']} alternatives at least as great"
    )


def end_of(edge: Mapping[str, Any]) -> str:
    """Where a hop or an edge ends: a block, or a target token."""
    return str(edge["query_block"]) if edge["target"] is None else f"token {edge['target']}"
