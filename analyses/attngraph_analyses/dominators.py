"""Dominators: which nodes and which blocks does every route from a source to a target pass?

Every route passes each level once, so a node is on all of them exactly if it is the only one of its level on any. A
block is passed by all of them if without its nodes, at every level at once, no route is left; only blocks of one
route can be, so one sweep with a state for each block of some route decides (reachability, (or, and)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from attngraph.graph import AttentionGraph, Policy, blocks_of
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import IntArray
from attngraph_analyses.nulls import Question
from attngraph_analyses.steps import RoutesGraph, check_threshold, routes_graph, without_route


@dataclass(frozen=True, eq=False, kw_only=True)
class Dominators(ArrowTable):
    """What `dominators` found.

    Parameters
    ----------
    source, target, threshold
        What was asked.
    level, node
        ``[dominators]``: nodes that every route passes, by level; see `node_block`.
    block
        ``[blocks]``: blocks that every route passes at one level or another, ascending. Where all routes start in
        one block or end in one, it is among them; a target token counts to its block.
    node_block, node_target
        Each node's block, and the token position of those that are targets (None for blocks).
    policy
        How edges became probabilities.
    """

    source: str
    target: str
    threshold: float
    level: IntArray
    node: IntArray
    block: IntArray
    node_block: IntArray
    node_target: tuple[int | None, ...]
    policy: Policy

    def to_polars(self) -> pl.DataFrame:
        """One row per node: level, block, target (null for blocks)."""
        targets = pl.Series(self.node_target, dtype=pl.Int64)
        return pl.DataFrame(
            {"level": self.level, "block": self.node_block[self.node], "target": targets.gather(self.node)}
        )


def dominators(graph: AttentionGraph, source: str, target: str = "output", *, threshold: float = 0.0) -> Dominators:
    """The nodes and the blocks that every route from a source to a target passes.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    threshold
        Steps that carry less than this share of the walks are left out, from 0 to 1.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no route is made of steps that carry at least `threshold`.
    ConfigError
        If the threshold is out of range.
    """
    check_threshold(threshold)
    found = routes_graph(Question(graph, blocks_of(graph, source), target), threshold)
    if found is None:
        raise without_route(graph, source, target, threshold)
    single = np.flatnonzero(found.live.sum(1) == 1)
    return Dominators(
        source=source,
        target=target,
        threshold=threshold,
        level=single,
        node=found.live[single].argmax(1),
        block=_passed_by_all(found),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        policy=graph.policy,
    )


def _passed_by_all(found: RoutesGraph) -> IntArray:
    """The blocks of one route without which no route is left."""
    node_block = found.graph.node_blocks()
    node = int(found.ends[0])
    route = [node]
    for steps in reversed(found.layers):
        node = int(steps.lower[(steps.upper == node).argmax()])
        route.append(node)
    candidates = np.unique(node_block[route])
    allowed = node_block[:, None] != candidates
    reached = found.live[0][:, None] & allowed
    for steps in found.layers:
        above = np.zeros_like(reached)
        np.logical_or.at(above, steps.upper, reached[steps.lower])
        reached = above & allowed
    return np.asarray(candidates[~reached.any(0)], np.int64)
