"""A blank figure, where matplotlib is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attngraph.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float) -> Figure:
    """A figure of some inches, on no screen.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'Figures need matplotlib, which is not installed. Install it with: pip install "attngraph[plot]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
