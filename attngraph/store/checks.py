"""What must hold for the numbers in a run's tables; each check yields one sentence per problem.

The masses of a query row are a softmax over its kept keys, so they sum to 1; beside a dense forward pass they are
shares of the dense softmax and sum to the row's kept mass. A learned sink takes a part of either that is on no edge:
the masses then sum to that much at most. Residual and attention shares sum to 1. All are stored with some rounding,
hence `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from attngraph.store.encoding import lexicographic_order
from attngraph.store.manifest import Manifest
from attngraph.store.schema import TABLES, Table

Columns = Mapping[str, npt.NDArray[Any]]

TOLERANCE = 1e-3


def check_order(table: Table, columns: Columns) -> Iterator[str]:
    """Rows sorted as documented, none twice."""
    keys = [_filled(columns[name]) for name in table.sort if name != "layer"]
    in_order, repeated = lexicographic_order(keys)
    if not in_order:
        yield f"rows are not sorted by {', '.join(table.sort)}"
    elif repeated:
        yield f"rows are repeated: {', '.join(table.sort)} must be unique"


def check_edges(columns: Columns, rows: Columns, manifest: Manifest) -> Iterator[str]:
    """Edges within the run's heads and blocks, causal, their masses adding up per row."""
    heads, blocks = manifest.model.heads, manifest.prompt.blocks
    ranges = list(_out_of_range(columns, {"head": heads, "query_block": blocks, "key_block": blocks}))
    yield from ranges
    yield from _count("key_block above query_block", columns["key_block"] > columns["query_block"])
    yield from _bad_weights(columns)
    if not ranges:
        yield from _row_sums(columns, rows, "query_block", np.arange(blocks), manifest)


def check_target_edges(columns: Columns, rows: Columns | None, manifest: Manifest) -> Iterator[str]:
    """Target edges from the manifest's targets, causal, their masses adding up per target."""
    heads, blocks = manifest.model.heads, manifest.prompt.blocks
    targets = np.sort(np.asarray(manifest.prompt.targets, dtype=np.int64))
    ranges = list(_out_of_range(columns, {"head": heads, "key_block": blocks}))
    unknown = ~np.isin(columns["target"], targets)
    yield from ranges
    yield from _count(f"target outside the manifest's targets {_shortened(manifest.prompt.targets)}", unknown)
    yield from _count(
        "key_block above the target's block",
        columns["key_block"] > columns["target"] // manifest.config.block_size,
    )
    yield from _bad_weights(columns)
    if not ranges and not unknown.any():
        yield from _row_sums(columns, rows, "target", targets, manifest)


def check_rows(columns: Columns, edges: Columns, manifest: Manifest) -> Iterator[str]:
    """One row per head and query block, whose `kept` counts its edges; kept masses from 0 to 1, audited as told."""
    blocks = np.arange(manifest.prompt.blocks)
    audited = manifest.config.audit == "full" or manifest.config.forward == "dense"
    yield from _kept_rows(columns, edges, "query_block", blocks, manifest, audited=audited)
    yield from _outside_one(columns, "kept_mass_estimate")


def check_target_rows(columns: Columns, edges: Columns, manifest: Manifest) -> Iterator[str]:
    """The same for the targets."""
    targets = np.sort(np.asarray(manifest.prompt.targets, dtype=np.int64))
    audited = manifest.config.audit != "none" or manifest.config.forward == "dense"
    yield from _kept_rows(columns, edges, "target", targets, manifest, audited=audited)


