"""What a capture took, and how much it left out."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from attngraph.store import Pruned
from attngraph_kernels import Attended, BlockGrid, Softmax

STATUS = Path("/proc/self/status")


class Tally:
    """What the layers of a pass keep: their grids, their (query block, key block) pairs over all heads, any sinks."""

    def __init__(self) -> None:
        self.grids: list[BlockGrid] = []
        self.kept_blocks: list[Tensor] = []  # numbers, left on their device: asking for one would make it wait
        self.sinks = False

    def attended(self, grid: BlockGrid, softmax: Softmax, attended: Attended) -> None:
        """Count one more layer."""
        self.grids.append(grid)
        self.sinks |= softmax.sinks is not None
        self.kept_blocks.append((attended.edges.blocks >= 0).sum())

    def pruned(self, heads: int) -> Pruned:
        """The shares dropped so far."""
        return pruned_shares(self.grids, [int(count) for count in self.kept_blocks], heads)


def peak_rss_bytes() -> int:
    """Highest resident memory of this process so far."""
    if STATUS.exists():  # `getrusage` begins with the peak of the process that started this one
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def dense_cache_bytes(layers: int, heads: int, tokens: int, item_bytes: int) -> int:
    """Bytes of all attention patterns, [layers, heads, T, T] in the model's own number type."""
    return layers * heads * tokens**2 * item_bytes


def pruned_shares(grids: Sequence[BlockGrid], kept_blocks: Sequence[int], heads: int) -> Pruned:
    """Share of token pairs dropped, mean over layers and heads, whole blocks counted as kept; 0 where none is.

    Parameters
    ----------
    grids
        The grid of each layer.
    kept_blocks
        Kept (query block, key block) pairs of each layer, over all heads.
    """

    def share(pairs: Sequence[int]) -> float:
        kept = (blocks * grid.size**2 / heads for blocks, grid in zip(kept_blocks, grids, strict=True))
        return sum(max(0.0, 1 - k / p) for k, p in zip(kept, pairs, strict=True)) / len(grids)

    causal = [grid.tokens * (grid.tokens + 1) // 2 for grid in grids]
    return Pruned(
        causal=share(causal),
        square=share([grid.tokens**2 for grid in grids]),
        visible=share([_pairs_in_window(grid) for grid in grids]),
    )


def _pairs_in_window(grid: BlockGrid) -> int:
    window = min(grid.window or grid.tokens, grid.tokens)
    return window * (window + 1) // 2 + (grid.tokens - window) * window
