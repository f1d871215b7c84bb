"""Selection for a whole layer: one launch for the descent, one for the exact re-score.

One program serves one query block of one head, and holds its candidates in registers from the first level to the last:

1. **Descent.** Score all nodes of the coarsest level, keep the beam, score its children, and so on down to the blocks.
   A node's share grows with a running softmax over its representatives, so no matrix of scores leaves the program.
2. **Re-score.** The candidates' keys with all queries of the block: log-sum-exp first, then the mass of every
   candidate, then the best of them, the forced ones before all others.

What is best is decided by integers made of the mass and the slot (`tiles.ranked`): ties go to the earlier one, as in
the PyTorch path. Query blocks with few visible blocks skip the descent; those asked for (tail, targets) whose visible
blocks are many take exact masses (`audit.top_blocks`). Scores come from tensor cores, accumulated in fp32; the tables
of the descent have the number type of the queries and keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid
from attngraph_kernels.descent import fan_of
from attngraph_kernels.pyramid import WHOLE_LEVELS, bump, representatives_at
from attngraph_kernels.select import BlockSelection, Selector, Stream
from attngraph_kernels.softmax import PLAIN, Softmax
from attngraph_kernels.triton import limits
from attngraph_kernels.triton.audit import first_visible, top_blocks
from attngraph_kernels.triton.launch import launch, power_of_two, precision, rows_contiguous, tile_for
from attngraph_kernels.triton.pyramid import Levels, Queries, key_metric, key_tables, query_metric, query_tables
from attngraph_kernels.triton.tiles import LN2, LOG2E, finished, grown, load_rows, ranked, slots_of, started
from attngraph_kernels.triton.walk import gathered, keys_of, tiles_of

CHUNK = 16
"""Numbers of a node that a descent multiplies at once: with more it spills registers."""


class Searched(NamedTuple):
    """What a search knows of a layer: `blocks` [H, nq, budget] and `kept_mass` [H, nq] as in `BlockSelection`.

    With an estimate of the rest, for the rows that a descent served (NaN elsewhere): `candidates` [H, T], log-sum-exp
    of each query's scores over the candidates, and `dropped` [H, T], the same, estimated, over all that never became
    candidates.
    """

    blocks: Tensor
    kept_mass: Tensor
    candidates: Tensor | None = None
    dropped: Tensor | None = None

    def estimated_share(self, log_sum_exp: Tensor) -> Tensor:
        """The kept share [H, T] of each query's dense mass, given the log-sum-exp over its kept keys."""
        if self.candidates is None or self.dropped is None:
            return torch.full_like(log_sum_exp, torch.nan)
        return 1 / ((self.candidates - log_sum_exp).exp() + (self.dropped - log_sum_exp).exp())


