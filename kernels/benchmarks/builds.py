"""Build the Triton kernels ahead of time, without a GPU, and say what they need of a chip.

Run: python kernels/benchmarks/builds.py [--chips 80 90] [--few] [--json]

For every shipped configuration: it compiles, its shared memory against the chip's limit, registers per thread, and
bytes that spill out of them (from NVIDIA's assembler, which comes with Triton). Ends with 1 if one does not build, is
over the limit, or spills. Not with TRITON_INTERPRET=1: interpreted kernels can't be compiled.
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
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attngraph_kernels import BlockGrid, Softmax
from attngraph_kernels.triton.attend import over_blocks
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


def layer(width: int, dtype: torch.dtype, tokens: int = 4096) -> tuple[torch.Tensor, ...]:
    """q, k, v of 8 heads and 2 key/value heads."""
    return meta(8, tokens, width, dtype=dtype), *(meta(2, tokens, width, dtype=dtype) for _ in range(2))


class Case(NamedTuple):
    """A configuration: its name, and the call whose launches are built."""

    name: str
    call: Callable[[], object]


def attend_cases(few: bool) -> Iterator[Case]:
    """Block sizes, widths and number types; one window, cap and sink among them."""
    settings = [
        (size, width, dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for width in (64, 80, 96, 128, 256)
        for size in (8, 16, 32, 64, 128)
    ]
    if few:
        settings = [(16, 64, torch.bfloat16), (32, 256, torch.bfloat16), (16, 128, torch.float32)]
    for size, width, dtype in settings:
        for extras in (False, True):
            grid = BlockGrid(4096, size, 1000 if extras else None)
            softmax = Softmax(50.0, meta(8)) if extras else Softmax()
            yield Case(
                f"attend {TYPES[dtype]} d {width} block {size}{' window cap sinks' if extras else ''}",
                lambda grid=grid, softmax=softmax, width=width, dtype=dtype: over_blocks(
                    *layer(width, dtype),
                    grid,
                    meta(8, grid.count, min(32, grid.count), dtype=torch.int32),
                    scale=0.1,
                    softmax=softmax,
                    value_norm=meta(8, 4096),
                ),
            )


def audit_cases(few: bool) -> Iterator[Case]:
    """Dense attention by width and number type, block masses by block size too."""
    for width, dtype in _widths(few):
        for softmax, window in ((Softmax(), None), (Softmax(50.0, meta(8)), 1000)):
            grid, extras = BlockGrid(4096, 16, window), " window cap sinks" if window else ""
            yield Case(
                f"audit {TYPES[dtype]} d {width}{extras}",
                lambda grid=grid, softmax=softmax, width=width, dtype=dtype: dense_attention(
                    *layer(width, dtype), grid, 0.1, softmax.softcap, softmax.sinks
                ),
            )
        for size in (16,) if few else (8, 16, 32, 64, 128):
            yield Case(
                f"masses {TYPES[dtype]} d {width} block {size}",
                lambda width=width, dtype=dtype, size=size: block_masses(
                    *layer(width, dtype)[:2], BlockGrid(4096, size), meta(3, dtype=torch.int32), scale=0.1
                ),
            )


def _widths(few: bool) -> list[tuple[int, torch.dtype]]:
    if few:
        return [(64, torch.bfloat16), (256, torch.bfloat16)]
    return [(d, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32) for d in (64, 80, 96, 128, 256)]


def coreset_cases(few: bool) -> Iterator[Case]:
    """Key blocks, query blocks and pairs of nodes."""
    for width, dtype in _widths(few):
        for size in (16,) if few else (8, 16, 32, 64, 128):
            for name, representatives in (("keys", 8), ("queries", max(1, size // 4))):
                yield Case(
                    f"coreset {name} {TYPES[dtype]} d {width} block {size}",
                    lambda width=width, dtype=dtype, size=size, name=name, representatives=representatives: coresets(
                        meta(2, 4096, width, dtype=dtype),
                        size,
                        representatives,
                        meta(2, width, width),
                        mean=meta(2, width) if name == "keys" else None,
                    ),
                )
    for width in (64,) if few else (64, 80, 96, 128, 256):
        yield Case(
            f"coreset pairs d {width}",
            lambda width=width: coresets(
                meta(2, 2048, width), 16, 8, meta(2, width, width), weight=meta(2, 2048), spread=meta(2, 2048)
            ),
        )


def select_cases(few: bool) -> Iterator[Case]:
    """Descent and re-score with the default search, and with the largest budget of the default number of nodes."""
    settings = [(16, 8, 512), (32, 32, 512)]
    if not few:
        settings += [(8, 16, 512), (64, 8, 512), (128, 4, 1024)]
    for width, dtype in _widths(few):
        for size, budget, nodes in settings:
            grid = BlockGrid(1 << 19, size)
            yield Case(
                f"descend {TYPES[dtype]} d {width} block {size} budget {budget}",
                lambda grid=grid, width=width, dtype=dtype, size=size, budget=budget, nodes=nodes: descend(
                    Levels(meta(2, 2 * nodes, 8, width, dtype=dtype), meta(2, 2 * nodes, 8), (0, nodes, 2 * nodes)),
                    Queries(
                        meta(8, grid.count, size // 4, width, dtype=dtype),
                        *(meta(8, grid.count, size // 4) for _ in range(2)),
                        meta(8, grid.count, size, dtype=torch.uint8),
                    ),
                    grid,
                    meta(64, dtype=torch.int32),
                    3 * budget,
                    estimate=True,
                ),
            )
            yield Case(
                f"rescore {TYPES[dtype]} d {width} block {size} budget {budget}",
                lambda grid=grid, width=width, dtype=dtype, budget=budget: rescore(
                    *layer(width, dtype, 1 << 19)[:2],
                    grid,
                    meta(64, dtype=torch.int32),
                    meta(8, 64, 3 * budget, dtype=torch.int32),
                    Searched(meta(8, grid.count, budget, dtype=torch.int32), meta(8, grid.count), meta(8, 1 << 19)),
                    scale=0.1,
                    mass_threshold=0.9,
                ),
            )


CASES = (attend_cases, audit_cases, coreset_cases, select_cases)


def builds(chips: list[int], few: bool, only: str = "") -> Iterator[Build | tuple[str, int, str]]:
    """Every configuration for every chip; a name, chip and error where one does not compile."""
    for cases in CASES:
        for case in filter(lambda case: only in case.name, cases(few)):
            with collecting() as launches:
                case.call()
            for launch in launches:
                name = f"{case.name} [{launch.kernel.fn.__name__.strip('_')}]"
                for chip in chips:
                    try:
                        yield build(name, launch, chip)
                    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is the finding
                        yield name, chip, f"{type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", type=int, default=[80, 90], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--few", action="store_true", help="a few configurations of each kernel")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, bad = [], 0
    if not arguments.json:
        print("| kernel | sm | shared KB | registers | spilled bytes | |\n|---|---|---|---|---|---|")
    for found in builds(arguments.chips, arguments.few, arguments.only):
        if isinstance(found, Build):
            bad += not found.fits
            rows.append({**found._asdict(), "fits": found.fits})
            line = f"{found.name} | {found.chip} | {found.shared / 1024:.0f} | {found.registers} | {found.spilled}"
            line += f" | {'' if found.fits else 'DOES NOT FIT'}"
        else:
            bad += 1
            rows.append({"name": found[0], "chip": found[1], "error": found[2]})
            line = f"{found[0]} | {found[1]} | | | | {' '.join(found[2].split())[-300:]}"
        if not arguments.json:
            print(f"| {line} |", flush=True)
    if arguments.json:
        print(json.dumps({"triton": triton.__version__, "builds": rows}))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
