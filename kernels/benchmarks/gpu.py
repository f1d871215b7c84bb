"""The Triton kernels on a GPU: first that they are right, then how long each operation and a whole forward pass take.

Run: python kernels/benchmarks/gpu.py [--lengths 131072 32768 …] [--repeats 5] [--minutes 9] [--output gpu.json]
Needs torch, triton and transformers, and the folder kernels/ of this repository on PYTHONPATH. Beside every length
stand PyTorch's scaled_dot_product_attention (flash) and FlexAttention with the same blocks; what does
not fit, does not run, or is left out when the minutes are over, is named. Rates are put beside ceilings measured on the
same card: a large copy and a large matrix product. At the end the marks, met or missed. Every line is printed, and the
file written anew, as soon as it is known.

Without a GPU, TRITON_INTERPRET=1 python kernels/benchmarks/gpu.py --tiny runs every step on a few tokens, to show that
the script itself works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from llama import sparse_forward
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from attngraph_kernels import BlockGrid, Exact, Stream, attend, dense_attention, select, use, value_norms
from attngraph_kernels.descent import fan_of, steps
from attngraph_kernels.pyramid import representatives_at
from attngraph_kernels.triton.attend import over_blocks
from attngraph_kernels.triton.audit import top_blocks
from attngraph_kernels.triton.pyramid import key_metric, key_tables, query_metric, query_tables

HEADS, GROUPS, WIDTH = 14, 2, 64
LENGTHS = (131_072, 32_768, 8_192, 524_288, 1_048_576)
"""Those that the marks are about come first."""

SETTINGS = {"16 x 8": (16, 8), "32 x 32": (32, 32)}
"""Block size and budget."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of outputs, relative to their norm, by number type."""

PARITY_SHARE, SECONDS_EACH = 0.4, 2.0
"""Of all the time for parity; seconds after which a measurement is not repeated."""

Row = dict[str, Any]


