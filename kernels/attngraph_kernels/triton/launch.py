"""Starting kernels, and collecting what would be started, to be compiled without a GPU.

Offsets are 64-bit inside the kernels. Tile sizes follow from shapes and number types alone (no autotuning), so that the
same call is the same kernel on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """One kernel with its grid, all of its arguments by name, and the compiler's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


_collected: list[Launch] | None = None


@contextmanager
def collecting() -> Iterator[list[Launch]]:
    """Collect the launches made inside the block, on tensors without data ("meta"), in the place of running them."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    registers: int = 0,
    **arguments: Any,
) -> None:
    """Run `kernel` on the device of its tensors; an empty grid runs nothing.

    With `registers` a thread may have so many on NVIDIA's chips; with 0 their assembler chooses.
    """
    if 0 in grid:
        return
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if registers and not torch.version.hip:
        options["maxnreg"] = registers
    started = Launch(kernel, grid, arguments, options)
    if _collected is not None:
        _collected.append(started)
        return
    device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](**arguments, **started.options)
    else:
        kernel[grid](**arguments)


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def rows_contiguous(x: Tensor) -> Tensor:
    """`x` [..., T, d] with the numbers of each row side by side; a copy only where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def precision(dtype: torch.dtype, width: int = 0) -> str:
    """How products are computed: of fp32 in three tensor-core products on NVIDIA's chips.

    In plain ones on AMD's, and where queries of over 128 numbers, held in two parts, would not fit into registers.
    """
    return "ieee" if dtype == torch.float32 and (torch.version.hip or width > 128) else "tf32x3"


class Tile(NamedTuple):
    """Rows of queries and of keys in a tile, both powers of two and at least 16, and the options of `launch`."""

    rows: int
    keys: int
    options: dict[str, int]


def tile_for(rows: int, width: int, itemsize: int) -> Tile:
    """A tile for `rows` queries of (padded) `width` numbers that spills no registers and fits into shared memory."""
    single = itemsize == 4
    cost = power_of_two(width) * itemsize * (2 if single else 1)  # fp32 numbers are held in two parts
    height = max(16, min(32 if single else 64, power_of_two(rows), ((16 if single else 32) << 10) // cost))
    options = {
        "num_warps": 8 if height * cost >= 16 << 10 else 4,
        "num_stages": 3 if cost <= 512 else 2,
        # Left to choose, the assembler spills a few of the widest kernels' numbers to run one more program at a time.
        "registers": 255 if width > 128 else 0,
    }
    return Tile(height, max(16, min(64, (16 << 10) // cost)), options)