def check_shares(columns: Columns, manifest: Manifest) -> Iterator[str]:
    """One row per block and per target; shares from 0 to 1, residual and attention adding up to 1."""
    no_block, no_position = np.ma.getmaskarray(columns["block"]), np.ma.getmaskarray(columns["position"])
    yield from _count("both or none of block and position", no_block == no_position)
    found_blocks = np.sort(_filled(columns["block"])[~no_block])
    found_targets = np.sort(_filled(columns["position"])[~no_position])
    if not np.array_equal(found_blocks, np.arange(manifest.prompt.blocks)):
        yield f"rows of {found_blocks.size} blocks instead of one for each of {manifest.prompt.blocks}"
    if not np.array_equal(found_targets, np.sort(np.asarray(manifest.prompt.targets, dtype=np.int64))):
        expected = _shortened(manifest.prompt.targets)
        yield f"rows of {found_targets.size} targets instead of one for each of {expected}"
    for name in ("residual", "attention", "mlp"):
        value = columns[name]
        yield from _count(f"{name} outside 0 to 1", ~((value >= -TOLERANCE) & (value <= 1 + TOLERANCE)))
    total = columns["residual"].astype(np.float64) + columns["attention"]
    yield from _count("residual + attention unlike 1", np.abs(total - 1) > TOLERANCE)


def check_span_edges(columns: Columns, manifest: Manifest) -> Iterator[str]:
    """Span edges within the run's heads and spans."""
    spans = len(manifest.prompt.spans)
    yield from _out_of_range(columns, {"head": manifest.model.heads, "query_span": spans, "key_span": spans})
    yield from _bad_weights(columns)


