"""What a capture will hold and write, computed before it runs.

1. **Edges** are counted exactly: a query block keeps its layer's budget of the blocks that are visible to it, or all
   of them where there are fewer, in every head of every layer; a target keeps as many as the block it lies in.
2. **Bytes on disk** are rows times the bytes per row of each table, as measured on real runs (docs/benchmarks.md).
3. **Peak memory** is that of the moment that needs most. The weights, the libraries, the residual stream and the edges
   of the layer that is being written are there always; beside them the MLP, the attention (q, k, v, the pyramid, one
   chunk of scores) or the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attngraph.capture.completion import LOGIT_ELEMENTS
from attngraph.config import StreamConfig
from attngraph.models.structure import text_config
from attngraph_kernels import BlockGrid
from attngraph_kernels.chosen import DENSE_ELEMENTS
from attngraph_kernels.select import searched_at_once

BYTES_PER_ROW = {
    "edges": 4.9,
    "target_edges": 4.8,
    "rows": 3.0,
    "target_rows": 2.8,
    "shares": 9.6,
    "tokens": 5.0,
    "blocks": 35.0,
}
"""Bytes on disk per row of each table, measured on both bundled models (docs/benchmarks.md, "Sizes")."""

LAYER_TABLES = 6
BYTES_PER_GROUP = 1_100
"""What a layer adds to each layer table before its first row, measured in the same way."""

LIBRARIES = 480_000_000
"""Resident memory of the interpreter with torch, transformers and the libraries of the store."""
FIXED = 250_000_000
"""What a capture of a short prompt adds to that, whatever the model: buffers, and libraries that load on first use."""
SLACK = 1.15
"""Freed memory that the allocator has not given back or can't use again."""
RECORDED = 200
"""Bytes per edge while a layer is recorded: the columns as arrays, their sorted copies, and the encoder's."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model that a capture's cost depends on; `windows` has an entry per layer, None for no window."""

    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    weight_bytes: int
    item_bytes: int

    @classmethod
    def of(cls, model: Any, item_bytes: int | None = None) -> Shape:
        """The shape of a model, which may be without weights; `item_bytes` is for one that will be loaded otherwise."""
        config = text_config(model)
        item = item_bytes or model.dtype.itemsize
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            vocabulary=model.get_input_embeddings().weight.shape[0],
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            windows=layer_windows(config),
            weight_bytes=model.num_parameters() * item,
            item_bytes=item,
        )


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """The window of every layer as a text configuration has it, None where a layer sees everything."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def edge_count(shape: Shape, tokens: int, config: StreamConfig) -> int:
    """Edges of a capture, exactly."""
    return sum(_kept(shape, tokens, config, range(config.blocks(tokens))))


def target_edge_count(shape: Shape, tokens: int, config: StreamConfig, targets: Sequence[int]) -> int:
    """Edges into the targets, exactly."""
    return sum(_kept(shape, tokens, config, [target // config.block_size for target in targets]))


def _kept(shape: Shape, tokens: int, config: StreamConfig, blocks: Sequence[int]) -> list[int]:
    layers = [
        (BlockGrid(tokens, config.block_size, window), config.layer_budget(layer, tokens, window))
        for layer, window in enumerate(shape.windows)
    ]
    of = {
        (grid, budget): shape.heads * sum(min(budget, grid.available(block)) for block in blocks)
        for grid, budget in set(layers)
    }
    return [of[layer] for layer in layers]


def run_bytes(shape: Shape, tokens: int, config: StreamConfig, targets: Sequence[int]) -> int:
    """Bytes of a run's tables on disk, but for the rows of `span_edges`, whose number depends on the spans."""
    blocks, layers = config.blocks(tokens), len(shape.windows)
    rows = {
        "edges": edge_count(shape, tokens, config),
        "target_edges": target_edge_count(shape, tokens, config, targets),
        "rows": layers * shape.heads * blocks,
        "target_rows": layers * shape.heads * len(targets),
        "shares": layers * (blocks + len(targets)),
        "tokens": tokens,
        "blocks": blocks,
    }
    return round(sum(BYTES_PER_ROW[table] * count for table, count in rows.items())) + (
        LAYER_TABLES * layers * BYTES_PER_GROUP
    )


def peak_bytes(
    shape: Shape, tokens: int, config: StreamConfig, targets: Sequence[int], following: int, completion: int
) -> dict[str, int]:
    """The parts of the peak resident memory, in bytes; their sum is the peak.

    Parameters
    ----------
    following
        Tokens that are read after the prompt to compare the models: the answer's, or those that `n_match` needs.
    completion
        Predictions that are compared along a completion.
    """
    per_token = {"stream": _stream(shape) * tokens, "mlp": 3 * shape.intermediate * shape.item_bytes * tokens}
    rows = max(_kept(shape, tokens, config, range(config.blocks(tokens))))
    rows += max(_kept(shape, tokens, config, [target // config.block_size for target in targets]))
    moments = {
        "mlp": per_token["mlp"],
        "attention": _attention(shape, tokens, config, len(targets)),
        "logits": _logits(shape, config, following, completion),
    }
    most = max(moments, key=lambda name: moments[name])
    states = 2 * completion * shape.hidden * 4 if config.n_match else 0
    return {
        "libraries": LIBRARIES + FIXED,
        "weights": shape.weight_bytes,
        "stream": round(SLACK * (per_token["stream"] + states)),
        "recording": RECORDED * rows,  # of a layer while the next one is computed
        most: round(SLACK * moments[most]),
    }


def _stream(shape: Shape) -> int:
    """Bytes per token of the stream: before, between and after a layer's parts, what a norm makes of it, a branch."""
    return 5 * shape.hidden * shape.item_bytes


def _attention(shape: Shape, tokens: int, config: StreamConfig, targets: int) -> int:
    """Bytes of one layer's attention: projections, rotated and scaled copies, output; one group's search; a chunk."""
    size, d, group = config.block_size, shape.head_dim, shape.heads // shape.kv_heads
    projections = d * (5 * shape.heads + 5 * shape.kv_heads) * tokens
    queries = (config.query_representatives or size // 2) / size
    features = 2 * config.representatives / size
    search = tokens * (group * d * (1 + 2 * 2 * queries) + d * (2 + 2 * 2 * features))
    budget = max(config.layer_budget(layer, tokens, window) for layer, window in enumerate(shape.windows))
    candidates = min(config.candidates * budget, config.blocks(tokens))
    chunk = group * searched_at_once(group, candidates, size) * candidates * size * (d + 2 * size)
    rows = targets * shape.heads * (d + 4 * budget)
    return round(4 * (projections + search + chunk + rows + 4 * DENSE_ELEMENTS))


def _logits(shape: Shape, config: StreamConfig, following: int, completion: int) -> int:
    """Bytes of logits: model's and fp32, dense and sparse, each with its logarithms."""
    if not config.n_match:
        return 2 * 4 * shape.vocabulary
    along = 6 * max(LOGIT_ELEMENTS, shape.vocabulary) if completion else 0
    return 4 * max(4 * (1 + following) * shape.vocabulary, along)
