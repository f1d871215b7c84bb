"""The Triton kernels on a GPU: first that they are right, then how long each operation and a whole forward pass take.

Run: python kernels/benchmarks/gpu.py [--lengths 8192 32768 …] [--repeats 5] [--output gpu.json]
Needs torch, triton and transformers, and the folders of this repository on PYTHONPATH (kernels alone will do). Beside
every length stand PyTorch's scaled_dot_product_attention (flash) and FlexAttention with the same blocks, in the same
process; what does not fit or run is named, not left out. Rates are put beside ceilings measured on the same card: a
large copy and a large matrix product.

Without a GPU, TRITON_INTERPRET=1 python kernels/benchmarks/gpu.py --tiny runs every step on a few tokens, to show that
the script itself works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from llama import sparse_forward
from scaling import layer as synthetic_layer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from attngraph_kernels import BlockGrid, Exact, Stream, attend, dense_attention, select, use, value_norms
from attngraph_kernels.triton.attend import over_blocks
from attngraph_kernels.triton.pyramid import key_metric, key_tables, query_metric, query_tables

LENGTHS = (8_192, 32_768, 131_072, 524_288, 1_048_576)
LONGEST_DENSE = 262_144
"""Dense attention of longer prompts takes seconds per layer; its time is quadratic and needs no measuring."""

SETTINGS = {"16 x 8": (16, 8), "32 x 32": (32, 32)}
"""Block size and budget."""


class Clock:
    """Medians of repeated runs, in seconds, with the device's own events where there are any."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def median(self, run: Callable[[], object]) -> float:
        """After one run to warm up and compile, where there is a device."""
        if self.device.type != "cpu":
            run()
        return statistics.median(self._once(run) for _ in range(self.repeats))

    def _once(self, run: Callable[[], object]) -> float:
        if self.device.type == "cpu":
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000

    def measured(self, run: Callable[[], object]) -> dict[str, Any]:
        """Seconds and peak bytes beyond what is there already; or why there are none."""
        try:
            before = self._reset_peak()
            seconds = self.median(run)
        except (RuntimeError, NotImplementedError, ValueError) as error:  # too large for the card, or not supported
            return {"seconds": None, "reason": f"{type(error).__name__}: {str(error)[:200]}"}
        peak = torch.cuda.max_memory_allocated() - before if self.device.type == "cuda" else None
        return {"seconds": seconds, "peak_bytes": peak}

    def _reset_peak(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()


def ceilings(clock: Clock, *, tiny: bool) -> dict[str, float]:
    """Bytes per second of a large copy (read and written), and operations per second of a large bf16 product."""
    size, width = (1 << 10, 64) if tiny else (1 << 30, 8192)
    source = torch.randint(255, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(width, width, device=clock.device).bfloat16() for _ in range(2))
    return {
        "copy_bytes_per_second": 2 * size / clock.median(lambda: target.copy_(source)),
        "product_flops": 2 * width**3 / clock.median(lambda: a @ b),
    }


def parity(device: torch.device, *, tiny: bool) -> list[dict[str, Any]]:
    """Triton in each number type against PyTorch in fp32: errors relative to the norm, and how many rows agree.

    "rows" is the share of rows with the same kept blocks. The search ranks by numbers of its own type, so near-ties may
    fall otherwise; "mass" is the kept mass of the rows relative to that of PyTorch's.
    """
    tokens = 96 if tiny else 4096
    found = []
    for dtype in (torch.float16,) if tiny else (torch.float32, torch.float16, torch.bfloat16):
        for width in (64,) if tiny else (64, 80, 96, 128, 256):
            draw = torch.Generator().manual_seed(width)
            q, k, v = (torch.randn(h, tokens, width, generator=draw).to(device, dtype) for h in (4, 2, 2))
            for window in (None,) if tiny else (None, tokens // 3):
                grid, scale = BlockGrid(tokens, 8 if tiny else 16, window), width**-0.5
                searches = {"exact": Exact(budget=6), "stream": Stream(budget=6, exact_tail=16, start_nodes=8)}
                for name, selector in searches.items():
                    ours = attend(q, k, v, grid, selector, scale=scale, targets=[tokens - 1])
                    dense = dense_attention(q.float(), k.float(), v.float(), grid, scale)
                    with use("torch"):
                        theirs = attend(
                            q.float(), k.float(), v.float(), grid, selector, scale=scale, targets=[tokens - 1]
                        )
                    audited = [(x.log_sum_exp - dense.log_sum_exp).exp().mean() for x in (ours, theirs)]
                    same = (ours.edges.blocks == theirs.edges.blocks).all(dim=-1)
                    rows = same.repeat_interleave(grid.size, dim=1)[:, :tokens]
                    found.append(
                        {
                            "search": name,
                            "dtype": str(dtype),
                            "width": width,
                            "window": window,
                            "rows": same.float().mean().item(),
                            "mass": (audited[0] / audited[1]).item(),
                            "output": _relative(ours.output[rows], theirs.output[rows]),
                            "edge_mass": _relative(ours.edges.mass[same], theirs.edges.mass[same]),
                            "contribution": _relative(ours.edges.contribution[same], theirs.edges.contribution[same]),
                        }
                    )
    return found


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def flex(q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid, blocks: Tensor, scale: float) -> Callable[[], Tensor]:
    """FlexAttention over the same blocks, its mask made beforehand."""
    heads, count, budget = blocks.shape
    number = (blocks >= 0).sum(dim=-1)
    first = torch.argsort((blocks < 0).int(), dim=-1, stable=True)  # it wants the unused places last
    indices = torch.zeros(1, heads, count, count, dtype=torch.int32, device=q.device)
    indices[..., :budget] = blocks.gather(-1, first).clamp_min(0)
    kept = torch.zeros(heads, count, count + 1, dtype=torch.bool, device=q.device)
    kept.scatter_(2, blocks.masked_fill(blocks < 0, count).long(), True)

    def causal(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    def causal_and_kept(_: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & kept[head, i // grid.size, j // grid.size]

    mask = BlockMask.from_kv_blocks(
        number[None].int(),
        indices,
        BLOCK_SIZE=grid.size,
        mask_mod=causal if q.device.type == "cuda" else causal_and_kept,  # not compiled it goes by nothing else
        seq_lengths=(grid.tokens, grid.tokens),
    )
    run = torch.compile(flex_attention) if q.device.type == "cuda" else flex_attention
    small = {"BLOCK_M": grid.size, "BLOCK_N": grid.size} if q.device.type == "cuda" else None
    return lambda: run(q[None], k[None], v[None], block_mask=mask, scale=scale, enable_gqa=True, kernel_options=small)[
        0
    ]


def operations(tokens: int, clock: Clock, *, tiny: bool) -> list[dict[str, Any]]:
    """One layer's operations, 9 heads on 3 key/value heads of width 64, and their rivals."""
    dtype = torch.float32 if tiny else torch.bfloat16
    q, k, v = (x.to(clock.device, dtype) for x in synthetic_layer(tokens))
    scale, rows = q.shape[-1] ** -0.5, []

    def add(name: str, run: Callable[[], object], flops: float | None = None, moved: float | None = None) -> None:
        found = clock.measured(run)
        seconds = found["seconds"]
        rate = {"flops": flops and flops / seconds, "bytes_per_second": moved and moved / seconds} if seconds else {}
        rows.append({"tokens": tokens, "operation": name, **found, **rate})

    for label, (size, budget) in ({"8 x 4": (8, 4)} if tiny else SETTINGS).items():
        grid, search = BlockGrid(tokens, size), Stream(budget=budget, start_nodes=8 if tiny else 512)
        metric = query_metric(q, len(k), scale)
        read = (q.nbytes + k.nbytes) * 1.0
        add(f"metrics {label}", lambda: (query_metric(q, len(k), scale), key_metric(k)), moved=read)
        add(
            f"coreset, pyramid {label}",
            lambda grid=grid, search=search, metric=metric: (
                key_tables(k, grid, search.representatives, metric, search.start_nodes),
                query_tables(q, grid, max(1, grid.size // 4), metric, scale),
            ),
            moved=read,
        )
        add(f"select {label}", lambda grid=grid, search=search: select(q, k, grid, search, scale=scale))
        blocks = select(q, k, grid, search, scale=scale).blocks.int()
        pairs = float((blocks >= 0).sum()) * size**2
        norms = value_norms(v, torch.eye(v.shape[-1], device=v.device).expand(len(q), -1, -1))
        add(
            f"attend {label}",
            lambda grid=grid, blocks=blocks, norms=norms: over_blocks(
                q, k, v, grid, blocks, scale=scale, value_norm=norms
            ),
            flops=6 * q.shape[-1] * pairs,
        )
        # Its mask is made once, in the run that warms up.
        rival = cache(lambda grid=grid, blocks=blocks: flex(q, k, v, grid, blocks, scale))
        add(f"FlexAttention {label}", lambda rival=rival: rival()())
        if rows[-1]["seconds"] is not None:
            ours = over_blocks(q, k, v, grid, blocks, scale=scale).output
            rows[-1]["difference"] = _relative(rival()(), ours.float())
    flops = 2.0 * q.shape[-1] * tokens**2 * len(q)
    if tokens <= LONGEST_DENSE:
        grid = BlockGrid(tokens, 16)
        add("audit (dense, Triton)", lambda: dense_attention(q, k, v, grid, scale), flops=flops)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        run = lambda: sdpa(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)  # noqa: E731
        add("SDPA (dense, flash)", run, flops=flops)
    return rows


def table(rows: list[dict[str, Any]], measured: dict[str, float]) -> str:
    """A line per operation: milliseconds, times faster than SDPA at this length, share of the ceiling, peak memory."""
    dense = {row["tokens"]: row["seconds"] for row in rows if row["operation"].startswith("SDPA")}
    lines = ["| tokens | operation | ms | SDPA ÷ it | of the ceiling | peak MB |", "|---|---|---|---|---|---|"]
    for row in rows:
        seconds, rival = row["seconds"], dense.get(row["tokens"])
        if seconds is None:
            lines.append(f"| {row['tokens']:,} | {row['operation']} | {row['reason'][:60]} | | | |")
            continue
        shares = (
            f"{row['flops'] / measured['product_flops']:.0%} FLOP/s" if row.get("flops") else "",
            f"{row['bytes_per_second'] / measured['copy_bytes_per_second']:.0%} bytes/s"
            if row.get("bytes_per_second")
            else "",
        )
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}"
        ratio = f"{rival / seconds:.2f}" if rival else ""
        lines.append(
            f"| {row['tokens']:,} | {row['operation']} | {seconds * 1000:.3f} | {ratio} | {''.join(shares)} | {peak} |"
        )
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a few tokens in the interpreter, without a GPU")
    parser.add_argument("--output", type=Path, help="a JSON file for everything that was found")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else "cuda")
    clock = Clock(device, 1 if arguments.tiny else arguments.repeats)
    lengths = [96] if arguments.tiny else arguments.lengths
    name = "interpreter" if arguments.tiny else torch.cuda.get_device_name()
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "triton": triton.__version__}
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}")
    with use("triton" if arguments.tiny else "auto"):
        found["parity"] = parity(device, tiny=arguments.tiny)
        for row in found["parity"]:
            print("parity", {key: f"{x:.2g}" if isinstance(x, float) else x for key, x in row.items()})
        found["ceilings"] = ceilings(clock, tiny=arguments.tiny)
        found["operations"] = [row for tokens in lengths for row in operations(tokens, clock, tiny=arguments.tiny)]
        print(table(found["operations"], found["ceilings"]))
        found["forward"] = [
            {"tokens": tokens, **sparse_forward(tokens, clock, tiny=arguments.tiny)} for tokens in lengths
        ]
    for row in found["forward"]:
        print("forward", json.dumps(row))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
