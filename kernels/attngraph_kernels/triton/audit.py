"""Dense attention of a layer, streamed: output and log-sum-exp of every row, and exact block masses on request.

`dense_attention` walks, for every tile of rows, all keys that its rows see, with a running softmax. `block_masses`
does the same for chosen query blocks in three steps: log-sum-exps of stretches of keys, side by side, so that a few
rows with very long pasts still fill a GPU; their sum; and the probabilities summed over each key block. `top_blocks`
keeps of these masses what a budget allows, some query blocks at a time, so that there is never a matrix of all query
blocks and all key blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attngraph_kernels.audit import DenseAttention
from attngraph_kernels.blocks import BlockGrid
from attngraph_kernels.chosen import kept_share, most_mass
from attngraph_kernels.softmax import PLAIN, Softmax
from attngraph_kernels.triton.launch import launch, power_of_two, precision, rows_contiguous, tile_for
from attngraph_kernels.triton.tiles import (
    LN2,
    LOG2E,
    finished,
    grown,
    hidden,
    load_columns,
    load_rows,
    scored,
    started,
    taken,
)

MASSES_AT_ONCE = 1 << 24
"""Block masses in memory at once."""

LEAST_TILES, MOST_PROGRAMS = 32, 1024
"""Tiles of keys that one program of `block_masses` walks at least, and most programs per query block and head."""


@triton.jit
def _seen(begin, end, window, ROWS: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr):
    """The tiles with keys that any of the ROWS rows from `begin` on sees, and the tiles whose keys all of them see.

    Both as the first tile and the first after it; the rows see no key from `end` on.
    """
    first, start = 0, 0
    if WINDOWED:
        first = tl.maximum(begin - window + 1, 0) // KEYS
        start = tl.cdiv(tl.maximum(begin + ROWS - window, 0), KEYS)
    return first, tl.cdiv(end, KEYS), start, begin // KEYS


@triton.jit
def _tile_scores(
    queries, row, tile, start, stop, tokens, k, k_row, scale, softcap, window,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores with the keys of one tile, -inf where a key is not seen: asked before tile `start` and from `stop` on."""
    position = tile * KEYS + tl.arange(0, KEYS)
    present = position < tokens
    keys = load_columns(k, position, k_row, present, WIDTH, PADDED)
    scores = scored(queries, keys, scale, softcap, CAPPED, PRECISION)
    if (tile < start) | (tile >= stop):
        scores = hidden(tl.where(present[None, :], scores, float("-inf")), row, position, window, WINDOWED)
    return scores, position, present


