"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast, get_args

import typer

import attngraph as ag
from attngraph.config import (
    Allocation,
    Audit,
    BudgetSetting,
    BudgetWord,
    Forward,
    MatchSetting,
    MatchWord,
    Selector,
    StreamConfig,
)
from attngraph.errors import ConfigError

if TYPE_CHECKING:  # at run time the graph's libraries would slow `attngraph --help` down
    from attngraph.graph import AttentionGraph
    from attngraph.graph.transition import Heads, Residual, Sink, Weight

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

Model = Annotated[
    str, typer.Option(help="A bundled model (smollm2-135m, gemma3-270m), a folder, a GGUF file or a hub id.")
]
TaskName = Literal[
    "needle",
    "multikey",
    "multivalue",
    "multiquery",
    "variable_tracking",
    "common_words",
    "frequent_words",
    "reasoning",
]
Length = Annotated[int, typer.Option(help="Tokens of the needle prompt, at most.", min=1)]
Depth = Annotated[float, typer.Option(help="Where the needle lies, from 0 (start) to 1 (end).", min=0, max=1)]
Seed = Annotated[int, typer.Option(help="Seed of keys, values and haystack.")]
Haystack = Annotated[
    Literal["noise", "varied"], typer.Option(help="noise: RULER's five sentences; varied: natural sentences.")
]
BlockSize = Annotated[int, typer.Option(help="Tokens per block: 8, 16, 32, 64 or 128.")]
Budget = Annotated[
    str,
    typer.Option(help="Key blocks kept per query block and head, all, or auto: the fewest that keep the next tokens."),
]
FirstLayers = Annotated[
    int, typer.Option(help="The first so many layers keep --first-budget blocks, if that is more.", min=0)
]
FirstBudget = Annotated[int, typer.Option(help="Key blocks kept in the first layers.", min=3)]
NMatch = Annotated[
    str,
    typer.Option(help="Next tokens compared with the dense model, or answer: as many as it has; 0 skips this."),
]
AllocationOption = Annotated[
    str, typer.Option("--allocation", help="uniform, or mass: fewer where they hold --mass-threshold of the mass.")
]
MassThreshold = Annotated[float, typer.Option(help="Share of a row's mass that is enough, for --allocation mass.")]

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Source = Annotated[str, typer.Option(help="Where routes start: a span, block:N, token:N or output.")]
Target = Annotated[str, typer.Option(help="Where routes end: a span, block:N, a recorded token:N or output.")]
WeightPolicy = Annotated[str, typer.Option("--weight", help="Edge weights: contribution, mass or uniform.")]
ResidualPolicy = Annotated[str, typer.Option("--residual", help="Residual shares: measured, half or a number.")]
HeadsPolicy = Annotated[str, typer.Option("--heads", help="Parallel heads: sum, or max (the strongest alone).")]
SinkPolicy = Annotated[str, typer.Option("--sink", help="Edges from block 0: keep or exclude.")]
HeadNull = Literal["uniform", "edges", "heads", "distance", "targets"]
NullOption = Annotated[HeadNull | None, typer.Option("--null", help="Also ask what chance would answer.")]
RankingNull = Annotated[
    Literal["uniform", "edges", "distance", "targets"], typer.Option("--null", help="What influence is ranked against.")
]


def config_of(
    block_size: int,
    budget: str,
    n_match: str = str(StreamConfig.n_match),
    selector: str = StreamConfig.selector,
    audit: str = StreamConfig.audit,
    forward: str = StreamConfig.forward,
    allocation: str = StreamConfig.allocation,
    mass_threshold: float = StreamConfig.mass_threshold,
    targets: Sequence[str] = StreamConfig.targets,
    *,
    first_layers: int = StreamConfig.first_layers,
    first_budget: int = StreamConfig.first_budget,
) -> StreamConfig:
    """The capture's settings from what was typed."""
    return StreamConfig(
        block_size=block_size,
        budget=cast(BudgetSetting, number_or_word("budget", budget, "blocks", get_args(BudgetWord))),
        first_layers=first_layers,
        first_budget=first_budget,
        n_match=cast(MatchSetting, number_or_word("n_match", n_match, "tokens", get_args(MatchWord))),
        selector=cast(Selector, selector),
        audit=cast(Audit, audit),
        forward=cast(Forward, forward),
        allocation=cast(Allocation, allocation),
        mass_threshold=mass_threshold,
        targets=tuple(targets),
    )


def task_options(typed: Sequence[str]) -> dict[str, Any]:
    """What a task takes by keyword, from ``name=value`` as typed: numbers where they are, else text."""
    options: dict[str, Any] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--option {text!r} isn't of the form name=value, such as distractors=3.")
        options[name] = _number(value)
    return options


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def number_or_word(name: str, text: str, unit: str, words: Sequence[str]) -> int | str:
    """A setting as typed: one of `words`, or a number."""
    if text in words:
        return text
    try:
        return int(text)
    except ValueError:
        allowed = " or ".join(map(repr, words))
        raise ConfigError(f"{name}={text!r} is neither a number of {unit} nor {allowed}.") from None


class Policies(TypedDict):
    """The policies of a graph, as `Run.graph` takes them."""

    weight: Weight
    residual: Residual
    heads: Heads
    sink: Sink


def graph_of(run: Path, weight: str, residual: str, heads: str, sink: str) -> AttentionGraph:
    """The graph of a run folder under the policies as typed."""
    return ag.open_run(run).graph(**policies_of(weight, residual, heads, sink))


def policies_of(weight: str, residual: str, heads: str, sink: str) -> Policies:
    """The policies as typed, for `Policy` to judge."""
    return {
        "weight": cast("Weight", weight),
        "residual": residual_of(residual),
        "heads": cast("Heads", heads),
        "sink": cast("Sink", sink),
    }


def residual_of(text: str) -> Residual:
    """A residual policy as typed: a number where the text is one, else the word."""
    try:
        return float(text)
    except ValueError:
        return cast("Residual", text)
