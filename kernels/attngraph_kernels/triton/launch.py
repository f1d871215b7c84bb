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


def launch(kernel: Any, grid: tuple[int, ...], *, num_warps: int = 4, num_stages: int = 2, **arguments: Any) -> None:
    """Run `kernel` on the device of its tensors; an empty grid runs nothing."""
    if 0 in grid:
        return
    started = Launch(kernel, grid, arguments, {"num_warps": num_warps, "num_stages": num_stages})
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


def precision(dtype: torch.dtype) -> str:
    """How products are computed: fp32 in three tensor-core products on NVIDIA's chips, as it is on AMD's."""
    return "ieee" if dtype == torch.float32 and torch.version.hip else "tf32x3"


class Tile(NamedTuple):
    """Rows of queries and of keys in a tile, both powers of two and at least 16, and the compiler's options."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def tile_for(rows: int, width: int, itemsize: int, *, values: bool = True) -> Tile:
    """A tile for `rows` queries of (padded) `width` numbers that fits into the shared memory of every chip since sm_80.

    Parameters
    ----------
    values
        Whether value tiles are held too.
    """
    row_bytes = power_of_two(width) * itemsize
    most = 64 if row_bytes <= 512 else 32
    height = max(16, min(power_of_two(rows), most))
    keys = 64
    if row_bytes > 512:
        keys, height = 16 if values else 32, min(height, 16)
    deep = keys * row_bytes <= (16 << 10 if values else 32 << 10)
    num_stages = 3 if deep else 2 if row_bytes <= 512 else 1
    wide = height * power_of_two(width) >= 64 * 256 or (row_bytes >= 512 and not values)
    return Tile(height, keys, 8 if wide else 4, num_stages)
