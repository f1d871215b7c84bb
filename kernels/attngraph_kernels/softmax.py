"""How a layer turns products of queries and keys into probabilities: soft cap and learned sinks.

    s_ij = scale · q_i·k_j,  and cap · tanh(s_ij / cap) in its place where scores are soft-capped (Gemma 2)
    p_ij = exp(s_ij) / (Σ_j' exp(s_ij') + exp(sink_h))

A learned sink (gpt-oss) is one more score per head that every row's softmax includes; it has no key and no value. What
it takes belongs to no key, so the probabilities of a row sum to less than 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Softmax:
    """A layer's soft cap (None: none) and the sinks [H] of its heads (None: none)."""

    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def shift_invariant(self) -> bool:
        """Whether probabilities stay what they are when all scores of a query rise alike."""
        return self.softcap is None and self.sinks is None

    def split(self, groups: int) -> list[Softmax]:
        """One for the heads of each key/value head, in order."""
        if self.sinks is None:
            return [self] * groups
        return [Softmax(self.softcap, sinks) for sinks in self.sinks.chunk(groups)]

    def capped(self, scores: Tensor) -> Tensor:
        """The scores as the model sees them; overwrites them."""
        return scores if self.softcap is None else scores.div_(self.softcap).tanh_().mul_(self.softcap)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Softmax of capped scores [H, ..., keys] over the keys and the sink, fp32."""
        if self.sinks is None:
            return scores.softmax(dim=-1, dtype=torch.float32)
        both = torch.cat([scores, self.sink_scores(scores[..., :1])], dim=-1)
        return both.softmax(dim=-1, dtype=torch.float32)[..., :-1]

    def sink_scores(self, like: Tensor) -> Tensor:
        """The sinks in the shape of `like` [H, ...]; -inf without sinks."""
        if self.sinks is None:
            return torch.full_like(like, -torch.inf)
        return self.sinks.to(like).view(-1, *[1] * (like.ndim - 1)).expand_as(like)


PLAIN = Softmax()
"""No cap, no sinks."""