class Clock:
    """Medians of repeated runs, in seconds, with the device's own events where there are any, until time is up."""

    def __init__(self, device: torch.device, repeats: int, minutes: float) -> None:
        self.device, self.repeats = device, repeats
        self.begin, self.whole = time.monotonic(), 60 * minutes

    def used(self) -> float:
        """The share of the whole time that is over."""
        return (time.monotonic() - self.begin) / self.whole

    def median(self, run: Callable[[], object]) -> float:
        """After one run to warm up and compile, where there is a device."""
        if self.device.type != "cpu":
            run()
        times: list[float] = []
        while len(times) < self.repeats and sum(times) < SECONDS_EACH:
            times.append(self._once(run))
        return statistics.median(times)

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

    def measured(self, run: Callable[[], object]) -> Row:
        """Seconds and peak bytes beyond what is there already; or why there are none."""
        if self.used() > 1:
            return {"seconds": None, "reason": "left out, time is up"}
        try:
            before = self._reset_peak()
            seconds = self.median(run)
        except Exception as error:  # noqa: BLE001 - whatever it is, too large for the card or not supported, is the finding
            return {"seconds": None, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
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


def parity(clock: Clock, *, tiny: bool) -> Iterator[Row]:
    """Triton in each number type against PyTorch in fp32: errors relative to the norm, and how many rows agree.

    "rows" is the share of rows with the same kept blocks. The search ranks by numbers of its own type, so near-ties may
    fall otherwise; "mass" is the kept mass of the rows relative to that of PyTorch's. Kernels have to be compiled, so
    the settings that matter most come first, and the rest are left out where they would take too much of the time.
    """
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    settings = [(brain, 64, False), (half, 64, False), (single, 64, False), (brain, 64, True), (brain, 128, False)]
    settings += [(brain, 256, False), (brain, 80, False), (brain, 96, False), (single, 256, True), (half, 128, True)]
    for dtype, width, windowed in [(half, 64, False)] if tiny else settings:
        setting = {"dtype": str(dtype), "width": width, "windowed": windowed}
        if clock.used() > PARITY_SHARE:
            yield {**setting, "reason": "left out, it would take too much of the time"}
            continue
        tokens = 96 if tiny else 4096
        draw = torch.Generator().manual_seed(width)
        q, k, v = (torch.randn(h, tokens, width, generator=draw).to(clock.device, dtype) for h in (4, 2, 2))
        grid = BlockGrid(tokens, 8 if tiny else 16, tokens // 3 if windowed else None)
        searches = {"exact": Exact(budget=6), "stream": Stream(budget=6, exact_tail=16, start_nodes=8)}
        for name, selector in searches.items():
            yield {**setting, "search": name, **_compared(q, k, v, grid, selector)}


def _compared(q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid, selector: Exact | Stream) -> Row:
    scale, targets = q.shape[-1] ** -0.5, [grid.tokens - 1]
    ours = attend(q, k, v, grid, selector, scale=scale, targets=targets)
    single = q.float(), k.float(), v.float()
    dense = dense_attention(*single, grid, scale)
    with use("torch"):
        theirs = attend(*single, grid, selector, scale=scale, targets=targets)
        expected = dense_attention(*single, grid, scale)
    kept = [(x.log_sum_exp - expected.log_sum_exp).exp().mean() for x in (ours, theirs)]
    same = (ours.edges.blocks == theirs.edges.blocks).all(dim=-1)
    rows = same.repeat_interleave(grid.size, dim=1)[:, : grid.tokens]
    return {
        "rows": same.float().mean().item(),
        "mass": (kept[0] / kept[1]).item(),
        "output": _relative(ours.output[rows], theirs.output[rows]),
        "edge_mass": _relative(ours.edges.mass[same], theirs.edges.mass[same]),
        "contribution": _relative(ours.edges.contribution[same], theirs.edges.contribution[same]),
        "dense": _relative(dense.output, expected.output),
        "tolerance": TOLERANCE[q.dtype],
    }


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def layer(
    tokens: int, heads: int, groups: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys that drift along the sequence, and queries that look back: not plain noise, which has no structure."""
    draw = torch.Generator(device).manual_seed(0)
    noise = partial(torch.randn, generator=draw, device=device)
    drift = noise(groups, -(-tokens // 256), WIDTH).repeat_interleave(256, dim=1)[:, :tokens]
    k = noise(groups, tokens, WIDTH) + drift
    source = torch.randint(tokens, (heads, tokens), generator=draw, device=device)
    source %= torch.arange(1, tokens + 1, device=device)
    q = torch.stack([k[head // (heads // groups)][at] for head, at in enumerate(source)])
    return (q + noise(*q.shape)).to(dtype), k.to(dtype), noise(groups, tokens, WIDTH).to(dtype)


def flex(q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid, blocks: Tensor, scale: float) -> Callable[[], Tensor]:
    """FlexAttention over the same blocks, its mask made beforehand: the own block masked by position, no other."""
    heads, count, budget = blocks.shape
    own = torch.arange(count, device=q.device)
    others = blocks.long().masked_fill(blocks == own[:, None], -1)
    last = torch.argsort((others < 0).int(), dim=-1, stable=True)  # it wants the unused places last
    whole, diagonal = torch.zeros(2, 1, heads, count, count, dtype=torch.int32, device=q.device)
    whole[..., :budget] = others.gather(-1, last).clamp_min(0)
    diagonal[..., 0] = own

    def causal(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    def causal_and_kept(_: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (blocks[head, i // grid.size] == j // grid.size).any()

    compiled = q.device.type == "cuda"
    mask = BlockMask.from_kv_blocks(
        torch.ones(1, heads, count, dtype=torch.int32, device=q.device),
        diagonal,
        (others >= 0).sum(dim=-1, dtype=torch.int32)[None],
        whole,
        BLOCK_SIZE=grid.size,
        mask_mod=causal if compiled else causal_and_kept,  # not compiled it goes by nothing else
        seq_lengths=(grid.tokens, grid.tokens),
        compute_q_blocks=False,  # for its backward pass only
    )
    run = torch.compile(flex_attention) if compiled else flex_attention
    small = {"BLOCK_M": grid.size, "BLOCK_N": grid.size} if compiled else None
    return partial(run, q[None], k[None], v[None], block_mask=mask, scale=scale, enable_gqa=True, kernel_options=small)


class Work(NamedTuple):
    """Something to be timed, and what it does: floating-point operations, or bytes that it has to read; and what it
    should give, where that is known from something else.
    """

    operation: str
    run: Callable[[], Any]
    flops: float | None = None
    moved: float | None = None
    expected: Tensor | None = None


def search_flops(grid: BlockGrid, search: Stream, heads: int) -> float:
    """Of the products of one layer's descent and re-score."""
    nodes, top = grid.count, 0
    while nodes > search.start_nodes:
        nodes, top = -(-nodes // 2), top + 1
    represented = search.query_representatives or max(1, grid.size // 4)
    looked_at = [(top, nodes), *((level, fan * search.beam) for level, fan in steps(top, fan_of(search.beam)))]
    descent = represented * sum(some * representatives_at(level, search.representatives) for level, some in looked_at)
    rescore = 2 * search.beam * grid.size**2
    return 2.0 * WIDTH * heads * grid.count * (descent + rescore)


def operations(tokens: int, clock: Clock, *, tiny: bool) -> Iterator[Row]:
    """One layer's operations and their rivals."""
    shape = (2, 1) if tiny else (HEADS, GROUPS)
    q, k, v = layer(tokens, *shape, clock.device, torch.float32 if tiny else torch.bfloat16)
    for work in _dense_work(q, k, v):
        yield _timed(work, tokens, clock)
    for label, (size, budget) in ({"8 x 4": (8, 4)} if tiny else SETTINGS).items():
        search = Stream(budget=budget, start_nodes=8) if tiny else Stream(budget=budget)
        for work in _sparse_work(q, k, v, BlockGrid(tokens, size), search):
            yield _timed(work._replace(operation=f"{work.operation} {label}"), tokens, clock)


def _timed(work: Work, tokens: int, clock: Clock) -> Row:
    found = clock.measured(work.run)
    seconds = found["seconds"]
    rates = {"flops": work.flops and work.flops / seconds, "bytes_per_second": work.moved and work.moved / seconds}
    row = {"tokens": tokens, "operation": work.operation, **found, **(rates if seconds else {})}
    if seconds and work.expected is not None:
        row["difference"] = _relative(work.run()[0], work.expected.float())
    return row


def _sparse_work(q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid, search: Stream) -> Iterator[Work]:
    scale = WIDTH**-0.5
    metric = query_metric(q, len(k), scale)
    read = float(q.nbytes + k.nbytes)
    yield Work("metrics", lambda: (query_metric(q, len(k), scale), key_metric(k)), moved=read)
    yield Work(
        "coreset, pyramid",
        lambda: (
            key_tables(k, grid, search.representatives, metric, search.start_nodes),
            query_tables(q, grid, max(1, grid.size // 4), metric, scale),
        ),
        moved=read,
    )
    yield Work("select", lambda: select(q, k, grid, search, scale=scale), flops=search_flops(grid, search, len(q)))
    blocks = select(q, k, grid, search, scale=scale).blocks.int()
    norms = value_norms(v, torch.eye(WIDTH, device=v.device).expand(len(q), -1, -1))
    products = 2 * WIDTH * grid.size**2 * float((blocks >= 0).sum())
    yield Work("attend", lambda: over_blocks(q, k, v, grid, blocks, scale=scale, value_norm=norms), flops=3 * products)
    tail = torch.arange(max(0, grid.count - 128 // grid.size), grid.count, dtype=torch.int32)
    yield Work(
        "exact top-k, last 128 tokens",
        lambda: list(top_blocks(q, k, grid, tail, search.budget, scale=scale)),
        flops=2 * 2 * WIDTH * len(q) * 128.0 * grid.tokens,
    )
    output = over_blocks(q, k, v, grid, blocks, scale=scale).output
    rival = cache(lambda: flex(q, k, v, grid, blocks, scale))  # its mask is made once, in the run that warms up
    yield Work("FlexAttention", lambda: rival()(), flops=2 * products, expected=output)


def _dense_work(q: Tensor, k: Tensor, v: Tensor) -> Iterator[Work]:
    tokens, scale = q.shape[1], WIDTH**-0.5
    flops = 2.0 * WIDTH * len(q) * tokens**2
    flash = partial(scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True)
    yield Work("SDPA (dense, flash)", lambda: flash(q[None], k[None], v[None]), flops=flops)
    grid = BlockGrid(tokens, 16)
    yield Work("audit (dense, Triton)", lambda: dense_attention(q, k, v, grid, scale), flops=flops)


def line(row: Row, dense: float | None, measured: dict[str, float]) -> str:
    """Milliseconds, times faster than dense SDPA at this length, share of the ceiling, peak memory."""
    begin = f"| {row['tokens']:,} | {row['operation']}"
    if row["seconds"] is None:
        return f"{begin} | {row['reason'][:90]} | | | |"
    rates = {"flops": ("product_flops", "FLOP/s"), "bytes_per_second": ("copy_bytes_per_second", "bytes/s")}
    shares = [f"{row[name] / measured[top]:.1%} {unit}" for name, (top, unit) in rates.items() if row[name]]
    ratio = f"{dense / row['seconds']:.2f}" if dense else ""
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}"
    return f"{begin} | {row['seconds'] * 1000:.3f} | {ratio} | {''.join(shares)} | {peak} |"


class Mark(NamedTuple):
    """A number that was asked for, what was found (None: it was not measured), and the most it may be."""

    name: str
    found: float | None
    most: float

    def __str__(self) -> str:
        if self.found is None:
            return f"not measured: {self.name}"
        return f"{'met' if self.found <= self.most else 'missed'}: {self.name}: {self.found:.3g} (at most {self.most})"


def marks(parity: list[Row], operations: list[Row], forward: list[Row]) -> list[Mark]:
    """What was asked of the kernels."""
    seconds = {(row["tokens"], row["operation"]): row["seconds"] for row in operations}
    ratios = {row["tokens"]: row.get("ratio") for row in forward}
    peaks = {row["tokens"]: row["traced"].get("peak_bytes") for row in forward}
    compared = [row for row in parity if "output" in row]
    longest = 131_072
    attended, flash = f"attend {'32 x 32'}", (longest, "SDPA (dense, flash)")
    return [
        Mark("worst output error, of its tolerance", _most(row["output"] / row["tolerance"] for row in compared), 1),
        Mark("worst dense output error, of 1e-4", _most(row["dense"] / 1e-4 for row in compared), 1),
        Mark("kept mass below PyTorch's", _most(1 - row["mass"] for row in compared), 0.01),
        *(
            Mark(
                f"select and pyramid / attend, {label}, 128k",
                _ratio(seconds.get((longest, f"select {label}")), seconds.get((longest, f"attend {label}"))),
                0.1,
            )
            for label in SETTINGS
        ),
        Mark("attend / dense flash, 32 x 32, 128k", _ratio(seconds.get((longest, attended)), seconds.get(flash)), 0.2),
        Mark("traced / dense forward, 32k", ratios.get(32_768), 1.0),
        Mark("traced / dense forward, 128k", ratios.get(longest), 0.35),
        Mark("GB beyond the weights, 1M tokens", _ratio(peaks.get(1_048_576), 1e9), 141),
        Mark("growth of memory per doubling", _growth(peaks), 2.1),
    ]


def _most(values: Iterator[float]) -> float | None:
    return max(values, default=None)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part and whole else None


def _growth(peaks: dict[int, float | None]) -> float | None:
    """The most that a quantity grows per doubling of the length, between one length and the next."""
    known = sorted((tokens, peak) for tokens, peak in peaks.items() if peak)
    return _most((many / few) ** (1 / math.log2(more / less)) for (less, few), (more, many) in pairwise(known))


class Report:
    """What was found, printed and written to a file as it comes."""

    def __init__(self, path: Path | None, device: str) -> None:
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        self.path, self.found = path, {"device": device, **versions, "parity": [], "operations": [], "forward": []}
        print(device, versions, flush=True)

    def add(self, part: str, row: Row, text: str) -> None:
        """One more line."""
        self.found[part].append(row)
        print(text, flush=True)
        self.write()

    def write(self) -> None:
        """The file anew."""
        if self.path:
            self.path.write_text(json.dumps(self.found, indent=1))


def run(report: Report, clock: Clock, lengths: list[int], *, tiny: bool) -> None:
    """Parity, ceilings, whole forward passes, then single operations."""
    found = report.found
    for row in parity(clock, tiny=tiny):
        rounded = {key: float(f"{x:.2g}") if isinstance(x, float) else x for key, x in row.items()}
        report.add("parity", row, f"parity {rounded}")
    found["ceilings"] = ceilings(clock, tiny=tiny)
    print("ceilings", found["ceilings"])
    for tokens in lengths:
        row = {"tokens": tokens, **sparse_forward(tokens, clock, tiny=tiny)}
        report.add("forward", row, f"forward {json.dumps(row)}")
    print("| tokens | operation | ms | SDPA ÷ it | of the ceiling | peak MB |\n|---|---|---|---|---|---|")
    for tokens in lengths:
        dense = None
        for row in operations(tokens, clock, tiny=tiny):
            if row["operation"].startswith("SDPA"):
                dense = row["seconds"]
            report.add("operations", row, line(row, dense, found["ceilings"]))
    found["marks"] = list(map(str, marks(found["parity"], found["operations"], found["forward"])))
    print("\n".join(found["marks"]))
    report.write()


def flash_only(device: torch.device) -> AbstractContextManager[object]:
    """Dense attention in PyTorch is flash attention, or an error."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(SDPBackend.FLASH_ATTENTION)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9, help="after which nothing new is measured")
    parser.add_argument("--tiny", action="store_true", help="a few tokens in the interpreter, without a GPU")
    parser.add_argument("--output", type=Path, help="a JSON file for everything that is found")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    device = torch.device("cpu" if tiny else "cuda")
    clock = Clock(device, 1 if tiny else arguments.repeats, arguments.minutes)
    report = Report(arguments.output, "interpreter" if tiny else torch.cuda.get_device_name())
    with use("triton" if tiny else "auto"), flash_only(device):
        run(report, clock, [96] if tiny else arguments.lengths, tiny=tiny)


if __name__ == "__main__":
    main()
