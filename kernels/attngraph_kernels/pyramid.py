"""The key pyramid: weighted representatives of every block, then of pairs of nodes, level by level.

Node a of level j stands for the key blocks a·2^j to (a+1)·2^j - 1. Level 0 reduces each block's keys to r
representatives; each further level joins those of two children and reduces them again: to r at level 1, to half as many
above, where nodes are many keys whose spread says more than a few more representatives would. Built in O(T) once per
key/value head, in the metric of the queries that will read it.

A node's score for a query q is the log-sum-exp over its representatives of

    q·μ + log(count) + bump(spread, count)

The last two terms stand for the log of the group's summed exponentials beyond that of its mean. Were the group's scores
a large normal sample of variance s², the bump would be s²/2; but a sample of n has no point beyond about s·√(2·ln n),
so from s = √(2·ln n) on it is s·√(2·ln n) − ln n (the freezing of the random energy model, Derrida 1981). s² is the
group's spread: the variance of its scores, mean over the queries. So one product with its features scores a level.

Two plain pyramids are here to compare with: `centre_pyramid`, one key standing for all of a node (as in HiP, Lee et al.
2025, arXiv 2406.09827), and `mean_level`, the mean key of each block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attngraph_kernels.backend import runs_in_triton
from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.coreset import Coreset, coreset
from attngraph_kernels.triton import limits

ABSENT = -1e30
"""Log count of an unused representative: finite, so that no NaN can come of it."""

ROWS_AT_ONCE = 1 << 16
"""Rows whose second moments are in memory at once."""
ROWS_IN_FP32 = 512
"""Rows whose second moments are added up in fp32."""

WHOLE_LEVELS = 2
"""Levels, from the finest on, whose nodes have all the representatives; those above have half as many."""

Pyramid = tuple[Tensor, ...]
"""The levels as feature tables [nodes, r, d + 1], finest (the blocks themselves) first."""


def second_moment_factor(x: Tensor, scale: float = 1.0, *, count: int | None = None) -> Tensor:
    """An fp32 factor L [d, d] with L Lᵀ = scale² E[x xᵀ] over the rows of x [n, d], ridged so that it exists.

    With a `count` the other rows are padding, zeros.
    """
    moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in torch.split(x, ROWS_AT_ONCE):
        # Short fp32 products, added up in double: the rounding of a long one would outweigh the ridge.
        rows = into_blocks(part.float() if scale == 1 else part.float() * scale, ROWS_IN_FP32)
        moment += torch.bmm(rows.transpose(1, 2), rows).sum(dim=0, dtype=torch.float64)
    moment /= count or len(x)
    moment.diagonal().add_(1e-5 * moment.trace().clamp_min(1e-30))
    factor: Tensor = torch.linalg.cholesky(moment)
    return factor.float()


def representatives_at(level: int, representatives: int) -> int:
    """Representatives of a node of a level."""
    return representatives if level < WHOLE_LEVELS else max(1, representatives // 2)


def pyramid(k: Tensor, grid: BlockGrid, representatives: int, metric: Tensor, coarsest: int) -> Pyramid:
    """Build the pyramid of one key/value head, up to the first level with at most `coarsest` nodes.

    Parameters
    ----------
    k
        [T, d], centred (softmax does not see a shift common to all keys, and small numbers keep the spreads exact).
    metric
        [d, d], a factor of the second moment of the queries that read these keys.
    """
    if runs_in_triton("pyramid", k, lambda: limits.of_layer(k) or limits.of_points(2 * representatives)):
        from attngraph_kernels.triton.pyramid import pyramid as fused

        return fused(k, grid, representatives, metric, coarsest)
    nodes = coreset(into_blocks(k, grid.size), present(grid, k), representatives, metric)
    levels = [_features(nodes)]
    while len(nodes.mean) > coarsest:
        fewer = representatives_at(len(levels), representatives)
        nodes = coreset(_pairs(nodes.mean), _pairs(nodes.weight), fewer, metric, _pairs(nodes.spread))
        levels.append(_features(nodes))
    return tuple(levels)


def centre_pyramid(k: Tensor, grid: BlockGrid, coarsest: int) -> Pyramid:
    """Every node is its middle key, whatever stands around it; parameters as in `pyramid`."""
    levels: list[Tensor] = []
    while not levels or len(levels[-1]) > coarsest:
        width = grid.size << len(levels)
        at = torch.arange(width // 2, grid.tokens + width // 2, width, device=k.device).clamp_max(grid.tokens - 1)
        levels.append(torch.cat([k[at], k.new_zeros(len(at), 1)], dim=-1).unsqueeze(1))
    return tuple(levels)


def mean_level(k: Tensor, grid: BlockGrid) -> Pyramid:
    """A single level: the mean key of every block."""
    rows = present(grid, k).sum(dim=1, keepdim=True)
    return (torch.cat([into_blocks(k, grid.size).sum(dim=1) / rows, rows.log()], dim=-1).unsqueeze(1),)


def present(grid: BlockGrid, like: Tensor) -> Tensor:
    """[n, size]: 1 for a token, 0 for padding."""
    return into_blocks(like.new_ones(grid.tokens, 1), grid.size).squeeze(-1)


def siblings(table: Tensor, count: int) -> Tensor:
    """A level's features [nodes, r, f], those of `count` neighbours in one row: [nodes / count, count·r, f]."""
    missing = -len(table) % count
    if missing:
        absent = table.new_zeros(missing, *table.shape[1:])
        absent[..., -1] = ABSENT
        table = torch.cat([table, absent])
    return table.reshape(len(table) // count, count * table.shape[1], table.shape[2])


def _pairs(x: Tensor) -> Tensor:
    """Join neighbouring nodes: [n, r, ...] to [ceil(n / 2), 2r, ...], an odd last node with an absent sibling."""
    even = torch.cat([x, x.new_zeros(1, *x.shape[1:])]) if len(x) % 2 else x
    return even.reshape(len(even) // 2, 2 * even.shape[1], *even.shape[2:])


def _features(nodes: Coreset) -> Tensor:
    return torch.cat([nodes.mean, node_bias(nodes.weight, nodes.spread).unsqueeze(-1)], dim=-1)


def node_bias(weight: Tensor, spread: Tensor) -> Tensor:
    """What a representative of `weight` keys with this `spread` adds to its product with a query."""
    log_count = weight.log().clamp_min_(ABSENT)
    return log_count + bump(spread, log_count)


def bump(spread: Tensor, log_count: Tensor) -> Tensor:
    """How far the log of a group's mean exponential lies above its mean score."""
    critical = log_count.clamp_min(0).mul(2).sqrt()  # in standard deviations
    deviation = spread.sqrt()
    return torch.where(deviation < critical, spread / 2, deviation * critical - critical.square() / 2)


def query_features(q: Tensor) -> Tensor:
    """[..., d] to [..., d + 1]: q and 1, to be multiplied with a level's features."""
    return torch.cat([q, q.new_ones(*q.shape[:-1], 1)], dim=-1)
