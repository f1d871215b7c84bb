"""Attention with some of its edges removed before the softmax: rows are normalised over the keys that remain.

`attend_given` attends over blocks that are given instead of searched for: what an earlier selection kept, less what is
removed. `attend_without` starts from a dense pass and computes anew the few rows that lose keys. Both hold one chunk of
rows at a time, O(T) memory, and give the output alone.

Rows have the numbers of a graph's nodes: first the query blocks, then the targets, whose own rows are apart from those
of the block that holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid, into_blocks
from attngraph_kernels.chosen import DENSE_ELEMENTS, gathered_scores
from attngraph_kernels.softmax import PLAIN, Softmax


def attend_given(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    blocks: Tensor,
    *,
    scale: float,
    softmax: Softmax = PLAIN,
    targets: Sequence[int] = (),
) -> Tensor:
    """The output [H, T, d_v] of attention over given blocks.

    Parameters
    ----------
    q, k, v
        [H, T, d], [G, T, d], [G, T, d_v], fp32; query head h reads key/value head h // (H / G).
    blocks
        [H, blocks + targets, width], the blocks of every row; -1 is no block, the last is the row's own.
    scale
        Softmax scale.
    softmax
        The layer's soft cap and the sinks [H] of its heads.
    targets
        Token positions of the rows of their own.
    """
    groups = len(k)
    at = torch.tensor(targets, dtype=torch.int64, device=q.device)
    output = v.new_empty(len(q), grid.count * grid.size, v.shape[-1])
    per_group = zip(
        (q * scale).chunk(groups), k, v, blocks.chunk(groups), softmax.split(groups), output.chunk(groups), strict=True
    )
    for heads, key, value, given, rule, into in per_group:
        keys, values, queries = (into_blocks(x, grid.size) for x in (key, value, heads))
        whole, single = given[:, : grid.count], given[:, grid.count :]
        for start, stop in _chunks(grid.count, whole[:, :1].numel() * grid.size * max(grid.size, q.shape[-1])):
            chosen = whole[:, start:stop]
            scores = gathered_scores(queries, keys, chosen, grid, start, rule)
            weights = rule.probabilities(scores.flatten(3)).flatten(0, 1)
            found = values.flatten(1).index_select(0, chosen.clamp_min(0).flatten())
            mixed = torch.bmm(weights, found.view(len(weights), weights.shape[-1], -1))
            into[:, start * grid.size : stop * grid.size] = mixed.view(len(heads), -1, v.shape[-1])
        for start, stop in _chunks(len(at), single[:, :1].numel() * grid.size * q.shape[-1]):
            rows = at[start:stop]
            into[:, rows] = _single_rows(heads[:, rows], keys, values, single[:, start:stop], rows, grid, rule)
    return output[:, : grid.tokens]


def _chunks(count: int, elements: int) -> Iterable[tuple[int, int]]:
    """Cut `count` rows of so many elements each into chunks within DENSE_ELEMENTS (or of one row)."""
    step = max(1, DENSE_ELEMENTS // max(elements, 1))
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _single_rows(
    q: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, at: Tensor, grid: BlockGrid, softmax: Softmax
) -> Tensor:
    """The output [P, R, d_v] of scaled query rows [P, R, d] at positions `at` over their `blocks` [P, R, width]."""
    index = blocks.clamp_min(0)
    scores = softmax.capped(torch.einsum("prd,prwsd->prws", q, keys[index]))
    reached = index.unsqueeze(-1) * grid.size + torch.arange(grid.size, device=q.device)
    hidden = ~grid.visible(at[:, None, None], reached) | (blocks < 0).unsqueeze(-1)
    weights = softmax.probabilities(scores.masked_fill_(hidden, -torch.inf).flatten(2))
    return torch.einsum("prws,prwsd->prd", weights.view(scores.shape), values[index])


def attend_without(
    output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: BlockGrid,
    removed: Tensor,
    *,
    scale: float,
    softmax: Softmax = PLAIN,
    targets: Sequence[int] = (),
) -> Tensor:
    """A dense `output` [H, T, d_v] in which the rows that lose key blocks are those of attention without these.

    Parameters
    ----------
    output
        Of attention over all visible keys, in any dtype; left as it is.
    q, k, v
        [H, T, d], [G, T, d], [G, T, d_v]; query head h reads key/value head h // (H / G).
    removed
        [removed, 3] integers: head, row (a query block, or the number of blocks plus the index of a target), key block.
        Every row keeps its own block.
    scale
        Softmax scale.
    softmax
        The layer's soft cap and the sinks [H] of its heads.
    targets
        Token positions of the rows of their own.
    """
    output, repeat, single = output.clone(), len(q) // len(k), frozenset(targets)
    lost: dict[tuple[int, int], list[int]] = {}
    for head, row, key in removed.tolist():
        lost.setdefault((head, row), []).append(key)
    for (head, row), gone in lost.items():
        if row >= grid.count:
            positions = [targets[row - grid.count]]
        else:
            start = row * grid.size
            positions = [at for at in range(start, start + grid.rows(row)) if at not in single]
        if not positions:
            continue
        at = torch.tensor(positions, device=q.device)
        first = grid.first_visible(positions[0] // grid.size) * grid.size
        reached = torch.arange(first, positions[-1] + 1, device=q.device)
        keys, values = (x[head // repeat, first : positions[-1] + 1].float() for x in (k, v))
        rule = Softmax(softmax.softcap, None if softmax.sinks is None else softmax.sinks[head : head + 1])
        scores = rule.capped((q[head, at].float() * scale) @ keys.T)
        hidden = torch.isin(reached // grid.size, torch.tensor(gone, device=q.device))
        scores.masked_fill_(hidden | ~grid.visible(at[:, None], reached), -torch.inf)
        output[head, at] = (rule.probabilities(scores.unsqueeze(0))[0] @ values).to(output.dtype)
    return output