def check_layer(layers: Mapping[str, Columns], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Every check of one layer; `layers` maps table to columns. Yields table and problem."""
    found: dict[str, Iterator[str]] = {
        "edges": check_edges(layers["edges"], layers["rows"], manifest),
        "target_edges": check_target_edges(layers["target_edges"], layers.get("target_rows"), manifest),
        "rows": check_rows(layers["rows"], layers["edges"], manifest),
        "shares": check_shares(layers["shares"], manifest),
        "span_edges": check_span_edges(layers["span_edges"], manifest),
    }
    if "target_rows" in layers:
        found["target_rows"] = check_target_rows(layers["target_rows"], layers["target_edges"], manifest)
    for table, problems in found.items():
        yield from ((table, problem) for problem in check_order(TABLES[table], layers[table]))
        yield from ((table, problem) for problem in problems)


def check_tokens(columns: Columns, manifest: Manifest) -> Iterator[str]:
    """Positions from 0, each in its block."""
    position = np.arange(manifest.prompt.tokens)
    if not np.array_equal(columns["position"], position):
        yield f"positions are not 0 to {manifest.prompt.tokens - 1}"
    elif not np.array_equal(columns["block"], position // manifest.config.block_size):
        yield f"blocks are not position // {manifest.config.block_size}"


def check_blocks(columns: Columns, manifest: Manifest) -> Iterator[str]:
    """Blocks from 0, cutting the prompt without gaps."""
    start = np.arange(manifest.prompt.blocks) * manifest.config.block_size
    end = np.minimum(start + manifest.config.block_size, manifest.prompt.tokens)
    expected = {"block": np.arange(manifest.prompt.blocks), "token_start": start, "token_end": end}
    for name, values in expected.items():
        if not np.array_equal(columns[name], values):
            size = manifest.config.block_size
            yield f"{name} doesn't cut {manifest.prompt.tokens} tokens into blocks of {size}"


def check_spans(columns: Columns, manifest: Manifest) -> Iterator[str]:
    """The manifest's spans, in its order, none empty or outside the prompt."""
    names = ("span", "name", "token_start", "token_end")
    found = list(zip(*(columns[name].tolist() for name in names), strict=True))
    if found != [(index, span.name, span.start, span.end) for index, span in enumerate(manifest.prompt.spans)]:
        yield "spans unlike the manifest's"
    wrong = (columns["token_start"] >= columns["token_end"]) | (columns["token_end"] > manifest.prompt.tokens)
    yield from _count(f"span empty or outside the prompt's {manifest.prompt.tokens} tokens", wrong)


def _shortened(targets: tuple[int, ...]) -> str:
    return str(targets) if len(targets) <= 10 else f"({targets[0]}, {targets[1]}, … {targets[-1]}: {len(targets)})"


def _filled(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    return np.ma.filled(np.ma.asarray(values, dtype=np.uint64), np.iinfo(np.uint64).max)


def _count(what: str, wrong: npt.NDArray[np.bool_]) -> Iterator[str]:
    if wrong.any():
        yield f"{what} in {int(wrong.sum())} of {wrong.size} rows, first in row {int(wrong.argmax())}"


def _kept_rows(
    columns: Columns,
    edges: Columns,
    name: str,
    known: npt.NDArray[np.int64],
    manifest: Manifest,
    *,
    audited: bool,
) -> Iterator[str]:
    """Problems of a table with one row for each head and each of the `known` (ascending) values of column `name`."""
    heads = manifest.model.heads
    yield from _outside_one(columns, "kept_mass")
    most = manifest.most_kept
    yield from _count(f"kept above the budget of {most}", columns["kept"] > most)
    if audited:
        yield from _count(f"kept_mass null with audit={manifest.config.audit!r}", np.isnan(columns["kept_mass"]))
    ranges = list(_out_of_range(columns, {"head": heads}))
    yield from ranges
    row, edge_row = (_row_numbers(table, name, known, heads) for table in (columns, edges))
    if not ranges and not np.array_equal(np.sort(row), np.arange(heads * known.size)):
        yield f"{row.size} rows instead of one for each of {heads} heads and {known.size} {name.replace('_', ' ')}s"
    elif not ranges:
        counts = np.bincount(edge_row[edge_row >= 0], minlength=heads * known.size)
        yield from _count("kept unlike the number of edges", columns["kept"] != counts[row])


def _row_numbers(columns: Columns, name: str, known: npt.NDArray[np.int64], heads: int) -> npt.NDArray[np.int64]:
    """head · len(known) + the place of each row's value in `known`; -1 for a value or head that isn't there."""
    place = np.searchsorted(known, columns[name])
    inside = np.isin(columns[name], known) & (columns["head"] < heads)
    return np.where(inside, columns["head"].astype(np.int64) * known.size + place, -1)


def _outside_one(columns: Columns, name: str) -> Iterator[str]:
    value = columns[name]
    yield from _count(f"{name} outside 0 to 1", (value < -TOLERANCE) | (value > 1 + TOLERANCE))


def _out_of_range(columns: Columns, sizes: Mapping[str, int]) -> Iterator[str]:
    for name, size in sizes.items():
        yield from _count(f"{name} above {size - 1}", columns[name] >= size)


def _bad_weights(columns: Columns) -> Iterator[str]:
    for name in ("mass", "contribution"):
        value = columns[name]
        yield from _count(f"{name} negative or not finite", ~(np.isfinite(value) & (value >= 0)))


def _row_sums(
    edges: Columns, rows: Columns | None, name: str, known: npt.NDArray[np.int64], manifest: Manifest
) -> Iterator[str]:
    """Problems of the masses of each head and each of the `known` (ascending) values of the edges' column `name`."""
    count = manifest.model.heads * known.size
    row = _row_numbers(edges, name, known, manifest.model.heads)
    sums = np.bincount(row, weights=np.nan_to_num(edges["mass"].astype(np.float64)), minlength=count)
    expected, what = np.ones(count), "1"
    if manifest.config.forward == "dense" and rows is not None:
        at = _row_numbers(rows, name, known, manifest.model.heads)
        expected[at[at >= 0]], what = rows["kept_mass"][at >= 0], "their kept mass"
    if manifest.model.sinks:
        wrong, problem = ~(sums <= expected + TOLERANCE), f"sum to more than {what}"
    else:
        wrong, problem = ~(np.abs(sums - expected) <= TOLERANCE), f"don't sum to {what}"
    if wrong.any():
        head, column = divmod(int(wrong.argmax()), known.size)
        yield (
            f"masses of {int(wrong.sum())} of {count} rows {problem}, first {sums[wrong.argmax()]:.6g} "
            f"for head {head} and {name.replace('_', ' ')} {known[column]}"
        )
