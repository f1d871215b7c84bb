"""The figure of a chain test: every run's percentiles by stop, with their means, successes and failures apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from attngraph_analyses.figures import blank
from attngraph_analyses.groups import OUTCOMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attngraph_analyses.chain_test import ChainTest

PANEL = (4.2, 3.2)
"""Width and height of a panel, in inches."""
SHIFT, SPREAD = 0.2, 0.14
"""How far an outcome's dots stand from the middle of their stop, and how far they spread around that."""
COLOURS = ("tab:blue", "tab:orange")


def draw(found: ChainTest) -> Figure:
    """Dots are runs, bars the means with their intervals, the line is chance.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    groups = found.tests.select(found.by).unique(maintain_order=True).to_dicts() or [{}]
    controls = found.tests["control"].unique(maintain_order=True).to_list()
    figure = blank(PANEL[0] * len(groups), PANEL[1] * len(controls))
    axes = figure.subplots(len(controls), len(groups), squeeze=False)
    for row, control in zip(axes, controls, strict=True):
        for panel, group in zip(row, groups, strict=True):
            _panel(panel, found, {**group, "control": control})
    axes[0, 0].legend(fontsize="small", loc="lower left")
    return figure


def _panel(panel: Axes, found: ChainTest, group: dict[str, Any]) -> None:
    ranks, tests = (frame.filter(**group) for frame in (found.ranks, found.tests))
    stops = tests["stop"].unique(maintain_order=True).to_list()
    for side, outcome, colour in zip((-1, 1), OUTCOMES, COLOURS, strict=True):
        own = ranks.filter(pl.col("percentile").is_not_null(), outcome=outcome)
        label = f"{outcome} ({own['run'].n_unique()} runs)"
        for place, stop in enumerate(stops):
            values = own.filter(stop=stop)["percentile"].to_numpy()
            middle = place + side * SHIFT
            panel.scatter(middle + np.linspace(-SPREAD, SPREAD, len(values)), values, s=8, alpha=0.5, color=colour)
            for mean, low, high in tests.filter(stop=stop, outcome=outcome).select("mean", "low", "high").rows():
                ends = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
                panel.errorbar(middle, mean, yerr=ends, fmt="_", color=colour, markersize=14, capsize=3, label=label)
                label = "_nolegend_"
    panel.axhline(0.5, color="grey", linestyle="--", linewidth=1, label="chance")
    panel.set_xticks(range(len(stops)), stops)
    panel.set_ylim(-0.02, 1.02)
    panel.set_ylabel(f"percentile among {group['control']} places", fontsize="small")
    panel.set_title(", ".join(f"{name} {group[name]}" for name in found.by), fontsize="medium")
