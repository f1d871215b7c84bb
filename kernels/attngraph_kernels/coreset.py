"""Weighted representatives of small point sets: farthest-point choice, then group means.

Each set of m points is reduced to r groups (Gonzalez 1985, farthest-first traversal):

1. take the point farthest from the set's mean, then r - 1 times the point farthest from those taken;
2. assign every point to its nearest taken point;
3. replace each group by its weight, its weighted mean and its per-dimension variance.

An outlier is farthest from everything, so it keeps a representative of its own. Means, boxes and single representatives
average it away, and a sharp attention head needs just that one key. Distances are measured after multiplying the points
by `metric`: with a Cholesky factor of E[q qᵀ], the squared distance of two keys is the expected squared difference of
their attention scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Coreset(NamedTuple):
    """Weighted representatives of N sets: `mean` and `variance` [N, r, d], `weight` [N, r] (0 = unused)."""

    mean: Tensor
    weight: Tensor
    variance: Tensor


def coreset(
    points: Tensor, weight: Tensor, representatives: int, metric: Tensor, variance: Tensor | None = None
) -> Coreset:
    """Reduce N sets of m weighted points to `representatives` groups each.

    Parameters
    ----------
    points
        [N, m, d].
    weight
        [N, m], >= 0; points of weight 0 are absent.
    representatives
        r, the number of groups; sets with fewer distinct points leave groups unused.
    metric
        [d, d]; distances are Euclidean between rows of ``points @ metric``.
    variance
        [N, m, d], the variance that each point already stands for; none for raw points.
    """
    distance, from_mean = _squared_distances(points @ metric, weight)
    nearest = _farthest_first(distance, from_mean, weight, min(representatives, points.shape[1]))
    member = torch.nn.functional.one_hot(nearest, representatives).to(points.dtype).mul_(weight.unsqueeze(-1))
    member = member.transpose(1, 2)
    total = member.sum(dim=-1)
    share = member / total.clamp_min(torch.finfo(points.dtype).tiny).unsqueeze(-1)
    mean = share @ points
    second = points.square() if variance is None else points.square().add_(variance)
    return Coreset(mean, total, (share @ second).sub_(mean.square()).clamp_min_(0))


def _squared_distances(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [N, m, m] between the points and, up to a constant per set, [N, m] from their mean."""
    gram = x @ x.transpose(1, 2)
    norm = gram.diagonal(dim1=1, dim2=2)
    share = weight / weight.sum(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    from_mean = norm - 2 * (gram @ share.unsqueeze(-1)).squeeze(-1)
    return norm.unsqueeze(1) + norm.unsqueeze(2) - 2 * gram, from_mean


def _farthest_first(distance: Tensor, from_mean: Tensor, weight: Tensor, count: int) -> Tensor:
    """The group [N, m] of every point: the nearest of the `count` points of the traversal, the earlier one on ties."""
    absent = weight == 0
    reach = torch.full_like(weight, torch.inf).masked_fill_(absent, -torch.inf)
    nearest = torch.zeros_like(weight, dtype=torch.int64)
    latest = from_mean.masked_fill(absent, -torch.inf).argmax(dim=1)
    for group in range(count):
        there = distance[torch.arange(len(distance), device=distance.device), latest]
        nearest.masked_fill_(there < reach, group)
        reach = torch.minimum(reach, there)
        latest = reach.argmax(dim=1)
    return nearest
