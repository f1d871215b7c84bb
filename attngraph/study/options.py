"""Options as a study file writes them: alternatives become single values, values are checked against a function.

In tasks and configs a list is a set of alternatives, ``{ first = 0, last = 19 }`` one of whole numbers, and everything
else a single value; alternatives of several options are crossed with each other. An option that is itself a list is
written as a list in a list.
"""

from __future__ import annotations

import builtins
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import msgspec

from attngraph.errors import StudyError


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whole numbers from `first` to `last`, both included."""

    first: int
    last: int
    step: int = 1


def expanded(options: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Every combination of the options' alternatives; the last option varies fastest.

    Raises
    ------
    StudyError
        For a list or range without any value, or a range that is none.
    """
    choices = [_alternatives(value, f"{where}.{name}") for name, value in options.items()]
    return [dict(zip(options, combination, strict=True)) for combination in product(*choices)]


def _alternatives(value: Any, where: str) -> list[Any]:
    if isinstance(value, Mapping):
        asked = converted(value, Range, where)
        if asked.step < 1:
            raise StudyError(f"{where}.step: {asked.step} must be at least 1.")
        value = list(range(asked.first, asked.last + 1, asked.step))
    if not isinstance(value, list):
        return [value]
    if not value:
        raise StudyError(f"{where}: there is nothing to choose from; give at least one value, or leave it out.")
    return value


def complete_options(
    function: Callable[..., Any], given: int, options: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The options of a function with its defaults filled in.

    Parameters
    ----------
    function
        Its annotations say what each option may be.
    given
        How many of its first parameters don't come from the study file.
    options
        What the study file says.
    where
        The key of the study file, for errors.

    Raises
    ------
    StudyError
        For an option that the function doesn't have, lacks, or that has a value of another kind.
    """
    parameters = list(inspect.signature(function, eval_str=True, locals=_Names(function)).parameters.values())[given:]
    known = {parameter.name: parameter for parameter in parameters}
    check_names(options, known, where)
    lacking = [name for name, one in known.items() if one.default is one.empty and name not in options]
    if lacking:
        raise StudyError(f"{where}: {', '.join(lacking)} must be given.")
    values = {name: parameter.default for name, parameter in known.items() if parameter.default is not parameter.empty}
    for name, value in options.items():
        values[name] = _checked(value, known[name].annotation, f"{where}.{name}")
    return {name: values[name] for name in known}


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse a name that isn't known, with the nearest one that is."""
    names = list(known)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            guess = f" Did you mean {close[0]!r}?" if close else ""
            raise StudyError(f"{where}.{name}: there is no such option; known: {', '.join(names) or 'none'}.{guess}")


def converted(value: Any, kind: Any, where: str) -> Any:
    """The value as a `kind`, or a StudyError that names the key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise StudyError(described(error, where)) from error


def described(error: msgspec.ValidationError, where: str) -> str:
    """What msgspec found wrong, with the key of the study file in front."""
    message, _, path = str(error).partition(" - at `$")
    return f"{where}{path.removesuffix('`')}: {message}".removeprefix(".") + ("" if message.endswith(".") else ".")


def _checked(value: Any, annotation: Any, where: str) -> Any:
    try:
        msgspec.json.schema(annotation)
    except TypeError:  # no kind of value that a file holds, such as a class of its own: the function will judge
        return value
    return converted(value, annotation, where)


class _Names(dict[str, Any]):
    """Names that a module imports for type checkers alone stand for any object while annotations are evaluated."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._known = {*vars(builtins), *getattr(inspect.unwrap(function), "__globals__", {})}

    def __missing__(self, name: str) -> Any:
        if name in self._known:
            raise KeyError(name)
        return object
