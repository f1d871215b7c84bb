"""Attention over the kept blocks, and the mass and contribution of every edge, in one launch.

One program serves one query block (or 64 rows of one) of one head:

1. Walk the kept blocks in tiles of keys (`walk.py`); the running softmax gives output and log-sum-exp.
2. Walk them again: with the log-sum-exp known, the probabilities of each tile are summed over the rows, then over the
   keys of each block. No atomics, so every run gives the same bits.

The heads of one key/value head are neighbours in the grid and find its keys in the cache; nothing is repeated.
Where query spans are asked for, a second kernel gives the probabilities of single keys for the rows inside of them.
Targets are few rows, each with all keys it sees: PyTorch serves them (`attngraph_kernels.attend`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from attngraph_kernels.attend import Attended, Edges, attend_rows, audited_share, block_mean
from attngraph_kernels.audit import DenseAttention
from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.select import Selector
from attngraph_kernels.softmax import PLAIN, Softmax
from attngraph_kernels.spans import SpanSums
from attngraph_kernels.triton.launch import launch, power_of_two, precision, rows_contiguous, tile_for
from attngraph_kernels.triton.select import search
from attngraph_kernels.triton.tiles import LN2, LOG2E, finished, load_rows, started, taken
from attngraph_kernels.triton.walk import gathered, keys_of, tiles_of

PAIRS_ELEMENTS = 1 << 24
"""Probabilities of single keys in memory at once."""


class OverBlocks(NamedTuple):
    """`output` [H, T, d_v] in the dtype of v, or None where not asked for; in fp32, `log_sum_exp` [H, T] over the kept
    keys and the sink, and `mass` and `contribution` [H, nq, budget].
    """

    output: Tensor | None
    log_sum_exp: Tensor
    mass: Tensor
    contribution: Tensor


@triton.jit
def _attend_kernel(
    q, k, v, blocks, norms, dense, sinks, output, log_sum_exp, mass, contribution,
    tokens, heads, group, budget, window, scale, softcap,
    q_head, q_row, k_head, k_row, v_head, v_row, o_head, o_row,
    SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, OUTPUT: tl.constexpr,
    NORMS: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (SIZE + ROWS - 1) // ROWS  # of a query block
    SPLIT: tl.constexpr = SIZE // PART  # parts of a key block
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    piece = program // heads
    own = piece // PIECES
    row = own * SIZE + (piece % PIECES) * ROWS + tl.arange(0, ROWS)
    present_row = (row < tokens) & (row < (own + 1) * SIZE)
    q += head * q_head
    k += (head // group) * k_head
    v += (head // group) * v_head
    edge = (head * tl.cdiv(tokens, SIZE) + own) * budget
    blocks += edge
    queries = load_rows(q, row, q_row, present_row, WIDTH, PADDED)
    tiles, first = tiles_of(budget, SIZE, KEYS, PART)
    top, total = started(sinks, head, ROWS, SINKS)
    mixed = tl.zeros((ROWS, PADDED_VALUES), tl.float32)
    for tile in range(0, tiles):
        position, present, masked = keys_of(blocks, tile, tiles, first, own, tokens, window, SIZE, KEYS, PART, WINDOWED)
        scores = gathered(
            queries, row, position, present, masked, k, k_row, scale, softcap, window,
            WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
        )  # fmt: skip
        top, total, mixed = taken(
            top, total, mixed, scores, v, position, v_row, present, VALUES, PADDED_VALUES, OUTPUT, PRECISION
        )
    ends = tl.where(present_row, finished(top, total), float("inf"))  # rows that are none weigh nothing
    tl.store(log_sum_exp + head * tokens + row, ends * LN2, mask=present_row)
    if OUTPUT:
        column = tl.arange(0, PADDED_VALUES)
        at = output + head * o_head + row.to(tl.int64)[:, None] * o_row + column[None, :]
        mixed = mixed / total[:, None]
        tl.store(at, mixed.to(output.dtype.element_ty), mask=present_row[:, None] & (column < VALUES)[None, :])
    if DENSE:
        ends = tl.load(dense + head * tokens + row, mask=present_row, other=float("inf")) * LOG2E
    share = 1.0 / tl.minimum(SIZE, tokens - own * SIZE).to(tl.float32)
    into = (edge * PIECES + (piece % PIECES) * budget) * SPLIT
    part = tl.arange(0, KEYS // PART)
    for tile in range(0, tiles):
        position, present, masked = keys_of(blocks, tile, tiles, first, own, tokens, window, SIZE, KEYS, PART, WINDOWED)
        scores = gathered(
            queries, row, position, present, masked, k, k_row, scale, softcap, window,
            WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
        )  # fmt: skip
        of_keys = tl.sum(tl.exp2(scores - ends[:, None]), axis=0) * share
        slot = first + tile * (KEYS // PART) + part
        of_parts = tl.sum(tl.reshape(of_keys, (KEYS // PART, PART)), axis=1)
        tl.store(mass + into + slot, of_parts, mask=slot >= 0)
        if NORMS:
            length = tl.load(norms + head * tokens + position, mask=present, other=0.0)
            of_parts = tl.sum(tl.reshape(of_keys * length, (KEYS // PART, PART)), axis=1)
            tl.store(contribution + into + slot, of_parts, mask=slot >= 0)


def over_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    blocks: Tensor,
    *,
    scale: float,
    softmax: Softmax = PLAIN,
    value_norm: Tensor | None = None,
    dense_log_sum_exp: Tensor | None = None,
    output: bool = True,
) -> OverBlocks:
    """Attention of every query block over its `blocks` [H, nq, budget] (as `BlockSelection` has them).

    Parameters
    ----------
    q, k, v
        [H, T, d], [G, T, d], [G, T, d_v], fp16, bf16 or fp32; query head h reads key/value head h // (H / G).
    scale
        Softmax scale.
    value_norm
        [H, T]; without it contributions equal masses.
    dense_log_sum_exp
        [H, T]; with it masses are shares of the dense softmax.
    output
        Whether the output is wanted.
    """
    q, k, v = map(rows_contiguous, (q, k, v))
    heads, tokens, width = q.shape
    values, budget = v.shape[-1], blocks.shape[-1]
    tile = tile_for(grid.size, max(width, values), q.element_size())
    part = min(grid.size, tile.keys)
    pieces, split = -(-grid.size // tile.rows), grid.size // part
    found = v.new_empty(tokens, heads, values).transpose(0, 1) if output else None
    total = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    mass = torch.empty(heads, grid.count, pieces, budget, split, dtype=torch.float32, device=q.device)
    contribution = torch.empty_like(mass) if value_norm is not None else mass
    into = v if found is None else found
    launch(
        _attend_kernel,
        (grid.count * pieces * heads,),
        **tile.options,
        q=q,
        k=k,
        v=v,
        blocks=blocks.to(torch.int32).contiguous(),
        norms=total if value_norm is None else value_norm.float().contiguous(),
        dense=total if dense_log_sum_exp is None else dense_log_sum_exp.float().contiguous(),
        sinks=total if softmax.sinks is None else softmax.sinks.contiguous(),
        output=into,
        log_sum_exp=total,
        mass=mass,
        contribution=contribution,
        tokens=tokens,
        heads=heads,
        group=heads // len(k),
        budget=budget,
        window=grid.window if grid.windowed else 0,
        scale=float(scale),
        softcap=float(softmax.softcap or 0.0),
        q_head=q.stride(0),
        q_row=q.stride(1),
        k_head=k.stride(0),
        k_row=k.stride(1),
        v_head=v.stride(0),
        v_row=v.stride(1),
        o_head=into.stride(0),
        o_row=into.stride(1),
        SIZE=grid.size,
        ROWS=tile.rows,
        KEYS=tile.keys,
        PART=part,
        WIDTH=width,
        PADDED=max(16, power_of_two(width)),
        VALUES=values,
        PADDED_VALUES=max(16, power_of_two(values)),
        WINDOWED=grid.windowed,
        CAPPED=softmax.softcap is not None,
        SINKS=softmax.sinks is not None,
        OUTPUT=output,
        NORMS=value_norm is not None,
        DENSE=dense_log_sum_exp is not None,
        PRECISION=precision(q.dtype, max(width, values)),
    )
    mass, contribution = (x[:, :, 0, :, 0] if pieces * split == 1 else x.sum(dim=(2, 4)) for x in (mass, contribution))
    return OverBlocks(found, total, mass, contribution)


@triton.jit
def _keys_kernel(
    q, k, blocks, met, log_sum_exp, share,
    tokens, heads, group, count, pairs, budget, window, scale, softcap, q_head, q_row, k_head, k_row,
    SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities of the kept keys of a query block, summed over its rows inside of a span."""
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    pair = program // heads
    own = tl.load(met + pair * 3)
    first_row, end_row = tl.load(met + pair * 3 + 1), tl.load(met + pair * 3 + 2)
    q += head * q_head
    k += (head // group) * k_head
    blocks += (head * count + own) * budget
    share += (head * pairs + pair) * budget * SIZE
    tiles, first = tiles_of(budget, SIZE, KEYS, PART)
    for tile in range(0, tiles):
        position, present, masked = keys_of(blocks, tile, tiles, first, own, tokens, window, SIZE, KEYS, PART, WINDOWED)
        of_keys = tl.zeros((KEYS,), tl.float32)
        for piece in range(0, (SIZE + ROWS - 1) // ROWS):
            row = own * SIZE + piece * ROWS + tl.arange(0, ROWS)
            inside = (row >= first_row) & (row < end_row) & (row < (own + 1) * SIZE)
            queries = load_rows(q, row, q_row, inside, WIDTH, PADDED)
            scores = gathered(
                queries, row, position, present, masked, k, k_row, scale, softcap, window,
                WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
            )  # fmt: skip
            ends = tl.load(log_sum_exp + head * tokens + row, mask=inside, other=float("inf")) * LOG2E
            of_keys += tl.sum(tl.exp2(scores - ends[:, None]), axis=0)
        key = first * PART + tile * KEYS + tl.arange(0, KEYS)
        tl.store(share + key, of_keys, mask=key >= 0)


def span_sums(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    blocks: Tensor,
    log_sum_exp: Tensor,
    norms: Tensor,
    spans: Sequence[tuple[int, int]],
    *,
    scale: float,
    softmax: Softmax = PLAIN,
) -> SpanSums:
    """Attention between token ranges, over the kept `blocks` [H, nq, budget] of every query block.

    Parameters
    ----------
    log_sum_exp, norms
        [H, T]: what probabilities are normalised by, and the value norms.
    """
    q, k = map(rows_contiguous, (q, k))
    heads, _, width = q.shape
    budget = blocks.shape[-1]
    sums = SpanSums(spans, grid, heads, q.device)
    met = sums.pairs(range(grid.count))
    lengths = into_blocks(norms.unsqueeze(-1), grid.size).flatten(0, 1)[..., 0]
    above = torch.arange(heads, device=q.device)[:, None, None] * grid.count
    tile = tile_for(grid.size, width, q.element_size())
    for some in met.split(max(1, PAIRS_ELEMENTS // (heads * budget * grid.size))):
        span, block = some.to(q.device).T
        limits = torch.tensor(spans, dtype=torch.int64, device=q.device)[span]
        share = torch.empty(heads, len(some), budget * grid.size, dtype=torch.float32, device=q.device)
        launch(
            _keys_kernel,
            (len(some) * heads,),
            **tile.options,
            q=q,
            k=k,
            blocks=blocks,
            met=torch.cat([block[:, None], limits], dim=1).to(torch.int32),
            log_sum_exp=log_sum_exp,
            share=share,
            tokens=grid.tokens,
            heads=heads,
            group=heads // len(k),
            count=grid.count,
            pairs=len(some),
            budget=budget,
            window=grid.window if grid.window is not None and grid.windowed else 0,
            scale=float(scale),
            softcap=float(softmax.softcap or 0.0),
            q_head=q.stride(0),
            q_row=q.stride(1),
            k_head=k.stride(0),
            k_row=k.stride(1),
            SIZE=grid.size,
            ROWS=tile.rows,
            KEYS=tile.keys,
            PART=min(grid.size, tile.keys),
            WIDTH=width,
            PADDED=max(16, power_of_two(width)),
            WINDOWED=grid.windowed,
            CAPPED=softmax.softcap is not None,
            PRECISION=precision(q.dtype, width),
        )
        kept = blocks[:, block].long()
        length = lengths[(kept.clamp_min(0) + above).flatten()].view(share.shape)
        sums.take(span, kept, share, length)
    return sums


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
    """As `attngraph_kernels.attend`; the output has the dtype of v."""
    if beside is not None:
        dense_log_sum_exp = beside.log_sum_exp
    observed = None if beside is None else beside.log_sum_exp
    rule: dict[str, Any] = {"scale": scale, "softmax": softmax}
    selection = search(q, k, grid, selector, **rule)
    found = over_blocks(
        q,
        k,
        v,
        grid,
        selection.blocks,
        value_norm=value_norm,
        dense_log_sum_exp=observed,
        output=beside is None,
        **rule,
    )
    total = found.log_sum_exp
    norms = q.new_ones((), dtype=torch.float32).expand(q.shape[:2]) if value_norm is None else value_norm
    kept_mass = selection.kept_mass if dense_log_sum_exp is None else audited_share(total, dense_log_sum_exp, grid)
    estimate = block_mean(selection.estimated_share(total), grid)
    normaliser = (total if observed is None else observed).contiguous()
    sums = span_sums(q, k, grid, selection.blocks, normaliser, norms, spans, **rule)
    at = torch.tensor(targets, dtype=torch.int64, device=q.device)
    groups = len(k)
    dense = [None] * groups if observed is None else observed.chunk(groups)
    parts = [
        attend_rows(
            heads[:, at].float() * scale,
            keys.float(),
            into_blocks(values.float(), grid.size),
            into_blocks(lengths.unsqueeze(-1), grid.size).squeeze(-1),
            grid,
            at,
            selector,
            own,
            everything,
        )
        for heads, keys, values, lengths, own, everything in zip(
            q.chunk(groups), k, v, norms.chunk(groups), softmax.split(groups), dense, strict=True
        )
    ]
    output = beside.output if beside is not None else found.output
    assert output is not None
    if beside is None:
        output[:, at] = torch.cat([part.output for part in parts]).to(output.dtype)
    total[:, at] = torch.cat([part.log_sum_exp for part in parts])
    return Attended(
        output=output,
        log_sum_exp=total,
        edges=Edges(selection.blocks.long(), found.mass, found.contribution),
        targets=Edges(*(torch.cat(columns) for columns in zip(*(part.edges for part in parts), strict=True))),
        kept_mass=kept_mass,
        kept_mass_estimate=estimate,
        target_kept_mass=torch.cat([part.kept_mass for part in parts]),
        span_mass=sums.mass(),
        span_contribution=sums.contribution(),
    )
