"""How a run is captured: one frozen dataclass, written into every manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from attngraph.errors import ConfigError

Selector = Literal["stream", "representative", "flat", "exact"]
Forward = Literal["sparse", "dense"]
Audit = Literal["none", "targets", "full"]
Allocation = Literal["uniform", "mass"]
BudgetWord = Literal["all", "auto"]
BudgetSetting = int | BudgetWord
MatchWord = Literal["answer"]
MatchSetting = int | MatchWord

BLOCK_SIZES = (8, 16, 32, 64, 128)
_TARGET = re.compile(r"output|token:[0-9]+|span:.+", re.DOTALL)
FORCED_BLOCKS = 3
"""Key blocks kept whatever their score: the sink (block 0), the query's own block and the one before it."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """What is kept of the attention, and how it is searched.

    Parameters
    ----------
    block_size
        Tokens per block; one of 8, 16, 32, 64, 128. Query and key blocks are the same partition.
    budget
        Key blocks kept per query block and head, the forced ones (sink, own, previous) included;
        at least 3, at most the prompt's number of blocks, or ``"all"`` for no pruning, or ``"auto"`` for the smallest
        budget at which the next `n_match` tokens are the dense model's (see `attngraph.capture.budget`).
    first_layers, first_budget
        The first so many layers keep `first_budget` blocks, where that is more than `budget`, unless they have a
        sliding window: there, heads attend to almost everything evenly, and the rest of the model builds on it
        (docs/method.md). 0 layers for none.
    allocation
        ``"uniform"``: every row keeps as many as its budget. ``"mass"``: every row keeps the fewest blocks that hold
        `mass_threshold` of its mass among the candidates, at most its budget and never fewer than the forced ones.
    mass_threshold
        Share of a row's mass, above 0 and below 1; for ``allocation="mass"`` alone.
    targets
        Tokens whose rows are kept at token grain: ``"output"`` (the last token, a target always), ``"token:N"``,
        ``"span:NAME"`` (every token of the prompt's spans of that name). A target takes O(T) time in every head.
    selector
        ``"stream"``: the hierarchical search, O(T log T). To compare with: ``"representative"``, a descent with one key
        per node, O(T log T); ``"flat"``, mean queries against mean keys, O((T / block_size)²); ``"exact"``, the true
        block masses, O(T²). Memory is O(T) with each.
    n_match
        Greedy next tokens compared between the dense and the sparse model (Rosser et al. 2025 use 2), or ``"answer"``
        for as many as the prompt's answer has; 0 leaves out the fidelity check and its dense forward pass.
    representatives
        Weighted key representatives per node of the key pyramid, half as many per node of over two blocks.
    query_representatives
        Weighted query representatives per query block; ``None`` for a quarter of the block size.
    candidates
        Candidates whose keys are all scored, as a multiple of the budget; also the width of the descent.
    start_nodes
        The descent starts at the finest level of the pyramid with at most this many nodes.
    exact_tail
        Tokens at the end of the prompt whose candidates come from exact block masses.
    forward
        ``"sparse"``: every layer computes with the kept blocks only, and its pruned output feeds the next one.
        ``"dense"``: the model's own attention output flows on, and the graph is observed beside it; masses are then
        shares of the dense softmax, and every row's kept mass is exact.
    audit
        Which rows record the share of the dense attention mass that they keep (see docs/method.md). ``"targets"``: the
        targets' own rows, and the query blocks whose every visible key was scored anyway, exactly; the others as an
        estimate. ``"full"``: all rows exactly, by a dense pass per layer, O(T²) time, O(T) memory. ``"none"``: no row.
        With ``forward="dense"`` all rows are exact, whatever is asked here.

    Raises
    ------
    ConfigError
        Naming the field, its value and what is allowed.
    """

    block_size: int = 16
    budget: BudgetSetting = 8
    first_layers: int = 1
    first_budget: int = 32
    allocation: Allocation = "uniform"
    mass_threshold: float = 0.9
    targets: tuple[str, ...] = ("output",)
    selector: Selector = "stream"
    n_match: MatchSetting = 2
    representatives: int = 8
    query_representatives: int | None = None
    candidates: int = 3
    start_nodes: int = 512
    exact_tail: int = 128
    forward: Forward = "sparse"
    audit: Audit = "targets"

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"block_size={self.block_size!r} is not one of {', '.join(map(str, BLOCK_SIZES))}.")
        if self.budget not in get_args(BudgetWord) and (
            not isinstance(self.budget, int) or self.budget < FORCED_BLOCKS
        ):
            raise ConfigError(
                f"budget={self.budget!r} is too small: the sink, own and previous block are always kept, "
                f"so give at least {FORCED_BLOCKS} blocks, or 'all', or 'auto'."
            )
        kinds = (("selector", Selector), ("forward", Forward), ("audit", Audit), ("allocation", Allocation))
        for name, kind in kinds:
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(kind))}.")
        if not 0.0 < self.mass_threshold < 1.0:
            raise ConfigError(f"mass_threshold={self.mass_threshold!r} must be above 0 and below 1.")
        if self.n_match != "answer" and (not isinstance(self.n_match, int) or self.n_match < 0):
            raise ConfigError(f"n_match={self.n_match!r} must be a whole number of at least 0, or 'answer'.")
        if self.budget == "auto" and self.n_match == 0:
            raise ConfigError(
                "budget='auto' compares next tokens with the dense model, but n_match=0 compares none; "
                "give an n_match of at least 1, or a budget."
            )
        _check_targets(self.targets)
        object.__setattr__(self, "targets", tuple(self.targets))
        for name, least in (
            ("first_layers", 0),
            ("first_budget", FORCED_BLOCKS),
            ("representatives", 1),
            ("candidates", 1),
            ("start_nodes", 1),
            ("exact_tail", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}.")
        if self.query_representatives is not None and not 1 <= self.query_representatives <= self.block_size:
            raise ConfigError(
                f"query_representatives={self.query_representatives!r} must be between 1 and "
                f"block_size={self.block_size}."
            )

    def blocks(self, tokens: int) -> int:
        """Number of blocks that a prompt of `tokens` tokens is cut into."""
        return -(-tokens // self.block_size)

    def budget_for(self, tokens: int) -> int:
        """The budget as a number of blocks, checked against a prompt of `tokens` tokens.

        All of the prompt's blocks where the budget is ``"all"``, and where it is ``"auto"``: more can't be found.
        """
        blocks = self.blocks(tokens)
        if blocks < FORCED_BLOCKS:
            raise ConfigError(
                f"The prompt has {tokens} tokens, that is {blocks} block(s) of {self.block_size}; at least "
                f"{FORCED_BLOCKS} blocks are needed. Give a longer prompt or a smaller block_size."
            )
        if self.budget == "all" or self.budget == "auto":
            return blocks
        if self.budget > blocks:
            raise ConfigError(
                f"budget={self.budget} is over the prompt's {blocks} blocks ({tokens} tokens in blocks of "
                f"{self.block_size}); give {FORCED_BLOCKS} to {blocks}, or 'all'."
            )
        return self.budget

    def layer_budget(self, layer: int, tokens: int, window: int | None = None) -> int:
        """The budget of a layer, from 0, as a number of blocks; checked as in `budget_for`."""
        budget = self.budget_for(tokens)
        if layer >= self.first_layers or window is not None:
            return budget
        return max(budget, min(self.first_budget, self.blocks(tokens)))


def _check_targets(targets: Sequence[str]) -> None:
    names = [targets] if isinstance(targets, str) else list(targets)
    known = [isinstance(name, str) and bool(_TARGET.fullmatch(name)) for name in names]
    if isinstance(targets, str) or not all(known):
        wrong = names[known.index(False)] if False in known else targets
        raise ConfigError(f"targets: {wrong!r} is not one of 'output', 'token:N', 'span:NAME'; give a tuple of them.")
