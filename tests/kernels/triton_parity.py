"""Every Triton kernel against the PyTorch path, in Triton's interpreter; a program of its own (`test_triton.py`).

Prints one JSON line per case: its name, and what it found. Interpreted kernels must be decorated with
TRITON_INTERPRET=1 set, and are silently wrong in bfloat16: fp16 and fp32 only.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator

import torch
import triton.language as tl
from triton.runtime import interpreter

from attngraph_kernels import (
    Attended,
    BlockGrid,
    DenseAttention,
    Exact,
    Selector,
    Softmax,
    Stream,
    attend,
    coreset,
    dense_attention,
    pyramid,
    select,
    use,
)
from attngraph_kernels.blocks import into_blocks
from attngraph_kernels.pyramid import present, second_moment_factor
from tests.kernels.reference import random_attention

SEARCH = {"exact_tail": 20, "start_nodes": 4, "candidates": 2, "query_representatives": 2, "representatives": 4}

_patch = interpreter._patch_lang


def _patch_once(fn: Callable[..., object]) -> object:
    """The interpreter patches triton.language at every call of a helper, which takes most of its time: once will do."""
    languages = [x for x in fn.__globals__.values() if inspect.ismodule(x) and x in (tl, tl.core)]
    if languages and not any(tl.core.is_builtin(language.load) for language in languages):
        return interpreter._LangPatchScope()
    return _patch(fn)


def both(run: Callable[[torch.dtype], object], dtype: torch.dtype) -> tuple[object, object]:
    """PyTorch's answer, in fp32, and Triton's, in `dtype`."""
    with use("torch"):
        expected = run(torch.float32)
    with use("triton"):
        return expected, run(dtype)


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, values: int | None = None) -> list[torch.Tensor]:
    """Random q, k, v that fp16 holds exactly."""
    heads, groups, tokens, width = shape
    q, k, v = random_attention(heads, groups, tokens, width, seed=tokens)
    if values is not None:
        v = torch.randn(groups, tokens, values, generator=torch.Generator().manual_seed(0))
    return [x.half().to(dtype) for x in (q, k, v)]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance, equal_nan=True)


def attention(
    shape: tuple[int, int, int, int],
    grid: BlockGrid,
    selector: Selector,
    dtype: torch.dtype,
    *,
    values: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    beside: bool = False,
    spans: tuple[tuple[int, int], ...] = (),
    targets: tuple[int, ...] = (),
) -> None:
    """Everything that `attend` returns."""
    heads, tokens = shape[0], shape[2]
    softmax = Softmax(softcap, torch.linspace(-1, 2, heads) if sinks else None)
    norms = torch.rand(heads, tokens, generator=torch.Generator().manual_seed(1))

    def run(number: torch.dtype) -> object:
        q, k, v = inputs(shape, number, values)
        dense = dense_attention(q, k, v, grid, 0.25, softcap, softmax.sinks) if beside else None
        return attend(
            q, k, v, grid, selector, scale=0.25, softmax=softmax, value_norm=norms, targets=targets, spans=spans,
            beside=dense,
        )  # fmt: skip

    expected, found = both(run, dtype)
    assert torch.equal(found.edges.blocks, expected.edges.blocks), "other blocks"
    assert torch.equal(found.targets.blocks, expected.targets.blocks), "other blocks of targets"
    assert found.output.dtype == dtype
    close(found.output, expected.output, 2e-3 if dtype == torch.float16 else 5e-5)
    for name in (
        "log_sum_exp",
        "kept_mass",
        "kept_mass_estimate",
        "target_kept_mass",
        "span_mass",
        "span_contribution",
    ):
        close(getattr(found, name), getattr(expected, name), 1e-3 if name == "kept_mass_estimate" else 5e-5)
    for name in ("mass", "contribution"):
        close(getattr(found.edges, name), getattr(expected.edges, name), 2e-5)
        close(getattr(found.targets, name), getattr(expected.targets, name), 2e-5)


def dense(
    shape: tuple[int, int, int, int], grid: BlockGrid, dtype: torch.dtype, softcap: float | None, *, sinks: bool
) -> None:
    sink = torch.linspace(-1, 2, shape[0]) if sinks else None

    def run(number: torch.dtype) -> DenseAttention:
        return dense_attention(*inputs(shape, number), grid, 0.25, softcap, sink)

    expected, found = both(run, dtype)
    close(found.output, expected.output, 2e-3 if dtype == torch.float16 else 5e-5)
    close(found.log_sum_exp, expected.log_sum_exp, 5e-5)


def far_apart() -> None:
    """Rows 2^26 and heads over 2^31 numbers apart: offsets need 64 bits. The memory in between is never touched."""
    row, head, tokens, width = 1 << 26, (1 << 31) + 64, 34, 16
    numbers = torch.empty(head + tokens * row, dtype=torch.float16)
    grid = BlockGrid(tokens, 8)
    near = inputs((2, 2, tokens, width), torch.float16)
    far = [numbers.as_strided(x.shape, (head, row, 1), at * width).copy_(x) for at, x in enumerate(near)]

    def run(x: list[torch.Tensor]) -> tuple[Attended, DenseAttention]:
        found = attend(*x, grid, Stream(budget=2, exact_tail=8, start_nodes=2, candidates=2), scale=0.25)
        return found, dense_attention(*x, grid, 0.25)

    with use("triton"):
        (sparse, dense), (same, dense_too) = run(near), run(far)
    assert torch.equal(sparse.edges.blocks, same.edges.blocks)
    close(same.output, sparse.output, 0)
    close(same.edges.mass, sparse.edges.mass, 0)
    close(dense_too.output, dense.output, 0)


def reduced(tokens: int, width: int, size: int, representatives: int) -> None:
    """Coresets of the blocks, two of their keys the same, and the pyramid above them."""
    grid = BlockGrid(tokens, size)
    q, k, _ = random_attention(2, 1, tokens, width, seed=tokens)
    k[0, 5] = k[0, 3]
    metric, points = second_moment_factor(q.flatten(0, 1)), k[0] - k[0].mean(dim=0)
    there = present(grid, points)
    expected, found = both(lambda _: coreset(into_blocks(points, size), there, representatives, metric), torch.float32)
    assert torch.equal(found.group[there > 0], expected.group[there > 0]), "other groups"
    assert torch.equal(found.weight, expected.weight)
    close(found.mean, expected.mean, 1e-5)
    close(found.spread, expected.spread, 1e-3)
    levels = both(lambda _: pyramid(points, grid, representatives, metric, 2), torch.float32)
    for one, other in zip(*levels, strict=True):
        close(one, other, 1e-3)


def ties(selector: Selector) -> None:
    """All keys of all blocks alike: every free block has the same mass, the earliest are kept."""
    grid = BlockGrid(200, 8)
    q, k, _ = random_attention(1, 1, 200, 16, seed=0)
    k = k[:, :8].repeat(1, 25, 1)
    k[..., 1:] = 0  # products of one term: the interpreter's sums depend on where in a tile a key stands
    expected, found = both(lambda _: select(q, k, grid, selector, scale=0.25), torch.float32)
    for block in range(6, 24):
        assert found.blocks[0, block].tolist() == [0, 1, 2, block - 1, block], (block, found.blocks[0, block])
    assert torch.equal(found.blocks, expected.blocks)


def counts() -> None:
    """Queries of zeros: every visible key of a kept block has the same probability."""
    grid = BlockGrid(100, 16)
    q, k, v = (x for x in random_attention(1, 1, 100, 16, seed=0))
    with use("triton"):
        found = attend(q * 0, k, v, grid, Exact(budget=4), scale=0.25)
    close(found.log_sum_exp[0, :64], torch.arange(1, 65).float().log(), 1e-5)
    seen, own = torch.arange(49, 65.0), torch.arange(1, 17.0)  # keys that each row of block 3 sees, in all and in it
    close(found.edges.mass[0, 3], torch.stack([16 / seen, 16 / seen, 16 / seen, own / seen]).mean(dim=1), 1e-5)
    close(found.kept_mass[0, :4], torch.ones(4), 1e-5)


def everything_kept() -> None:
    """A budget of all blocks is dense attention."""
    grid = BlockGrid(75, 16)
    q, k, v = random_attention(2, 1, 75, 16, seed=0)
    with use("triton"):
        found = attend(q, k, v, grid, Stream(budget=5), scale=0.25)
        dense = dense_attention(q, k, v, grid, 0.25)
    close(found.output, dense.output, 1e-5)
    close(found.log_sum_exp, dense.log_sum_exp, 1e-5)


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    half, single = torch.float16, torch.float32
    exact, search = Exact(budget=4), Stream(budget=5, estimate=True, **SEARCH)
    spans, targets = ((3, 9), (5, 40), (40, 70)), (69, 20)
    grid, windowed = BlockGrid(70, 16), BlockGrid(70, 8, 30)
    capped = {"softcap": 20.0, "sinks": True}
    kept = {"spans": spans, "targets": targets}
    threshold = Stream(budget=4, mass_threshold=0.7, **{**SEARCH, "candidates": 1})
    asked = Stream(budget=4, exact_blocks=frozenset([12]), **SEARCH)
    two, many = Exact(budget=2), Exact(budget=26)
    yield "attend, spans, targets", lambda: attention((4, 1, 70, 64), grid, exact, half, **kept)
    yield (
        "attend, window, cap, sinks",
        lambda: attention((4, 2, 70, 80), windowed, exact, single, **capped, spans=spans),
    )
    yield "attend, window shorter than a block", lambda: attention((1, 1, 70, 16), BlockGrid(70, 8, 3), exact, single)
    yield "attend, tiles inside of the window", lambda: attention((1, 1, 290, 16), BlockGrid(290, 8, 230), many, single)
    yield "attend beside", lambda: attention((2, 2, 70, 16), grid, exact, single, beside=True, **kept)
    yield "attend, large blocks, wide", lambda: attention((1, 1, 290, 256), BlockGrid(290, 128), two, single)
    yield "attend, other width of values", lambda: attention((8, 1, 50, 96), BlockGrid(50, 32), exact, half, values=64)
    yield "far apart", far_apart
    yield "dense", lambda: dense((4, 1, 150, 64), BlockGrid(150, 16), half, None, sinks=False)
    yield "dense, window, cap, sinks", lambda: dense((4, 2, 150, 80), BlockGrid(150, 16, 70), single, 20.0, sinks=True)
    yield (
        "dense, tiles inside of the window",
        lambda: dense((1, 1, 300, 16), BlockGrid(300, 16, 200), half, None, sinks=False),
    )
    yield "coreset 16", lambda: reduced(70, 24, 16, 4)
    yield "coreset 32", lambda: reduced(70, 80, 32, 8)
    yield "search", lambda: attention((1, 1, 170, 16), BlockGrid(170, 8), search, single)
    yield "search, window", lambda: attention((1, 1, 200, 16), BlockGrid(200, 8, 180), threshold, single, sinks=True)
    yield (
        "search, blocks whose coresets are PyTorch's",
        lambda: attention(
            (2, 1, 900, 16), BlockGrid(900, 128), Stream(budget=4, **{**SEARCH, "candidates": 1}), single
        ),
    )
    yield "search in fp16", lambda: attention((1, 1, 120, 32), BlockGrid(120, 8), asked, half)
    yield "ties, search", lambda: ties(Stream(budget=5, **SEARCH))
    yield "ties, exact", lambda: ties(Exact(budget=5))
    yield "counts", counts
    yield "everything kept", everything_kept


def main() -> None:
    interpreter._patch_lang = _patch_once
    importlib.import_module("attngraph_kernels.descent").PROCESSOR_HAS_BFLOAT16 = False  # both search in fp32
    for name, case in cases():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        try:
            case()
            found = "ok"
        except Exception:  # noqa: BLE001 - the test that reads this says which case failed, and why
            found = traceback.format_exc()
        print(json.dumps({"case": name, "found": found}), flush=True)


if __name__ == "__main__":
    main()
