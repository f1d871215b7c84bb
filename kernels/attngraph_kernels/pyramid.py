"""The key pyramid: weighted representatives of every block, then of pairs of nodes, level by level.

Node a of level j stands for the key blocks a·2^j to (a+1)·2^j - 1. Level 0 reduces each block's keys to r
representatives; each further level joins the 2r representatives of two children and reduces them to r again. Built in
O(T) once per key/value head, in the metric of the queries that will read it.

A node's score for a query q is the log-sum-exp over its representatives of

    q·μ + log(count) + variance · Σ_d q_d² · σ²_d

which is the second-order expansion of the log of the node's summed exponentials. The three terms are one matrix product
of `query_features` with the level's `features`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.coreset import Coreset, coreset

ABSENT = -1e30
"""Log count of an unused representative: finite, so that no NaN can come of it."""


class Pyramid(NamedTuple):
    """The levels as feature tables [nodes, r, 2d + 1], finest (the blocks themselves) first."""

    features: tuple[Tensor, ...]

    def start(self, nodes: int) -> int:
        """The finest level with at most `nodes` nodes; the coarsest if all have more."""
        return next((level for level, table in enumerate(self.features) if len(table) <= nodes), len(self.features) - 1)


def second_moment_factor(x: Tensor) -> Tensor:
    """A factor L [d, d] with L Lᵀ = E[x xᵀ] over the rows of x [n, d], ridged so that it always exists."""
    moment = (x.T @ x / len(x)).double()
    moment.diagonal().add_(1e-6 * moment.diagonal().mean().clamp_min(1e-30))
    factor: Tensor = torch.linalg.cholesky(moment)
    return factor.to(x.dtype)


def pyramid(
    k: Tensor, grid: BlockGrid, representatives: int, metric: Tensor, variance: float, coarsest: int
) -> Pyramid:
    """Build the pyramid of one key/value head, up to the first level with at most `coarsest` nodes.

    Parameters
    ----------
    k
        [T, d], centred (softmax does not see a shift common to all keys, and small numbers keep the variances exact).
    metric
        [d, d], a factor of the second moment of the queries that read these keys.
    variance
        Weight of the second-order term.
    """
    weight = into_blocks(k.new_ones(grid.tokens, 1), grid.size).squeeze(-1)
    nodes = coreset(into_blocks(k, grid.size), weight, representatives, metric)
    levels = [_features(nodes, variance)]
    while len(nodes.mean) > coarsest:
        nodes = coreset(_pairs(nodes.mean), _pairs(nodes.weight), representatives, metric, _pairs(nodes.variance))
        levels.append(_features(nodes, variance))
    return Pyramid(tuple(levels))


def _pairs(x: Tensor) -> Tensor:
    """Join neighbouring nodes: [n, r, ...] to [ceil(n / 2), 2r, ...], an odd last node with an absent sibling."""
    even = torch.cat([x, x.new_zeros(1, *x.shape[1:])]) if len(x) % 2 else x
    return even.reshape(len(even) // 2, 2 * even.shape[1], *even.shape[2:])


def _features(nodes: Coreset, variance: float) -> Tensor:
    log_count = nodes.weight.log().clamp_min_(ABSENT)
    return torch.cat([nodes.mean, variance * nodes.variance, log_count.unsqueeze(-1)], dim=-1)


def query_features(q: Tensor) -> Tensor:
    """[..., d] to [..., 2d + 1]: q, q² and 1, to be multiplied with a level's features."""
    return torch.cat([q, q.square(), q.new_ones(*q.shape[:-1], 1)], dim=-1)
