"""Which group a run belongs to, and with which other runs it may be compared: by what its manifest says.

A field is the first of these that there is:

1. ``outcome`` (``success`` or ``failure``), ``model``, ``task``, ``length`` (as it was asked for, else the tokens
   rounded to a power of two), ``config`` (block size, budget, selector, forward);
2. a key of the prompt's metadata, such as ``depth``;
3. a path into the manifest, such as ``config.block_size`` or ``fidelity.next_tokens_match``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import IntArray
from attngraph.store import Manifest
from attngraph_analyses.permutation import Labels, labels_within
from attngraph_analyses.role_features import length_of

STRATA = ("task", "model", "length", "config")
"""What runs must share to be compared, by default."""
OUTCOMES = ("success", "failure")
LISTED = 6
"""Values that an error message lists."""


class Grouped(NamedTuple):
    """Two groups of runs within strata.

    `names` are the two groups, `labels` those of the compared runs, `runs` their places among all; `strata` are the
    strata's values and how many runs of either group they hold; `left_out` counts runs of other groups and of strata
    with one group only.
    """

    names: tuple[str, str]
    labels: Labels
    runs: IntArray
    strata: tuple[tuple[str, int, int], ...]
    left_out: int


def field_of(manifest: Manifest, name: str) -> str | None:
    """What a manifest says of a field, as text; None if it has no such field, or nothing in it."""
    config, outcome = manifest.config, manifest.outcome
    if name == "outcome":
        return None if outcome is None else OUTCOMES[0 if outcome.success else 1]
    if name == "config":
        first = f", first {config.first_layers} × {config.first_budget}" if manifest.most_kept > manifest.budget else ""
        return f"{config.block_size}×{manifest.budget}{first} {config.selector} {config.forward}"
    if name == "model":
        return manifest.model.id
    if name == "task":
        return str(manifest.prompt.task)
    if name == "length":
        return str(length_of(manifest))
    value = manifest.prompt.metadata.get(name)
    if value is None:
        value = manifest
        for part in name.split("."):
            value = getattr(value, part, None)
    return None if value is None or callable(value) else str(value)


def grouped(
    manifests: Sequence[Manifest],
    by: str = "outcome",
    groups: tuple[str, str] | None = None,
    strata: Iterable[str] = STRATA,
) -> Grouped:
    """Put runs into two groups by a field, within strata of others.

    Parameters
    ----------
    manifests
        Those of the runs.
    by
        The field that tells the groups apart; it makes no strata.
    groups
        Its two values, where it has more or their order matters: differences are the first less the second. By default
        success and failure, else the two values in their order.
    strata
        Fields that exchangeable runs share.

    Raises
    ------
    ConfigError
        If a run lacks a field, there are not two groups, or models are mixed.
    GraphError
        If a group has fewer than two runs that can be compared.
    """
    values = [_values(manifests, name) for name in (by, *(name for name in strata if name != by))]
    names = _two(by, values[0], groups)
    member = np.flatnonzero(np.isin(values[0], names))
    _check_models([manifests[run] for run in member.tolist()], by, strata)
    for name in names:
        if values[0].count(name) < 2:
            raise GraphError(
                f"{by}={name!r} holds for {values[0].count(name)} of {len(manifests)} runs; a comparison needs at "
                f"least 2 of each group. Capture more seeds, or prompts of another difficulty."
            )
    conditions = list(zip(*values[1:], strict=True)) or [()] * len(manifests)
    texts = [", ".join(condition) for condition in conditions]
    order = {text: number for number, text in enumerate(sorted({texts[run] for run in member}))}
    first = np.array([values[0][run] == names[0] for run in member])
    labels, kept = labels_within(first, np.array([order[texts[run]] for run in member]))
    runs = member[kept]
    counts = Counter((texts[run], values[0][run]) for run in runs)
    found = sorted({texts[run] for run in runs})
    return Grouped(
        names=names,
        labels=labels,
        runs=runs,
        strata=tuple((text, counts[text, names[0]], counts[text, names[1]]) for text in found),
        left_out=len(manifests) - len(runs),
    )


def _values(manifests: Sequence[Manifest], name: str) -> list[str]:
    values = [field_of(manifest, name) for manifest in manifests]
    missing = values.count(None)
    if missing and name == "outcome":
        raise ConfigError(
            f"{missing} of {len(manifests)} runs have no outcome: capture prompts that have an answer with n_match of "
            f"at least 1, or compare the other runs only."
        )
    if missing:
        keys = ", ".join(sorted({key for manifest in manifests for key in manifest.prompt.metadata})) or "none"
        raise ConfigError(
            f"{missing} of {len(manifests)} runs have no field {name!r}. There are outcome, model, task, length, "
            f"config; metadata: {keys}; and paths into the manifest such as config.block_size."
        )
    return [value for value in values if value is not None]


def _two(by: str, values: list[str], groups: tuple[str, str] | None) -> tuple[str, str]:
    found = sorted(set(values))
    if groups is not None:
        unknown = [name for name in groups if name not in found]
        if unknown or len(set(groups)) != 2:
            raise ConfigError(f"groups={groups!r} are not two different values of {by!r}: {_listed(values)}.")
        return groups
    if by == "outcome":
        if len(found) < 2:
            raise GraphError(
                f"All {len(values)} runs have the outcome {found[0]!r}, so there is nothing to compare; capture "
                f"prompts of another difficulty as well."
            )
        return OUTCOMES
    if len(found) != 2:
        raise ConfigError(f"{by!r} has {len(found)} values, not two: {_listed(values)}. Name two as groups=(…, …).")
    return found[0], found[1]


def _listed(values: list[str]) -> str:
    counts = Counter(values).most_common(LISTED)
    rest = len(set(values)) - len(counts)
    return ", ".join(f"{value} ({count} runs)" for value, count in counts) + (f" and {rest} more" if rest else "")


def _check_models(manifests: Sequence[Manifest], by: str, strata: Iterable[str]) -> None:
    models = [manifest.model.id for manifest in manifests]
    shapes = [f"{manifest.model.layers} layers of {manifest.model.heads} heads" for manifest in manifests]
    if len(set(shapes)) > 1:
        raise ConfigError(
            f"The runs are of models of different shapes: {_listed(shapes)}. Heads of one have no counterpart in "
            f"another; compare runs of one model."
        )
    if len(set(models)) > 1 and by != "model" and "model" not in strata:
        raise ConfigError(
            f"The runs are of several models: {_listed(models)}. Name 'model' among the strata, or compare runs of one."
        )
