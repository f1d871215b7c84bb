"""One layer's attention as the settings ask for it: pruned, or dense with the graph observed beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from attngraph.config import StreamConfig
from attngraph.models.structure import output_gram
from attngraph_kernels import (
    Attended,
    BlockGrid,
    Exact,
    Flat,
    Representative,
    Selector,
    Softmax,
    Stream,
    attend,
    dense_attention,
    value_norms,
)

EXACT_TARGET_BLOCKS = 32
"""Blocks that hold a target take all visible blocks as candidates while there are at most this many of them.

Each costs O(T), and the targets' own rows don't need it: they choose for themselves. With all tokens of a completion as
targets it would make selection quadratic (docs/benchmarks.md, "Many targets").
"""


class SparseAttention:
    """A `LayerAttention` that attends over the kept blocks and shows what it did to `record`, where there is one.

    With ``forward="dense"`` it attends over all of them, and shows what the kept ones have of that.

    Parameters
    ----------
    config
        Block size, budget, search parameters, and which rows are audited.
    targets
        Token positions whose rows are kept at token grain.
    spans
        Token ranges whose pairwise attention is summed.
    record
        Called once per layer; without it only the output is computed.
    """

    def __init__(
        self,
        config: StreamConfig,
        targets: Sequence[int] = (),
        spans: Sequence[tuple[int, int]] = (),
        record: Callable[[BlockGrid, Softmax, Attended], None] | None = None,
    ) -> None:
        self.config, self.targets, self.spans, self.record = config, targets, spans, record

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, softmax: Softmax
    ) -> Tensor:
        grid = BlockGrid(q.shape[1], self.config.block_size, window)
        dense = None
        if self.config.forward == "dense" or (self.record is not None and self.config.audit == "full"):
            dense = dense_attention(q, k, v, grid, scale, softmax.softcap, softmax.sinks)
        attended = attend(
            q,
            k,
            v,
            grid,
            selector_for(
                self.config,
                grid,
                self.targets,
                layer=cast(int, module.layer_idx),
                estimate=self.record is not None and dense is None,
            ),
            scale=scale,
            softmax=softmax,
            value_norm=value_norms(v, output_gram(module, len(q))) if self.record else None,
            targets=self.targets,
            spans=self.spans,
            dense_log_sum_exp=None if dense is None else dense.log_sum_exp,
            beside=dense if self.config.forward == "dense" else None,
        )
        if self.record:
            unaudited = self.config.audit == "none" and dense is None
            self.record(grid, softmax, _unaudited(attended) if unaudited else attended)
        return attended.output.to(q.dtype)


def _unaudited(attended: Attended) -> Attended:
    blank, target_blank = (torch.full_like(x, torch.nan) for x in (attended.kept_mass, attended.target_kept_mass))
    return attended._replace(kept_mass=blank, target_kept_mass=target_blank)


def selector_for(
    config: StreamConfig, grid: BlockGrid, targets: Sequence[int], *, layer: int, estimate: bool = False
) -> Selector:
    """The kernel's selector for these settings; with `estimate`, rows that are not audited are estimated."""
    budget = config.layer_budget(layer, grid.tokens, grid.window)
    mass_threshold = config.mass_threshold if config.allocation == "mass" else None
    exact_blocks = frozenset(target // grid.size for target in targets)
    if len(exact_blocks) > EXACT_TARGET_BLOCKS:
        exact_blocks = frozenset()
    if config.selector == "exact":
        return Exact(budget=budget, mass_threshold=mass_threshold)
    if config.selector != "stream":
        plain = Representative if config.selector == "representative" else Flat
        return plain(
            budget=budget, mass_threshold=mass_threshold, exact_tail=config.exact_tail, exact_blocks=exact_blocks
        )
    return Stream(
        budget=budget,
        mass_threshold=mass_threshold,
        exact_tail=config.exact_tail,
        exact_blocks=exact_blocks,
        representatives=config.representatives,
        query_representatives=config.query_representatives,
        candidates=config.candidates,
        start_nodes=config.start_nodes,
        estimate=estimate and config.audit == "targets",
    )
