"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from attngraph.config import Selector, StreamConfig
from attngraph.errors import ConfigError

Model = Annotated[
    str, typer.Option(help="A bundled model (smollm2-135m, gemma3-270m), a folder, a GGUF file or a hub id.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Length = Annotated[int, typer.Option(help="Tokens of the needle prompt, at most.")]
Depth = Annotated[float, typer.Option(help="Where the needle lies, from 0 (start) to 1 (end).")]
Seed = Annotated[int, typer.Option(help="Seed of key, value and haystack.")]
Haystack = Annotated[
    Literal["noise", "varied"], typer.Option(help="noise: RULER's five sentences; varied: natural sentences.")
]
BlockSize = Annotated[int, typer.Option(help="Tokens per block: 8, 16, 32, 64 or 128.")]
Budget = Annotated[str, typer.Option(help="Key blocks kept per query block and head, or all.")]


def budget_of(text: str) -> int | Literal["all"]:
    """The budget as typed: a number or the word all."""
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"budget={text!r} is neither a number of blocks nor 'all'.") from None


def config_of(block_size: int, budget: str, n_match: int = 2, selector: str = "stream") -> StreamConfig:
    """The capture's settings from what was typed."""
    return StreamConfig(
        block_size=block_size, budget=budget_of(budget), n_match=n_match, selector=cast(Selector, selector)
    )