@triton.jit
def _dense_kernel(
    q, k, v, sinks, output, log_sum_exp,
    tokens, heads, group, window, scale, softcap,
    q_head, q_row, k_head, k_row, v_head, v_row, o_head, o_row,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    begin = (tl.cdiv(tokens, ROWS) - 1 - program // heads) * ROWS  # the longest rows first
    row = begin + tl.arange(0, ROWS)
    present_row = row < tokens
    q += head * q_head
    k += (head // group) * k_head
    v += (head // group) * v_head
    queries = load_rows(q, row, q_row, present_row, WIDTH, PADDED)
    top, total = started(sinks, head, ROWS, SINKS)
    mixed = tl.zeros((ROWS, PADDED_VALUES), tl.float32)
    first, last, start, stop = _seen(begin, tl.minimum(begin + ROWS, tokens), window, ROWS, KEYS, WINDOWED)
    for tile in range(first, last):
        scores, position, present = _tile_scores(
            queries, row, tile, start, stop, tokens, k, k_row, scale, softcap, window,
            KEYS, WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
        )  # fmt: skip
        top, total, mixed = taken(
            top, total, mixed, scores, v, position, v_row, present, VALUES, PADDED_VALUES, OUTPUT, PRECISION
        )
    tl.store(log_sum_exp + head * tokens + row, finished(top, total) * LN2, mask=present_row)
    if OUTPUT:
        column = tl.arange(0, PADDED_VALUES)
        at = output + head * o_head + row.to(tl.int64)[:, None] * o_row + column[None, :]
        mixed = mixed / total[:, None]
        tl.store(at, mixed.to(output.dtype.element_ty), mask=present_row[:, None] & (column < VALUES)[None, :])


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    *,
    output: bool = True,
) -> DenseAttention:
    """As `attngraph_kernels.dense_attention`; without `output` that of the result is empty."""
    q, k, v = map(rows_contiguous, (q, k, v))
    heads, tokens, width = q.shape
    values = v.shape[-1]
    tile = tile_for(128, max(width, values), q.element_size())
    found = v.new_empty(tokens, heads, values if output else 0).transpose(0, 1)
    into = found if output else v
    total = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    launch(
        _dense_kernel,
        (-(-tokens // tile.rows) * heads,),
        **tile.options,
        q=q,
        k=k,
        v=v,
        sinks=total if sinks is None else sinks.contiguous(),
        output=into,
        log_sum_exp=total,
        **_shared(q, k, grid, scale, Softmax(softcap, sinks)),
        v_head=v.stride(0),
        v_row=v.stride(1),
        o_head=into.stride(0),
        o_row=into.stride(1),
        ROWS=tile.rows,
        KEYS=tile.keys,
        VALUES=values,
        PADDED_VALUES=max(16, power_of_two(values)),
        SINKS=sinks is not None,
        OUTPUT=output,
    )
    return DenseAttention(found, total)


def _shared(q: Tensor, k: Tensor, grid: BlockGrid, scale: float, softmax: Softmax) -> dict[str, Any]:
    """The arguments that all kernels here have."""
    heads, tokens, width = q.shape
    return {
        "tokens": tokens,
        "heads": heads,
        "group": heads // len(k),
        "window": grid.window if grid.window is not None and grid.windowed else 0,
        "scale": float(scale),
        "softcap": float(softmax.softcap or 0.0),
        "q_head": q.stride(0),
        "q_row": q.stride(1),
        "k_head": k.stride(0),
        "k_row": k.stride(1),
        "WIDTH": width,
        "PADDED": max(16, power_of_two(width)),
        "WINDOWED": grid.windowed,
        "CAPPED": softmax.softcap is not None,
        "PRECISION": precision(q.dtype, width),
    }


@triton.jit
def _piece(at, heads, tokens, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """The program's head; its query block's index in `at`, number and end; its piece of the block's rows."""
    PIECES: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    program = tl.program_id(0)
    index = program // heads // PIECES
    piece = program // heads % PIECES
    own = tl.load(at + index)
    within = piece * ROWS + tl.arange(0, ROWS)
    return (program % heads).to(tl.int64), index, piece, own, tl.minimum((own + 1) * SIZE, tokens), within


@triton.jit
def _partial_kernel(
    q, k, at, partial,
    tokens, heads, group, steps, programs, window, scale, softcap, q_head, q_row, k_head, k_row,
    SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp over one stretch of keys, for a piece of the rows of one query block."""
    number = tl.program_id(1)
    head, index, _piece_number, own, end, within = _piece(at, heads, tokens, SIZE, ROWS)
    row = own * SIZE + within
    k += (head // group) * k_head
    queries = load_rows(q + head * q_head, row, q_row, row < end, WIDTH, PADDED)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    first, last, start, stop = _seen(own * SIZE, end, window, SIZE, KEYS, WINDOWED)
    for tile in range(tl.maximum(first, number * steps), tl.minimum(last, (number + 1) * steps)):
        scores, _position, _present = _tile_scores(
            queries, row, tile, start, stop, tokens, k, k_row, scale, softcap, window,
            KEYS, WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
        )  # fmt: skip
        top, total, _, _ = grown(top, total, scores)
    ends = tl.where(total > 0, finished(top, total) * LN2, float("-inf"))
    into = ((index * heads + head) * programs + number) * SIZE + within
    tl.store(partial + into, ends, mask=within < SIZE)


@triton.jit
def _mass_kernel(
    q, k, at, log_sum_exp, mass,
    tokens, heads, group, steps, rows, parts, window, scale, softcap, q_head, q_row, k_head, k_row,
    SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probability on each part of a key block of one stretch, summed over a piece of the rows of one query block, by
    the number of all of the block's rows.
    """
    PART: tl.constexpr = SIZE if SIZE < KEYS else KEYS
    PIECES: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    number = tl.program_id(1)
    head, index, piece, own, end, within = _piece(at, heads, tokens, SIZE, ROWS)
    row = own * SIZE + within
    k += (head // group) * k_head
    queries = load_rows(q + head * q_head, row, q_row, row < end, WIDTH, PADDED)
    ends = tl.load(log_sum_exp + (index * heads + head) * SIZE + within, mask=row < end, other=float("inf"))
    ends = ends * LOG2E  # rows that are none weigh nothing
    share = 1.0 / (end - own * SIZE).to(tl.float32)
    mass += ((head * rows + index) * PIECES + piece) * parts
    first, last, start, stop = _seen(own * SIZE, end, window, SIZE, KEYS, WINDOWED)
    for tile in range(tl.maximum(first, number * steps), tl.minimum(last, (number + 1) * steps)):
        scores, _position, _present = _tile_scores(
            queries, row, tile, start, stop, tokens, k, k_row, scale, softcap, window,
            KEYS, WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
        )  # fmt: skip
        of_keys = tl.sum(tl.exp2(scores - ends[:, None]), axis=0) * share
        of_parts = tl.sum(tl.reshape(of_keys, (KEYS // PART, PART)), axis=1)
        part = tile * (KEYS // PART) + tl.arange(0, KEYS // PART)
        tl.store(mass + part, of_parts, mask=part < parts)


def block_masses(
    q: Tensor, k: Tensor, grid: BlockGrid, at: Tensor, *, scale: float, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """The exact dense attention of single query blocks.

    Parameters
    ----------
    q, k
        [H, T, d] and [G, T, d].
    at
        [B], the query blocks.

    Returns
    -------
    tuple[Tensor, Tensor]
        The mean over each block's rows of the probability on every key block, [H, B, n], and the log-sum-exp of the
        rows, [H, B, size].
    """
    q, k = map(rows_contiguous, (q, k))
    heads, _, width = q.shape
    rows, keys = max(16, min(64, grid.size)), 64
    pieces, split = -(-grid.size // rows), -(-grid.size // keys)
    options = {"num_warps": 8 if rows * power_of_two(width) >= 64 * 256 else 4, "num_stages": 2}
    tiles = -(-grid.tokens // keys)
    steps = max(LEAST_TILES, -(-tiles // MOST_PROGRAMS))
    programs = -(-tiles // steps)
    chosen = at.to(device=q.device, dtype=torch.int32)
    shared = _shared(q, k, grid, scale, softmax)
    # A tile of 64 by 64 leaves no registers for fp32 numbers in parts.
    shared |= {"SIZE": grid.size, "ROWS": rows, "KEYS": keys, "steps": steps, "PRECISION": "ieee"}
    partial = torch.empty(len(at), heads, programs, grid.size, dtype=torch.float32, device=q.device)
    started = (len(at) * heads * pieces, programs)
    launch(
        _partial_kernel,
        started,
        q=q,
        k=k,
        at=chosen,
        partial=partial,
        programs=programs,
        **shared,
        **options,
    )
    total = partial.logsumexp(dim=2)
    if softmax.sinks is not None:
        total = torch.logaddexp(total, softmax.sinks.float()[:, None])
    mass = torch.zeros(heads, len(at), pieces, grid.count, split, dtype=torch.float32, device=q.device)
    launch(
        _mass_kernel,
        started,
        q=q,
        k=k,
        at=chosen,
        log_sum_exp=total,
        mass=mass,
        rows=len(at),
        parts=grid.count * split,
        **shared,
        **options,
    )
    return mass[:, :, 0, :, 0] if pieces * split == 1 else mass.sum(dim=(2, 4)), total.transpose(0, 1)


def first_visible(block: Tensor, grid: BlockGrid) -> Tensor:
    """The first key block that any query of each `block` sees."""
    if grid.window is None or not grid.windowed:
        return torch.zeros_like(block)
    return (block * grid.size - grid.window + 1).clamp_min(0) // grid.size


def top_blocks(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    at: Tensor,
    budget: int,
    *,
    scale: float,
    softmax: Softmax = PLAIN,
    mass_threshold: float | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The blocks with the most true mass of the query blocks `at`, some of them at a time.

    Yields
    ------
    tuple[Tensor, Tensor, Tensor]
        The query blocks [B], their kept blocks [H, B, budget] (as `Chosen` has them), and the kept share [H, B] of the
        dense mass.
    """
    blocks = torch.arange(grid.count, device=q.device)
    for some in at.to(q.device).split(max(1, MASSES_AT_ONCE // (len(q) * grid.count))):
        mass, _ = block_masses(q, k, grid, some, scale=scale, softmax=softmax)
        seen = (blocks <= some[:, None]) & (blocks >= first_visible(some, grid)[:, None])
        candidates = torch.where(seen, blocks, -1).expand_as(mass)
        kept, slots = most_mass(mass, candidates, some, grid, budget, mass_threshold)
        yield some, kept, kept_share(mass, kept, slots)
