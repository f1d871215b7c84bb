"""Attention over the kept blocks: output, log-sum-exp, and the mass and contribution of every edge.

For query row i and the keys j of its kept blocks, with scores s_ij:

    p_ij = exp(s_ij) / Σ_kept exp(s_ij),   o_i = Σ_j p_ij v_j
    mass(I, J)         = mean over rows i of I of Σ_{j in J} p_ij
    contribution(I, J) = the same with each p_ij multiplied by ‖v_j W_O^h‖₂   (Kobayashi et al. 2020, arXiv 2004.10102)

A learned sink is part of every row's sum, but has no value and belongs to no edge. Beside a dense pass the sum runs
over all visible keys: p_ij is then the model's own probability, and o_i its own output.

Only one chunk of query blocks of one key/value head is in memory at a time: O(T) in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.audit import DenseAttention
from attngraph_kernels.backend import runs_in_triton
from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import Chosen, choose_rows, row_chunks
from attngraph_kernels.select import Selector
from attngraph_kernels.softmax import PLAIN, Softmax
from attngraph_kernels.spans import SpanSums
from attngraph_kernels.triton import limits


class Edges(NamedTuple):
    """Edge weights beside the `blocks` they lead to, [H, rows, budget]; `blocks` -1 and weights 0 where unused."""

    blocks: Tensor
    mass: Tensor
    contribution: Tensor


class Attended(NamedTuple):
    """What `attend` returns.

    `output` [H, T, d_v]; `log_sum_exp` [H, T] over the kept keys and the sink; `edges` with one row per query block;
    `targets` with one row per target token; `kept_mass` [H, nq], the exact share of the dense attention mass that each
    query block keeps (all but what goes to dropped keys), NaN where not audited; `kept_mass_estimate` [H, nq], the
    selector's estimate of it, NaN where it made none; `target_kept_mass` [H, targets], exact, never NaN; `span_mass`
    and `span_contribution` [H, spans, spans] (query span, key span).
    """

    output: Tensor
    log_sum_exp: Tensor
    edges: Edges
    targets: Edges
    kept_mass: Tensor
    kept_mass_estimate: Tensor
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
    rows = zip(v.float(), projection.chunk(len(v)), strict=True)
    return torch.cat([(x @ gram).mul_(x).sum(dim=-1).clamp_min_(0).sqrt_() for x, gram in rows])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    selector: Selector,
    *,
    scale: float,
    softmax: Softmax = PLAIN,
    value_norm: Tensor | None = None,
    targets: Sequence[int] = (),
    spans: Sequence[tuple[int, int]] = (),
    dense_log_sum_exp: Tensor | None = None,
    beside: DenseAttention | None = None,
) -> Attended:
    """Select and attend, chunk by chunk, reusing the selector's scores.

    Parameters
    ----------
    q, k, v
        [H, T, d], [G, T, d], [G, T, d_v]; query head h reads key/value head h // (H / G). Computed in fp32, in Triton
        (`backend`) with products of their own number type, which the output then has too.
    scale
        Softmax scale.
    softmax
        The layer's soft cap and the sinks [H] of its heads.
    value_norm
        [H, T] from `value_norms`; without it contributions equal masses.
    targets
        Token positions whose rows are kept at token grain.
    spans
        Half-open token ranges whose pairwise sums are wanted.
    dense_log_sum_exp
        [H, T] over all visible keys, from `audit.dense_attention`: audits every query block. Without it `kept_mass` is
        known where the selector has scored every visible key.
    beside
        The layer's dense attention, to be observed and not replaced: it audits every query block too, its output is
        what is returned, and masses are shares of its softmax, so that a row's masses sum to what the row keeps.
    """
    if runs_in_triton("attend", q, lambda: limits.of_layer(q, k, v) or limits.of_search(selector, grid, q.dtype)):
        from attngraph_kernels.triton.attend import attend as fused

        return fused(
            q,
            k,
            v,
            grid,
            selector,
            scale=scale,
            softmax=softmax,
            value_norm=value_norm,
            targets=targets,
            spans=spans,
            dense_log_sum_exp=dense_log_sum_exp,
            beside=beside,
        )
    q, k, v = q.float(), k.float(), v.float()
    groups = len(k)
    if beside is not None:
        dense_log_sum_exp = beside.log_sum_exp
    norms = v.new_ones(q.shape[:2]) if value_norm is None else value_norm
    dense = [None] * groups if dense_log_sum_exp is None else dense_log_sum_exp.chunk(groups)
    work = _Work(grid, selector, targets, spans, beside is not None)
    # Written where it will be read: a model goes on with the heads of each token side by side.
    output = v.new_empty(grid.count * grid.size, len(q), 0 if beside else v.shape[-1]).transpose(0, 1)
    per_group = zip(
        q.chunk(groups), k, v, norms.chunk(groups), dense, softmax.split(groups), output.chunk(groups), strict=True
    )
    parts = [
        _attend_group(heads * scale, keys, values, lengths, total, rule, into, work)
        for heads, keys, values, lengths, total, rule, into in per_group
    ]
    return _joined(parts, output[:, : grid.tokens] if beside is None else beside.output)


def audited_share(kept: Tensor, dense: Tensor, grid: BlockGrid) -> Tensor:
    """The share of the dense mass that each query block keeps, exp(kept - dense), mean over its rows: [H, nq].

    Parameters
    ----------
    kept, dense
        [H, T], log-sum-exp of each row's scores over the kept keys, and over all visible keys.
    """
    return block_mean((kept - dense).exp().clamp_max(1), grid)


def block_mean(rows: Tensor, grid: BlockGrid) -> Tensor:
    """[H, T] as the mean over each block's rows, [H, nq]."""
    total = into_blocks(rows.unsqueeze(-1), grid.size).squeeze(-1).sum(dim=-1)
    return total / grid.row_counts(0, grid.count, total)


