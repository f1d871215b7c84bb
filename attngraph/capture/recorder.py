"""From one layer's attention to the run's tables, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attngraph.capture.cost import Tally
from attngraph.capture.shares import Shares
from attngraph.store import RunWriter
from attngraph_kernels import Attended, BlockGrid, Edges, Softmax

Columns = Mapping[str, Any]


class Recorder:
    """Append each layer to the writer as it comes, and count in `tally` what it kept.

    Parameters
    ----------
    writer
        An open `RunWriter`.
    targets
        Token positions whose rows are kept at token grain.
    """

    def __init__(self, writer: RunWriter, targets: tuple[int, ...]) -> None:
        self.writer = writer
        self.targets = targets
        self.tally = Tally()
        self._pending: Attended | None = None

    def attended(self, grid: BlockGrid, softmax: Softmax, attended: Attended) -> None:
        """Take a layer's attention; its shares follow when the layer is through."""
        self.tally.attended(grid, softmax, attended)
        self._pending = attended

    def finish(self, layer: int, shares: Shares) -> None:
        """Write the layer."""
        attended, grid = self._pending, self.tally.grids[-1]
        assert attended is not None, "a layer ended without attention"
        self._pending = None
        self.writer.append("edges", edge_columns(layer, attended.edges, "query_block", np.arange(grid.count)))
        if self.targets:
            targets = np.array(self.targets)
            self.writer.append("target_edges", edge_columns(layer, attended.targets, "target", targets))
            kept_mass = attended.target_kept_mass
            self.writer.append("target_rows", row_columns(layer, attended.targets, "target", targets, kept_mass))
        rows = row_columns(layer, attended.edges, "query_block", np.arange(grid.count), attended.kept_mass)
        self.writer.append("rows", {**rows, "kept_mass_estimate": _by_row(attended.kept_mass_estimate)})
        self.writer.append("shares", share_columns(layer, shares, grid, self.targets))
        if attended.span_mass.shape[-1]:
            self.writer.append("span_edges", span_columns(layer, attended.span_mass, attended.span_contribution))


def edge_columns(layer: int, edges: Edges, row_name: str, rows: np.ndarray) -> Columns:
    """Edges [H, rows, budget] as columns sorted by (row, head, key block)."""
    heads, _, budget = edges.blocks.shape
    blocks, mass, contribution = (_array(part.transpose(0, 1)).reshape(-1) for part in edges)
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
    kept = _array((edges.blocks >= 0).sum(dim=-1).T)
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
    parts = {name: _array(part.double()) for name, part in shares._asdict().items()}
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
    head, query, key = (_array(index) for index in torch.nonzero(mass, as_tuple=True))
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
    return np.ma.masked_invalid(_array(values.T).reshape(-1))


def _array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
