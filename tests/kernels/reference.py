"""Dense attention by the textbook, with T × T tensors: what the kernels are compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels import PLAIN, BlockGrid, Softmax


class Dense(NamedTuple):
    output: Tensor
    log_sum_exp: Tensor
    probability: Tensor


def random_attention(heads: int, groups: int, tokens: int, width: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(heads, tokens, width, generator=draw) * 2
    k = torch.randn(groups, tokens, width, generator=draw) * 2
    v = torch.randn(groups, tokens, width, generator=draw)
    return q, k, v


def mask(grid: BlockGrid) -> Tensor:
    """[T, T], written from the definition: j <= i, and j > i - window where there is one."""
    seen = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool).tril()
    if grid.window is not None:
        seen &= torch.ones(grid.tokens, grid.tokens, dtype=torch.bool).triu(1 - grid.window)
    return seen


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    scale: float,
    kept: Tensor | None = None,
    softmax: Softmax = PLAIN,
) -> Dense:
    """Attention over the visible keys, or over those of them that `kept` [H, T, T] allows, and the heads' sinks."""
    repeat = len(q) // len(k)
    scores = scale * q @ k.repeat_interleave(repeat, 0).transpose(1, 2)
    if softmax.softcap is not None:
        scores = softmax.softcap * torch.tanh(scores / softmax.softcap)
    seen = mask(grid) if kept is None else mask(grid) & kept
    scores = scores.masked_fill(~seen, -torch.inf)
    sinks = torch.full((len(q),), -torch.inf) if softmax.sinks is None else softmax.sinks
    scores = torch.cat([scores, sinks[:, None, None].expand(-1, grid.tokens, 1)], dim=-1)
    probability = scores.softmax(dim=-1)[..., :-1]
    return Dense(probability @ v.repeat_interleave(repeat, 0), scores.logsumexp(dim=-1), probability)


def over_blocks(rows: Tensor, grid: BlockGrid) -> Tensor:
    """Single rows [H, R, T] summed over key blocks, [H, R, n]."""
    return (
        torch.nn.functional.pad(rows, (0, grid.count * grid.size - grid.tokens)).unflatten(2, (-1, grid.size)).sum(-1)
    )


def block_mass(probability: Tensor, grid: BlockGrid) -> Tensor:
    """[H, nq, n]: mean over each block's rows of the probability on each key block."""
    spread = over_blocks(probability, grid)
    return torch.stack([rows.mean(dim=1) for rows in spread.split(grid.size, dim=1)], dim=1)


def kept_keys(blocks: Tensor, grid: BlockGrid) -> Tensor:
    """[H, R, T]: the keys inside the kept blocks [H, R, budget] of single rows."""
    kept = torch.zeros(*blocks.shape[:2], grid.count + 1, dtype=torch.bool)
    kept.scatter_(2, blocks.masked_fill(blocks < 0, grid.count), True)
    return kept[..., : grid.count].repeat_interleave(grid.size, 2)[..., : grid.tokens]


def kept_pairs(blocks: Tensor, grid: BlockGrid) -> Tensor:
    """[H, T, T]: the token pairs inside the kept blocks [H, nq, budget]."""
    return kept_keys(blocks, grid).repeat_interleave(grid.size, 1)[:, : grid.tokens]


def spread_over_blocks(blocks: Tensor, weight: Tensor, count: int) -> Tensor:
    """Edge weights [H, rows, budget] as a dense [H, rows, count]."""
    dense = torch.zeros(*blocks.shape[:2], count)
    return dense.scatter_add_(2, blocks.clamp_min(0), weight * (blocks >= 0))


class PeakElements(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that any operation returns, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
