"""Which key blocks the rows of a captured run keep, and what a removal leaves of them."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attngraph.errors import GraphError
from attngraph.graph.edge_set import EdgeSet
from attngraph.graph.source import LayerArrays
from attngraph.store import Run
from attngraph_kernels import BlockGrid


class Removal(NamedTuple):
    """Edges that a pass does without; with `keep` they and the forced blocks are all that remains of it."""

    edges: EdgeSet
    keep: bool = False

    def first_layer(self, layers: int) -> int:
        """The first layer that computes something else than without the removal; the number of layers for none."""
        return 0 if self.keep else int(self.edges.layer.min(initial=layers))


class KeptBlocks:
    """The blocks that every row of a run kept, layer by layer; each layer is read once.

    Rows have the numbers of the graph's nodes: blocks, then targets.
    """

    def __init__(self, run: Run) -> None:
        self.source, self.windows = run.layer_source(), run.manifest.model.windows
        self._layers: dict[int, Tensor] = {}

    @cached_property
    def own(self) -> Tensor:
        """The block of every row, [rows]."""
        targets = torch.tensor(self.source.targets, dtype=torch.int64) // self.source.block_size
        return torch.cat([torch.arange(self.source.blocks), targets])

    def grid(self, layer: int) -> BlockGrid:
        """The partition into blocks, with the layer's window."""
        return BlockGrid(self.source.tokens, self.source.block_size, self.windows[layer])

    def of_layer(self, layer: int) -> Tensor:
        """[H, rows, width], ascending, -1 (first) where fewer are kept."""
        if layer not in self._layers:
            arrays = self.source.layer(layer)
            self._layers[layer] = _as_rows(arrays, self.source.heads, len(self.own), self.source.blocks)
        return self._layers[layer]

    def remaining(self, layer: int, removal: Removal) -> Tensor:
        """[H, rows, width] as `of_layer`, -1 in the place of every block that is removed."""
        blocks = self.of_layer(layer)
        head, row, slot, _ = self._found(layer, removal.edges)
        gone = torch.zeros_like(blocks, dtype=torch.bool)
        gone[head, row, slot] = True
        if removal.keep:
            gone = ~(gone | self.grid(layer).forced_among(blocks, self.own))
        return blocks.masked_fill(gone, -1)

    def check(self, removal: Removal, *, dense: bool) -> None:
        """Refuse what a pass over all visible keys (`dense`), or over the kept ones, can't do without.

        Raises
        ------
        GraphError
            For an edge that is not there, or that leads from the row's own block.
        """
        edges = removal.edges
        own = self.own.numpy()[edges.node]
        if not removal.keep and (index := np.flatnonzero(own == edges.key_block)).size:
            raise GraphError(
                f"{self._named(edges, index[0])} leads from the row's own block, which a row can't do without: its "
                f"first token has no other key. Leave such edges out."
            )
        for layer in np.unique(edges.layer).tolist():
            here = np.flatnonzero(edges.layer == layer)
            if dense and not removal.keep:
                first = np.array([self.grid(layer).first_visible(block) for block in own[here].tolist()])
                unknown = (edges.key_block[here] < first) | (edges.key_block[here] > own[here])
                why = "leads from a block that the row doesn't see"
            else:
                unknown = ~self._found(layer, edges)[-1].numpy()
                why = "is not among the run's recorded edges; `run.edges()` and `run.target_edges()` list them"
            if unknown.any():
                raise GraphError(f"{self._named(edges, here[unknown][0])} {why}.")

    def _found(self, layer: int, edges: EdgeSet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Head, row and slot of a layer's edges, and whether they are there."""
        here = edges.of_layer(layer)
        head, row, key = (torch.from_numpy(part) for part in (here.head, here.node, here.key_block))
        hit = self.of_layer(layer)[head, row] == key[:, None]
        return head, row, hit.int().argmax(dim=-1), hit.any(dim=-1)

    def _named(self, edges: EdgeSet, index: int) -> str:
        row, blocks = int(edges.node[index]), self.source.blocks
        end = f"query block {row}" if row < blocks else f"token {self.source.targets[row - blocks]}"
        return (
            f"The edge of layer {edges.layer[index]}, head {edges.head[index]} from key block "
            f"{edges.key_block[index]} to {end}"
        )


def _as_rows(arrays: LayerArrays, heads: int, rows: int, blocks: int) -> Tensor:
    """A layer's edges as key blocks [H, rows, width]."""
    head = np.concatenate([arrays.head, arrays.target_head]).astype(np.int64)
    row = np.concatenate([arrays.query_block.astype(np.int64), blocks + arrays.target.astype(np.int64)])
    key = np.concatenate([arrays.key_block, arrays.target_key_block]).astype(np.int64)
    order = np.lexsort((key, row, head))
    place = (head * rows + row)[order]
    count = np.bincount(place, minlength=heads * rows)
    # Slots are counted from the last one, which is a row's own block.
    slot = count.max() - count.cumsum()[place] + np.arange(len(place))
    found = np.full((heads * rows, count.max()), -1)
    found[place, slot] = key[order]
    return torch.from_numpy(found.reshape(heads, rows, -1))
