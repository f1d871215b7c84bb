"""What the kernels share: scores of a tile of queries with a tile of keys, and the running softmax over tiles.

Scores are in base 2, s · log2(e), so that exp2 serves; log-sum-exps leave the kernels in base e.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(pointer, row, row_stride, present, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows [R, PADDED] of a matrix, 0 where `present` is false and beyond WIDTH."""
    column = tl.arange(0, PADDED)
    at = pointer + row.to(tl.int64)[:, None] * row_stride + column[None, :]
    return tl.load(at, mask=present[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def load_columns(pointer, row, row_stride, present, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The same, transposed: [PADDED, R]."""
    column = tl.arange(0, PADDED)
    at = pointer + row.to(tl.int64)[None, :] * row_stride + column[:, None]
    return tl.load(at, mask=present[None, :] & (column < WIDTH)[:, None], other=0.0)


@triton.jit
def scored(queries, keys, scale, softcap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """Scaled and capped scores in base 2; queries [M, d], keys [d, N]."""
    scores = tl.dot(queries, keys, input_precision=PRECISION)
    if CAPPED:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which is right at both infinities
        return softcap * LOG2E * (1 - 2 / (tl.exp2(scores * (2 * LOG2E * scale / softcap)) + 1))
    return scores * (scale * LOG2E)


@triton.jit
def hidden(scores, query, key, window, WINDOWED: tl.constexpr):
    """-inf where the query at a position does not see the key at a position."""
    seen = key[None, :] <= query[:, None]
    if WINDOWED:
        seen = seen & (key[None, :] > query[:, None] - window)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def started(sinks, head, ROWS: tl.constexpr, SINKS: tl.constexpr):
    """Maximum and sum of the running softmax before the first key: nothing, or the head's sink."""
    if SINKS:
        top = tl.full((ROWS,), 0.0, tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2E
        total = tl.full((ROWS,), 1.0, tl.float32)
    else:
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.full((ROWS,), 0.0, tl.float32)
    return top, total


@triton.jit
def grown(top, total, scores):
    """Take a tile of scores into the running softmax: new maximum and sum, its weights, and what older ones fade by."""
    higher = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    return higher, total * fade + tl.sum(weights, axis=1), weights, fade


@triton.jit
def taken(
    top, total, mixed, scores, v, position, v_row, present,
    VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr, OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take a tile of scores into the running softmax and, with OUTPUT, the values of its keys into `mixed`."""
    top, total, weights, fade = grown(top, total, scores)
    if OUTPUT:
        values = load_rows(v, position, v_row, present, VALUES, PADDED_VALUES)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weights.to(values.dtype), values, mixed, input_precision=PRECISION)
    return top, total, mixed


@triton.jit
def finished(top, total):
    """Log-sum-exp of the running softmax, base 2."""
    return top + tl.log2(total)


@triton.jit
def ranked(mass, valid, COUNT: tl.constexpr):
    """One integer per slot that orders by mass (>= 0), then by the lower slot; -1 where not valid.

    The bits of a non-negative float order like the float itself.
    """
    slot = tl.arange(0, COUNT)
    key = (mass.to(tl.int32, bitcast=True).to(tl.int64) << 32) + (COUNT - 1 - slot).to(tl.int64)
    return tl.where(valid, key, -1)


@triton.jit
def slots_of(key, COUNT: tl.constexpr):
    """The slots of keys from `ranked`; 0 for -1."""
    slot = COUNT - 1 - (key & 0xFFFFFFFF).to(tl.int32)
    return tl.where(key < 0, 0, slot)
