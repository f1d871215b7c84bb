"""Build the Triton kernels ahead of time, without a GPU, and say what they need of a chip.

Run: python kernels/benchmarks/builds.py [--chips 80 90] [--tokens 4099] [--few] [--json]

For every shipped configuration: it compiles, its shared memory against the chip's limit, registers per thread, and
bytes that spill out of them (from NVIDIA's assembler, which comes with Triton). Ends with 1 if one does not build, is
over the limit, or spills. Lengths that 16 divides tell the compiler more than others: the default is of the others.
Not with TRITON_INTERPRET=1: interpreted kernels can't be compiled.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attngraph_kernels import BlockGrid, Softmax, Stream
from attngraph_kernels.blocks import BLOCK_SIZES
from attngraph_kernels.triton import limits
from attngraph_kernels.triton.attend import over_blocks, span_sums
from attngraph_kernels.triton.audit import block_masses, dense_attention
from attngraph_kernels.triton.coreset import coresets
from attngraph_kernels.triton.launch import Launch, collecting
from attngraph_kernels.triton.pyramid import Levels, Queries
from attngraph_kernels.triton.select import Searched, descend, rescore

SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program may have, by chip."""

TYPES = {
    torch.uint8: "u8",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Build(NamedTuple):
    """One compiled kernel: what it was built for, and what it needs."""

    name: str
    chip: int
    shared: int
    registers: int
    spilled: int

    @property
    def fits(self) -> bool:
        """Whether it is within the chip's shared memory, and nothing spills."""
        return self.shared <= SHARED_LIMIT[self.chip] and not self.spilled


def source_of(launch: Launch) -> ASTSource:
    """The kernel with types, constants and divisibility as the launcher would find them."""
    signature, constants, hints = {}, {}, {}
    for index, (name, parameter) in enumerate(inspect.signature(launch.kernel.fn).parameters.items()):
        value = launch.arguments[name]
        if "constexpr" in str(parameter.annotation):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, int) and value == 1:  # the launcher makes a constant of it
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            hints[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=hints)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def build(name: str, launch: Launch, chip: int) -> Build:
    """Compile one launch for a chip."""
    built = triton.compile(source_of(launch), target=GPUTarget("cuda", chip, 32), options=launch.options)
    report = _assembled(built.asm["ptx"], chip)
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
    return Build(name, chip, built.metadata.shared, registers, spilled)


