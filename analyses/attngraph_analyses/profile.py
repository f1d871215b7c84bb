"""Influence, level by level: where does the walk from a target pass, and how far does a source spread?

For a target, f_ℓ is the distribution of its backward walk over the nodes of level ℓ: all of it in the target at
level L, its influence at level 0. For a source, h_ℓ is the share of each node's walk that ends in the source: 1 in
the source and 0 elsewhere at level 0, all that the model's output reads of it at level L.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, backward, blocks_of, forward, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nodes import node_table
from attngraph_analyses.nulls import Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about


@dataclass(frozen=True, eq=False, kw_only=True)
class InfluenceProfile(ComparedAnswer):
    """What `influence_profile` found.

    Parameters
    ----------
    target, source
        The end that was asked about, and None for the other.
    share
        ``[layers + 1, nodes]``: of a target, the probability that its walk is at the node, summing to 1 at every
        level; of a source, the probability that the node's walk ends in it, each from 0 to 1.
    node_block, node_target
        ``[nodes]``: each node's block, and the token position of those that are targets (None for blocks).
    against
        How `share` stands against a null, ``[layers + 1, nodes]``.
    """

    target: str | None
    source: str | None
    share: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]

    def to_polars(self) -> pl.DataFrame:
        """One row per level and node above 0: level, block, target (null for blocks), share.

        With a null also null_share, ratio and rank.
        """
        frame = node_table("share", self.share, self.node_block, self.node_target)
        if self.against is None:
            return frame
        return frame.with_columns(self.against.columns("share", *np.nonzero(self.share)))


def influence_profile(
    graph: AttentionGraph,
    *,
    target: str | None = None,
    source: str | None = None,
    null: Null | NullName | None = None,
) -> InfluenceProfile:
    """The walk of a target over the nodes of every level, or what every node reads of a source.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    target, source
        One of the two: a span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    null
        Also ask for every node's share under this null.

    Raises
    ------
    UnknownNodeError
        If the name means nothing.
    ConfigError
        If not exactly one end is given, or the null changes nothing: ``"heads"``, and the one that changes the other
        end (``"distance"`` for a target, ``"targets"`` for a source).
    GraphError
        If the null has nothing to compare with.
    """
    other_end: NullName
    if target is not None and source is None:
        question, other_end = Question(graph, None, target), "targets"
    elif source is not None and target is None:
        question, other_end = Question(graph, blocks_of(graph, source), f"block:{graph.blocks - 1}"), "distance"
    else:
        raise ConfigError(
            f"An influence profile is that of one end, but target={target!r} and source={source!r} were given. For "
            f"what passes between two ends see throughput(graph, source, target).nodes()."
        )
    chosen = None if null is None else meaningful(null, "this profile", "uniform", "edges", other_end)
    found = InfluenceProfile(
        target=target,
        source=source,
        share=_shares(question),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        **about(graph, target),
    )
    return found if chosen is None else replace(found, against=compare(_shares, question, chosen, value=found.share))


def _shares(question: Question) -> FloatArray:
    """The walk of a question's target, or what is read of its source where it has one, ``[layers + 1, nodes]``."""
    if question.blocks is None:
        return np.stack(list(backward(question.graph, target_state(question.graph, question.target)))[::-1])
    return np.stack(list(forward(question.graph, question.starts())))
