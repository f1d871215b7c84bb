"""What every answer carries, whatever was asked: the policy, the attention that the graph lacks, and the null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import polars as pl

from attngraph.graph import AttentionGraph, Policy, completeness, mean_completeness
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.audit import CompletenessSource
from attngraph_analyses.nulls import Compared


class About(TypedDict):
    """The fields of an `Answer`."""

    policy: Policy
    block_size: int
    completeness: float | None
    completeness_source: CompletenessSource | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer(ArrowTable):
    """The base of all results.

    Parameters
    ----------
    policy
        How edges became probabilities.
    block_size
        Tokens per block; products over blocks only approximate products over tokens.
    completeness
        Share of the target's walk that never leaves the recorded edges, from 0 to 1; None if it isn't known. Of a
        question without a target, the mean over all nodes of the last level.
    completeness_source
        ``"audited"`` or ``"estimated"``, None if it isn't known; see `attngraph.graph.audit`.
    """

    policy: Policy
    block_size: int
    completeness: float | None = None
    completeness_source: CompletenessSource | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparedAnswer(Answer):
    """The base of results that may be compared with a null.

    Parameters
    ----------
    against
        How the result's number, or array of them, stands against a null; None where none was asked for. Each result
        says which number it is.
    """

    against: Compared | None = None

    def beside_null(self, frame: pl.DataFrame, name: str) -> pl.DataFrame:
        """A table with one row per compared number, and null_`name`, ratio and rank added where there is a null."""
        return frame if self.against is None else frame.with_columns(self.against.columns(name))


def about(graph: AttentionGraph, target: str | None) -> About:
    """What an answer says of its graph; `target` is None where the question has none.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    GraphError
        If a layer can't be read under the graph's policy.
    """
    known = mean_completeness(graph) if target is None else completeness(graph, target)
    return About(
        policy=graph.policy,
        block_size=graph.block_size,
        completeness=known.share,
        completeness_source=known.source,
    )
