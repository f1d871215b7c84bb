"""Walks over the blocks that one query block keeps, in tiles of keys, for `attend` and the exact re-score of `select`.

Kept blocks ascend, unused places (-1) first, the own block last. A tile gathers the keys of several small blocks, or a
part of a large one; tiles are laid so that the last one ends with the own block. By position keys are masked only in
the tiles of the own block and, in windowed layers, in those that reach over the window's edge.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attngraph_kernels.triton.tiles import hidden, load_columns, scored


@triton.jit
def tiles_of(number, SIZE: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr):
    """How many tiles `number` blocks take, and the slot (<= 0) that the first begins with: a part, of PART keys, of a
    block.
    """
    slots = number * (SIZE // PART)
    tiles = tl.cdiv(slots, KEYS // PART)
    return tiles, slots - tiles * (KEYS // PART)


@triton.jit
def keys_of(
    blocks, tile, tiles, first, own, tokens, window,
    SIZE: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Position of every key of a tile, whether it is one, and whether there may be rows of `own` that do not see it."""
    column = tl.arange(0, KEYS)
    begin = first + tile * (KEYS // PART)
    slot = begin + column // PART
    block = tl.load(blocks + slot // (SIZE // PART), mask=slot >= 0, other=-1)
    position = block * SIZE + (slot % (SIZE // PART)) * PART + column % PART
    masked = tile >= tiles - tl.cdiv(SIZE, KEYS)
    if WINDOWED:
        earliest = tl.load(blocks + tl.maximum(begin, 0) // (SIZE // PART))
        masked = masked | (earliest * SIZE <= own * SIZE + SIZE - 1 - window)
    return position, (slot >= 0) & (block >= 0) & (position < tokens), masked


@triton.jit
def gathered(
    queries, query, position, present, masked, k, k_row, scale, softcap, window,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of queries with a tile of keys, -inf where a key is absent or, if `masked`, not seen."""
    keys = load_columns(k, position, k_row, present, WIDTH, PADDED)
    scores = scored(queries, keys, scale, softcap, CAPPED, PRECISION)
    scores = tl.where(present[None, :], scores, float("-inf"))
    if masked:
        scores = hidden(scores, query, position, window, WINDOWED)
    return scores
