"""Knockout: does the model still answer when a set of the graph's edges is taken away?

A graph says where attention went, not what it did. So the model reads the prompt again with a set of edges removed
before the softmax (attention knockout, Geva et al. 2023, arXiv 2304.14767, here of single edges between blocks), and
what the log-probability of the answer's first token loses is the set's effect:

1. Base: the forward pass that the run shows, over its recorded blocks (or the model's own dense one), nothing removed.
2. Knocked out: the same with the edges removed. Rows are normalised over what remains, and nothing is selected anew.
3. Controls: the same with as many other edges removed (`controls.py`), several draws of each. An effect that matched
   edges have too says nothing of these.

A row's own block can't be removed, for its first token has no other key. Edges into a target's block leave the target's
own row alone. In the last layer only edges into the last token can have an effect.

What it does not say: attention that moves to other keys when some are taken away can hide an effect or make one, the
edges of a set act together, and only the first token of the answer is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import polars as pl

from attngraph.config import Forward
from attngraph.errors import ConfigError, GraphError
from attngraph.graph import AttentionGraph, Policy, blocks_of, completeness
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.edge_set import EdgeSet, edge_set
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run
from attngraph_analyses.controls import ControlName, Weighed, control_sets, masses
from attngraph_analyses.throughput import throughput

if TYPE_CHECKING:
    from attngraph.capture import Prediction
    from attngraph.models import LanguageModel

USUAL: tuple[ControlName, ...] = ("mass_matched", "random", "distance_matched")
"""The controls unless others are asked for."""
CENTRAL = (0.025, 0.975)
"""Quantiles of a control's draws between which its interval lies."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Control:
    """What passes without other edges say.

    Parameters
    ----------
    name
        How the edges were drawn.
    edges, mass
        ``[draws]``: number of edges of every draw, and the sum of their masses.
    log_probability, margin
        ``[draws]``: as in `Knockout`.
    """

    name: str
    edges: IntArray
    mass: FloatArray
    log_probability: FloatArray
    margin: FloatArray

    @property
    def median(self) -> float:
        """Median log-probability over the draws; NaN where there was nothing to draw."""
        return float(np.median(self.log_probability)) if len(self.edges) else np.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The central 95 % of the draws' log-probabilities: with few draws, nearly the least and the greatest."""
        if not len(self.edges):
            return np.nan, np.nan
        low, high = np.quantile(self.log_probability, CENTRAL)
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Draws, edges and masses, median, interval, log-probabilities and survivals as plain values."""
        low, high = self.interval
        return {
            "draws": len(self.edges),
            "edges": self.edges.tolist(),
            "mass": self.mass.tolist(),
            "median": self.median,
            "low": low,
            "high": high,
            "log_probability": self.log_probability.tolist(),
            "survives": (self.margin > 0).tolist(),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Knockout(ArrowTable):
    """What `knockout` found; log-probabilities are of the answer's first token, in nats.

    Parameters
    ----------
    source, target
        Where the edges lead; None for edges that were given without a source.
    forward
        ``"sparse"`` or ``"dense"``: which pass they were removed from.
    keep
        Whether all but the edges and the forced blocks was removed instead.
    answer
        The prompt's answer.
    edges
        One row per edge removed, in the order of the set: layer, head, key_block, query_block, target (null for an edge
        into a block), mass (null where it isn't recorded).
    base, knocked_out
        Log-probability without any removal, and without the edges.
    base_margin, margin
        Margins over the best other token.
    controls
        By name.
    drift
        How far the base pass's margin is from the one that was recorded: 0 but for rounding if model, device and
        libraries are what they were. None where it wasn't recorded.
    forwards
        What all passes cost, in whole forward passes of the model; layers before the first change are not computed.
    block_size
        Tokens per block.
    policy
        Of the graph that the edges were chosen in.
    completeness
        Share of the target's walk that never leaves the recorded edges, from 0 to 1; None if it isn't known. What was
        not recorded can't be removed.
    completeness_source
        ``"audited"`` or ``"estimated"``, None if it isn't known.
    """

    source: str | None
    target: str
    forward: Forward
    keep: bool
    answer: str
    edges: pl.DataFrame
    base: float
    knocked_out: float
    base_margin: float
    margin: float
    controls: Mapping[str, Control]
    drift: float | None
    forwards: float
    block_size: int
    policy: Policy
    completeness: float | None = None
    completeness_source: CompletenessSource | None = None

    @property
    def effect(self) -> float:
        """What the log-probability loses, in nats; above 0 if the edges helped."""
        return self.base - self.knocked_out

    @property
    def survives(self) -> bool:
        """Whether the answer's first token is still the first choice."""
        return self.margin > 0

    def to_polars(self) -> pl.DataFrame:
        """One row per pass: removed (base, edges, a control), draw, edges, mass, log_probability, survives, effect."""
        mass = float(self.edges["mass"].fill_null(0.0).sum())
        rows: list[tuple[Any, ...]] = [
            ("base", 0, 0, 0.0, self.base, self.base_margin > 0),
            ("edges", 0, len(self.edges), mass, self.knocked_out, self.survives),
        ]
        for control in self.controls.values():
            parts = (control.edges, control.mass, control.log_probability, control.margin > 0)
            columns = zip(*(part.tolist() for part in parts), strict=True)
            rows += [(control.name, draw, *row) for draw, row in enumerate(columns)]
        columns_of = ("removed", "draw", "edges", "mass", "log_probability", "survives")
        table = pl.DataFrame(rows, schema=columns_of, orient="row")
        return table.with_columns(effect=self.base - pl.col("log_probability"))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON; `controls` holds the medians, `control_draws` the rest."""
        return {
            "source": self.source,
            "forward": self.forward,
            "keep": self.keep,
            "answer": self.answer,
            "base": self.base,
            "knocked_out": self.knocked_out,
            "effect": self.effect,
            "survives": self.survives,
            "controls": {name: control.median for name, control in self.controls.items()},
            "control_draws": {name: control.to_dict() for name, control in self.controls.items()},
            "edges": self.edges.to_dicts(),
            "drift": self.drift,
            "forwards": self.forwards,
        }


def knockout(
    lm: LanguageModel,
    run: Run,
    edges: Any = 30,
    *,
    source: str | None = "needle",
    target: str = "output",
    graph: AttentionGraph | None = None,
    forward: Forward | None = None,
    controls: Sequence[ControlName] = USUAL,
    draws: int = 5,
    seed: int = 0,
    keep: bool = False,
    progress: bool | None = None,
) -> Knockout:
    """What the answer's log-probability loses without a set of edges, and without others like them.

    Costs at most 1 + 1 + `draws` · `controls` forward passes, and O(T) memory beside the model's own.

    Parameters
    ----------
    lm
        The model that the run was captured with.
    run
        Its prompt has an answer.
    edges
        How many of the edges of greatest throughput from source to target; or the edges themselves: a table (layer,
        head, query_block, key_block, target), a list of such tuples, a route, or what an analysis found.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``. Controls have no edge from the source's blocks; None, with
        edges that are given, lets them have any.
    graph
        The run's graph under another policy than the default.
    forward
        ``"sparse"``: a pass over the recorded blocks; ``"dense"``: the model's own; by default as the run was captured.
    controls
        Which controls, see `attngraph_analyses.controls`; () for none.
    draws
        Sets of edges drawn for each control.
    seed
        Seed of the draws.
    keep
        The other way round: remove everything but the edges and the blocks that every row keeps (the sink, its own, the
        one before it). Controls keep other edges in their place, those from the source's blocks included.
    progress
        Show a progress bar on stderr; by default where stderr is a terminal.

    Raises
    ------
    ConfigError
        For a number of edges or draws below 1, an unknown control, or a pass that there is not.
    ModelError
        If the run is another model's.
    PromptError
        If the prompt has no answer, or the model no tokenizer to read it.
    GraphError
        If the edges aren't the run's, lead from their row's own block, or there are none.
    """
    graph = graph or run.graph()
    check_controls(controls, draws)
    chosen = (
        best_edges(graph, source, target, int(edges)) if isinstance(edges, int | np.integer) else edge_set(graph, edges)
    )
    avoid = np.zeros(0, np.int64) if source is None or keep else blocks_of(graph, source)
    drawn = {name: control_sets(graph, chosen, name, draws=draws, seed=seed, avoid=avoid) for name in controls}
    drawn = {name: [one for one in sets if one.edges.size] for name, sets in drawn.items()}
    every = [chosen, *(one.edges for sets in drawn.values() for one in sets)]
    base, (found, *others) = readings(lm, run, every, forward=forward, keep=keep, progress=progress)
    rest = iter(others)
    controlled: dict[str, Control] = {
        name: as_control(name, sets, list(islice(rest, len(sets)))) for name, sets in drawn.items()
    }
    complete, outcome = completeness(graph, target), run.manifest.outcome
    shown = run.manifest.config.forward
    same = outcome is not None and (forward or shown) == shown
    return Knockout(
        source=source,
        target=target,
        forward=forward or shown,
        keep=keep,
        answer=run.manifest.prompt.answer or "",
        edges=chosen.to_polars(graph).with_columns(mass=pl.Series(masses(graph, chosen)).fill_nan(None)),
        base=base.log_probability,
        knocked_out=found.log_probability,
        base_margin=base.margin,
        margin=found.margin,
        controls=controlled,
        drift=base.margin - outcome.margin if outcome is not None and same else None,
        forwards=sum(one.layers for one in (base, found, *others)) / graph.layers,
        block_size=graph.block_size,
        policy=graph.policy,
        completeness=complete.share,
        completeness_source=complete.source,
    )


def best_edges(graph: AttentionGraph, source: str | None, target: str, count: int) -> EdgeSet:
    """The edges of greatest throughput that can be removed, at most `count`, best first.

    Raises
    ------
    ConfigError
        If `count` is below 1, or there is no source to count from.
    GraphError
        If all that carries anything leads from its row's own block.
    """
    if count < 1:
        raise ConfigError(f"edges={count!r} must be at least 1, or the edges themselves.")
    if source is None:
        raise ConfigError(f"The {count} best edges lead from a source; name it, or give the edges themselves.")
    found = throughput(graph, source, target)
    best = EdgeSet(found.layer, found.head, found.query, found.key_block)
    best = best.only(found.node_block[best.node] != best.key_block).only(slice(count))
    if not best.size:
        raise GraphError(f"No edge between blocks leads from {source!r} to {target!r}, so none can be removed.")
    return best


def readings(
    lm: LanguageModel,
    run: Run,
    sets: Sequence[EdgeSet],
    *,
    forward: Forward | None,
    keep: bool = False,
    progress: bool | None = None,
) -> tuple[Prediction, list[Prediction]]:
    """The passes without any removal and without each of some sets; with `keep` without all but each of them."""
    forward = forward or run.manifest.config.forward
    if forward not in get_args(Forward):
        raise ConfigError(f"forward={forward!r} is not one of {', '.join(get_args(Forward))}.")
    # Here and nowhere else in this package models run: torch is needed when this is called, not before.
    from attngraph.capture import Removal, predictions

    removals = [Removal(one, keep) for one in sets]
    return predictions(lm, run, removals, forward=forward, progress=progress)


def as_control(name: str, sets: Sequence[Weighed], found: Sequence[Prediction]) -> Control:
    """The draws of a control, with what was read."""
    return Control(
        name=name,
        edges=np.array([one.edges.size for one in sets], np.int64),
        mass=np.array([one.mass.sum() for one in sets], np.float64),
        log_probability=np.array([one.log_probability for one in found], np.float64),
        margin=np.array([one.margin for one in found], np.float64),
    )


def check_controls(controls: Sequence[str], draws: int) -> None:
    """ConfigError for an unknown control or less than one draw."""
    for name in controls:
        if name not in get_args(ControlName):
            raise ConfigError(f"The control {name!r} is not one of {', '.join(get_args(ControlName))}.")
    if draws < 1:
        raise ConfigError(f"draws={draws!r} sets of edges were asked for; give at least 1.")
