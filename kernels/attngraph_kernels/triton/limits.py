"""What the kernels don't know, in words for the log. Works without Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attngraph_kernels.blocks import BlockGrid
from attngraph_kernels.triton.launch import power_of_two

if TYPE_CHECKING:
    from attngraph_kernels.select import Selector, Stream

MOST_NODES = 1024
"""Nodes, children or candidates that one program can rank."""

MOST_SHARES = 1 << 14
"""Shares of nodes in the rows of one query block's representatives that a program can hold without spilling registers;
half as many in fp32, whose numbers are held in two parts.
"""

LEAST_ROWS = 16
"""Rows of a tile at least."""

MOST_POINTS = 64
"""Points of one set that a program can reduce without spilling registers."""

WIDEST = 256
"""Numbers in a query, key or value."""


LONGEST = (1 << 31) - 256
"""Positions that 32 bits count, those beyond the last token that fill up its tile included."""


def of_layer(*tensors: Tensor) -> str | None:
    """Why the kernels can't read these queries, keys or values, if they can't."""
    for x in tensors:
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"it has no kernels for {x.dtype}"
        if x.shape[-1] > WIDEST:
            return f"a width of {x.shape[-1]} is over the {WIDEST} that fit into a kernel's tiles"
        if x.shape[-2] > LONGEST:
            return f"{x.shape[-2]} positions are over the {LONGEST} that a kernel counts"
    return None


def of_points(points: int) -> str | None:
    """Why a set of so many points can't be reduced, if it can't."""
    return None if points <= MOST_POINTS else f"{points} points in a set are over the {MOST_POINTS} of a kernel"


def of_search(selector: Selector, grid: BlockGrid, dtype: torch.dtype) -> str | None:
    """Why the kernels can't do what `selector` does with queries and keys of a number type, if they can't."""
    from attngraph_kernels.descent import fan_of  # these ask for limits themselves
    from attngraph_kernels.select import Exact, Stream

    if isinstance(selector, Exact):
        return None
    if not isinstance(selector, Stream):
        return f"the search {type(selector).__name__} has no kernels"
    if grid.available(grid.count - 1) <= few_blocks(selector, grid):
        return None  # no descent
    most = max(min(selector.start_nodes, grid.count), fan_of(selector.beam) * selector.beam)
    if most > MOST_NODES:
        return f"{most} nodes at once are over the {MOST_NODES} that a kernel ranks"
    represented = selector.query_representatives or max(1, grid.size // 4)
    shares = MOST_SHARES // 2 if dtype == torch.float32 else MOST_SHARES
    if power_of_two(most) * max(LEAST_ROWS, power_of_two(represented)) > shares:
        return (
            f"{most} nodes at once for {represented} representatives of a query block are over the {shares} shares "
            f"that a program's registers hold in {dtype}"
        )
    if selector.beam <= len(grid.forced(grid.count - 1)):
        return f"{selector.beam} candidates leave no room beside the forced blocks"
    return of_points(2 * selector.representatives)


def few_blocks(selector: Stream, grid: BlockGrid) -> int:
    """Visible blocks up to which a row takes all of them as candidates."""
    return selector.beam * (4 if grid.windowed else 1)
