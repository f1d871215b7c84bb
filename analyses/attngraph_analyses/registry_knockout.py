"""What a study can ask with the model at hand: is the answer still given without some edges (`knockout`)?

Where nothing leads from source to target there is nothing to remove, and the tables have no rows for that run.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import polars as pl

from attngraph.config import Forward
from attngraph.errors import NoRouteError
from attngraph.graph import Policy
from attngraph.store import Run
from attngraph_analyses.controls import ControlName
from attngraph_analyses.knockout import USUAL, knockout
from attngraph_analyses.knockout_curves import COUNTS, SHARES, necessity, sufficiency

if TYPE_CHECKING:
    from attngraph.models import LanguageModel

DEFAULT_POLICY = Policy()


def knockout_table(
    lm: LanguageModel,
    run: Run,
    edges: int = 30,
    source: str = "needle",
    target: str = "output",
    forward: Forward | None = None,
    controls: tuple[ControlName, ...] = USUAL,
    draws: int = 5,
    seed: int = 0,
    keep: bool = False,
    policy: Policy = DEFAULT_POLICY,
) -> pl.DataFrame:
    """One row per pass: without any removal, without the best edges, without each draw of every control.

    As `attngraph_analyses.knockout`.
    """
    with suppress(NoRouteError):
        return knockout(
            lm,
            run,
            edges,
            source=source,
            target=target,
            graph=run.graph(**vars(policy)),
            forward=forward,
            controls=controls,
            draws=draws,
            seed=seed,
            keep=keep,
            progress=False,
        ).to_polars()
    return pl.DataFrame()


def necessity_table(
    lm: LanguageModel,
    run: Run,
    counts: tuple[int, ...] = COUNTS,
    source: str = "needle",
    target: str = "output",
    forward: Forward | None = None,
    control: ControlName = "mass_matched",
    draws: int = 3,
    seed: int = 0,
    policy: Policy = DEFAULT_POLICY,
) -> pl.DataFrame:
    """One row per number of best edges removed; as `attngraph_analyses.necessity`, with `control_effect`.

    `control_effect` is what the median draw of the control loses, in nats.
    """
    with suppress(NoRouteError):
        found = necessity(
            lm,
            run,
            counts,
            source=source,
            target=target,
            graph=run.graph(**vars(policy)),
            forward=forward,
            control=control,
            draws=draws,
            seed=seed,
            progress=False,
        )
        return found.to_polars().with_columns(control_effect=found.base - pl.col("control"))
    return pl.DataFrame()


def sufficiency_table(
    lm: LanguageModel,
    run: Run,
    shares: tuple[float, ...] = SHARES,
    source: str = "needle",
    target: str = "output",
    forward: Forward | None = None,
    draws: int = 1,
    seed: int = 0,
    policy: Policy = DEFAULT_POLICY,
) -> pl.DataFrame:
    """One row per share of the walks that is kept, beginning with none; as `attngraph_analyses.sufficiency`.

    With `share`, the one that was asked for, and `control_effect` as in `necessity_table`.
    """
    with suppress(NoRouteError):
        found = sufficiency(
            lm,
            run,
            shares,
            source=source,
            target=target,
            graph=run.graph(**vars(policy)),
            forward=forward,
            draws=draws,
            seed=seed,
            progress=False,
        )
        asked = pl.Series("share", [0.0, *sorted(set(shares))], dtype=pl.Float64)
        table = found.to_polars().with_columns(control_effect=found.base - pl.col("control"))
        return table.select(asked, pl.all())
    return pl.DataFrame()
