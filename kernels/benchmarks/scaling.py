"""How selection and attention grow with the length: one layer of synthetic tokens, beside dense attention.

Run: python kernels/benchmarks/scaling.py [--lengths 16384 32768 …] [--repeats 3] [--json]
Prints, per length, the median seconds of the `stream` search with attention, its peak memory beyond the inputs (in a
process of its own), and, up to 32k tokens, the seconds of PyTorch's `scaled_dot_product_attention`; and the growth from
each length to the next. For a doubling of the length, O(T) grows 2.0 times, O(T²) 4.0 times. Times are taken as
in a capture, where freed memory stays with the process.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch

from attngraph.capture.heap import kept_heap
from attngraph_kernels import BlockGrid, Stream, attend

HEADS, GROUPS, WIDTH = 9, 3, 64
LENGTHS = (16_384, 32_768, 65_536, 131_072)
LONGEST_DENSE = 32_768
CLEAR_REFS = Path("/proc/self/clear_refs")


def layer(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys that drift along the sequence, and queries that look back: not plain noise, which has no structure."""
    draw = torch.Generator().manual_seed(0)
    drift = torch.randn(GROUPS, -(-tokens // 256), WIDTH, generator=draw).repeat_interleave(256, dim=1)[:, :tokens]
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


def sparse(tokens: int) -> Callable[[], object]:
    """The work that is measured, its inputs made."""
    q, k, v = layer(tokens)
    grid, scale = BlockGrid(tokens, 16), WIDTH**-0.5
    return lambda: attend(q, k, v, grid, Stream(budget=8), scale=scale, targets=[tokens - 1])


def dense(tokens: int) -> Callable[[], object]:
    """Dense attention to compare with."""
    q, k, v = (x.unsqueeze(0) for x in layer(tokens))
    return lambda: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=WIDTH**-0.5, enable_gqa=True
    )


@torch.inference_mode()
def peak_bytes(tokens: int) -> int | None:
    """Memory that one layer takes at its peak beyond the inputs (Linux); to be called in a fresh process."""
    work = sparse(tokens)
    if not CLEAR_REFS.exists():
        return None
    CLEAR_REFS.write_text("5")  # from now on the high-water mark counts anew
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@torch.inference_mode()
@kept_heap()
def measure(tokens: int, repeats: int) -> dict[str, float | None]:
    """Median seconds of one layer, sparse and dense, and the peak memory of the sparse one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        peak = alone.submit(peak_bytes, tokens).result()
    return {
        "tokens": tokens,
        "stream": median_seconds(sparse(tokens), repeats),
        "peak_bytes": peak,
        "sdpa": median_seconds(dense(tokens), repeats) if tokens <= LONGEST_DENSE else None,
    }


def cells(row: dict[str, float | None], before: dict[str, float | None] | None) -> list[str]:
    """A line of the table: every quantity with its growth."""
    units = {"stream": (1, ".3f"), "peak_bytes": (2**-20, ".0f"), "sdpa": (1, ".3f")}
    line = [f"{row['tokens']:,}"]
    for name, (unit, style) in units.items():
        value, earlier = row[name], before and before[name]
        line.append("" if value is None else format(value * unit, style))
        line.append("" if value is None or earlier is None else f"{value / earlier:.2f}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(tokens, arguments.repeats) for tokens in arguments.lengths]
    if arguments.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}))
        return
    print(f"one layer, {HEADS} heads, {GROUPS} key/value heads, d = {WIDTH}, blocks of 16, budget 8, fp32")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {arguments.repeats}\n")
    print("| tokens | stream s | growth | peak MB | growth | SDPA s | growth |\n|---|---|---|---|---|---|---|")
    for before, row in pairwise([None, *rows]):
        print(f"| {' | '.join(cells(row, before))} |")
    doublings = math.log2(rows[-1]["tokens"] / rows[0]["tokens"])
    if doublings > 0:
        growth = (rows[-1]["stream"] / rows[0]["stream"]) ** (1 / doublings)
        print(f"\nstream, per doubling from {rows[0]['tokens']:,} to {rows[-1]['tokens']:,} tokens: {growth:.2f} times")


if __name__ == "__main__":
    main()
