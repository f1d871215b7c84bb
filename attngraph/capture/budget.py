"""``budget="auto"``: the smallest budget at which the pruned model still says what the dense one says.

A budget *matches* when every one of the dense model's `n_match` greedy tokens is the pruned model's first choice, with
the dense tokens before it read after the prompt. One pruned pass tells all of them. More blocks mostly help, but need
not: what a head newly sees may tip a near-tie the wrong way, so a matching budget can lie under one that fails.

1. **Bracket.** Try `START` blocks, and twice as many until a budget matches, up to all of the prompt's blocks.
2. **Bisect** between the largest budget under it that failed and the smallest that matched.
3. **Neighbours.** Try the `NEIGHBOURS` budgets right under the one found; where one of them matches, go on from there.
4. **Confirm.** The capture reads the prompt alone, the passes above read some tokens more, and a near-tie may fall out
   differently. So what the captured pass says stands: if its tokens differ, its budget has failed, and the search goes
   on from what it knows.

So the budget found matches, in the captured pass, and the `NEIGHBOURS` budgets under it do not. Where matching is
monotone, it is the smallest budget that matches.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attngraph.capture.fidelity import Reference, divergence, margin
from attngraph.config import FORCED_BLOCKS
from attngraph.errors import BudgetError
from attngraph.store import BudgetProbe, Fidelity, Pruned

START = 4
"""The first budget tried: one block more than the forced ones."""

NEIGHBOURS = 2
"""Budgets right under the one found that must have failed."""


def smallest_match(matches: Callable[[int], bool], least: int, most: int, start: int = START) -> int | None:
    """A budget from `least` to `most` that matches while the `NEIGHBOURS` under it do not; None where none is found.

    Parameters
    ----------
    matches
        Whether a budget matches; may be asked about the same budget twice.
    least, most
        The smallest and the largest budget to try.
    start
        The first budget tried, drawn into these limits.
    """
    failed, found = least - 1, min(max(start, least), most)
    while not matches(found):
        if found == most:
            return None
        failed, found = found, min(2 * found, most)
    while found - failed > 1:
        middle = (failed + found) // 2
        if matches(middle):
            found = middle
        else:
            failed = middle
    while True:
        under = range(found - 1, max(found - NEIGHBOURS, least) - 1, -1)
        lower = next((budget for budget in under if matches(budget)), None)
        if lower is None:
            return found
        found = lower


def probe_of(budget: int, reference: Reference, logits: Tensor, pruned: Pruned) -> BudgetProbe:
    """What one pruned pass over the prompt and the tokens to read says of its budget, by its `logits` from there on."""
    n_match = len(reference.greedy)
    return BudgetProbe(
        budget=budget,
        match=tuple(logits[:n_match].argmax(dim=-1).tolist()) == reference.greedy,
        kl=divergence(reference.target, logits[0]),
        margin=margin(logits[0]),
        pruned=pruned.causal,
    )


class BudgetSearch:
    """The search over one prompt, and the curve of what it has tried.

    Parameters
    ----------
    probe
        Runs the pruned model with a budget and says what came of it; called once per budget.
    blocks
        The prompt's number of blocks: the largest budget there is.
    """

    def __init__(self, probe: Callable[[int], BudgetProbe], blocks: int) -> None:
        self.blocks = blocks
        self._probe = probe
        self._tried: dict[int, BudgetProbe] = {}

    @property
    def curve(self) -> tuple[BudgetProbe, ...]:
        """One entry per budget tried, in the order of their last pass."""
        return tuple(self._tried.values())

    def smallest(self) -> int:
        """The smallest budget that matches, as far as is known.

        Raises
        ------
        BudgetError
            If none does, not even that of all blocks; the message holds the curve.
        """
        found = smallest_match(self._matches, FORCED_BLOCKS, self.blocks)
        if found is None:
            tried = ", ".join(f"{probe.budget} (KL {probe.kl:.2g})" for probe in self.curve)
            raise BudgetError(
                f"No budget keeps the dense model's next tokens, not even all {self.blocks} blocks; tried {tried}. Ask "
                f"for fewer tokens with n_match, raise mass_threshold (for an allocation by mass), or give a budget."
            )
        return found

    def confirm(self, budget: int, fidelity: Fidelity | None, pruned: Pruned) -> bool:
        """Take the captured pass's word on its budget: True where its tokens match."""
        assert fidelity is not None, "a budget was searched for without a reference"
        self._tried.pop(budget, None)
        self._tried[budget] = BudgetProbe(
            budget=budget,
            match=fidelity.next_tokens_match,
            kl=fidelity.kl,
            margin=fidelity.sparse_margin,
            pruned=pruned.causal,
        )
        return fidelity.next_tokens_match

    def _matches(self, budget: int) -> bool:
        if budget not in self._tried:
            self._tried[budget] = self._probe(budget)
        return self._tried[budget].match
