"""How selection and attention grow with the length: 8k, 16k and 32k synthetic tokens, beside dense attention.

Run: python kernels/benchmarks/scaling.py [--repeats 3] [--json]
Prints, per length, the median seconds of the `stream` search with attention (one layer) and of PyTorch's
`scaled_dot_product_attention`, and the growth from each length to the next. O(T) work grows 2.0 times, O(T²) 4.0 times.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from attngraph_kernels import BlockGrid, Stream, attend

HEADS, GROUPS, WIDTH = 9, 3, 64
LENGTHS = (8_192, 16_384, 32_768)


def layer(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys that drift along the sequence, and queries that look back: not plain noise, which has no structure."""
    draw = torch.Generator().manual_seed(0)
    drift = torch.randn(GROUPS, tokens // 256, WIDTH, generator=draw).repeat_interleave(256, dim=1)
    k = torch.randn(GROUPS, tokens, WIDTH, generator=draw) + drift
    source = torch.randint(tokens, (HEADS, tokens), generator=draw) % (torch.arange(tokens) + 1)
    q = k.repeat_interleave(HEADS // GROUPS, 0).gather(1, source.unsqueeze(-1).expand(-1, -1, WIDTH))
    return q + torch.randn(q.shape, generator=draw), k, torch.randn(GROUPS, tokens, WIDTH, generator=draw)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """The median wall time of `run`, after one call to warm up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(tokens: int, repeats: int) -> dict[str, float]:
    """Median seconds of one layer, sparse and dense."""
    q, k, v = layer(tokens)
    grid = BlockGrid(tokens, 16)
    scale = WIDTH**-0.5

    def sparse() -> object:
        return attend(q, k, v, grid, Stream(budget=8), scale=scale, targets=[tokens - 1])

    def dense() -> object:
        return torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True
        )

    with torch.inference_mode():
        return {
            "tokens": tokens,
            "stream": median_seconds(sparse, repeats),
            "sdpa": median_seconds(dense, repeats),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(tokens, arguments.repeats) for tokens in LENGTHS]
    if arguments.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}))
        return
    print(f"one layer, {HEADS} heads, {GROUPS} key/value heads, d = {WIDTH}, blocks of 16, budget 8, fp32")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {arguments.repeats}\n")
    print("| tokens | stream s | growth | SDPA s | growth |\n|---|---|---|---|---|")
    for before, row in zip([None, *rows], rows, strict=False):
        growth = ["", ""] if before is None else [f"{row[name] / before[name]:.2f}" for name in ("stream", "sdpa")]
        print(f"| {row['tokens']:,} | {row['stream']:.3f} | {growth[0]} | {row['sdpa']:.3f} | {growth[1]} |")


if __name__ == "__main__":
    main()
