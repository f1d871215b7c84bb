"""One layer's pruned attention: the selector that the settings ask for, run over the layer's q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from attngraph.capture.structure import output_gram
from attngraph.config import StreamConfig
from attngraph_kernels import Attended, BlockGrid, Exact, Selector, Stream, attend, value_norms


class SparseAttention:
    """A `LayerAttention` that attends over the kept blocks and shows what it did to `record`, where there is one.

    Parameters
    ----------
    config
        Block size, budget and search parameters.
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
        record: Callable[[BlockGrid, Attended], None] | None = None,
    ) -> None:
        self.config, self.targets, self.spans, self.record = config, targets, spans, record

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
        grid = BlockGrid(q.shape[1], self.config.block_size, window)
        values = v.float()
        attended = attend(
            q.float(),
            k.float(),
            values,
            grid,
            selector_for(self.config, grid, self.targets),
            scale=scale,
            value_norm=value_norms(values, output_gram(module, len(q))) if self.record else None,
            targets=self.targets,
            spans=self.spans,
        )
        if self.record:
            self.record(grid, attended)
        return attended.output.to(q.dtype)


def selector_for(config: StreamConfig, grid: BlockGrid, targets: Sequence[int]) -> Selector:
    """The kernel's selector for these settings on this grid."""
    budget = config.budget_for(grid.tokens)
    if config.selector == "exact":
        return Exact(budget=budget)
    return Stream(
        budget=budget,
        representatives=config.representatives,
        query_representatives=config.query_representatives,
        candidates=config.candidates,
        start_nodes=config.start_nodes,
        variance=config.variance,
        exact_tail=config.exact_tail,
        exact_blocks=frozenset(target // grid.size for target in targets),
    )
