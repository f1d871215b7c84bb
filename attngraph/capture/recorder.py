"""From one layer's attention to the run's tables, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attngraph.capture.cost import Tally
from attngraph.capture.shares import Shares
from attngraph.store import Background, RunWriter
from attngraph_kernels import Attended, BlockGrid, Edges, Softmax

Columns = Mapping[str, Any]


class Recorder:
    """Hand each layer to the writer as it comes, and count in `tally` what it kept; a context manager.

    The writer works in a thread of its own, at most one layer behind: while a layer is written the next one is
    computed. From a GPU what is recorded goes through pinned memory, without making it wait. What the writer raises
    comes out of `finish`, or at the end of the with-block.

    Parameters
    ----------
    writer
        An open `RunWriter`; inside of the with-block it is the recorder's.
    targets
        Token positions whose rows are kept at token grain.
    """

    def __init__(self, writer: RunWriter, targets: tuple[int, ...]) -> None:
        self.writer = writer
        self.targets = targets
        self.tally = Tally()
        self._pending: Attended | None = None
        self._background = Background()

    def __enter__(self) -> Recorder:
        self._background.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._background.__exit__(kind, error, traceback)

    def attended(self, grid: BlockGrid, softmax: Softmax, attended: Attended) -> None:
        """Take a layer's attention; its shares follow when the layer is through."""
        self.tally.attended(grid, softmax, attended)
        self._pending = attended

    def finish(self, layer: int, shares: Shares) -> None:
        """Start writing the layer; waits for the one before it."""
        attended, grid = self._pending, self.tally.grids[-1]
        assert attended is not None, "a layer ended without attention"
        self._pending = None
        on_host = _Layer.copied(attended, shares)
        self._background.submit(partial(self._write, layer, grid, on_host))

    def _write(self, layer: int, grid: BlockGrid, found: _Layer) -> None:
        found.wait()
        blocks = np.arange(grid.count)
        self.writer.append("edges", edge_columns(layer, found.edges, "query_block", blocks))
        if self.targets:
            targets = np.array(self.targets)
            self.writer.append("target_edges", edge_columns(layer, found.targets, "target", targets))
            kept_mass = found.target_kept_mass
            self.writer.append("target_rows", row_columns(layer, found.targets, "target", targets, kept_mass))
        rows = row_columns(layer, found.edges, "query_block", blocks, found.kept_mass)
        self.writer.append("rows", {**rows, "kept_mass_estimate": _by_row(found.kept_mass_estimate)})
        self.writer.append("shares", share_columns(layer, found.shares, grid, self.targets))
        if found.span_mass.shape[-1]:
            self.writer.append("span_edges", span_columns(layer, found.span_mass, found.span_contribution))


class _Layer(NamedTuple):
    """What of a layer is written, on its way to the host's memory; `copied_at` is when it has arrived there."""

    edges: Edges
    targets: Edges
    kept_mass: Tensor
    kept_mass_estimate: Tensor
    target_kept_mass: Tensor
    span_mass: Tensor
    span_contribution: Tensor
    shares: Shares
    copied_at: torch.cuda.Event | None

    @classmethod
    def copied(cls, attended: Attended, shares: Shares) -> _Layer:
        """Start the copies; on the host there is nothing to copy."""

        def host(x: Tensor) -> Tensor:
            return x.to("cpu", non_blocking=True)  # into pinned memory, where it comes from a GPU

        def edges(found: Edges) -> Edges:
            return Edges(host(found.blocks.to(torch.int32)), host(found.mass), host(found.contribution))

        found = cls(
            edges(attended.edges),
            edges(attended.targets),
            host(attended.kept_mass),
            host(attended.kept_mass_estimate),
            host(attended.target_kept_mass),
            host(attended.span_mass),
            host(attended.span_contribution),
            Shares(*map(host, shares)),
            None,
        )
        device = attended.kept_mass.device
        return (
            found
            if device.type != "cuda"
            else found._replace(copied_at=torch.cuda.current_stream(device).record_event())
        )

    def wait(self) -> None:
        """Until the copies have arrived."""
        if self.copied_at is not None:
            self.copied_at.synchronize()


def edge_columns(layer: int, edges: Edges, row_name: str, rows: np.ndarray) -> Columns:
    """Edges [H, rows, budget] as columns sorted by (row, head, key block)."""
    heads, _, budget = edges.blocks.shape
    blocks, mass, contribution = (_array(part).swapaxes(0, 1).reshape(-1) for part in edges)
    used = blocks >= 0
    row, head = np.meshgrid(rows, np.arange(heads), indexing="ij")
    return {
        "layer": np.full(int(used.sum()), layer),
        "head": np.repeat(head.reshape(-1), budget)[used],
        row_name: np.repeat(row.reshape(-1), budget)[used],
        "key_block": blocks[used],
        "mass": mass[used],
        "contribution": contribution[used],
    }


def row_columns(layer: int, edges: Edges, row_name: str, rows: np.ndarray, kept_mass: Tensor) -> Columns:
    """One line per (row, head): how many blocks it keeps, and how much of the dense mass [H, rows], NaN if unknown."""
    kept = (_array(edges.blocks) >= 0).sum(axis=-1).T
    count, heads = kept.shape
    return {
        "layer": np.full(count * heads, layer),
        "head": np.tile(np.arange(heads), count),
        row_name: np.repeat(rows, heads),
        "kept": kept.reshape(-1),
        "kept_mass": _by_row(kept_mass),
    }


def share_columns(layer: int, shares: Shares, grid: BlockGrid, targets: tuple[int, ...]) -> Columns:
    """Mean shares of every block's tokens, then the targets' own."""
    starts = np.arange(0, grid.tokens, grid.size)
    lengths = np.diff(np.append(starts, grid.tokens))
    parts = {name: _array(part).astype(np.float64) for name, part in shares._asdict().items()}
    blocks, others = list(range(grid.count)), [None] * len(targets)
    return {
        "layer": np.full(grid.count + len(targets), layer),
        "block": blocks + others,
        "position": [None] * grid.count + list(targets),
        **{
            name: np.concatenate([np.add.reduceat(part, starts) / lengths, part[list(targets)]])
            for name, part in parts.items()
        },
    }


def span_columns(layer: int, mass: Tensor, contribution: Tensor) -> Columns:
    """The span pairs [H, spans, spans] between which any attention was kept."""
    head, query, key = np.nonzero(_array(mass))
    return {
        "layer": np.full(len(head), layer),
        "head": head,
        "query_span": query,
        "key_span": key,
        "mass": _array(mass)[head, query, key],
        "contribution": _array(contribution)[head, query, key],
    }


def _by_row(values: Tensor) -> np.ma.MaskedArray:
    """[H, rows] as one column in the order of `row_columns`, NaN as null."""
    return np.ma.masked_invalid(_array(values).T.reshape(-1))


def _array(x: Tensor) -> np.ndarray:
    """The same numbers for NumPy.

    What the writer's thread computes is computed there: a product or a sum by PyTorch would start a second team of
    OpenMP threads, and once there are more than processors none of them waits awake for its next work any more. That
    costs the attention a third of its time.
    """
    return x.cpu().numpy()
