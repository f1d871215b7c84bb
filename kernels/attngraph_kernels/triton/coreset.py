"""Weighted representatives of sets of points, one program per set.

The steps are those of `attngraph_kernels.coreset`: squared distances in the metric from one Gram matrix, farthest-first
choice, group means, weights and spreads. A set's distances and groups stay in registers, and its points where they have
up to 64 numbers: they are read once. Wider points are taken in pieces, read once from memory and again from the cache.
Sets of more points than the registers hold (`limits.MOST_POINTS`) are left to PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attngraph_kernels import backend
from attngraph_kernels.blocks import into_blocks
from attngraph_kernels.coreset import Coreset, in_pytorch
from attngraph_kernels.triton import limits
from attngraph_kernels.triton.launch import launch, power_of_two, precision, rows_contiguous

LEAST = 1.1754943508222875e-38
"""The least normal fp32 number, as in the PyTorch path."""


@triton.jit
def _points(x, mean, row, x_row, present, scale, column, WIDTH: tl.constexpr, CENTRED: tl.constexpr):
    """Columns of the points in fp32, scaled, minus the mean; 0 where absent."""
    inside = column < WIDTH
    at = x + row.to(tl.int64)[:, None] * x_row + column[None, :]
    points = tl.load(at, mask=present[:, None] & inside[None, :], other=0.0).to(tl.float32) * scale
    if CENTRED:
        points = points - tl.load(mean + column, mask=inside, other=0.0)[None, :]
        points = tl.where(present[:, None], points, 0.0)
    return points


@triton.jit
def _coreset_kernel(
    x, mean, metric, weight, spread, centre, total, within, group,
    rows, sets, x_head, x_row, per_metric, scale,
    POINTS: tl.constexpr, PADDED_POINTS: tl.constexpr, GROUPS: tl.constexpr, PADDED_GROUPS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    CENTRED: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    number, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x += head * x_head
    mean += (head // per_metric) * WIDTH
    metric += (head // per_metric) * WIDTH * WIDTH
    point = tl.arange(0, PADDED_POINTS)
    row = number.to(tl.int64) * POINTS + point
    present = (point < POINTS) & (row < rows)
    if WEIGHTED:
        mass = tl.load(weight + head * rows + row, mask=present, other=0.0)
        inner = tl.load(spread + head * rows + row, mask=present, other=0.0)
    else:
        mass = tl.where(present, 1.0, 0.0)
        inner = tl.zeros((PADDED_POINTS,), tl.float32)

    gram = tl.zeros((PADDED_POINTS, PADDED_POINTS), tl.float32)
    for out in range(0, PADDED, CHUNK):
        column = out + tl.arange(0, CHUNK)
        turned = tl.zeros((PADDED_POINTS, CHUNK), tl.float32)
        for part in range(0, PADDED, CHUNK):
            inside = part + tl.arange(0, CHUNK)
            points = _points(x, mean, row, x_row, present, scale, inside, WIDTH, CENTRED)
            at = metric + inside[:, None] * WIDTH + column[None, :]
            factor = tl.load(at, mask=(inside < WIDTH)[:, None] & (column < WIDTH)[None, :], other=0.0)
            turned = tl.dot(points, factor, turned, input_precision=PRECISION)
        gram = tl.dot(turned, tl.trans(turned), gram, input_precision=PRECISION)
    same = point[:, None] == point[None, :]
    norm = tl.sum(tl.where(same, gram, 0.0), axis=1)
    # Both from the same numbers, so that a point and its double are at distance 0 exactly.
    across = tl.sum(tl.where(same, gram, 0.0), axis=0)
    distance = norm[:, None] + across[None, :] - 2 * gram
    share = mass / tl.maximum(tl.sum(mass, axis=0), LEAST)
    from_mean = norm - 2 * tl.sum(gram * share[None, :], axis=1)

    absent = mass == 0
    reach = tl.where(absent, float("-inf"), float("inf"))
    nearest = tl.zeros((PADDED_POINTS,), tl.int32)
    latest = tl.argmax(tl.where(absent, float("-inf"), from_mean), axis=0)
    for step in range(0, GROUPS if GROUPS < POINTS else POINTS):
        there = tl.sum(tl.where(point[:, None] == latest, distance, 0.0), axis=0)
        nearest = tl.where(there < reach, step, nearest)
        reach = tl.minimum(reach, there)
        latest = tl.argmax(reach, axis=0)

    index = tl.arange(0, PADDED_GROUPS)
    member = tl.where(nearest[None, :] == index[:, None], mass[None, :], 0.0)
    weights = tl.sum(member, axis=1)
    member = member / tl.maximum(weights, LEAST)[:, None]
    together = tl.where(nearest[:, None] == nearest[None, :], distance * tl.sum(member, axis=0)[None, :], 0.0)
    inside_group = tl.sum(member * tl.sum(together, axis=1)[None, :], axis=1) / 2
    inside_group = tl.maximum(inside_group, 0.0) + tl.sum(member * inner[None, :], axis=1)
    into = (head * sets + number) * GROUPS + index
    for out in range(0, PADDED, CHUNK):
        column = out + tl.arange(0, CHUNK)
        points = _points(x, mean, row, x_row, present, scale, column, WIDTH, CENTRED)
        centres = tl.dot(member, points, input_precision=PRECISION)
        at = centre + into[:, None] * WIDTH + column[None, :]
        tl.store(at, centres, mask=(index < GROUPS)[:, None] & (column < WIDTH)[None, :])
    tl.store(total + into, weights, mask=index < GROUPS)
    tl.store(within + into, inside_group, mask=index < GROUPS)
    tl.store(group + (head * sets + number) * POINTS + point, nearest.to(tl.uint8), mask=point < POINTS)


def coresets(
    x: Tensor,
    size: int,
    representatives: int,
    metric: Tensor,
    *,
    mean: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
    spread: Tensor | None = None,
) -> Coreset:
    """Reduce every `size` consecutive rows of a layer's points to `representatives` groups; the last set may be short.

    Parameters
    ----------
    x
        [H, rows, d]; points are x · scale − mean.
    metric, mean
        [G, d, d] and [G, d], fp32; row h of x goes by h // (H / G).
    weight, spread
        [H, rows] as in `attngraph_kernels.coreset`; ones and zeros where left out.

    Returns
    -------
    Coreset
        Its tensors have a dimension H before the others; `group` is uint8.
    """
    too_many = limits.of_points(size)
    if too_many is not None:
        backend.say("coreset", too_many)
        return _in_pytorch(x, size, representatives, metric, mean, scale, weight, spread)
    x = rows_contiguous(x)
    heads, rows, width = x.shape
    sets = -(-rows // size)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(heads, sets, *shape, dtype=dtype, device=x.device)

    found = Coreset(
        new(representatives, width), new(representatives), new(representatives), new(size, dtype=torch.uint8)
    )
    padded = max(16, power_of_two(width))
    launch(
        _coreset_kernel,
        (sets, heads),
        num_warps=4,
        num_stages=1,
        registers=255,  # left to choose, the assembler spills some to run one more program at a time
        x=x,
        mean=metric if mean is None else mean.contiguous(),
        metric=metric.contiguous(),
        weight=found.weight if weight is None else weight.contiguous(),
        spread=found.spread if spread is None else spread.contiguous(),
        centre=found.mean,
        total=found.weight,
        within=found.spread,
        group=found.group,
        rows=rows,
        sets=sets,
        x_head=x.stride(0),
        x_row=x.stride(1),
        per_metric=heads // len(metric),
        scale=float(scale),
        POINTS=size,
        PADDED_POINTS=max(16, power_of_two(size)),
        GROUPS=representatives,
        PADDED_GROUPS=max(16, power_of_two(representatives)),
        WIDTH=width,
        PADDED=padded,
        CHUNK=min(padded, 64 if size <= 32 else 32),
        CENTRED=mean is not None,
        WEIGHTED=weight is not None,
        PRECISION=precision(torch.float32),
        LEAST=LEAST,
    )
    return found


def _in_pytorch(
    x: Tensor,
    size: int,
    representatives: int,
    metric: Tensor,
    mean: Tensor | None,
    scale: float,
    weight: Tensor | None,
    spread: Tensor | None,
) -> Coreset:
    """As `coresets`, head by head."""
    mass = x.new_ones(x.shape[:2], dtype=torch.float32) if weight is None else weight
    inner = torch.zeros_like(mass) if spread is None else spread
    per_metric, found = len(x) // len(metric), []
    for head, points in enumerate(x):
        points = points.float() * scale
        if mean is not None:
            points = points - mean[head // per_metric]
        there, within = (into_blocks(one[head].unsqueeze(-1), size).squeeze(-1) for one in (mass, inner))
        found.append(in_pytorch(into_blocks(points, size), there, representatives, metric[head // per_metric], within))
    mean_, weight_, spread_, group = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Coreset(mean_, weight_, spread_, group.to(torch.uint8))


def coreset(
    points: Tensor, weight: Tensor, representatives: int, metric: Tensor, spread: Tensor | None = None
) -> Coreset:
    """As `attngraph_kernels.coreset`."""
    sets, size, width = points.shape
    found = coresets(
        points.reshape(1, sets * size, width),
        size,
        representatives,
        metric[None],
        weight=weight.reshape(1, -1),
        spread=(torch.zeros_like(weight) if spread is None else spread).reshape(1, -1),
    )
    return Coreset(found.mean[0], found.weight[0], found.spread[0], found.group[0].long())
