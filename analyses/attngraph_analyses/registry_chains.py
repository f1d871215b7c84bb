"""What a study can ask of chains of hops: every run's percentiles, and their test over all runs."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from attngraph.graph import Policy
from attngraph.store import Run
from attngraph_analyses.chain_test import chain_test
from attngraph_analyses.chains import chain
from attngraph_analyses.selection import EVERYTHING, Where, selected
from attngraph_analyses.variable_chains import other_chains

POLICY = Policy()


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
    graph, others = run.graph(**vars(policy)), other_chains(run)
    found = chain(graph, hops, target, others=others, before=before, draws=draws, seed=seed)
    return found.to_polars().with_columns(completeness=pl.lit(found.completeness, pl.Float64))


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