def _assembled(ptx: str, chip: int) -> str:
    """What the assembler says of the kernel."""
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        reports = []
        for assembler in ("ptxas", "ptxas-blackwell"):  # which of the two knows this version of PTX differs
            command = [folder / assembler, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            if found.returncode == 0:
                return found.stderr
            reports.append(found.stderr)
    raise RuntimeError(f"No assembler takes the kernel for sm_{chip}: {reports}")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def layer(width: int, dtype: torch.dtype, tokens: int) -> tuple[torch.Tensor, ...]:
    """q, k, v of 14 heads and 2 key/value heads."""
    return meta(14, tokens, width, dtype=dtype), *(meta(2, tokens, width, dtype=dtype) for _ in range(2))


class Case(NamedTuple):
    """A configuration: its name, and the call whose launches are built."""

    name: str
    call: Callable[[], object]


def _widths(few: bool) -> list[tuple[int, torch.dtype]]:
    if few:
        return [(64, torch.bfloat16), (256, torch.bfloat16)]
    return [(d, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32) for d in (64, 80, 96, 128, 256)]


def _sizes(few: bool) -> tuple[int, ...]:
    return (16,) if few else BLOCK_SIZES


def attend_cases(few: bool, tokens: int) -> Iterator[Case]:
    """Plain, with a window, cap and sinks, and beside a dense pass; and the single keys for spans."""
    for (width, dtype), size in product(_widths(few), _sizes(few)):
        name = f"{TYPES[dtype]} d {width} block {size}"
        blocks = meta(14, -(-tokens // size), 8, dtype=torch.int32)
        for extras in ("", " window cap sinks", " beside") if size == 16 else ("", " window cap sinks"):
            window, softmax = (1000, Softmax(50.0, meta(14))) if "window" in extras else (None, Softmax())
            yield Case(
                f"attend {name}{extras}",
                partial(
                    over_blocks,
                    *layer(width, dtype, tokens),
                    BlockGrid(tokens, size, window),
                    blocks,
                    scale=0.1,
                    softmax=softmax,
                    value_norm=meta(14, tokens),
                    dense_log_sum_exp=meta(14, tokens) if "beside" in extras else None,
                    output="beside" not in extras,
                ),
            )
        q, k, _ = layer(width, dtype, tokens)
        rows = meta(14, tokens)
        yield Case(
            f"spans {name}",
            partial(span_sums, q, k, BlockGrid(tokens, size), blocks, rows, rows, [(3, 50), (60, 90)], scale=0.1),
        )


def audit_cases(few: bool, tokens: int) -> Iterator[Case]:
    """Dense attention by width and number type, with and without its output; block masses by block size too."""
    for width, dtype in _widths(few):
        q, k, v = layer(width, dtype, tokens)
        for extras in ("", " window cap sinks", " without output"):
            window, softmax = (1000, Softmax(50.0, meta(14))) if "window" in extras else (None, Softmax())
            grid = BlockGrid(tokens, 16, window)
            yield Case(
                f"audit {TYPES[dtype]} d {width}{extras}",
                partial(
                    dense_attention, q, k, v, grid, 0.1, softmax.softcap, softmax.sinks, output="without" not in extras
                ),
            )
        for size in _sizes(few):
            yield Case(
                f"masses {TYPES[dtype]} d {width} block {size}",
                partial(block_masses, q, k, BlockGrid(tokens, size), meta(3, dtype=torch.int32), scale=0.1),
            )


def coreset_cases(few: bool, tokens: int) -> Iterator[Case]:
    """Key blocks, query blocks and pairs of nodes."""
    sizes = [size for size in _sizes(few) if limits.of_points(size) is None]
    for (width, dtype), size in product(_widths(few), sizes):
        points, metric = meta(2, tokens, width, dtype=dtype), meta(2, width, width)
        name = f"{TYPES[dtype]} d {width} block {size}"
        yield Case(f"coreset keys {name}", partial(coresets, points, size, 8, metric, mean=meta(2, width)))
        yield Case(f"coreset queries {name}", partial(coresets, points, size, max(1, size // 4), metric))
    for width in sorted({width for width, _ in _widths(few)}):
        nodes, ones = meta(2, 8 * tokens, width), meta(2, 8 * tokens)
        for points, groups in ((16, 8), (16, 4), (8, 4)):
            yield Case(
                f"coreset pairs d {width} {points} to {groups}",
                partial(coresets, nodes, points, groups, meta(2, width, width), weight=ones, spread=ones),
            )


def select_cases(few: bool, tokens: int) -> Iterator[Case]:
    """Descent and re-score with the default search, its first layer, its largest budget, and the most nodes at once."""
    settings = [(16, 8, 512), (32, 32, 512)]
    if not few:
        settings += [(16, 32, 512), (8, 16, 512), (64, 8, 1024), (128, 4, 512)]
    for (width, dtype), (size, budget, nodes) in product(_widths(few), settings):
        long, selector = BlockGrid(2 * nodes * size, size), Stream(budget=budget, start_nodes=nodes)
        if limits.of_search(selector, long, dtype) is not None:
            continue
        grid, represented = BlockGrid(tokens, size), max(1, size // 4)
        name = f"{TYPES[dtype]} d {width} block {size} budget {budget}"
        at, beam = meta(65, dtype=torch.int32), 3 * budget
        yield Case(
            f"descend {name}",
            partial(
                descend,
                Levels(meta(2, 16 * nodes, width, dtype=dtype), meta(2, 16 * nodes), (grid.count, nodes), 8),
                Queries(
                    meta(14, grid.count, represented, width, dtype=dtype),
                    *(meta(14, grid.count, represented) for _ in range(2)),
                    meta(14, grid.count, size, dtype=torch.uint8),
                ),
                grid,
                at,
                beam,
                estimate=True,
            ),
        )
        for extras in ("", " window cap sinks") if size == 16 else ("",):
            window, softmax = (1000, Softmax(50.0, meta(14))) if extras else (None, Softmax())
            yield Case(
                f"rescore {name}{extras}",
                partial(
                    rescore,
                    *layer(width, dtype, tokens)[:2],
                    BlockGrid(tokens, size, window),
                    at,
                    meta(14, 65, beam, dtype=torch.int32),
                    Searched(meta(14, grid.count, budget, dtype=torch.int32), meta(14, grid.count), meta(14, tokens)),
                    scale=0.1,
                    softmax=softmax,
                    mass_threshold=0.9,
                ),
            )


CASES = (attend_cases, audit_cases, coreset_cases, select_cases)


def builds(chips: list[int], few: bool, tokens: int, only: str = "") -> Iterator[Build | tuple[str, int, str]]:
    """Every configuration for every chip; a name, chip and error where one does not compile."""
    for cases in CASES:
        for case in filter(lambda case: re.search(only, case.name), cases(few, tokens)):
            with collecting() as launches:
                case.call()
            for launch in launches:
                name = f"{case.name} [{launch.kernel.fn.__name__.strip('_')}]"
                for chip in chips:
                    try:
                        yield build(name, launch, chip)
                    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is the finding
                        yield name, chip, f"{type(error).__name__}: {error}"


def summary(found: list[Build]) -> str:
    """A line per kernel: builds, most shared memory, most registers, most spilled bytes, and how many do not fit."""
    lines = ["| kernel | builds | shared KB | registers | spilled bytes | do not fit |", "|---|---|---|---|---|---|"]
    by_kernel: dict[str, list[Build]] = {}
    for one in found:
        by_kernel.setdefault(one.name.split("[")[-1].strip("]"), []).append(one)
    for kernel, some in by_kernel.items():
        most = [max(getattr(one, what) for one in some) for what in ("shared", "registers", "spilled")]
        line = f"{kernel} | {len(some)} | {most[0] / 1024:.0f} | {most[1]} | {most[2]}"
        lines.append(f"| {line} | {sum(not one.fits for one in some)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", type=int, default=[80, 90], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--tokens", type=int, default=4099)
    parser.add_argument("--few", action="store_true", help="a few configurations of each kernel")
    parser.add_argument("--only", default="", help="configurations whose name this regular expression finds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, built = [], []
    if not arguments.json:
        print("| kernel | sm | shared KB | registers | spilled bytes | |\n|---|---|---|---|---|---|")
    for found in builds(arguments.chips, arguments.few, arguments.tokens, arguments.only):
        if isinstance(found, Build):
            built.append(found)
            rows.append({**found._asdict(), "fits": found.fits})
            line = f"{found.name} | {found.chip} | {found.shared / 1024:.0f} | {found.registers} | {found.spilled}"
            line += f" | {'' if found.fits else 'DOES NOT FIT'}"
        else:
            rows.append({"name": found[0], "chip": found[1], "error": found[2]})
            line = f"{found[0]} | {found[1]} | | | | {' '.join(found[2].split())[-300:]}"
        if not arguments.json:
            print(f"| {line} |", flush=True)
    if arguments.json:
        print(json.dumps({"triton": triton.__version__, "builds": rows}))
    else:
        print(f"\nTriton {triton.__version__}, {len(built)} of {len(rows)} built\n\n{summary(built)}")
    sys.exit(0 if all(row.get("fits") for row in rows) else 1)


if __name__ == "__main__":
    main()
