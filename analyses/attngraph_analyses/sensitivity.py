"""Sensitivity: how much can the output depend on each block at most, and what do the weights add to the mask?

For a decoder whose attention has the matrices Λ_ℓ and whose norms divide by constants β_ℓ, the derivative of the output
n by the input i is bounded (Barbero et al. 2024, arXiv 2406.04267, theorem 5.1) by

    ‖∂y_n / ∂v_i‖ ≤ C · [Π_ℓ (Λ_ℓ / β_ℓ + I)]_{n, i},

with C from the MLPs and norms alone. The product is a sum over all causal paths, so early blocks have more of them
and a greater bound whatever the weights: what tells something is the ratio to the same product over the same mask
with uniform weights. Its row sums are Π_ℓ (1 + 1 / β_ℓ); divided by these it is attention rollout for β = 1 (Abnar
& Zuidema 2020, arXiv 2005.00928): rollout is the normalised bound.

1. Λ_ℓ is the mean over heads of the kept masses, renormalised over what the graph's policy keeps.
2. One backward sweep of Λ_ℓ / β + I from the target gives the bound of every block, each step divided by 1 + 1 / β, so
   that nothing overflows: `bound` sums to 1, and `log_scale` is the logarithm of what it was divided by.

Dropped attention is missing from Λ, so this bounds what passes through the recorded edges; blocks stand for tokens,
so it approximates the token-level product, with equality only where all rows of a block agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, blocks_of, spans_by_block, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import ALL_BUT_HEADS, Compared, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import Answer, about


@dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivity(Answer):
    """What `sensitivity` found: one entry per block.

    Parameters
    ----------
    source, target
        The two ends, by name.
    beta
        What the norms were assumed to divide by.
    block
        ``[blocks]``: 0, 1, …
    bound
        ``[blocks]``: the bound without C, divided by exp(`log_scale`); sums to 1.
    uniform
        ``[blocks]``: the same with uniform weights on the same mask.
    log_scale
        L·ln(1 + 1 / β).
    source_bound
        The mean bound of the source's blocks.
    spans
        ``[blocks]``: the names of the spans that overlap the block.
    against
        How `source_bound` stands against a null.
    policy
        How edges became attention, but for `residual`, which the theorem replaces by β.
    """

    source: str
    target: str
    beta: float
    block: IntArray
    bound: FloatArray
    uniform: FloatArray
    log_scale: float
    source_bound: float
    spans: tuple[tuple[str, ...], ...]
    against: Compared

    @property
    def ratio(self) -> FloatArray:
        """``[blocks]``: bound over its value with uniform weights; NaN where the mask lets nothing through."""
        undefined = np.full(len(self.bound), np.nan)
        return np.asarray(np.divide(self.bound, self.uniform, out=undefined, where=self.uniform > 0))

    def to_polars(self) -> pl.DataFrame:
        """One row per block: block, bound, uniform, ratio (null where undefined), spans."""
        return pl.DataFrame(
            {
                "block": self.block,
                "bound": self.bound,
                "uniform": self.uniform,
                "ratio": pl.Series(self.ratio).fill_nan(None),
                "spans": pl.Series([list(names) for names in self.spans], dtype=pl.List(pl.String)),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The scalars as plain values for JSON."""
        return {
            "source": self.source,
            "target": self.target,
            "policy": vars(self.policy),
            "block_size": self.block_size,
            "beta": self.beta,
            "log_scale": self.log_scale,
            "source_bound": self.source_bound,
            "null": self.against.to_dict(),
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
        }


def sensitivity(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    beta: float = 1.0,
    null: Null | NullName = "uniform",
) -> Sensitivity:
    """The bound on a target's sensitivity to every block, and how the source's stands against a null.

    Parameters
    ----------
    graph
        Its `sink` and `heads` policies are kept, its weight is ``"mass"`` whatever it was (unless ``"uniform"``), its
        residual is replaced by β.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    beta
        β, above 0: 1 gives rollout.
    null
        What to compare the source's bound with: ``"uniform"`` for the same mask, ``"distance"`` for the squash ratio,
        or any other.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    ConfigError
        If β isn't above 0, or the null unknown or ``"heads"``, which changes no bound.
    GraphError
        If the null has nothing to compare with.
    """
    if not 0.0 < beta < np.inf:
        raise ConfigError(f"beta={beta!r} is not a finite number above 0.")
    chosen = meaningful(null, "the bound", *ALL_BUT_HEADS)
    weight = "uniform" if graph.policy.weight == "uniform" else "mass"
    masses = graph.with_policy(weight=weight, residual=0.0)

    @cache  # nulls that only move the source ask again and again for the bounds of one graph
    def bounds(graph: AttentionGraph, end: str) -> FloatArray:
        return sensitivity_bounds(graph, end, beta)

    def ask(question: Question) -> float:
        return float(bounds(question.graph, question.target)[question.blocks].mean())

    own = blocks_of(graph, source)
    # The bound, normalised, is a walk that stays with the share β / (1 + β).
    known = about(masses.with_policy(residual=beta / (1.0 + beta)), target)
    bound = bounds(masses, target)
    return Sensitivity(
        source=source,
        target=target,
        beta=beta,
        block=np.arange(graph.blocks),
        bound=bound,
        uniform=sensitivity_bounds(masses.uniform(), target, beta),
        log_scale=graph.layers * float(np.log1p(1.0 / beta)),
        source_bound=float(bound[own].mean()),
        spans=spans_by_block(graph),
        against=compare(ask, Question(masses, own, target), chosen),
        **(known | {"policy": masses.policy}),
    )


def sensitivity_bounds(graph: AttentionGraph, target: str, beta: float = 1.0) -> FloatArray:
    """[Π_ℓ (Λ_ℓ / β + I)] of every block for a target, ``[blocks]``, divided by Π_ℓ (1 + 1 / β).

    Parameters
    ----------
    graph
        With the residual share 0, so that its transitions are the Λ_ℓ.
    target, beta
        As for `sensitivity`.
    """
    state = target_state(graph, target)
    kept, moved = beta / (1.0 + beta), 1.0 / (1.0 + beta)
    for layer in reversed(range(graph.layers)):
        transition = graph.transition(layer)
        # A row without attention stays, which counts it as attention to itself.
        attention = np.bincount(
            transition.key_block, transition.probability * state[transition.query], minlength=graph.nodes
        )
        state = kept * state + moved * (attention + transition.stay * state)
    blocks = state[: graph.blocks].copy()
    np.add.at(blocks, graph.node_blocks()[graph.blocks :], state[graph.blocks :])
    return blocks
