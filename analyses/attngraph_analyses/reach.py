"""Reach: which nodes can hold anything of a source, and from which level on?

A sweep of the (or, and) algebra: a node is reached if any path of positive weight leads there from the source.
With a budget of a few blocks per head and layer, the field grows by a factor per layer, so the first level
says how many hops away a block is at least.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.graph import AttentionGraph, blocks_of, forward, target_state
from attngraph.graph.source import IntArray
from attngraph_analyses.nulls import Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about


@dataclass(frozen=True, eq=False, kw_only=True)
class Reach(ComparedAnswer):
    """What `reach` found.

    Parameters
    ----------
    source
        Where paths start.
    reached
        ``[layers + 1, nodes]``: whether any path leads from the source to the node.
    graph
        The graph that was asked.
    against
        How the number of nodes reached stands against a null, ``[layers + 1]``; the last level is the end.
    """

    source: str
    reached: npt.NDArray[np.bool_]
    graph: AttentionGraph

    @property
    def count(self) -> IntArray:
        """``[layers + 1]``: number of nodes reached at each level."""
        return np.asarray(self.reached.sum(1), np.int64)

    def at(self, target: str = "output") -> bool:
        """Whether any path leads to a target at the last level.

        Raises
        ------
        UnknownNodeError
            If the target names nothing.
        """
        return bool(self.reached[-1, target_state(self.graph, target) > 0].any())

    def to_polars(self) -> pl.DataFrame:
        """One row per node: block, target, first_level (null if never reached), at_the_end.

        `target` is null for blocks, and the token position for targets.
        """
        ever = self.reached.any(0)
        return pl.DataFrame(
            {
                "block": self.graph.node_blocks(),
                "target": pl.Series(self.graph.node_targets(), dtype=pl.Int64),
                "first_level": pl.Series(np.where(ever, self.reached.argmax(0), -1)).replace(-1, None),
                "at_the_end": self.reached[-1],
            }
        )

    def levels(self) -> pl.DataFrame:
        """One row per level: level, count (nodes reached), share (of all nodes).

        With a null also null_count, ratio and rank.
        """
        share = self.count / self.reached.shape[1]
        frame = pl.DataFrame({"level": np.arange(len(self.count)), "count": self.count, "share": share})
        return self.beside_null(frame, "count")


def reach(graph: AttentionGraph, source: str, *, null: Null | NullName | None = None) -> Reach:
    """The nodes that any path of positive weight leads to from a source, level by level.

    Parameters
    ----------
    source
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``.
    null
        Also ask how many nodes are reached under this null.

    Raises
    ------
    UnknownNodeError
        If the source names nothing.
    ConfigError
        If the null is none that changes what is reached: ``"edges"`` and ``"distance"`` do. Weights, the names of heads
        and targets don't matter.
    GraphError
        If the null has nothing to compare with.
    """
    chosen = None if null is None else meaningful(null, "what is reached", "edges", "distance")
    question = Question(graph, blocks_of(graph, source), f"block:{graph.blocks - 1}")
    found = Reach(source=source, reached=_reached(question), graph=graph, **about(graph, None))
    if chosen is None:
        return found

    def ask(question: Question) -> IntArray:
        return np.asarray(_reached(question).sum(1), np.int64)

    return replace(found, against=compare(ask, question, chosen, value=found.count))


def _reached(question: Question) -> npt.NDArray[np.bool_]:
    """Whether a node is reached, ``[layers + 1, nodes]``."""
    return np.stack(list(forward(question.graph, question.starts() > 0, "or_and")))