@triton.jit
def _shares(
    query, table, bias, first, node, alive, representatives,
    COUNT: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Running softmax over the nodes' representatives: maximum and sum of each row, and each node's part of the sum."""
    row = tl.arange(0, ROWS)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    share = tl.zeros((ROWS, COUNT), tl.float32)
    found = first + tl.where(alive, node, 0).to(tl.int64) * representatives
    for representative in range(0, representatives):
        scores = tl.zeros((ROWS, COUNT), tl.float32)
        for part in range(0, PADDED, CHUNK):
            column = part + tl.arange(0, CHUNK)
            at = query + row[:, None] * WIDTH + column[None, :]
            queries = tl.load(at, mask=(row < QUERIES)[:, None] & (column < WIDTH)[None, :], other=0.0)
            at = table + (found + representative)[None, :] * WIDTH + column[:, None]
            keys = tl.load(at, mask=alive[None, :] & (column < WIDTH)[:, None], other=0.0)
            scores = tl.dot(queries, keys, scores, input_precision=PRECISION)
        above = tl.load(bias + found + representative, mask=alive, other=float("-inf"))
        scores = (scores + above[None, :]) * LOG2E
        top, total, weights, fade = grown(top, total, scores)
        share = share * fade[:, None] + weights
    return top, total, share


@triton.jit
def _dropped(dropped, top, share, kept_from, key, node, alive, lowest, highest, level):
    """Add, per row, the log-sum-exp (base 2) of the nodes that are not kept, by the share of them that is findable."""
    first = tl.maximum(node << level, lowest)
    last = tl.minimum(((node + 1) << level) - 1, highest)
    findable = tl.maximum(last - first + 1, 0).to(tl.float32) / (1 << level).to(tl.float32)
    gone = tl.where(alive & (key < kept_from), findable, 0.0)
    there = tl.sum(share * gone[None, :], axis=1)
    more = tl.where(there > 0, top + tl.log2(there), float("-inf"))
    higher = tl.maximum(dropped, more)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return tl.where(higher == float("-inf"), higher, base + tl.log2(tl.exp2(dropped - base) + tl.exp2(more - base)))


@triton.jit
def _representatives(level, REPRESENTATIVES: tl.constexpr, FEWER: tl.constexpr, WHOLE_LEVELS: tl.constexpr):
    """Representatives of a node of a level."""
    return tl.where(level < WHOLE_LEVELS, REPRESENTATIVES, FEWER)


@triton.jit
def _descend_kernel(
    at, query, weight, table, bias, candidates, dropped,
    heads, group, count, rows, entries, levels, coarse, beam, window,
    SIZE: tl.constexpr, REPRESENTATIVES: tl.constexpr, FEWER: tl.constexpr, WHOLE_LEVELS: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr,
    NODES: tl.constexpr, BEAM: tl.constexpr, FAN: tl.constexpr, FORCED: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    WINDOWED: tl.constexpr, ESTIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    index = program // heads
    own = tl.load(at + index)
    lowest = 1
    if WINDOWED:
        lowest = tl.maximum(own * SIZE - window + 1, 0) // SIZE
    highest = own - 2
    query += (head * count + own) * QUERIES * WIDTH
    weight += (head * count + own) * QUERIES
    table += (head // group) * entries * WIDTH
    bias += (head // group) * entries
    row = tl.arange(0, ROWS)
    weights = tl.load(weight + row, mask=row < QUERIES, other=0.0)
    rank = tl.arange(0, BEAM)
    gone = tl.full((ROWS,), float("-inf"), tl.float32)

    level = levels - 1
    representatives = _representatives(level, REPRESENTATIVES, FEWER, WHOLE_LEVELS)
    start = entries - coarse * representatives  # levels lie behind one another, the finest first
    node = tl.arange(0, NODES)
    alive = (node < coarse) & (node >= (lowest >> level)) & (node <= (highest >> level))
    top, total, share = _shares(
        query, table, bias, start, node, alive, representatives,
        NODES, QUERIES, ROWS, WIDTH, PADDED, CHUNK, PRECISION,
    )  # fmt: skip
    mass = tl.sum(share * (weights / total)[:, None], axis=0)
    key = ranked(mass, alive, NODES)
    best = tl.topk(key, BEAM)
    limit = tl.where(level == 0, beam - FORCED, beam)
    if ESTIMATE:
        kept_from = tl.min(tl.where(rank < limit, best, 0x7FFFFFFFFFFFFFFF), axis=0)
        gone = _dropped(gone, top, share, kept_from, key, node, alive, lowest, highest, level)
    kept = tl.where((rank < limit) & (best >= 0), slots_of(best, NODES), -1)

    # One or two levels down at a time, the last one alone if their number is odd.
    MOST: tl.constexpr = FAN // 2
    for step in range(0, (levels + MOST - 2) // MOST):
        above = levels - 1 - MOST * step
        level = tl.maximum(above - MOST, 0)
        between = tl.cdiv(count, 2 << level) * _representatives(level + 1, REPRESENTATIVES, FEWER, WHOLE_LEVELS)
        representatives = _representatives(level, REPRESENTATIVES, FEWER, WHOLE_LEVELS)
        start -= tl.cdiv(count, 1 << level) * representatives
        child = tl.interleave(2 * kept, 2 * kept + 1)
        if FAN == 4:
            two = above > 1
            start -= tl.where(two, between, 0)
            child = tl.interleave(tl.where(two, 2 * child, child), tl.where(two, 2 * child + 1, -1))
        below = (child >= (lowest >> level)) & (child <= (highest >> level)) & (child >= 0)
        top, total, part = _shares(
            query, table, bias, start, child, below, representatives,
            FAN * BEAM, QUERIES, ROWS, WIDTH, PADDED, CHUNK, PRECISION,
        )  # fmt: skip
        masses = tl.sum(part * (weights / total)[:, None], axis=0)
        order = ranked(masses, below, FAN * BEAM)
        best = tl.topk(order, BEAM)
        limit = tl.where(level == 0, beam - FORCED, beam)
        if ESTIMATE:
            kept_from = tl.min(tl.where(rank < limit, best, 0x7FFFFFFFFFFFFFFF), axis=0)
            gone = _dropped(gone, top, part, kept_from, order, child, below, lowest, highest, level)
        kept = tl.where((rank < limit) & (best >= 0), tl.gather(child, slots_of(best, FAN * BEAM), 0), -1)

    # The forced blocks take the last places: own and previous, then the sink.
    place = rank - (beam - FORCED)
    kept = tl.where(place >= 0, tl.where(place < 2, own - place, 0), kept)
    kept = tl.sort(tl.where(rank < beam, kept, 0x7FFFFFFF))
    tl.store(candidates + (head * rows + index) * beam + rank, kept, mask=rank < beam)
    if ESTIMATE:
        tl.store(dropped + (head * rows + index) * QUERIES + row, gone * LN2, mask=row < QUERIES)


def descend(
    levels: Levels, queries: Queries, grid: BlockGrid, at: Tensor, beam: int, *, estimate: bool = False
) -> tuple[Tensor, Tensor]:
    """Steps 1 to 3 of `select`: the candidates [H, B, beam] of the query blocks `at` [B], ascending, -1 first.

    With `estimate` also the log-sum-exp [H, B, r_q] of what was dropped, per query representative; else it is empty.
    """
    heads, count, represented, width = queries.mean.shape
    forced = len(grid.forced(grid.count - 1))
    coarse = levels.nodes[-1]
    most, fan = power_of_two(beam), fan_of(beam)
    at_start = max(power_of_two(coarse), most, 16)
    candidates = torch.empty(heads, len(at), beam, dtype=torch.int32, device=at.device)
    dropped = torch.empty(heads, len(at), represented if estimate else 0, dtype=torch.float32, device=at.device)
    launch(
        _descend_kernel,
        (len(at) * heads,),
        num_warps=8 if max(at_start, fan * most) >= 256 else 4,
        num_stages=3,
        at=at.to(torch.int32),
        query=queries.mean.contiguous(),
        weight=queries.weight.contiguous(),
        table=levels.mean.contiguous(),
        bias=levels.bias.contiguous(),
        candidates=candidates,
        dropped=dropped if estimate else levels.bias,
        heads=heads,
        group=heads // len(levels.mean),
        count=count,
        rows=len(at),
        entries=levels.mean.shape[1],
        levels=len(levels.nodes),
        coarse=coarse,
        beam=beam,
        window=grid.window if grid.window is not None and grid.windowed else 0,
        SIZE=grid.size,
        REPRESENTATIVES=levels.representatives,
        FEWER=representatives_at(WHOLE_LEVELS, levels.representatives),
        WHOLE_LEVELS=WHOLE_LEVELS,
        QUERIES=represented,
        ROWS=max(limits.LEAST_ROWS, power_of_two(represented)),
        NODES=at_start,
        BEAM=max(8, most),
        FAN=fan,
        FORCED=forced,
        WIDTH=width,
        PADDED=-(-width // (2 * CHUNK)) * (2 * CHUNK),
        CHUNK=CHUNK,
        WINDOWED=grid.windowed,
        ESTIMATE=estimate,
        PRECISION=precision(levels.mean.dtype),
    )
    return candidates, dropped


@triton.jit
def _rescore_kernel(
    q, k, at, candidates, sinks, blocks, kept_mass, ends_of,
    tokens, heads, group, count, width, budget, window, scale, softcap, threshold,
    q_head, q_row, k_head, k_row, c_head, c_row,
    SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr,
    COUNT: tl.constexpr, BUDGET: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, THRESHOLD: tl.constexpr,
    COMPLETE: tl.constexpr, ENDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    SPLIT: tl.constexpr = SIZE // PART
    PER_TILE: tl.constexpr = KEYS // PART
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    index = program // heads
    own = tl.load(at + index)
    q += head * q_head
    k += (head // group) * k_head
    candidates += head * c_head + index.to(tl.int64) * c_row
    tiles, first = tiles_of(width, SIZE, KEYS, PART)
    slot = tl.arange(0, COUNT)
    part = tl.arange(0, PER_TILE)
    share = 1.0 / tl.minimum(SIZE, tokens - own * SIZE).to(tl.float32)
    mass = tl.zeros((COUNT,), tl.float32)
    for piece in range(0, (SIZE + ROWS - 1) // ROWS):
        row = own * SIZE + piece * ROWS + tl.arange(0, ROWS)
        present_row = (row < tokens) & (row < (own + 1) * SIZE)
        queries = load_rows(q, row, q_row, present_row, WIDTH, PADDED)
        top, total = started(sinks, head, ROWS, SINKS)
        for tile in range(0, tiles):
            position, present, masked = keys_of(
                candidates, tile, tiles, first, own, tokens, window, SIZE, KEYS, PART, WINDOWED
            )
            scores = gathered(
                queries, row, position, present, masked, k, k_row, scale, softcap, window,
                WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
            )  # fmt: skip
            top, total, _, _ = grown(top, total, scores)
        ends = tl.where(present_row, finished(top, total), float("inf"))  # rows that are none weigh nothing
        if ENDS:
            tl.store(ends_of + head * tokens + row, ends * LN2, mask=present_row)
        for tile in range(0, tiles):
            position, present, masked = keys_of(
                candidates, tile, tiles, first, own, tokens, window, SIZE, KEYS, PART, WINDOWED
            )
            scores = gathered(
                queries, row, position, present, masked, k, k_row, scale, softcap, window,
                WIDTH, PADDED, WINDOWED, CAPPED, PRECISION,
            )  # fmt: skip
            of_keys = tl.sum(tl.exp2(scores - ends[:, None]), axis=0) * share
            of_parts = tl.sum(tl.reshape(of_keys, (PER_TILE, PART)), axis=1)
            owner = tl.maximum(first + tile * PER_TILE + part, 0) // SPLIT  # what is no slot adds nothing to the first
            mass += tl.sum(tl.where(slot[:, None] == owner[None, :], of_parts[None, :], 0.0), axis=1)

    block = tl.load(candidates + slot, mask=slot < width, other=-1)
    forced = (block == own) | (block == own - 1)
    if not WINDOWED:
        forced = forced | (block == 0)
    best = tl.topk(ranked(tl.where(forced, 2.0, mass), block >= 0, COUNT), BUDGET)
    rank = tl.arange(0, BUDGET)
    taken = slots_of(best, COUNT)
    inside = (rank < budget) & (best >= 0)
    kept = tl.where(inside, tl.gather(block, taken, 0), -1)
    masses = tl.where(inside, tl.gather(mass, taken, 0), 0.0)
    everything = tl.sum(tl.where(block >= 0, mass, 0.0), axis=0)
    if THRESHOLD:
        left = everything - (tl.cumsum(masses, 0) - masses)
        free = (kept != own) & (kept != own - 1)
        if not WINDOWED:
            free = free & (kept != 0)
        enough = free & (left <= 1 - threshold)
        kept = tl.where(enough, -1, kept)
        masses = tl.where(enough, 0.0, masses)
    if COMPLETE:
        tl.store(kept_mass + head * count + own, 1 - (everything - tl.sum(masses, axis=0)))
    kept = tl.sort(tl.where(rank < budget, kept, 0x7FFFFFFF))
    tl.store(blocks + (head * count + own) * budget + rank, kept, mask=rank < budget)


def rescore(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    at: Tensor,
    candidates: Tensor,
    found: Searched,
    *,
    scale: float,
    softmax: Softmax = PLAIN,
    mass_threshold: float | None = None,
    complete: bool = False,
) -> None:
    """Step 4 of `select`: of the `candidates` [H, B, C], ascending, write those with the most mass into `found`.

    Parameters
    ----------
    at
        [B], the query blocks.
    complete
        The candidates are all visible blocks, so that the kept share of the dense mass is known.
    """
    heads, _, width = q.shape
    budget = found.blocks.shape[-1]
    tile = tile_for(grid.size, width, q.element_size())
    part = min(grid.size, tile.keys)
    count = max(8, power_of_two(max(candidates.shape[-1], budget)))
    options = tile.options
    if count >= 128 and q.element_size() == 2 and not options["registers"]:
        options = options | {"registers": 128}  # left to choose, the assembler spills two of them
    launch(
        _rescore_kernel,
        (len(at) * heads,),
        **options,
        q=q,
        k=k,
        at=at.to(torch.int32),
        candidates=candidates,
        sinks=found.kept_mass if softmax.sinks is None else softmax.sinks.contiguous(),
        blocks=found.blocks,
        kept_mass=found.kept_mass,
        ends_of=found.kept_mass if found.candidates is None else found.candidates,
        tokens=grid.tokens,
        heads=heads,
        group=heads // len(k),
        count=grid.count,
        width=candidates.shape[-1],
        budget=budget,
        window=grid.window if grid.window is not None and grid.windowed else 0,
        scale=float(scale),
        softcap=float(softmax.softcap or 0.0),
        threshold=float(mass_threshold or 0.0),
        q_head=q.stride(0),
        q_row=q.stride(1),
        k_head=k.stride(0),
        k_row=k.stride(1),
        c_head=candidates.stride(0),
        c_row=candidates.stride(1),
        SIZE=grid.size,
        ROWS=tile.rows,
        KEYS=tile.keys,
        PART=part,
        COUNT=count,
        BUDGET=max(8, power_of_two(budget)),
        WIDTH=width,
        PADDED=max(16, power_of_two(width)),
        WINDOWED=grid.windowed,
        CAPPED=softmax.softcap is not None,
        SINKS=softmax.sinks is not None,
        THRESHOLD=mass_threshold is not None,
        COMPLETE=complete,
        ENDS=found.candidates is not None and not complete,
        PRECISION=precision(q.dtype, width),
    )


def search(
    q: Tensor, k: Tensor, grid: BlockGrid, selector: Selector, *, scale: float, softmax: Softmax = PLAIN
) -> Searched:
    """The blocks that `selector` keeps, for all heads; parameters as in `attngraph_kernels.select`.

    Raises
    ------
    ValueError
        If the kernels don't know the search (`limits.of_search`).
    """
    reason = limits.of_search(selector, grid, q.dtype)
    if reason is not None:
        raise ValueError(f"The Triton kernels can't search: {reason}.")
    q, k = map(rows_contiguous, (q, k))
    heads, tokens, _ = q.shape
    budget = min(selector.budget, grid.count)
    estimate = isinstance(selector, Stream) and selector.estimate and softmax.softcap is None

    def blank(*shape: int) -> Tensor:
        return torch.full((heads, *shape), torch.nan, dtype=torch.float32, device=q.device)

    found = Searched(
        torch.empty(heads, grid.count, budget, dtype=torch.int32, device=q.device),
        blank(grid.count),
        blank(tokens) if estimate else None,
        blank(tokens) if estimate else None,
    )
    few, searched, asked = (rows.to(q.device, non_blocking=True) for rows in _kinds_of_rows(selector, grid))
    rule: dict[str, Any] = {"scale": scale, "softmax": softmax, "mass_threshold": selector.mass_threshold}
    if len(few):
        assert isinstance(selector, Stream)
        rescore(q, k, grid, few, _all_visible(few, grid, selector, heads), found, complete=True, **rule)
    for some, kept, share in top_blocks(q, k, grid, asked, budget, **rule) if len(asked) else ():
        found.blocks[:, some] = kept.to(torch.int32)
        found.kept_mass[:, some] = share
    if len(searched):
        assert isinstance(selector, Stream)
        _searched(q, k, grid, selector, searched, found, rule, estimate)
    return found


def _kinds_of_rows(selector: Selector, grid: BlockGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Query blocks whose visible blocks are few, those that a descent serves, and those that ask for exact masses.

    On the processor, which would have to wait for a GPU to learn how many they are.
    """
    block = torch.arange(grid.count, dtype=torch.int32)
    none = block[:0]
    if not isinstance(selector, Stream):
        return none, none, block
    available = block - first_visible(block, grid) + 1
    few = available <= limits.few_blocks(selector, grid)
    asked = ((block + 1) * grid.size).clamp_max(grid.tokens) > grid.tokens - selector.exact_tail
    asked[sorted(selector.exact_blocks)] = True
    ranked_at_once = few & (available <= limits.MOST_NODES) & (selector.budget <= limits.MOST_NODES)
    return block[ranked_at_once], block[~few & ~asked], block[~ranked_at_once & (few | asked)]


def _all_visible(at: Tensor, grid: BlockGrid, selector: Stream, heads: int) -> Tensor:
    """All visible blocks of rows with few of them, [H, B, C], -1 first."""
    width = min(limits.few_blocks(selector, grid), grid.count, limits.MOST_NODES)
    block = at[:, None] + torch.arange(1 - width, 1, dtype=torch.int32, device=at.device)
    return torch.where(block >= first_visible(at, grid)[:, None], block, -1).expand(heads, -1, -1)


def _searched(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    selector: Stream,
    at: Tensor,
    found: Searched,
    rule: dict[str, Any],
    estimate: bool,
) -> None:
    """Descent and re-score of the query blocks `at`, written into `found`."""
    scale: float = rule["scale"]
    keys = key_tables(k, grid, selector.representatives, query_metric(q, len(k), scale), selector.start_nodes)
    represented = selector.query_representatives or max(1, grid.size // 4)
    queries = query_tables(q, grid, represented, key_metric(k), scale)
    candidates, dropped = descend(keys, queries, grid, at, selector.beam, estimate=estimate)
    rescore(q, k, grid, at, candidates, found, **rule)
    if not estimate:
        return
    assert found.dropped is not None and found.candidates is not None
    at = at.long()
    # Queries differ from their mean by δ, their scores by δ·k, of variance δᵀ Cov[k] δ: the spread in this metric.
    lift = bump(queries.spread, torch.tensor(float(grid.tokens), device=q.device).log())
    of_rows = (dropped + lift[:, at]).gather(-1, queries.group[:, at].long()).flatten(1)
    position = (at[:, None] * grid.size + torch.arange(grid.size, device=q.device)).flatten()
    present = position < grid.tokens
    shift = torch.cat(
        [(heads @ keys.float().mean(dim=0).to(q.dtype)).float() for heads, keys in zip(q.chunk(len(k)), k, strict=True)]
    )
    position = position[present]
    found.dropped[:, position] = of_rows[:, present] + scale * shift[:, position]


def select(
    q: Tensor, k: Tensor, grid: BlockGrid, selector: Selector, *, scale: float, softmax: Softmax = PLAIN
) -> BlockSelection:
    """As `attngraph_kernels.select`."""
    found = search(q, k, grid, selector, scale=scale, softmax=softmax)
    return BlockSelection(found.blocks.long(), found.kept_mass)
