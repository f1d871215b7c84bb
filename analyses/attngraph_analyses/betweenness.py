"""Betweenness: which blocks lie on the ways from everywhere to a target?

All paths between two levels have the same number of steps, so every path from a block of level 0 to the target is a
shortest one, and Brandes' betweenness (2001) needs two sweeps instead of one per source. With σ the number of
paths, σ_s(t) from s to the target t,

    c(v) = Σ_s σ_s(v)·σ_v(t) / σ_s(t) = F(v)·B(v),

B from one sweep back from t, and F from one sweep forward that starts with 1 / σ_s(t) in every source s at once.
Numbers of paths overflow, so every level is scaled to what it must sum to: the number of sources, since each path
passes each level once.

``paths="counted"`` counts a step as there or not; ``paths="weighted"`` weighs every path by its probability, so
that c(v) is the sum over the sources of the throughput of v.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import polars as pl
from scipy import sparse

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nodes import node_table
from attngraph_analyses.nulls import Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about

Paths = Literal["counted", "weighted"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Betweenness(ComparedAnswer):
    """What `betweenness` found.

    Parameters
    ----------
    target, paths
        What was asked.
    sources
        Number of nodes of level 0 from which the target can be reached.
    node
        ``[layers + 1, nodes]``: betweenness of every node, as the mean over the sources, from 0 to 1; the path's
        own ends don't count, so level 0 and the last level are 0.
    block
        ``[blocks]``: the greatest of the block's nodes.
    node_block, node_target
        Each node's block, and the token position of those that are targets (None for blocks).
    against
        How `block` stands against a null, ``[blocks]``.
    """

    target: str
    paths: Paths
    sources: int
    node: FloatArray
    block: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]

    def to_polars(self) -> pl.DataFrame:
        """One row per level and node above 0: level, block, target (null for blocks), betweenness."""
        return node_table("betweenness", self.node, self.node_block, self.node_target)

    def blocks(self) -> pl.DataFrame:
        """One row per block: block, betweenness; with a null also null_betweenness, ratio and rank."""
        frame = pl.DataFrame({"block": np.arange(len(self.block)), "betweenness": self.block})
        return self.beside_null(frame, "betweenness")


def betweenness(
    graph: AttentionGraph,
    target: str = "output",
    *,
    paths: Paths = "weighted",
    null: Null | NullName | None = None,
) -> Betweenness:
    """How many of the ways from all blocks to a target pass each node.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    target
        A span, ``"block:N"``, ``"token:N"`` (a recorded target) or ``"output"``.
    paths
        Whether paths are counted or weighted.
    null
        Also ask for the betweenness of every block under this null.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    ConfigError
        If `paths` is unknown, or the null changes nothing: ``"heads"``, ``"distance"`` (there is no source to move),
        and ``"uniform"`` where paths are counted.
    GraphError
        If the null has nothing to compare with.
    """
    if paths not in get_args(Paths):
        raise ConfigError(f"paths={paths!r} is not one of {', '.join(get_args(Paths))}.")
    names: tuple[NullName, ...] = ("edges", "targets") if paths == "counted" else ("uniform", "edges", "targets")
    chosen = None if null is None else meaningful(null, f"the betweenness of {paths} paths", *names)
    found = _betweenness(graph, target, paths)
    found = replace(found, **about(graph, target))
    if chosen is None:
        return found

    def ask(question: Question) -> FloatArray:
        return _betweenness(question.graph, question.target, paths).block

    return replace(found, against=compare(ask, Question(graph, None, target), chosen, value=found.block))


def _betweenness(graph: AttentionGraph, target: str, paths: Paths) -> Betweenness:
    back = np.empty((graph.layers + 1, graph.nodes))
    back[-1] = target_state(graph, target) > 0 if paths == "counted" else target_state(graph, target)
    for layer in reversed(range(graph.layers)):
        back[layer] = _scaled(_steps(graph, layer, paths).T @ back[layer + 1])
    starts = back[0] > 0
    count = int(starts.sum())
    node = np.zeros_like(back)
    front = np.where(starts, 1.0 / np.where(starts, back[0], 1.0), 0.0)
    for layer in range(graph.layers - 1):
        front = _scaled(_steps(graph, layer, paths) @ front)
        passed = front * back[layer + 1]
        node[layer + 1] = passed / passed.sum() if count else 0.0
    block = np.zeros(graph.blocks)
    np.maximum.at(block, graph.node_blocks(), node.max(0))
    return Betweenness(
        target=target,
        paths=paths,
        sources=count,
        node=node,
        block=block,
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        policy=graph.policy,
        block_size=graph.block_size,
    )


def _steps(graph: AttentionGraph, layer: int, paths: Paths) -> sparse.csr_array[np.float64]:
    matrix = graph.transition(layer).matrix()
    if paths == "counted":
        matrix.data = (matrix.data > 0).astype(np.float64)
    return matrix


def _scaled(state: FloatArray) -> FloatArray:
    """A state with its greatest entry at 1: only ratios within a level matter."""
    greatest = state.max()
    return state / greatest if greatest > 0 else state