def _joined(parts: list[Attended], output: Tensor) -> Attended:
    def cat(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors)

    edges, targets = (Edges(*map(cat, *(getattr(part, name) for part in parts))) for name in ("edges", "targets"))
    rest = {
        name: cat(*(getattr(part, name) for part in parts))
        for name in Attended._fields
        if name not in ("output", "edges", "targets")
    }
    return Attended(output=output, edges=edges, targets=targets, **rest)


class _Work(NamedTuple):
    """What is asked of every key/value head; `observed`: the dense attention flows on."""

    grid: BlockGrid
    selector: Selector
    targets: Sequence[int]
    spans: Sequence[tuple[int, int]]
    observed: bool


def _attend_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norms: Tensor,
    dense: Tensor | None,
    softmax: Softmax,
    output: Tensor,
    work: _Work,
) -> Attended:
    """`attend` for the P query heads of one key/value head; q [P, T, d] scaled, k, v [T, d], dense [P, T].

    What attention gives is written to `output` [P, blocks · size, d_v].
    """
    grid = work.grid
    values, lengths = into_blocks(v, grid.size), into_blocks(norms.unsqueeze(-1), grid.size).squeeze(-1)
    sums = SpanSums(work.spans, grid, len(q), v.device)
    total = dense if work.observed else None
    chunks = [
        _attend_chunk(chosen, values, lengths, grid, sums, softmax, total, output)
        for chosen in work.selector(q, k, grid, softmax)
    ]
    log_sum_exp, estimate, mass, contribution, blocks, kept_mass = (
        torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True)
    )
    if dense is not None:
        kept_mass = audited_share(log_sum_exp[:, : grid.tokens], dense, grid)
    at = torch.tensor(work.targets, dtype=torch.int64, device=v.device)
    rows = attend_rows(q[:, at], k, values, lengths, grid, at, work.selector, softmax, total)
    if total is None:
        output[:, at] = rows.output
    log_sum_exp[:, at] = rows.log_sum_exp
    return Attended(
        output=output,
        log_sum_exp=log_sum_exp[:, : grid.tokens],
        edges=Edges(blocks, mass, contribution),
        targets=rows.edges,
        kept_mass=kept_mass,
        kept_mass_estimate=block_mean(estimate[:, : grid.tokens], grid),
        target_kept_mass=rows.kept_mass,
        span_mass=sums.mass(),
        span_contribution=sums.contribution(),
    )


