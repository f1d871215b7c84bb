"""Reach: which nodes can hold anything of a source, and from which level on?

A sweep of the (or, and) algebra: a node is reached if any path of positive weight leads there from the source.
With a budget of a few blocks per head and layer, the field grows by a factor per layer, so the first level
says how many hops away a block is at least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.graph import AttentionGraph, Policy, forward, source_state, target_state
from attngraph.graph.arrow import ArrowTable


@dataclass(frozen=True, eq=False, kw_only=True)
class Reach(ArrowTable):
    """What `reach` found.

    Parameters
    ----------
    source
        Where paths start.
    reached
        ``[layers + 1, nodes]``: whether any path leads from the source to the node.
    graph
        The graph that was asked; `policy` is part of it.
    """

    source: str
    reached: npt.NDArray[np.bool_]
    graph: AttentionGraph

    @property
    def policy(self) -> Policy:
        """How edges became probabilities."""
        return self.graph.policy

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


def reach(graph: AttentionGraph, source: str) -> Reach:
    """The nodes that any path of positive weight leads to from a source, level by level.

    Parameters
    ----------
    source
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``.

    Raises
    ------
    UnknownNodeError
        If the source names nothing.
    """
    state = source_state(graph, source) > 0
    return Reach(source=source, reached=np.stack(list(forward(graph, state, "or_and"))), graph=graph)
