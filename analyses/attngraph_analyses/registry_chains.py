"""What a study can ask of chains of hops: every run's percentiles, and their test over all runs."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from attngraph.graph import Policy
from attngraph.store import Run
from attngraph_analyses.chain_test import POLICY, chain_test, ranks_of
from attngraph_analyses.selection import EVERYTHING, Where, selected


def chain_ranks(
    run: Run,
    hops: tuple[str, ...] = (),
    target: str = "output",
    before: str = "question",
    draws: int = 199,
    seed: int = 0,
    policy: Policy = POLICY,
) -> pl.DataFrame:
    """How the chain of a run ranks among chains with other places; as `attngraph_analyses.chain`, with completeness."""
    return ranks_of(run, hops, target, policy, before=before, draws=draws, seed=seed)


def chain_test_table(
    runs: Sequence[Run],
    where: Where = EVERYTHING,
    hops: tuple[str, ...] = (),
    target: str = "output",
    by: tuple[str, ...] = ("model",),
    before: str = "question",
    draws: int = 199,
    seed: int = 0,
    policy: Policy = POLICY,
) -> pl.DataFrame:
    """Whether chains rank above chance over many runs; `tests` of `attngraph_analyses.chain_test`."""
    every = selected(runs, where)
    return chain_test(every, hops, target, by=by, before=before, draws=draws, seed=seed, policy=policy).tests
