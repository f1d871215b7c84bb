"""From scores to kept blocks: the forced ones, then those with the most attention mass.

`choose_dense` makes every visible block a candidate, `choose_rows` does so for single query rows; `gathered_scores`,
`block_mass` and `most_mass` are the steps for a few candidates. Of two blocks with equal mass the earlier one is kept.

A row keeps `budget` blocks or, with a `mass_threshold`, the fewest of them, best first after the forced ones, without
which less than this share of the candidates' mass would be kept (what goes to a sink counts as kept).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.estimate import Estimate
from attngraph_kernels.softmax import PLAIN, Softmax

DENSE_ELEMENTS = 1 << 20
"""Scores held at once where all visible blocks are candidates: small enough for a processor's cache."""

GATHERED_ELEMENTS = 5 << 19
"""Numbers gathered from keys or nodes at once, before they are multiplied: small enough for a processor's cache."""


class Chosen(NamedTuple):
    """The kept blocks of P heads (of one key/value head) in the B query blocks from `start` on.

    `blocks` [P, B, budget], ascending, -1 (first) where fewer are kept; `scores` [P, B, size, budget, size], the
    scaled and capped scores of each query with each kept key, -inf where a key is not visible or not kept; `kept_mass`
    [P, B], the share of the dense attention mass that no dropped block has, NaN where the search has not seen every
    visible key; there an `estimate` stands in, if it was asked for.
    """

    start: int
    blocks: Tensor
    scores: Tensor
    kept_mass: Tensor
    estimate: Estimate | None = None


def dense_chunks(blocks: range | list[int], heads: int, grid: BlockGrid) -> Iterator[tuple[int, int]]:
    """Cut consecutive query blocks into chunks whose dense scores stay within DENSE_ELEMENTS (or are one block)."""
    start, end = blocks[0], blocks[-1] + 1
    while start < end:
        stop = start + 1
        while (
            stop < end
            and heads * (stop + 1 - start) * (stop + 1 - grid.first_visible(start)) * grid.size**2 <= DENSE_ELEMENTS
        ):
            stop += 1
        yield start, stop
        start = stop


def choose_dense(
    queries: Tensor,
    keys: Tensor,
    grid: BlockGrid,
    start: int,
    stop: int,
    budget: int,
    softmax: Softmax = PLAIN,
    mass_threshold: float | None = None,
) -> Chosen:
    """Score every visible key of the query blocks `start` to `stop - 1` and keep the blocks with the most mass."""
    first = grid.first_visible(start)
    heads, size = len(queries), grid.size
    scores = softmax.capped(queries[:, start:stop].flatten(1, 2) @ keys[first:stop].flatten(0, 1).T)
    scores = scores.view(heads, stop - start, size, stop - first, size)
    masked = first if grid.windowed else start  # before it, every row sees every key
    positions = torch.arange(stop * size, device=keys.device)
    hidden = ~grid.visible(positions[start * size :, None], positions[None, masked * size :])
    hidden = hidden.view(stop - start, size, stop - masked, size)
    scores[..., masked - first :, :].masked_fill_(hidden, -torch.inf)
    blocks = torch.arange(first, stop, device=keys.device).expand(heads, stop - start, -1)
    earliest = torch.tensor([grid.first_visible(b) for b in range(start, stop)], device=keys.device)
    own = torch.arange(start, stop, device=keys.device)
    seen = (blocks >= earliest[:, None]) & (blocks <= own[:, None])
    return keep(blocks.masked_fill(~seen, -1), scores, grid, start, budget, softmax, mass_threshold)


