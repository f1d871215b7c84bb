"""Features of a run by layer, head and role, so that runs whose prompts differ can be compared.

With the roles of `attngraph_analyses.roles`:

1. ``mass`` and ``contribution``: what a head's rows of one role read of another role, the mean over those rows that
   could read any of it. Rows of role ``output`` are the target's own.
2. ``throughput``: the share of the walks from target to source that pass edges of a head from one role to another;
   ``stay``: the share that stays in place in a layer at blocks of a role. Together they sum to 1 in every layer.
3. ``width``: the effective number of nodes at a level (here the `layer`, 0 to L) that these walks pass; ``reading``:
   the probability that the target's walk ends in the source at all, one number per run.
4. ``span_mass`` and ``span_contribution``: the same as 1 at token grain, between spans, by their own names: the mean
   over the query spans of a name of the sum over the key spans of another. Blocks don't line up with spans; these do.

Where no walk leads from the target to the source, or the prompt has no such span, a run has none of 2 and 3. Beside the
features stand the hops of the run's k best routes from source to target, by the same roles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.graph import AttentionGraph, blocks_of, completeness
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.paths import STAY
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run
from attngraph_analyses.bottlenecks import widths
from attngraph_analyses.nulls import Question
from attngraph_analyses.roles import OUTPUT, Roles, roles_of
from attngraph_analyses.routes import Routes, routes
from attngraph_analyses.steps import walks

FEATURES = (
    "mass",
    "contribution",
    "throughput",
    "stay",
    "width",
    "reading",
    "span_mass",
    "span_contribution",
)
"""Kinds of features; see the module."""
HOP_FEATURES = ("mass", "contribution", "throughput")
"""Those that belong to a layer, a head and two roles of blocks."""
KEYS = ("feature", "layer", "head", "query_role", "key_role")
"""The columns that name a feature."""
TYPES: dict[str, pl.DataType] = {
    "feature": pl.String(),
    "layer": pl.Int64(),
    "head": pl.Int64(),
    "query_role": pl.String(),
    "key_role": pl.String(),
    "value": pl.Float64(),
}
HOPS: dict[str, pl.DataType] = {
    "run": pl.String(),
    "route": pl.Int64(),
    "weight": pl.Float64(),
    "hop": pl.Int64(),
    "layer": pl.Int64(),
    "head": pl.Int64(),
    "query_role": pl.String(),
    "key_role": pl.String(),
}


class RunFeatures(NamedTuple):
    """What one run has: features and values, hops of routes, whether there are any walks, completeness and source."""

    keys: pl.DataFrame
    values: npt.NDArray[np.float32]
    hops: pl.DataFrame
    has_walks: bool
    completeness: float
    completeness_source: CompletenessSource | None


def run_features(run: Run, graph: AttentionGraph, source: str, target: str, k: int) -> RunFeatures:
    """The features of one run, and the hops of its best routes.

    Parameters
    ----------
    run, graph
        A run and its graph.
    source, target, k
        As for `attngraph_analyses.role_features.role_features`.

    Raises
    ------
    UnknownNodeError
        If the run lacks the target.
    """
    roles = roles_of(graph, target)
    rows = roles.rows()
    parts = [*_reading(graph, roles, rows), *_span_reading(run)]
    passing, hops = [], pl.DataFrame(schema=HOPS)
    if source in graph.spans or _is_place(source):
        passing = _passing(Question(graph, blocks_of(graph, source), target), roles, rows)
    if passing:
        hops = _hops(run, routes(graph, source, target, k), roles)
    known = completeness(graph, target)
    table = pl.concat([*parts, *passing])
    return RunFeatures(
        keys=table.select(KEYS),
        values=table["value"].to_numpy().astype(np.float32),
        hops=hops,
        has_walks=bool(passing),
        completeness=np.nan if known.share is None else known.share,
        completeness_source=known.source,
    )


def _is_place(name: str) -> bool:
    return name == OUTPUT or name.startswith(("block:", "token:"))


def _hops(run: Run, found: Routes, roles: Roles) -> pl.DataFrame:
    """The hops of the best routes, with the roles of what they join."""
    nodes = {target: len(roles.block) + index for index, target in enumerate(run.manifest.prompt.targets)}
    rows = []
    for number, route in enumerate(found.routes):
        for position, hop in enumerate(route.hops):
            node = hop.query_block if hop.target is None else nodes[hop.target]
            key = int(roles.key(np.array([node]), np.array([hop.key_block]))[0])
            query = roles.names[int(roles.row_role(np.array([node]))[0])]
            rows.append((run.id, number, route.weight, position, hop.layer, hop.head, query, roles.names[key]))
    return pl.DataFrame(rows, schema=HOPS, orient="row")


def _reading(graph: AttentionGraph, roles: Roles, rows: FloatArray) -> list[pl.DataFrame]:
    """Mass and contribution by head and pair of roles."""
    size = len(roles.names)
    sums = np.zeros((2, graph.layers, graph.heads, size, size))
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        query = roles.query[transition.query]
        cell = _cells(transition.head, query, roles.key(transition.query, transition.key_block), size)
        for sum_, weight in zip(sums, (transition.mass, transition.contribution), strict=True):
            sum_[layer] = _summed(cell, np.where(query >= 0, weight, 0.0), (graph.heads, size, size))
    means = np.divide(sums, rows, out=np.zeros_like(sums), where=rows > 0)
    names = np.array(roles.names)
    return [
        _table(feature, mean, rows > 0, names, names)
        for feature, mean in zip(("mass", "contribution"), means, strict=True)
    ]


def _passing(question: Question, roles: Roles, rows: FloatArray) -> list[pl.DataFrame]:
    """Throughput by head and pair of roles, stays by role, widths; nothing where there are no walks."""
    found, graph = walks(question), question.graph
    if found is None:
        return []
    size = len(roles.names)
    passed = np.zeros((graph.layers, graph.heads, size, size))
    stays = np.zeros((graph.layers, size))
    query = roles.row_role(np.arange(graph.nodes))
    for layer in range(graph.layers):
        steps = found.steps(layer)
        stay = steps.head == STAY
        hops = steps.only(~stay)
        cell = _cells(hops.head, query[hops.upper], roles.key(hops.upper, hops.lower), size)
        passed[layer] = _summed(cell, hops.share, (graph.heads, size, size))
        stays[layer] = np.bincount(query[steps.lower[stay]], steps.share[stay], minlength=size)
    names = np.array(roles.names)
    present = np.isin(np.arange(size), query)
    place, role = np.nonzero(np.broadcast_to(present, stays.shape))
    levels = graph.layers + 1
    return [
        _table("throughput", passed, rows > 0, names, names),
        _columns("stay", stays[place, role], layer=place, query_role=names[role], key_role=names[role]),
        _columns("width", widths(found.node), layer=np.arange(levels)),
        _columns("reading", np.array([found.total])),
    ]


def _span_reading(run: Run) -> list[pl.DataFrame]:
    """Mass and contribution between spans by head and pair of span names."""
    spans, model = run.manifest.prompt.spans, run.manifest.model
    if not spans:
        return []
    names, role = np.unique([span.name.partition(":")[0] for span in spans], return_inverse=True)
    starts, ends = np.array([(span.start, span.end) for span in spans]).T
    could = ends[:, None] > starts[None]  # a query span whose end comes after a key span's start reads some of it
    member = (role[:, None] == np.arange(len(names))).astype(np.float64)
    rows = member.T @ (could.astype(np.float64) @ member > 0)
    edges = run.span_edges().collect()
    layer, head, query, key = (edges[name].to_numpy().astype(np.int64) for name in edges.columns[:4])
    shape = (model.layers, model.heads, len(names), len(names))
    cell = np.ravel_multi_index((layer, head, role[query], role[key]), shape)
    tables = []
    for feature in ("mass", "contribution"):
        sums = _summed(cell, edges[feature].to_numpy().astype(np.float64), shape)
        means = np.divide(sums, rows, out=np.zeros_like(sums), where=rows > 0)
        tables.append(_table(f"span_{feature}", means, rows > 0, names, names))
    return tables


def _cells(head: IntArray, query: IntArray, key: IntArray, size: int) -> IntArray:
    """A number for each (head, query role, key role); rows without a role count to role 0, with weight 0."""
    return np.asarray((head * size + np.maximum(query, 0)) * size + key)


def _summed(cell: IntArray, weight: npt.NDArray[np.floating], shape: tuple[int, ...]) -> FloatArray:
    return np.bincount(cell, weight, minlength=int(np.prod(shape))).astype(np.float64).reshape(shape)


def _table(
    feature: str,
    values: FloatArray,
    present: npt.NDArray[np.bool_],
    query_names: npt.NDArray[np.str_],
    key_names: npt.NDArray[np.str_],
) -> pl.DataFrame:
    """Values ``[layers, heads, query roles, key roles]`` of the pairs that are present, as rows."""
    kept = np.broadcast_to(present, values.shape)
    layer, head, query, key = np.nonzero(kept)
    return _columns(
        feature, values[kept], layer=layer, head=head, query_role=query_names[query], key_role=key_names[key]
    )


def _columns(feature: str, value: FloatArray, **keys: npt.NDArray[np.generic]) -> pl.DataFrame:
    """Rows of a feature; keys that it doesn't have are null."""
    missing = [pl.lit(None, TYPES[name]).alias(name) for name in KEYS[1:] if name not in keys]
    frame = pl.DataFrame({"value": value, **keys}).with_columns(pl.lit(feature).alias("feature"), *missing)
    return frame.select(pl.col(name).cast(TYPES[name]) for name in TYPES)
