"""Influence, level by level: where does the walk from a target pass, and how far does a source spread?

For a target, f_ℓ is the distribution of its backward walk over the nodes of level ℓ: all of it in the target at
level L, its influence at level 0. For a source, h_ℓ is the share of each node's walk that ends in the source: 1 in
the source and 0 elsewhere at level 0, all that the model's output reads of it at level L.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, Policy, backward, forward, source_state, target_state
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nodes import node_table


@dataclass(frozen=True, eq=False, kw_only=True)
class InfluenceProfile(ArrowTable):
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
    block_size
        Tokens per block; products over blocks only approximate products over tokens.
    policy
        How edges became probabilities.
    """

    target: str | None
    source: str | None
    share: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]
    block_size: int
    policy: Policy

    def to_polars(self) -> pl.DataFrame:
        """One row per level and node above 0: level, block, target (null for blocks), share."""
        return node_table("share", self.share, self.node_block, self.node_target)


def influence_profile(
    graph: AttentionGraph, *, target: str | None = None, source: str | None = None
) -> InfluenceProfile:
    """The walk of a target over the nodes of every level, or what every node reads of a source.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    target, source
        One of the two: a span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.

    Raises
    ------
    UnknownNodeError
        If the name means nothing.
    ConfigError
        If not exactly one end is given.
    """
    if target is not None and source is None:
        levels = list(backward(graph, target_state(graph, target)))[::-1]
    elif source is not None and target is None:
        levels = list(forward(graph, source_state(graph, source)))
    else:
        raise ConfigError(
            f"An influence profile is that of one end, but target={target!r} and source={source!r} were given. For "
            f"what passes between two ends see throughput(graph, source, target).nodes()."
        )
    return InfluenceProfile(
        target=target,
        source=source,
        share=np.stack(levels),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        block_size=graph.block_size,
        policy=graph.policy,
    )
