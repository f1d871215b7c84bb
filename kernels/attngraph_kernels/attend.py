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
from attngraph_kernels.chosen import Chosen, choose_rows
from attngraph_kernels.select import Selector
from attngraph_kernels.spans import SpanSums


class Edges(NamedTuple):
    """Edge weights beside the `blocks` they lead to, [H, rows, budget]; `blocks` -1 and weights 0 where unused."""

    blocks: Tensor
    mass: Tensor
    contribution: Tensor


class Attended(NamedTuple):
    """What `attend` returns.

    `output` [H, T, d_v]; `log_sum_exp` [H, T] over the kept keys; `edges` with one row per query block; `targets` with
    one row per target token; `kept_mass` [H, nq], the exact share of the dense attention mass that each query block
    keeps, NaN where not audited; `target_kept_mass` [H, targets], never NaN; `span_mass` and `span_contribution`
    [H, spans, spans] (query span, key span).
    """

    output: Tensor
    log_sum_exp: Tensor
    edges: Edges
    targets: Edges
    kept_mass: Tensor
    target_kept_mass: Tensor
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
    dense_log_sum_exp: Tensor | None = None,
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
    dense_log_sum_exp
        [H, T] over all visible keys, from `audit.dense_attention`: audits every query block. Without it `kept_mass` is
        known where the selector has scored every visible key.
    """
    groups = len(k)
    norms = v.new_ones(q.shape[:2]) if value_norm is None else value_norm
    dense = [None] * groups if dense_log_sum_exp is None else dense_log_sum_exp.chunk(groups)
    parts = [
        _attend_group(*tensors, grid, selector, targets, spans)
        for tensors in zip((q * scale).chunk(groups), k, v, norms.chunk(groups), dense, strict=True)
    ]
    return _joined(parts)


def kept_share(kept: Tensor, dense: Tensor, grid: BlockGrid) -> Tensor:
    """The share of the dense mass that each query block keeps, exp(kept - dense), mean over its rows: [H, nq].

    Parameters
    ----------
    kept, dense
        [H, T], log-sum-exp of each row's scores over the kept keys, and over all visible keys.
    """
    share = into_blocks((kept - dense).exp().clamp_max(1).unsqueeze(-1), grid.size).squeeze(-1).sum(dim=-1)
    return share / torch.tensor([grid.rows(block) for block in range(grid.count)], device=kept.device)


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
    dense: Tensor | None,
    grid: BlockGrid,
    selector: Selector,
    targets: Sequence[int],
    spans: Sequence[tuple[int, int]],
) -> Attended:
    """`attend` for the P query heads of one key/value head; q [P, T, d] scaled, k, v [T, d]."""
    values, lengths = into_blocks(v, grid.size), into_blocks(norms.unsqueeze(-1), grid.size).squeeze(-1)
    sums = SpanSums(spans, grid, len(q), v.device)
    chunks = [_attend_chunk(chosen, values, lengths, grid, sums) for chosen in selector(q, k, grid)]
    output, log_sum_exp, mass, contribution, blocks, kept_mass = (
        torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True)
    )
    if dense is not None:
        kept_mass = kept_share(log_sum_exp[:, : grid.tokens], dense, grid)
    at = torch.tensor(targets, dtype=torch.int64, device=v.device)
    rows = _attend_rows(q, k, values, lengths, grid, at, min(selector.budget, grid.count))
    output[:, at] = rows.output
    log_sum_exp[:, at] = rows.log_sum_exp
    return Attended(
        output=output[:, : grid.tokens],
        log_sum_exp=log_sum_exp[:, : grid.tokens],
        edges=Edges(blocks, mass, contribution),
        targets=rows.edges,
        kept_mass=kept_mass,
        target_kept_mass=rows.kept_mass,
        span_mass=sums.mass(),
        span_contribution=sums.contribution(),
    )


def _attend_chunk(chosen: Chosen, values: Tensor, lengths: Tensor, grid: BlockGrid, sums: SpanSums) -> _Chunk:
    """Attention of a chunk's query blocks over their kept blocks; its scores are overwritten."""
    heads, count, size, budget, _ = chosen.scores.shape
    index = chosen.blocks.clamp_min(0)
    top = chosen.scores.amax(dim=(3, 4), keepdim=True)
    weights = chosen.scores.sub_(top).exp_().flatten(3)
    total = weights.sum(dim=-1)
    found = values.flatten(1).index_select(0, index.flatten()).view(heads * count, budget * size, -1)
    output = torch.bmm(weights.flatten(0, 1), found).view(heads, count, size, -1).div_(total.unsqueeze(-1))
    offset = torch.arange(heads, device=values.device)[:, None, None] * grid.count
    length = lengths.flatten(0, 1).index_select(0, (index + offset).flatten()).view(heads, count, budget, size)
    inverse = total.reciprocal()
    if chosen.start + count == grid.count:
        inverse[:, -1, grid.rows(grid.count - 1) :] = 0  # rows of padding
    sums.add(chosen.start, chosen.blocks, weights, inverse, length)
    mean = inverse / (inverse > 0).sum(dim=-1, keepdim=True)
    edges = _edges(chosen.blocks, (mean.unsqueeze(2) @ weights).view(length.shape), length)
    log_sum_exp = top[:, :, :, 0, 0] + total.log()
    return _Chunk(
        output.flatten(1, 2), log_sum_exp.flatten(1), edges.mass, edges.contribution, chosen.blocks, chosen.kept_mass
    )


class _Chunk(NamedTuple):
    """Parts of `Attended` for the query blocks of a chunk, rows along dimension 1."""

    output: Tensor
    log_sum_exp: Tensor
    mass: Tensor
    contribution: Tensor
    blocks: Tensor
    kept_mass: Tensor


class _Rows(NamedTuple):
    """Output [P, R, d_v], log-sum-exp and kept mass [P, R], and edges of single query rows."""

    output: Tensor
    log_sum_exp: Tensor
    kept_mass: Tensor
    edges: Edges


def _attend_rows(
    q: Tensor, k: Tensor, values: Tensor, lengths: Tensor, grid: BlockGrid, at: Tensor, budget: int
) -> _Rows:
    """Attention of the target rows, each over the blocks that it alone would keep."""
    blocks, scores, kept_mass = choose_rows(q, k, grid, at, budget)
    index = blocks.clamp_min(0)
    total = scores.flatten(2).logsumexp(dim=-1)
    weights = (scores - total[..., None, None]).exp()
    length = torch.stack([head[kept] for head, kept in zip(lengths, index, strict=True)])
    output = torch.einsum("prks,prksd->prd", weights, values[index])
    return _Rows(output, total, kept_mass, _edges(blocks, weights, length))


def _edges(blocks: Tensor, share: Tensor, length: Tensor) -> Edges:
    """Sum the shares of single keys [..., budget, size] over each block."""
    return Edges(blocks, share.sum(dim=-1), (share * length).sum(dim=-1))
