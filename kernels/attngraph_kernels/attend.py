"""Attention over the kept blocks: output, log-sum-exp, and the mass and contribution of every edge.

For query row i and the keys j of its kept blocks, with scores s_ij:

    p_ij = exp(s_ij) / Σ_kept exp(s_ij),   o_i = Σ_j p_ij v_j
    mass(I, J)         = mean over rows i of I of Σ_{j in J} p_ij
    contribution(I, J) = the same with each p_ij multiplied by ‖v_j W_O^h‖₂   (Kobayashi et al. 2020, arXiv 2004.10102)

Only one chunk of query blocks of one key/value head is in memory at a time: O(T) in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.select import Chosen, Selector, choose_rows
from attngraph_kernels.spans import SpanSums


class Edges(NamedTuple):
    """Edge weights beside the `blocks` they lead to, [H, rows, budget]; `blocks` -1 and weights 0 where unused."""

    blocks: Tensor
    mass: Tensor
    contribution: Tensor


class Attended(NamedTuple):
    """What `attend` returns.

    `output` [H, T, d_v]; `log_sum_exp` [H, T] over the kept keys; `edges` with one row per query block; `targets` with
    one row per target token; `kept_mass` [H, nq] (NaN where not known); `span_mass` and `span_contribution`
    [H, spans, spans] (query span, key span).
    """

    output: Tensor
    log_sum_exp: Tensor
    edges: Edges
    targets: Edges
    kept_mass: Tensor
    span_mass: Tensor
    span_contribution: Tensor


def value_norms(v: Tensor, projection: Tensor) -> Tensor:
    """‖v_j W_O^h‖₂ for every query head: [H, T].

    Parameters
    ----------
    v
        [G, T, d_v].
    projection
        [H, d_v, d_v], the Gram matrices W_O^h W_O^hᵀ of each head's part of the output projection.
    """
    groups = projection.chunk(len(v))
    return torch.cat([((x @ gram) * x).sum(dim=-1).clamp_min_(0).sqrt_() for x, gram in zip(v, groups, strict=True)])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    selector: Selector,
    *,
    scale: float,
    value_norm: Tensor | None = None,
    targets: Sequence[int] = (),
    spans: Sequence[tuple[int, int]] = (),
) -> Attended:
    """Select and attend, chunk by chunk, reusing the selector's scores.

    Parameters
    ----------
    q, k, v
        [H, T, d], [G, T, d], [G, T, d_v], fp32; query head h reads key/value head h // (H / G).
    scale
        Softmax scale.
    value_norm
        [H, T] from `value_norms`; without it contributions equal masses.
    targets
        Token positions whose rows are kept at token grain.
    spans
        Half-open token ranges whose pairwise sums are wanted.
    """
    heads, tokens, _ = q.shape
    norms = v.new_ones(heads, tokens) if value_norm is None else value_norm
    group = heads // len(k)
    parts = [
        _attend_group(
            q[g * group : (g + 1) * group] * scale,
            k[g],
            v[g],
            norms[g * group : (g + 1) * group],
            grid,
            selector,
            targets,
            spans,
        )
        for g in range(len(k))
    ]
    return _joined(parts)


def _joined(parts: list[Attended]) -> Attended:
    def cat(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors)

    edges, targets = (Edges(*map(cat, *(getattr(part, name) for part in parts))) for name in ("edges", "targets"))
    rest = {
        name: cat(*(getattr(part, name) for part in parts))
        for name in Attended._fields
        if name not in ("edges", "targets")
    }
    return Attended(edges=edges, targets=targets, **rest)


def _attend_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norms: Tensor,
    grid: BlockGrid,
    selector: Selector,
    targets: Sequence[int],
    spans: Sequence[tuple[int, int]],
) -> Attended:
    """`attend` for the P query heads of one key/value head; q [P, T, d] scaled, k, v [T, d]."""
    values, lengths = into_blocks(v, grid.size), into_blocks(norms.unsqueeze(-1), grid.size).squeeze(-1)
    sums = SpanSums(spans, grid, len(q), v.device)
    outputs, log_sums, edges, kept = [], [], [], []
    budget = 0
    for chosen in selector(q, k, grid):
        heads, count, size, budget, _ = chosen.scores.shape
        index = chosen.blocks.clamp_min(0)
        top = chosen.scores.amax(dim=(3, 4), keepdim=True)
        weights = chosen.scores.sub_(top).exp_().flatten(3)
        total = weights.sum(dim=-1)
        found = values.flatten(1).index_select(0, index.flatten()).view(heads * count, budget * size, -1)
        output = torch.bmm(weights.flatten(0, 1), found).view(heads, count, size, -1)
        outputs.append(output.div_(total.unsqueeze(-1)).flatten(1, 2))
        log_sums.append((top[:, :, :, 0, 0] + total.log()).flatten(1))
        inverse = total.reciprocal()
        if chosen.start + count == grid.count:
            inverse[:, -1, grid.rows(grid.count - 1) :] = 0
        offset = torch.arange(heads, device=v.device)[:, None, None] * grid.count
        length = lengths.flatten(0, 1).index_select(0, (index + offset).flatten()).view(heads, count, budget, size)
        edges.append(_block_edges(chosen, weights, inverse, length))
        sums.add(chosen.start, chosen.blocks, weights, inverse, length)
        kept.append(chosen.kept_mass)
    output = torch.cat(outputs, dim=1)[:, : grid.tokens]
    log_sum = torch.cat(log_sums, dim=1)[:, : grid.tokens]
    at = torch.tensor(targets, dtype=torch.int64, device=v.device)
    rows = _attend_rows(q, k, values, lengths, grid, at, budget)
    output[:, at] = rows.output
    log_sum[:, at] = rows.log_sum_exp
    return Attended(
        output=output,
        log_sum_exp=log_sum,
        edges=Edges(*(torch.cat(parts, dim=1) for parts in zip(*edges, strict=True))),
        targets=rows.edges,
        kept_mass=torch.cat(kept, dim=1),
        span_mass=sums.mass(),
        span_contribution=sums.contribution(),
    )


class _Rows(NamedTuple):
    """Output [P, R, d_v], log-sum-exp [P, R] and edges of single query rows."""

    output: Tensor
    log_sum_exp: Tensor
    edges: Edges


def _attend_rows(
    q: Tensor, k: Tensor, values: Tensor, lengths: Tensor, grid: BlockGrid, at: Tensor, budget: int
) -> _Rows:
    """Attention of the target rows, each over the blocks that it alone would keep."""
    chosen = choose_rows(q, k, grid, at, budget)
    index = chosen.blocks.clamp_min(0)
    total = chosen.scores.flatten(2).logsumexp(dim=-1)
    weights = (chosen.scores - total[..., None, None]).exp()
    length = torch.stack([head[kept] for head, kept in zip(lengths, index, strict=True)])
    output = torch.einsum("prks,prksd->prd", weights, values[index])
    return _Rows(output, total, _edges(chosen.blocks, weights, length))


def _block_edges(chosen: Chosen, weights: Tensor, inverse: Tensor, length: Tensor) -> Edges:
    """Mean over each block's rows: weights [P, B, size, budget·size] with 1 / row sum in `inverse` [P, B, size]."""
    mean = inverse / (inverse > 0).sum(dim=-1, keepdim=True)
    return _edges(chosen.blocks, (mean.unsqueeze(2) @ weights).view(length.shape), length)


def _edges(blocks: Tensor, share: Tensor, length: Tensor) -> Edges:
    """Sum the shares of single keys [..., budget, size] over each block."""
    return Edges(blocks, share.sum(dim=-1), (share * length).sum(dim=-1))
