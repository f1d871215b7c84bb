"""Numbers of nodes as a table."""

from __future__ import annotations

import numpy as np
import polars as pl

from attngraph.graph.source import FloatArray, IntArray


def node_table(name: str, value: FloatArray, node_block: IntArray, node_target: tuple[int | None, ...]) -> pl.DataFrame:
    """One row per level and node whose `value` [levels, nodes] isn't 0: level, block, target (null if none), `name`."""
    level, node = np.nonzero(value)
    return pl.DataFrame(
        {
            "level": level,
            "block": node_block[node],
            "target": pl.Series(node_target, dtype=pl.Int64).gather(node),
            name: value[level, node],
        }
    )
