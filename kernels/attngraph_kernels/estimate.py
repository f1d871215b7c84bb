"""How much of the dense attention a search has dropped, estimated from what it saw on the way.

At every level of the descent a query representative's nodes are scored, and all but the beam are dropped. A node's
score approximates the log of its keys' summed exponentials, so the dropped keys' share of a query's softmax is known,
roughly, without another look at them:

1. The log-sum-exp of the nodes that each level drops, per query representative.
2. Added up over the levels, and given to every query of the representative, with a lift: a query differs from the mean
   that represents it, and what it differs by spreads its scores, which can only add to their log-sum-exp
   (`pyramid.bump`). The pyramid's keys are centred; the query's product with the mean key moves its sum to where its
   exact scores are.
3. Candidates that the re-score drops are known.

The kept share of a query is then kept / (kept + dropped candidates + dropped nodes), and a block's is the mean over its
queries. It leans on nothing but scores that the search computes anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """What a search that has not seen every key knows of the dense attention of each query, [P, B, size].

    `kept`: share of the candidates' mass that no dropped candidate has. `dropped`: log-sum-exp of the scores of all
    keys that never became candidates, estimated.
    """

    kept: Tensor
    dropped: Tensor

    def share(self, log_sum_exp: Tensor) -> Tensor:
        """The share of the dense mass that is kept, given the log-sum-exp [P, B, size] over the kept keys."""
        return 1 / (1 / self.kept + (self.dropped - log_sum_exp).exp())


class Dropped:
    """The log-sum-exp of what a descent drops, per query representative [P, B, r_q], added up level by level."""

    def __init__(self) -> None:
        self.levels: list[Tensor] = []

    def add(self, everything: Tensor, shares: Tensor, kept: Tensor, findable: Tensor) -> None:
        """Add what is dropped at a level.

        Parameters
        ----------
        everything
            [P, B, r_q], the log-sum-exp of the level's scores.
        shares
            [P, B, r_q, C], each node's share of that sum, 0 where it is not alive.
        kept
            Slots [P, B, beam] of the kept nodes.
        findable
            Share of a node's blocks that the search may find, broadcast to [P, B, C]: a node at the edge of what a row
            sees counts in part.
        """
        gone = findable.expand(*kept.shape[:2], -1).scatter(-1, kept, 0)
        self.levels.append(everything + (shares * gone.unsqueeze(2)).sum(dim=-1).log())

    def of_queries(self, representative: Tensor, lift: Tensor, shift: Tensor) -> Tensor:
        """The sum for each query, [P, B, size].

        Parameters
        ----------
        representative, shift
            [P, B, size], of each query: its representative, and its product with the mean key.
        lift
            [P, B, r_q], how far the queries of a representative lie above it.
        """
        of_representatives = torch.stack(self.levels).logsumexp(dim=0) + lift
        return of_representatives.gather(-1, representative) + shift


def log_sum_exp(scores: Tensor, shares: Tensor) -> Tensor:
    """Of scores [..., n], given their softmax `shares`: a softmax's sum follows from its largest term."""
    return scores.amax(dim=-1) - shares.amax(dim=-1).log()
