"""Knockout by degrees: how many of the best edges does the answer need, and how few are enough for it?

- `necessity` removes the best edge, the two best, the five best, …, each beside matched edges.
- `sufficiency` removes everything but the sub-graph that carries a share of the walks from target to source, and the
  blocks that every row keeps whatever it reads (the sink, its own, the one before it). It is put beside the forced
  blocks alone, and beside as many edges drawn at random in every layer.

Keeping a sub-graph takes from all other rows what they read from afar, for whatever they read it, and the model was
never trained to do without. So an answer that does not survive says that the sub-graph alone is not enough for the
model, not that its routes are not the answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl

from attngraph.config import Forward
from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, blocks_of
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.edge_set import EdgeSet, edge_set, joined
from attngraph.store import Run
from attngraph_analyses.controls import ControlName, Weighed, control_sets, random_subgraphs
from attngraph_analyses.knockout import Control, as_control, best_edges, check_controls, readings
from attngraph_analyses.subgraph import carrying

if TYPE_CHECKING:
    from attngraph.models import LanguageModel

COUNTS = (1, 2, 5, 10, 30)
SHARES = (0.5, 0.8, 0.9, 0.95, 0.98)
KEPT_AT_RANDOM = "random_subgraph"
"""The control of sufficiency."""


class Point(NamedTuple):
    """One set of edges: how many, the share of the walks that they carry (None: not asked), and what the pass said.

    `log_probability` and `margin` as in `Knockout`; the `control` is None where it has no edges.
    """

    edges: int
    carried: float | None
    log_probability: float
    margin: float
    control: Control | None


@dataclass(frozen=True, eq=False, kw_only=True)
class KnockoutCurve(ArrowTable):
    """What `necessity` or `sufficiency` found.

    Parameters
    ----------
    kind
        ``"necessity"``: the edges were removed; ``"sufficiency"``: all but they and the forced blocks were.
    source, target, forward
        As in `Knockout`.
    base, base_margin
        Log-probability and margin without any removal.
    points
        By number of edges, ascending.
    forwards
        What all passes cost, in whole forward passes.
    """

    kind: Literal["necessity", "sufficiency"]
    source: str
    target: str
    forward: Forward
    base: float
    base_margin: float
    points: tuple[Point, ...]
    forwards: float

    def to_polars(self) -> pl.DataFrame:
        """One row per point: edges, carried, log_probability, effect, survives, control, control_low, control_high."""
        rows = [
            (
                point.edges,
                point.carried,
                point.log_probability,
                self.base - point.log_probability,
                point.margin > 0,
                *((None,) * 3 if point.control is None else (point.control.median, *point.control.interval)),
            )
            for point in self.points
        ]
        whole, numbers = {"edges": pl.Int64}, ("carried", "log_probability", "effect")
        after = ("control", "control_low", "control_high")
        schema = {**whole, **dict.fromkeys(numbers, pl.Float64), "survives": pl.Boolean}
        return pl.DataFrame(rows, schema={**schema, **dict.fromkeys(after, pl.Float64)}, orient="row")

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        return {"kind": self.kind, "base": self.base, "points": self.to_polars().to_dicts(), "forwards": self.forwards}


def necessity(
    lm: LanguageModel,
    run: Run,
    counts: Sequence[int] = COUNTS,
    *,
    source: str = "needle",
    target: str = "output",
    graph: AttentionGraph | None = None,
    forward: Forward | None = None,
    control: ControlName = "mass_matched",
    draws: int = 3,
    seed: int = 0,
    progress: bool | None = None,
) -> KnockoutCurve:
    """What the answer's log-probability loses without the n best edges, for every n of `counts`.

    Parameters
    ----------
    lm, run, source, target, graph, forward, seed, progress
        As in `knockout`.
    counts
        Numbers of edges of greatest throughput; where there are fewer, all there are.
    control
        What each set is compared with.
    draws
        Of the control, for each set.

    Raises
    ------
    ConfigError
        For a count or number of draws below 1, or an unknown control.
    ModelError, PromptError, GraphError
        As `knockout`.
    """
    graph = graph or run.graph()
    check_controls([control], draws)
    if min(counts, default=0) < 1:
        raise ConfigError(f"counts={tuple(counts)!r} are numbers of edges to remove, at least one and each at least 1.")
    best = best_edges(graph, source, target, max(counts))
    sets = [best.only(slice(count)) for count in sorted({min(count, best.size) for count in counts})]
    avoid = blocks_of(graph, source)
    others = [control_sets(graph, one, control, draws=draws, seed=seed, avoid=avoid) for one in sets]
    points = [
        _Asked(one, None, [draw for draw in drawn if draw.edges.size]) for one, drawn in zip(sets, others, strict=True)
    ]
    given = {"source": source, "target": target, "forward": forward or run.manifest.config.forward}
    return _curve(lm, run, graph, points, control, progress, kind="necessity", **given)


def sufficiency(
    lm: LanguageModel,
    run: Run,
    shares: Sequence[float] = SHARES,
    *,
    source: str = "needle",
    target: str = "output",
    graph: AttentionGraph | None = None,
    forward: Forward | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> KnockoutCurve:
    """Whether the answer survives on the sub-graph that carries a share of the walks, for every one of `shares`.

    The first point has no edges: the forced blocks alone. What remains is the same for the sparse and for the dense
    pass; only the base differs.

    Parameters
    ----------
    lm, run, source, target, graph, forward, seed, progress
        As in `knockout`.
    shares
        What the sub-graph carries at least, above 0 and up to 1.
    draws
        Random sub-graphs for each share: as many edges in every layer, of all but those within a block.

    Raises
    ------
    ConfigError
        For a share out of range, or less than one draw.
    ModelError, PromptError, GraphError
        As `knockout`.
    """
    graph = graph or run.graph()
    check_controls([], draws)
    points = [_Asked(joined([]), 0.0, [])]
    for share in sorted(set(shares)):
        found = carrying(graph, source, target, share=share)
        kept = edge_set(graph, found)
        points.append(_Asked(kept, found.carried, random_subgraphs(graph, kept, draws=draws, seed=seed)))
    given = {"source": source, "target": target, "forward": forward or run.manifest.config.forward}
    return _curve(lm, run, graph, points, KEPT_AT_RANDOM, progress, kind="sufficiency", **given)


class _Asked(NamedTuple):
    """A point before it is read: its edges, the share that they carry, the draws of its control."""

    edges: EdgeSet
    carried: float | None
    others: Sequence[Weighed]


def _curve(
    lm: LanguageModel,
    run: Run,
    graph: AttentionGraph,
    asked: Sequence[_Asked],
    control: str,
    progress: bool | None,
    **given: Any,
) -> KnockoutCurve:
    """Read all points and their controls in one go, so that they share what is equal; `given` goes to the curve."""
    sets = [one.edges for one in asked]
    every = [*sets, *(draw.edges for one in asked for draw in one.others)]
    keep = given["kind"] == "sufficiency"
    base, found = readings(lm, run, every, forward=given["forward"], keep=keep, progress=progress)
    own, rest = found[: len(sets)], iter(found[len(sets) :])
    points = []
    for one, said in zip(asked, own, strict=True):
        compared = as_control(control, one.others, list(islice(rest, len(one.others)))) if one.others else None
        points.append(Point(one.edges.size, one.carried, said.log_probability, said.margin, compared))
    return KnockoutCurve(
        **given,
        base=base.log_probability,
        base_margin=base.margin,
        points=tuple(points),
        forwards=sum(one.layers for one in (base, *found)) / graph.layers,
    )
