"""Dense attention without a T × T tensor: output and log-sum-exp of every row, exact; O(T²) time, O(T) memory.

On a processor torch's own flash kernel gives both for plain causal attention. Windows and soft caps, which it does not
know, are computed here for a few rows at a time, and so is everything on other devices without Triton. Learned sinks
only rescale what comes out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.backend import runs_in_triton
from attngraph_kernels.blocks import BlockGrid
from attngraph_kernels.chosen import dense_chunks
from attngraph_kernels.softmax import Softmax
from attngraph_kernels.triton import limits


class DenseAttention(NamedTuple):
    """`output` [H, T, d_v] in the dtype of v, and `log_sum_exp` [H, T], fp32, over all visible keys and the sink."""

    output: Tensor
    log_sum_exp: Tensor


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> DenseAttention:
    """Attention over all visible keys.

    The probability of a key is exp(score - log_sum_exp), with the score soft-capped where `softcap` is given.

    Parameters
    ----------
    q, k, v
        [H, T, d], [G, T, d], [G, T, d_v]; query head h reads key/value head h // (H / G).
    grid
        Its window is the layer's; its block size matters to nothing but the order of the work.
    scale
        Softmax scale.
    softcap
        Scores become softcap · tanh(score / softcap).
    sinks
        [H], a further score of every row of a head, with the value zero.
    """
    if runs_in_triton("dense_attention", q, lambda: limits.of_layer(q, k, v)):
        from attngraph_kernels.triton.audit import dense_attention as fused

        return fused(q, k, v, grid, scale, softcap, sinks)
    if q.device.type == "cpu" and softcap is None and not grid.windowed and v.shape[-1] == q.shape[-1]:
        output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], 0.0, True, scale=scale
        )
        found = DenseAttention(output[0], log_sum_exp[0])
    else:
        softmax = Softmax(softcap)
        groups = zip(q.chunk(len(k)), k, v, strict=True)
        parts = [_streamed(heads, keys, values, grid, scale, softmax) for heads, keys, values in groups]
        found = DenseAttention(*map(torch.cat, zip(*parts, strict=True)))
    if sinks is None:
        return found
    total = torch.logaddexp(found.log_sum_exp, sinks.float()[:, None])
    return DenseAttention(found.output * (found.log_sum_exp - total).exp()[..., None].to(v.dtype), total)


def _streamed(q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid, scale: float, softmax: Softmax) -> DenseAttention:
    """`dense_attention` without sinks for the heads [P, T, d] that read one key/value head, rows chunk by chunk."""
    parts = []
    for start, stop in dense_chunks(range(grid.count), len(q), grid):
        first, begin, end = grid.first_visible(start) * grid.size, start * grid.size, min(stop * grid.size, grid.tokens)
        rows, keys = (torch.arange(*limits, device=q.device) for limits in ((begin, end), (first, end)))
        scores = (scale * q[:, begin:end].float()).flatten(0, 1) @ k[first:end].float().T
        scores = softmax.capped(scores).view(len(q), end - begin, end - first)
        scores.masked_fill_(~grid.visible(rows[:, None], keys), -torch.inf)
        top = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(top).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        output = (weights.flatten(0, 1) @ v[first:end].float()).view(len(q), end - begin, -1).div_(total)
        parts.append(DenseAttention(output.to(v.dtype), (top + total.log()).squeeze(-1)))
    return DenseAttention(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))
