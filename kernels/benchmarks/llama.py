"""A whole traced forward pass of a Llama-shaped model with random weights, beside its dense one; part of `gpu.py`.

Every layer selects and attends with the kernels, and its edges leave through pinned memory and are written to disk in a
thread. This stands in for `attngraph.capture` where only torch and transformers are installed: without Parquet, without
shares of the residual stream, and without the check of what the pruned model says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaModel
from transformers.masking_utils import AttentionMaskInterface

from attngraph_kernels import Attended, BlockGrid, Stream, attend, value_norms

BLOCK, BUDGET = 16, 8
LONGEST_DENSE = 262_144


class Export:
    """Takes the edges of one layer after another to disk; at most one layer is on its way."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layers, self.bytes = folder, 0, 0
        self.thread = ThreadPoolExecutor(1)
        self.running: Future[int] | None = None

    def take(self, attended: Attended) -> None:
        """Start the copies of a layer's edges, once the layer before is written."""
        self.wait()
        edges = attended.edges
        parts = [x.to("cpu", non_blocking=True) for x in (edges.blocks.int(), edges.mass, edges.contribution)]
        event = torch.cuda.Event() if edges.mass.is_cuda else None
        if event is not None:
            event.record()
        self.layers += 1
        self.running = self.thread.submit(self._write, self.folder / f"{self.layers}.npz", parts, event)

    def wait(self) -> None:
        """Until the last layer is written."""
        if self.running is not None:
            self.bytes += self.running.result()
            self.running = None

    @staticmethod
    def _write(path: Path, parts: list[Tensor], event: torch.cuda.Event | None) -> int:
        if event is not None:
            event.synchronize()
        np.savez(path, *(part.numpy() for part in parts))
        return path.stat().st_size


_export: Export | None = None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is None and _export is not None
    q, k, v = query[0], key[0], value[0]
    parts = module.o_proj.weight.float().T.unflatten(0, (len(q), -1))
    grid = BlockGrid(q.shape[1], BLOCK)
    found = attend(
        q,
        k,
        v,
        grid,
        Stream(budget=BUDGET),
        scale=scaling,
        value_norm=value_norms(v, parts @ parts.transpose(1, 2)),
        targets=[grid.tokens - 1],
    )
    _export.take(found)
    return found.output.to(query.dtype).transpose(0, 1).unsqueeze(0).contiguous(), None


AttentionInterface.register("traced", _attention)
AttentionMaskInterface.register("traced", lambda **_: None)


@contextmanager
def _exporting(folder: str) -> Iterator[Export]:
    global _export
    _export = Export(Path(folder))
    try:
        yield _export
    finally:
        _export.thread.shutdown()
        _export = None


def sparse_forward(tokens: int, clock: Any, *, tiny: bool) -> dict[str, Any]:
    """Seconds and peak memory of the traced pass, export included, and of the dense one, and their ratio."""
    heads, layers, inner = (2, 2, 64) if tiny else (14, 24, 4864)
    config = LlamaConfig(
        vocab_size=256 if tiny else 32_000,
        hidden_size=64 * heads,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=1 if tiny else 2,
        max_position_embeddings=tokens,
    )
    torch.manual_seed(0)
    model = LlamaModel(config).to(clock.device, torch.float32 if tiny else torch.bfloat16).eval()
    ids = torch.randint(config.vocab_size, (1, tokens), device=clock.device)

    def traced() -> None:
        with tempfile.TemporaryDirectory() as folder, _exporting(folder) as export:
            model(ids, use_cache=False)
            export.wait()
            assert export.layers == layers, "a layer was not exported"

    model.set_attn_implementation("traced")
    found = {"traced": clock.measured(traced)}
    if tokens <= LONGEST_DENSE:
        model.set_attn_implementation("sdpa")
        found["dense"] = clock.measured(lambda: model(ids, use_cache=False))
        both = found["traced"]["seconds"], found["dense"]["seconds"]
        found["ratio"] = both[0] / both[1] if all(both) else None
    return found
