"""The features of many runs side by side: one row per run, one column per layer, head and roles.

What the features are, `attngraph_analyses.run_features` says. Runs of one model and task have the same ones; a feature
that a run doesn't have, because nothing in its prompt has the role, is NaN there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.errors import GraphError
from attngraph.graph import ArraySource, AttentionGraph, Policy
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.source import FloatArray, IntArray
from attngraph.graph.transition import Residual, Weight
from attngraph.store import Manifest, Run
from attngraph_analyses.roles import OUTPUT
from attngraph_analyses.run_features import KEYS, RunFeatures, run_features

logger = logging.getLogger(__name__)

HELD = 4_000_000
"""Edges of a graph that are read once and held in memory, at most (about 80 MB)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RoleFeatures(ArrowTable):
    """What `role_features` found.

    Parameters
    ----------
    source, target
        The two ends of throughput, width and routes.
    policy
        How edges became probabilities.
    manifests
        Those of the runs, in the order of their ids.
    keys
        One row per feature: feature, layer, head, query_role, key_role; null where a feature has none.
    values
        ``[runs, features]``: NaN where a run lacks the feature.
    k
        Best routes taken from every run.
    hops
        One row per hop of these routes: run, route, weight (of the route), hop, layer, head, query_role, key_role.
    without_walks
        Ids of the runs that lack throughput, width and routes.
    completeness
        ``[runs]``: share of the target's walk that never leaves the recorded edges, NaN where it isn't known.
    completeness_source
        ``"estimated"`` if it is so for any run, else ``"audited"``; None if some run's isn't known.
    """

    source: str
    target: str
    policy: Policy
    manifests: tuple[Manifest, ...]
    keys: pl.DataFrame
    values: npt.NDArray[np.float32]
    k: int
    hops: pl.DataFrame
    without_walks: tuple[str, ...]
    completeness: FloatArray
    completeness_source: CompletenessSource | None

    def to_polars(self) -> pl.DataFrame:
        """One row per run and feature that it has.

        run, model, task, length, feature, layer, head, query_role, key_role, value.
        """
        run, key = np.nonzero(~np.isnan(self.values))
        labels = pl.DataFrame(
            {
                "run": [manifest.run for manifest in self.manifests],
                "model": [manifest.model.id for manifest in self.manifests],
                "task": pl.Series([manifest.prompt.task for manifest in self.manifests], dtype=pl.String),
                "length": [length_of(manifest) for manifest in self.manifests],
            }
        )
        return pl.concat([labels[run], self.keys[key]], how="horizontal").with_columns(value=self.values[run, key])


def role_features(
    runs: Iterable[Run],
    source: str = "needle",
    target: str = OUTPUT,
    *,
    k: int = 10,
    weight: Weight = "contribution",
    residual: Residual = "measured",
) -> RoleFeatures:
    """Read the features of runs, such as those of a store.

    Parameters
    ----------
    runs
        A store, or any runs of it; each counts once, in the order of their ids.
    source, target
        The ends of throughput, width and routes; the target's rows also have a role of their own.
    k
        Best routes to take from every run, at least 1.
    weight, residual
        How edges become probabilities; see `attngraph.graph.Policy`.

    Raises
    ------
    UnknownNodeError
        If a run lacks the target.
    GraphError
        If there are no runs.
    """
    chosen = sorted({run.id: run for run in runs}.items())
    if not chosen:
        raise GraphError("There are no runs to read features of; capture some into the store.")
    found = []
    for number, (_, run) in enumerate(chosen, 1):
        graph = _graph(run, weight, residual)
        found.append(run_features(run, graph, source, target, k))
        if number > 1 and found[-1].keys.equals(found[-2].keys):
            found[-1] = found[-1]._replace(keys=found[-2].keys)  # runs of one task share their keys: hold them once
        if number % 20 == 0:
            logger.info("Read the features of %d of %d runs.", number, len(chosen))
    keys = pl.concat({id(part.keys): part.keys for part in found}.values()).unique().sort(KEYS, nulls_last=True)
    return RoleFeatures(
        source=source,
        target=target,
        policy=graph.policy,
        manifests=tuple(run.manifest for _, run in chosen),
        keys=keys,
        values=_aligned(keys, found),
        k=k,
        hops=pl.concat([part.hops for part in found]),
        without_walks=tuple(run.id for (_, run), part in zip(chosen, found, strict=True) if not part.has_walks),
        completeness=np.array([part.completeness for part in found]),
        completeness_source=_common_source([part.completeness_source for part in found]),
    )


def length_of(manifest: Manifest) -> int:
    """The prompt's length as it was asked for (metadata ``length``), else its tokens rounded to a power of two."""
    asked = manifest.prompt.metadata.get("length")
    return asked if isinstance(asked, int) else 2 ** round(np.log2(manifest.prompt.tokens))


def _common_source(sources: list[CompletenessSource | None]) -> CompletenessSource | None:
    """How the completeness of several runs is known: as that of the one of which least is known."""
    if None in sources:
        return None
    return "estimated" if "estimated" in sources else "audited"


def _aligned(keys: pl.DataFrame, found: list[RunFeatures]) -> npt.NDArray[np.float32]:
    """The runs' values in the order of all `keys`, ``[runs, features]``, NaN where a run lacks one."""
    numbered = keys.with_row_index("number")
    places: dict[int, IntArray] = {}
    values = np.full((len(found), len(keys)), np.nan, np.float32)
    for row, part in zip(values, found, strict=True):
        if id(part.keys) not in places:
            joined = part.keys.join(numbered, on=KEYS, how="left", nulls_equal=True, maintain_order="left")
            places[id(part.keys)] = joined["number"].to_numpy().astype(np.int64)
        row[places[id(part.keys)]] = part.values
    return values


def _graph(run: Run, weight: Weight, residual: Residual) -> AttentionGraph:
    """A run's graph; in memory if it is small, since its layers are needed several times."""
    graph = run.graph(weight=weight, residual=residual)
    if run.cost.edges > HELD:
        return graph
    source = graph.source
    kept = [mass for mass in map(source.kept_mass, range(graph.layers)) if mass is not None]
    held = ArraySource(
        arrays=[source.layer(layer) for layer in range(graph.layers)],
        heads=graph.heads,
        tokens=graph.tokens,
        block_size=graph.block_size,
        targets=graph.targets,
        spans=graph.spans,
        kept=kept if len(kept) == graph.layers else None,
    )
    return graph.with_source(held)
