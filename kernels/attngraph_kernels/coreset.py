"""Weighted representatives of small point sets: farthest-point choice, then group means.

Each set of m points is reduced to r groups (Gonzalez 1985, farthest-first traversal):

1. take the point farthest from the set's mean, then r - 1 times the point farthest from those taken;
2. assign every point to its nearest taken point;
3. replace each group by its weight, its weighted mean and its spread, the mean squared distance of its points from
   that mean.

An outlier is farthest from everything, so it keeps a representative of its own. Means, boxes and single representatives
average it away, and a sharp attention head needs just that one key. Distances are measured after multiplying the points
by `metric`: with a Cholesky factor of E[q qᵀ], the squared distance of two keys is the expected squared difference of
their attention scores, and the spread of a group is the expected variance of its scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.backend import runs_in_triton
from attngraph_kernels.triton import limits

SLICE_ELEMENTS = 1 << 19
"""Numbers in the points reduced at once: small enough for a processor's cache."""


class Coreset(NamedTuple):
    """Weighted representatives of N sets of m points: `mean` [N, r, d]; `weight` (0 = unused) and `spread` [N, r]; and
    `group` [N, m], the representative of every point.
    """

    mean: Tensor
    weight: Tensor
    spread: Tensor
    group: Tensor


def coreset(
    points: Tensor, weight: Tensor, representatives: int, metric: Tensor, spread: Tensor | None = None
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
    spread
        [N, m], the spread that each point already stands for; none for raw points.
    """
    if runs_in_triton("coreset", points, lambda: limits.of_layer(points) or limits.of_points(points.shape[1])):
        from attngraph_kernels.triton.coreset import coreset as fused

        return fused(points, weight, representatives, metric, spread)
    return in_pytorch(points, weight, representatives, metric, spread)


def in_pytorch(
    points: Tensor, weight: Tensor, representatives: int, metric: Tensor, spread: Tensor | None = None
) -> Coreset:
    """The same, whatever the backend."""
    sets = max(1, SLICE_ELEMENTS // points[0].numel())
    spreads = torch.zeros_like(weight) if spread is None else spread
    slices = zip(*(torch.split(part, sets) for part in (points, weight, spreads)), strict=True)
    reduced = [_reduced(x, mass, inner, representatives, metric) for x, mass, inner in slices]
    return Coreset(*(torch.cat(parts) for parts in zip(*reduced, strict=True)))


def _reduced(points: Tensor, weight: Tensor, spread: Tensor, representatives: int, metric: Tensor) -> Coreset:
    distance, from_mean = _squared_distances(points @ metric, weight)
    nearest = _farthest_first(distance, from_mean, weight, min(representatives, points.shape[1]))
    group = torch.arange(representatives, device=points.device)[:, None]
    member = (nearest.unsqueeze(1) == group) * weight.unsqueeze(1)
    total = member.sum(dim=-1)
    share = member / total.clamp_min(torch.finfo(points.dtype).tiny).unsqueeze(-1)
    # For shares s that sum to one, Σ_ij s_i s_j ‖x_i − x_j‖² / 2 = Σ_i s_i ‖x_i − mean‖².
    within = (share @ distance).mul_(share).sum(dim=-1).div_(2).clamp_min_(0)
    return Coreset(share @ points, total, within.add_((share * spread.unsqueeze(1)).sum(dim=-1)), nearest)


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
