"""What auditing dropped attention costs, and how far the estimate that comes with the search is off.

Run: python kernels/benchmarks/audit.py [--length 8192] [--every 6] [--repeats 3] [--json]
Reads a varied-haystack needle prompt with both bundled models, dense, and in every sixth layer compares, on the layer's
real q, k, v, the estimate of what each query block keeps with the audit (exact log-sum-exp of every row). Printed per
layer: the kept mass of the query blocks that went through the search, the estimate's mean, mean absolute error and
correlation over them, and single-thread processor seconds of search and attention without and with the estimate, and of
the audit's own pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import attngraph as ag
from attngraph.capture.attention import replaced_attention
from attngraph.models.structure import decoder_layers
from attngraph_kernels import BlockGrid, Softmax, Stream, attend, dense_attention

MODELS = ("smollm2-135m", "gemma3-270m")
BLOCK_SIZE, BUDGET = 16, 8


class Row(NamedTuple):
    """One layer."""

    model: str
    layer: int
    window: int | None
    kept: float
    estimate: float
    mean_absolute_error: float
    correlation: float
    seconds: float
    seconds_with_estimate: float
    audit_seconds: float


def processor_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(
    model: str, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, repeats: int
) -> Row | None:
    """Compare and time one layer; None where every query block is exact anyway (narrow windows)."""
    grid = BlockGrid(q.shape[1], BLOCK_SIZE, window)
    plain, estimating = (Stream(budget=BUDGET, estimate=estimate) for estimate in (False, True))
    dense = dense_attention(q, k, v, grid, scale)
    found = attend(q, k, v, grid, estimating, scale=scale, dense_log_sum_exp=dense.log_sum_exp)
    searched = ~found.kept_mass_estimate.isnan()
    if not searched.any():
        return None
    estimate, kept = found.kept_mass_estimate[searched], found.kept_mass[searched]
    seconds: dict[str, list[float]] = {"plain": [], "estimating": [], "audit": []}
    for _ in range(repeats):
        seconds["plain"].append(processor_seconds(lambda: attend(q, k, v, grid, plain, scale=scale)))
        seconds["estimating"].append(processor_seconds(lambda: attend(q, k, v, grid, estimating, scale=scale)))
        seconds["audit"].append(processor_seconds(lambda: dense_attention(q, k, v, grid, scale)))
    return Row(
        model,
        layer,
        window,
        kept.mean().item(),
        estimate.mean().item(),
        (estimate - kept).abs().mean().item(),
        torch.corrcoef(torch.stack([estimate, kept]))[0, 1].item(),
        *(statistics.median(seconds[name]) for name in seconds),
    )


def layers(name: str, length: int, every: int, repeats: int) -> list[Row]:
    """Measure every `every`-th layer of a model while it reads the prompt."""
    lm = ag.load_model(name)
    prompt = ag.tasks.needle(lm.tokenizer, length=length, depth=0.5, seed=0, haystack="varied")
    order = {id(layer.self_attn): index for index, layer in enumerate(decoder_layers(lm.model))}
    rows = []

    def attention(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, _: Softmax
    ) -> Tensor:
        layer = order[id(module)]
        if (layer + 1) % every == 0:
            rows.append(measure(name, layer, q, k, v, window, scale, repeats))
        return dense_attention(q, k, v, BlockGrid(q.shape[1], BLOCK_SIZE, window), scale).output

    with replaced_attention(lm.model, attention), torch.inference_mode():
        lm.model(input_ids=torch.tensor([prompt.token_ids]), use_cache=False, logits_to_keep=1)
    return [row for row in rows if row is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in MODELS for row in layers(name, arguments.length, arguments.every, arguments.repeats)]
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows]))
        return
    print(f"{arguments.length} tokens, blocks of {BLOCK_SIZE}, budget {BUDGET}, fp32, one thread\n")
    print("| model | layer | kept mass | estimate | mean error | correlation | search s | with estimate | audit s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        shares = f"{row.kept:.3f} | {row.estimate:.3f} | {row.mean_absolute_error:.3f} | {row.correlation:.3f}"
        seconds = f"{row.seconds:.2f} | {row.seconds_with_estimate:.2f} | {row.audit_seconds:.2f}"
        print(f"| {row.model} | {row.layer} | {shares} | {seconds} |")


if __name__ == "__main__":
    main()