def row_chunks(at: list[int], heads: int, grid: BlockGrid, kept: int) -> Iterator[slice]:
    """Cut query positions into runs that `choose_rows` can score within DENSE_ELEMENTS (or that are one row).

    `kept` is the number of elements that are gathered per row and head. Fewest runs where the positions ascend. No
    positions are one empty run.
    """
    own, start = [position // grid.size for position in at], 0
    while start < len(at) or start == 0:
        first, last, stop = grid.count, 0, start
        while stop < len(at):
            first, last = min(first, grid.first_visible(own[stop])), max(last, own[stop])
            held = heads * (stop + 1 - start) * max((last + 1 - first) * grid.size, kept)
            if stop > start and held > DENSE_ELEMENTS:
                break
            stop += 1
        yield slice(start, stop)
        start = max(stop, 1)


def choose_rows(
    queries: Tensor,
    k: Tensor,
    grid: BlockGrid,
    at: Tensor,
    budget: int,
    softmax: Softmax = PLAIN,
    mass_threshold: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks with the most true mass for single query rows, each with a budget of its own; O(T) each.

    Parameters
    ----------
    queries, k
        [P, R, d], scaled, and [T, d].
    at
        [R], the positions of the queries; scores with all keys from the first to the last that any of them sees are
        held.
    budget
        Blocks kept per row, the forced blocks of the row's own block included.
    mass_threshold
        Share of the row's mass that is enough: once it is kept, no further block is.

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        Blocks [P, R, budget], ascending, -1 (first) where fewer are kept; scores [P, R, budget, size], -inf where a key
        is not visible or not kept; the kept share [P, R] of the dense attention mass, exact.
    """
    heads, rows, size = len(queries), len(at), grid.size
    own = at // size
    earliest = torch.tensor([grid.first_visible(block) for block in own.tolist()], dtype=own.dtype, device=k.device)
    first, stop = min(earliest.tolist(), default=0), max(own.tolist(), default=0) + 1
    reached = torch.arange(first * size, stop * size, device=k.device)
    scores = softmax.capped(queries @ into_blocks(k, size)[first:stop].flatten(0, 1).T)
    scores.masked_fill_(~grid.visible(at[:, None], reached), -torch.inf)
    mass = softmax.probabilities(scores).view(heads, rows, stop - first, size).sum(dim=-1)
    blocks = torch.arange(first, stop, device=k.device).expand(heads, rows, -1)
    blocks = blocks.masked_fill((blocks < earliest[:, None]) | (blocks > own[:, None]), -1)
    kept, slots = most_mass(mass, blocks, own, grid, min(budget, stop - first), mass_threshold)
    scores = scores.view(heads, rows, stop - first, size)
    picked = scores.gather(2, slots.unsqueeze(-1).expand(-1, -1, -1, size))
    picked.masked_fill_((kept < 0).unsqueeze(-1), -torch.inf)
    missing = budget - kept.shape[-1]
    return (
        torch.nn.functional.pad(kept, (missing, 0), value=-1),
        torch.nn.functional.pad(picked, (0, 0, missing, 0), value=-torch.inf),
        kept_share(mass, kept, slots),
    )


def keep(
    blocks: Tensor,
    scores: Tensor,
    grid: BlockGrid,
    start: int,
    budget: int,
    softmax: Softmax = PLAIN,
    mass_threshold: float | None = None,
) -> Chosen:
    """Keep at most `budget` of all visible blocks, those with the most mass, the forced ones before all others."""
    heads, count, size, width, _ = scores.shape
    mass = block_mass(row_mass(scores, grid, start, softmax), grid, start)
    own = torch.arange(start, start + count, device=blocks.device)
    kept, slots = most_mass(mass, blocks, own, grid, min(budget, width), mass_threshold)
    row = torch.arange(heads * count * size, device=blocks.device).view(heads, count, size, 1)
    picked = scores.view(-1, size).index_select(0, (row * width + slots.unsqueeze(2)).flatten())
    picked = picked.view(heads, count, size, slots.shape[-1], size)
    share = kept_share(mass, kept, slots)
    if mass_threshold is not None:
        picked.masked_fill_((kept < 0)[:, :, None, :, None], -torch.inf)
    if slots.shape[-1] < budget:
        missing = budget - slots.shape[-1]
        kept = torch.nn.functional.pad(kept, (missing, 0), value=-1)
        picked = torch.nn.functional.pad(picked, (0, 0, missing, 0), value=-torch.inf)
    return Chosen(start, kept, picked, share)


def row_mass(scores: Tensor, grid: BlockGrid, start: int, softmax: Softmax = PLAIN) -> Tensor:
    """The probability of each query on each candidate, [P, B, size, C]; 0 for rows of padding."""
    shares = softmax.probabilities(scores.flatten(3)).view(scores.shape)
    if start + scores.shape[1] == grid.count:
        shares[:, -1, grid.rows(grid.count - 1) :] = 0
    return shares.sum(dim=-1)


def block_mass(of_rows: Tensor, grid: BlockGrid, start: int) -> Tensor:
    """The mean of `row_mass` over each query block's rows, [P, B, C]."""
    # Summed key by key, then row by row: every block in the same order, so that equal blocks tie exactly.
    rows = grid.row_counts(start, start + of_rows.shape[1], of_rows)
    return of_rows.sum(dim=2).div_(rows[:, None])


def gathered_scores(
    queries: Tensor,
    keys: Tensor,
    blocks: Tensor,
    grid: BlockGrid,
    start: int,
    softmax: Softmax = PLAIN,
    *,
    complete: bool = False,
) -> Tensor:
    """Scores [P, B, size, C, size] of the query blocks from `start` on with the keys of their `blocks` [P, B, C].

    `blocks` ascend, the own block is always the last; a key that is not visible, or of a block -1, has -inf. Where they
    are `complete`, none is -1.
    """
    heads, count, width = blocks.shape
    size = grid.size
    rows = queries[:, start : start + count].flatten(0, 1)
    scores = softmax.capped(gathered_products(rows, keys, blocks.clamp_min(0).flatten(0, 1)))
    scores = scores.view(heads, count, size, width, size)
    if not grid.windowed:
        future = torch.ones(size, size, dtype=torch.bool, device=blocks.device).triu_(1)
        scores[..., -1, :].masked_fill_(future, -torch.inf)
        return scores if complete else scores.masked_fill_((blocks < 0)[:, :, None, :, None], -torch.inf)
    within = torch.arange(size, device=blocks.device)
    positions = torch.arange(start, start + count, device=blocks.device)[:, None] * size + within
    reached = blocks[:, :, None, :, None] * size + within
    hidden = ~grid.visible(positions[None, :, :, None, None], reached)
    return scores.masked_fill_(hidden | (blocks < 0)[:, :, None, :, None], -torch.inf)


def gathered_products(rows: Tensor, table: Tensor, at: Tensor) -> Tensor:
    """Products [N, m, C·c] of `rows` [N, m, f] with the C entries `at` [N, C] of a `table` [n, c, f], each its own."""
    entries = table.flatten(1)
    at_once = max(1, GATHERED_ELEMENTS // (at.shape[1] * entries.shape[1]))
    parts = [
        torch.bmm(some, entries.index_select(0, where.flatten()).view(len(some), -1, rows.shape[2]).transpose(1, 2))
        for some, where in zip(torch.split(rows, at_once), torch.split(at, at_once), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def kept_share(mass: Tensor, kept: Tensor, slots: Tensor) -> Tensor:
    """1 - the dense mass on the blocks that are not kept: what goes to a sink is not dropped."""
    return 1 - (mass.sum(dim=-1) - mass.gather(-1, slots).masked_fill_(kept < 0, 0).sum(dim=-1))


def most_mass(
    mass: Tensor, blocks: Tensor, own: Tensor, grid: BlockGrid, budget: int, mass_threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """The kept `blocks` [P, R, budget], ascending, and their slots: forced ones first, then those with the most mass.

    `mass` and `blocks` are [P, R, C], -1 marking what is no candidate; `own` [R] is each row's own block. A block that
    is not forced, and before which only 1 - `mass_threshold` of the mass is left, is not kept: -1.
    """
    forced = grid.forced_among(blocks, own)
    slots = largest(mass.masked_fill(forced, 2.0), blocks >= 0, budget)
    chosen = blocks.gather(-1, slots)
    if mass_threshold is not None:
        taken = mass.gather(-1, slots)
        left = mass.sum(dim=-1, keepdim=True) - (taken.cumsum(dim=-1) - taken)
        enough = (left <= 1 - mass_threshold) & ~forced.expand_as(mass).gather(-1, slots)
        chosen = chosen.masked_fill(enough, -1)
    kept, order = chosen.sort(dim=-1)
    return kept, slots.gather(-1, order)


def largest(mass: Tensor, valid: Tensor, count: int) -> Tensor:
    """Slots of the `count` largest of `mass` (>= 0, fp32), best first; ties to the lower slot, invalid ones last.

    The bits of a non-negative float order like the float itself, so value and slot make one unique integer key.
    """
    width = mass.shape[-1]
    key = mass.contiguous().view(torch.int32).to(torch.int64) << 32
    key += torch.arange(width - 1, -1, -1, device=mass.device)
    return key.masked_fill_(~valid, -1).topk(count, dim=-1).indices
