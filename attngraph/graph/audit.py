"""How much of the dense attention a graph holds: the share of a target's walk that never leaves the recorded edges.

The transition P of a layer is normalised over the edges that were kept. Beside it stands P', which isn't. With m the
recorded masses, w the policy's weights, κ_ih the share of its dense softmax that row i of head h keeps, and sums over
the row's edges that the policy admits (all of them, or those that don't come from an excluded sink)::

    kept weight of edge e of head h     ŵ_e = κ_ih · w_e
    dropped weight of head h            d_ih = (1 - κ_ih) · Σ w / Σ m
    P'[i, j] = λ_i·[i = j] + (1 - λ_i) · Σ_e:j→i ŵ_e / (Σ_e→i ŵ_e + Σ_h d_ih)

Masses are shares of the softmax over the kept keys; those recorded beside a dense pass are divided by κ first, with
their contributions. Where a row's masses sum to 1 and no edge is excluded, that is p_e · κ_ih: every step is taken with
the share that its head keeps. With ``weight="mass"``, P' is the dense walk confined to the recorded edges, exactly.
With contributions the dropped keys are assumed to have, on average, the value norm of the head's recorded ones. With
``heads="max"`` dropped edges count in full, since nobody knows which of them would have been the strongest: a lower
bound.

1. The walk starts at the target and takes steps of P': f_ℓ = f_{ℓ+1} P'_ℓ. What a row drops is lost.
2. Its completeness is what arrives at level 0, Σ_j f_0[j] = 1 - Σ_ℓ Σ_i f_{ℓ+1}[i]·(1 - λ_i)·(dropped share of i).

It is *audited* if every row that the walk passes has an exact κ, *estimated* if some have the search's estimate only,
and unknown if some have neither. The definition is that of circuit-tracer's completeness (Ameisen et al. 2025) with
lost attention in the place of error nodes. A question without a target has the mean over all nodes of level L
(`mean_completeness`), one of single rows instead of walks the mean of their κ (`row_completeness`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from attngraph.graph.source import FloatArray, IntArray, KeptMass, LayerSource, check_kept_mass
from attngraph.graph.transition import LayerTransition, Policy, layer_transition, merge_rows

if TYPE_CHECKING:
    from attngraph.graph.layered import AttentionGraph

CompletenessSource = Literal["audited", "estimated"]


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptTransition:
    """P' of one layer, edge by edge; for each node, `stay`, its edges' `probability` and `lost` sum to 1.

    Parameters
    ----------
    query, key_block, probability
        ``[edges]``, as in `LayerTransition`, the edges in the same order.
    stay
        ``[nodes]``: λ.
    lost
        ``[nodes]``: share of the walk that takes a dropped edge.
    audited, known
        ``[nodes]``: whether the kept masses of all heads are exact; whether they are known at all. `probability` and
        `lost` are NaN where they are not.
    """

    query: IntArray
    key_block: IntArray
    probability: FloatArray
    stay: FloatArray
    lost: FloatArray
    audited: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]


class Completeness(NamedTuple):
    """Share of a target's walk that never leaves the recorded edges, from 0 to 1, and how that is known.

    `share` and `source` are None where nothing is known. `lost` [layers] is what each layer loses; with `share` it sums
    to 1.
    """

    share: float | None
    source: CompletenessSource | None
    lost: tuple[float, ...]


_UNKNOWN = Completeness(None, None, ())


def completeness(graph: AttentionGraph, target: str = "output") -> Completeness:
    """The share of a target's backward walk that never leaves the recorded edges; see the module.

    Parameters
    ----------
    graph
        Under its policy.
    target
        A span, ``"block:N"``, ``"token:N"`` (a recorded target) or ``"output"``.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    GraphError
        If a layer can't be read under the graph's policy.
    """
    from attngraph.graph.endpoints import target_state

    return _of_walk(graph, target_state(graph, target))


def mean_completeness(graph: AttentionGraph) -> Completeness:
    """The completeness of the walks from all nodes of the last level, on average, where a question has no target.

    Raises
    ------
    GraphError
        If a layer can't be read under the graph's policy.
    """
    return _of_walk(graph, np.full(graph.nodes, 1.0 / graph.nodes))


def row_completeness(graph: AttentionGraph, target: str = "output") -> Completeness:
    """The share of a target's own dense attention that is recorded, the mean over layers and heads of its κ.

    For questions about the target's rows alone, which take no walk.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    GraphError
        If a layer can't be read.
    """
    from attngraph.graph.endpoints import target_state

    rows, lost = target_state(graph, target), np.zeros(graph.layers)
    single = graph.with_policy(weight="mass", residual=0.0, heads="sum", sink="keep")
    source: CompletenessSource = "audited"
    for layer in range(graph.layers):
        transition = single.kept_transition(layer)
        known = None if transition is None else _known(transition, rows > 0)
        if transition is None or known is None:
            return _UNKNOWN
        source = "estimated" if known == "estimated" else source
        lost[layer] = rows[rows > 0] @ transition.lost[rows > 0] / graph.layers
    return Completeness(max(0.0, 1.0 - float(lost.sum())), source, tuple(lost.tolist()))


def _of_walk(graph: AttentionGraph, walk: FloatArray) -> Completeness:
    """The completeness of a walk that starts at level L as it is told, with the sum 1."""
    lost = np.zeros(graph.layers)
    source: CompletenessSource = "audited"
    for layer in reversed(range(graph.layers)):
        transition = graph.kept_transition(layer)
        if transition is None:
            return _UNKNOWN
        steps = (walk > 0) & (transition.stay < 1)
        known = _known(transition, steps)
        if known is None:
            return _UNKNOWN
        source = "estimated" if known == "estimated" else source
        lost[layer] = walk[steps] @ transition.lost[steps]
        used = steps[transition.query]
        flow = walk[transition.query[used]] * transition.probability[used]
        walk = walk * transition.stay + np.bincount(transition.key_block[used], flow, minlength=graph.nodes)
    return Completeness(min(1.0, float(walk.sum())), source, tuple(lost.tolist()))


def _known(transition: KeptTransition, rows: npt.NDArray[np.bool_]) -> CompletenessSource | None:
    """How what some rows of a layer keep is known."""
    if not transition.known[rows].all():
        return None
    return "audited" if transition.audited[rows].all() else "estimated"


def kept_transition(source: LayerSource, policy: Policy, transition: LayerTransition, kept: KeptMass) -> KeptTransition:
    """P' of a layer, given its P and what its rows keep.

    Raises
    ------
    GraphError
        If the kept masses don't fit the source.
    """
    check_kept_mass(kept, source, transition.layer)
    exact, best = _by_row(kept)
    no_exact, no_estimate = (np.asarray(np.isnan(shares).any(axis=0)) for shares in (exact, best))
    nodes = exact.shape[1]
    # Dropped edges compete with all that the policy admits, not with the strongest heads alone.
    everything = replace(policy, heads="sum")
    admitted = transition if policy == everything else layer_transition(source, everything, transition.layer)
    lost = _dropped(_edges(admitted, kept, policy, best), best).reshape(-1, nodes).sum(axis=0)
    edges = _edges(transition, kept, policy, best)
    weight = edges.weight * best.ravel()[edges.row]
    total = merge_rows(np.add, weight, transition.rows.start, 0.0) + lost
    step = (1.0 - transition.stay) / np.where(total == 0, 1.0, total)
    return KeptTransition(
        query=transition.query,
        key_block=transition.key_block,
        probability=transition.along_rows(step) * weight,
        stay=transition.stay,
        lost=step * lost,
        audited=~no_exact,
        known=~no_estimate,
    )


class _Edges(NamedTuple):
    """Edges with their masses and weights as shares of the softmax over the kept keys; `row` is head · nodes + node."""

    row: IntArray
    mass: FloatArray
    weight: FloatArray


def _edges(transition: LayerTransition, kept: KeptMass, policy: Policy, best: FloatArray) -> _Edges:
    row = transition.head * best.shape[1] + transition.query
    mass, weight = (values.astype(np.float64) for values in (transition.mass, transition.weights.data))
    if kept.dense_masses:
        share = best.ravel()[row]
        scale = np.divide(1.0, share, out=np.zeros(len(share)), where=share > 0)
        mass *= scale
        if policy.weight != "uniform":
            weight *= scale
    return _Edges(row, mass, weight)


def _by_row(kept: KeptMass) -> tuple[FloatArray, FloatArray]:
    """Kept masses by node, [heads, nodes]: the exact ones, and those with the estimate where there is none."""
    best = np.where(np.isnan(kept.blocks), kept.estimate, kept.blocks)
    exact, best = (np.concatenate([blocks, kept.targets], axis=1).astype(np.float64) for blocks in (kept.blocks, best))
    return exact, best


def _dropped(edges: _Edges, best: FloatArray) -> FloatArray:
    """The dropped weight per row of a head, [heads · nodes]: its share of the dense mass times its weight per mass."""
    kept, nodes = best.ravel(), best.shape[1]
    weight, mass = (np.bincount(edges.row, values, minlength=len(kept)) for values in (edges.weight, edges.mass))
    # A head whose every edge is excluded has no weight per mass of its own: take that of the node's other heads.
    pooled = (np.tile(values.reshape(-1, nodes).sum(axis=0), len(kept) // nodes) for values in (weight, mass))
    weight, mass = (np.where(mass > 0, own, others) for own, others in zip((weight, mass), pooled, strict=True))
    return (1.0 - kept) * np.divide(weight, mass, out=np.zeros(len(kept)), where=mass > 0)
