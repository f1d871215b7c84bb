"""Some of many runs, chosen by what their manifests say: how a study file tells one part of its runs from another.

A selection is fields (see `attngraph_analyses.groups`) with the values they must have, all of them: one value, a list
of which any will do, or a range of whole numbers. Values are compared as text, so 1024 and ``"1024"`` are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from attngraph.errors import ConfigError
from attngraph.store import Run
from attngraph_analyses.groups import field_of

Value = str | int | float | bool


class Between(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whole numbers from `first` to `last`, both included."""

    first: int
    last: int


Where = Mapping[str, Value | list[Value] | Between]
"""Fields and the values that they must have; nothing selects everything."""
EVERYTHING: Where = {}


def selected(runs: Iterable[Run], where: Where) -> list[Run]:
    """The runs whose fields have the wanted values, in their order.

    Raises
    ------
    ConfigError
        If there are none, or a range has no numbers.
    """
    wanted = {name: _texts(name, value) for name, value in where.items()}
    every = list(runs)
    chosen = [run for run in every if all(field_of(run.manifest, name) in texts for name, texts in wanted.items())]
    if not chosen:
        limits = ", ".join(f"{name}={value}" for name, value in where.items()) or "no limits"
        raise ConfigError(f"None of {len(every)} runs has {limits}; see which fields and values their prompts have.")
    return chosen


def _texts(name: str, value: Value | list[Value] | Between) -> set[str]:
    if isinstance(value, Between):
        if value.last < value.first:
            raise ConfigError(f"{name}: no whole number lies between {value.first} and {value.last}.")
        return {str(number) for number in range(value.first, value.last + 1)}
    return {str(one) for one in (value if isinstance(value, list) else [value])}


class SameRuns:
    """Runs as a key: equal where they are the same objects, which the key holds on to."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.runs)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameRuns) and list(map(id, self.runs)) == list(map(id, other.runs))
