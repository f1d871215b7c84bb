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

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl
from scipy import sparse

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, Policy, target_state
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nodes import node_table

Paths = Literal["counted", "weighted"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Betweenness(ArrowTable):
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
    policy
        How edges became probabilities.
    """

    target: str
    paths: Paths
    sources: int
    node: FloatArray
    block: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]
    policy: Policy

    def to_polars(self) -> pl.DataFrame:
        """One row per level and node above 0: level, block, target (null for blocks), betweenness."""
        return node_table("betweenness", self.node, self.node_block, self.node_target)


def betweenness(graph: AttentionGraph, target: str = "output", *, paths: Paths = "weighted") -> Betweenness:
    """How many of the ways from all blocks to a target pass each node.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    target
        A span, ``"block:N"``, ``"token:N"`` (a recorded target) or ``"output"``.
    paths
        Whether paths are counted or weighted.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    ConfigError
        If `paths` is unknown.
    """
    if paths not in get_args(Paths):
        raise ConfigError(f"paths={paths!r} is not one of {', '.join(get_args(Paths))}.")
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
