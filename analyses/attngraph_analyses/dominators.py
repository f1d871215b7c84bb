"""Dominators: which nodes and which blocks does every route from a source to a target pass?

Every route passes each level once, so a node is on all of them exactly if it is the only one of its level on any. A
block is passed by all of them if without its nodes, at every level at once, no route is left; only blocks of one
route can be, so one sweep with a state for each block of some route decides (reachability, (or, and)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from attngraph.graph import AttentionGraph, blocks_of
from attngraph.graph.source import IntArray
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about
from attngraph_analyses.steps import RoutesGraph, check_threshold, routes_graph, without_route


@dataclass(frozen=True, eq=False, kw_only=True)
class Dominators(ComparedAnswer):
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
    against
        How the number of blocks stands against a null.
    """

    source: str
    target: str
    threshold: float
    level: IntArray
    node: IntArray
    block: IntArray
    node_block: IntArray
    node_target: tuple[int | None, ...]

    def to_polars(self) -> pl.DataFrame:
        """One row per node: level, block, target (null for blocks)."""
        targets = pl.Series(self.node_target, dtype=pl.Int64)
        return pl.DataFrame(
            {"level": self.level, "block": self.node_block[self.node], "target": targets.gather(self.node)}
        )


def dominators(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    threshold: float = 0.0,
    null: Null | NullName | None = None,
) -> Dominators:
    """The nodes and the blocks that every route from a source to a target passes.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    threshold
        Steps that carry less than this share of the walks are left out, from 0 to 1.
    null
        Also ask how many blocks every route passes under this null; NaN where there is no route.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no route is made of steps that carry at least `threshold`.
    ConfigError
        If the threshold is out of range, or the null changes nothing: ``"heads"``, and ``"uniform"`` without a
        threshold.
    GraphError
        If the null has nothing to compare with.
    """
    check_threshold(threshold)
    names = ALL_BUT_HEADS if threshold > 0 else ALL_BUT_HEADS[1:]
    chosen = None if null is None else meaningful(null, "what every route passes", *names)
    question = Question(graph, blocks_of(graph, source), target)
    found = routes_graph(question, threshold)
    if found is None:
        raise without_route(graph, source, target, threshold)
    single = np.flatnonzero(found.live.sum(1) == 1)
    result = Dominators(
        source=source,
        target=target,
        threshold=threshold,
        level=single,
        node=found.live[single].argmax(1),
        block=_passed_by_all(found),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        **about(graph, target),
    )
    if chosen is None:
        return result

    def ask(question: Question) -> float:
        other = routes_graph(question, threshold)
        return np.nan if other is None else len(_passed_by_all(other))

    return replace(result, against=compare(ask, question, chosen, value=len(result.block)))


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
