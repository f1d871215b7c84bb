"""The figure of a comparison: a panel per score over relative depth, and one of the distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attngraph_analyses.figures import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attngraph_analyses.compare import Comparison

COLUMNS = 4
PANEL = (3.2, 2.6)
"""Width and height of a panel, in inches."""


def draw(found: Comparison) -> Figure:
    """Lines are means over a group's heads and runs, bands the quantiles .1 to .9 over heads.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    panels = len(found.scores) + 1
    rows = -(-panels // COLUMNS)
    figure = blank(PANEL[0] * min(panels, COLUMNS), PANEL[1] * rows)
    axes = figure.subplots(rows, min(panels, COLUMNS), squeeze=False).ravel()
    for score, panel in zip(found.scores, axes, strict=False):
        _profile(panel, found, score)
    _distances(axes[len(found.scores)], found)
    for panel in axes[panels:]:
        panel.set_axis_off()
    axes[0].legend(fontsize="small")
    return figure


def _profile(panel: Axes, found: Comparison, score: str) -> None:
    for name in found.groups:
        rows = found.profiles.filter(pl.col("group") == name, pl.col("score") == score).sort("depth")
        panel.plot(rows["depth"], rows["mean"], marker="o", markersize=3, label=name)
        panel.fill_between(rows["depth"], rows["low"], rows["high"], alpha=0.2)
    panel.set_xlim(0, 1)
    panel.set_title(score, fontsize="medium")
    panel.set_xlabel("relative depth")


def _distances(panel: Axes, found: Comparison) -> None:
    """Bars of the distances of every pair: within the one, between, within the other."""
    known = found.distances.filter(pl.col("p").is_not_null())
    place = np.arange(len(known))
    for shift, name in ((-0.27, "within_one"), (0.0, "between"), (0.27, "within_other")):
        panel.bar(place + shift, known[name], width=0.25, label=name.replace("_", " "))
    panel.set_xticks(place, [f"{one}\n{other}" for one, other in known.select("one", "other").rows()], fontsize="small")
    panel.set_title("distance of runs", fontsize="medium")
    panel.set_ylim(0, 1.5 * panel.get_ylim()[1])  # room for the legend
    panel.legend(fontsize="small")
