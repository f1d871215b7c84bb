"""The key pyramids of all key/value heads of a layer, and the query coresets of all its heads, as tables to search in.

Level by level as in `attngraph_kernels.pyramid`, one launch per level for the whole layer. The tables of all levels lie
behind one another, in the number type of the queries and keys; the last feature, log count + bump, stays fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid
from attngraph_kernels.coreset import Coreset
from attngraph_kernels.pyramid import Pyramid, node_bias, representatives_at, second_moment_factor
from attngraph_kernels.triton.coreset import coresets


class Levels(NamedTuple):
    """The pyramids of G key/value heads: of all representatives of all nodes the `mean` [G, n, d] and `bias` [G, n],
    finest level first; in `nodes` the number of each level's nodes, the blocks first; `representatives` of each block.
    """

    mean: Tensor
    bias: Tensor
    nodes: tuple[int, ...]
    representatives: int


class Queries(NamedTuple):
    """Representatives of every query block: `mean` [H, nq, r_q, d], `weight` and `spread` [H, nq, r_q], and `group`
    [H, nq, size], the representative of every query.
    """

    mean: Tensor
    weight: Tensor
    spread: Tensor
    group: Tensor


def levels(k: Tensor, grid: BlockGrid, representatives: int, metric: Tensor, coarsest: int) -> list[Coreset]:
    """The nodes of every level of all heads; k [G, T, d] is centred here, metric [G, d, d]."""
    mean = torch.stack([keys.float().mean(dim=0) for keys in k])
    nodes = coresets(k, grid.size, representatives, metric, mean=mean)
    found = [nodes]
    while nodes.mean.shape[1] > coarsest:
        nodes = coresets(
            nodes.mean.flatten(1, 2),
            2 * nodes.mean.shape[2],
            representatives_at(len(found), representatives),
            metric,
            weight=nodes.weight.flatten(1),
            spread=nodes.spread.flatten(1),
        )
        found.append(nodes)
    return found


def pyramid(k: Tensor, grid: BlockGrid, representatives: int, metric: Tensor, coarsest: int) -> Pyramid:
    """As `attngraph_kernels.pyramid.pyramid`, but for centring k [T, d] itself."""
    found = levels(k[None], grid, representatives, metric[None], coarsest)
    return tuple(
        torch.cat([nodes.mean[0], node_bias(nodes.weight[0], nodes.spread[0]).unsqueeze(-1)], dim=-1) for nodes in found
    )


def key_tables(k: Tensor, grid: BlockGrid, representatives: int, metric: Tensor, coarsest: int) -> Levels:
    """The levels of all heads, joined."""
    found = levels(k, grid, representatives, metric, coarsest)
    return Levels(
        torch.cat([nodes.mean.flatten(1, 2).to(k.dtype) for nodes in found], dim=1),
        torch.cat([node_bias(nodes.weight, nodes.spread).flatten(1) for nodes in found], dim=1),
        tuple(nodes.mean.shape[1] for nodes in found),
        representatives,
    )


def query_tables(q: Tensor, grid: BlockGrid, representatives: int, metric: Tensor, scale: float) -> Queries:
    """The coresets of all query blocks of q [H, T, d], times `scale`, in the metric [G, d, d] of the keys they read."""
    found = coresets(q, grid.size, representatives, metric, scale=scale)
    return Queries(found.mean.to(q.dtype), found.weight, found.spread, found.group)


def query_metric(q: Tensor, groups: int, scale: float) -> Tensor:
    """For each key/value head a factor of the second moment of the queries that read it, [G, d, d]."""
    return torch.stack([second_moment_factor(heads.reshape(-1, q.shape[-1]), scale) for heads in q.chunk(groups)])


def key_metric(k: Tensor) -> Tensor:
    """For each key/value head a factor of the covariance of its keys, [G, d, d]."""
    return torch.stack([second_moment_factor(keys - keys.float().mean(dim=0)) for keys in k])