def _attend_chunk(
    chosen: Chosen,
    values: Tensor,
    lengths: Tensor,
    grid: BlockGrid,
    sums: SpanSums,
    softmax: Softmax,
    dense: Tensor | None,
    output: Tensor,
) -> _Chunk:
    """Attention of a chunk's query blocks over their kept blocks; its scores are overwritten.

    With the dense log-sum-exp [P, T] probabilities are those of the dense softmax, and nothing is written to `output`.
    """
    heads, count, size, budget, _ = chosen.scores.shape
    index = chosen.blocks.clamp_min(0)
    top = chosen.scores.amax(dim=(3, 4), keepdim=True)
    sink = softmax.sink_scores(top)
    top = torch.maximum(top, sink)
    weights = chosen.scores.sub_(top).exp_().flatten(3)
    total = weights.sum(dim=-1) + (sink - top).exp_()[..., 0, 0]
    log_sum_exp = top[..., 0, 0] + total.log()
    if dense is None:
        inverse = total.reciprocal()
        found = values.flatten(1).index_select(0, index.flatten()).view(heads * count, budget * size, -1)
        mixed = torch.bmm(weights.flatten(0, 1), found).view(heads, count * size, -1)
        rows = slice(chosen.start * size, (chosen.start + count) * size)
        output[:, rows] = mixed.mul_(inverse.view(heads, -1, 1))
    else:
        all_keys = into_blocks(dense.unsqueeze(-1), size).squeeze(-1)[:, chosen.start : chosen.start + count]
        inverse = (top[..., 0, 0] - all_keys).exp_()
    offset = torch.arange(heads, device=values.device)[:, None, None] * grid.count
    length = lengths.flatten(0, 1).index_select(0, (index + offset).flatten()).view(heads, count, budget, size)
    if chosen.start + count == grid.count:
        inverse[:, -1, grid.rows(grid.count - 1) :] = 0  # rows of padding
    sums.add(chosen.start, chosen.blocks, weights, inverse, length)
    mean = inverse / grid.row_counts(chosen.start, chosen.start + count, inverse).unsqueeze(-1)
    edges = _edges(chosen.blocks, (mean.unsqueeze(2) @ weights).view(length.shape), length)
    estimate = chosen.estimate
    share = torch.full_like(log_sum_exp, torch.nan) if estimate is None else estimate.share(log_sum_exp)
    return _Chunk(
        log_sum_exp.flatten(1),
        share.flatten(1),
        edges.mass,
        edges.contribution,
        chosen.blocks,
        chosen.kept_mass,
    )


class _Chunk(NamedTuple):
    """Parts of `Attended` for the query blocks of a chunk, rows along dimension 1."""

    log_sum_exp: Tensor
    estimate: Tensor
    mass: Tensor
    contribution: Tensor
    blocks: Tensor
    kept_mass: Tensor


class Rows(NamedTuple):
    """Output [P, R, d_v], log-sum-exp and kept mass [P, R], and edges of single query rows."""

    output: Tensor
    log_sum_exp: Tensor
    kept_mass: Tensor
    edges: Edges


def attend_rows(
    queries: Tensor,
    k: Tensor,
    values: Tensor,
    lengths: Tensor,
    grid: BlockGrid,
    at: Tensor,
    selector: Selector,
    softmax: Softmax,
    dense: Tensor | None,
) -> Rows:
    """Attention of target rows, each over the blocks that it alone would keep.

    Parameters
    ----------
    queries, at
        [P, R, d], scaled, and [R], their positions.
    k, values, lengths
        [T, d], fp32; [n, size, d_v]; value norms [P, n, size].
    dense
        [P, T], log-sum-exp over all visible keys: probabilities are those of the dense softmax.
    """
    kept = min(selector.budget, grid.count) * values[0].numel()
    parts = [
        _attend_rows(queries[:, run], k, values, lengths, grid, at[run], selector, softmax, dense)
        for run in row_chunks(at.tolist(), len(queries), grid, kept)
    ]
    return Rows(
        output=torch.cat([part.output for part in parts], dim=1),
        log_sum_exp=torch.cat([part.log_sum_exp for part in parts], dim=1),
        kept_mass=torch.cat([part.kept_mass for part in parts], dim=1),
        edges=Edges(*(torch.cat(columns, dim=1) for columns in zip(*(part.edges for part in parts), strict=True))),
    )


def _attend_rows(
    queries: Tensor,
    k: Tensor,
    values: Tensor,
    lengths: Tensor,
    grid: BlockGrid,
    at: Tensor,
    selector: Selector,
    softmax: Softmax,
    dense: Tensor | None,
) -> Rows:
    budget = min(selector.budget, grid.count)
    blocks, scores, kept_mass = choose_rows(queries, k, grid, at, budget, softmax, selector.mass_threshold)
    index = blocks.clamp_min(0)
    total = scores.flatten(2).logsumexp(dim=-1)
    total = torch.logaddexp(total, softmax.sink_scores(total))
    weights = (scores - (total if dense is None else dense[:, at])[..., None, None]).exp()
    length = torch.stack([head[kept] for head, kept in zip(lengths, index, strict=True)])
    output = values.new_empty(*total.shape, 0)  # beside a dense pass it is not wanted
    if dense is None:
        output = torch.einsum("prks,prksd->prd", weights, values[index])
    return Rows(output, total, kept_mass, _edges(blocks, weights, length))


def _edges(blocks: Tensor, share: Tensor, length: Tensor) -> Edges:
    """Sum the shares of single keys [..., budget, size] over each block."""
    return Edges(blocks, share.sum(dim=-1), (share * length).sum(dim=-1))
