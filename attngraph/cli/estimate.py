"""`attngraph estimate`: what would a capture take?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import attngraph as ag
from attngraph.cli.options import (
    AllocationOption,
    BlockSize,
    Budget,
    FirstBudget,
    FirstLayers,
    Json,
    Model,
    NMatch,
    config_of,
)
from attngraph.cli.output import print_json, print_screen, size
from attngraph.config import StreamConfig

if TYPE_CHECKING:
    from attngraph.capture import Estimate


def estimate(
    model: Model,
    length: Annotated[int, typer.Option(help="Tokens of the prompt, its completion included.", min=1)],
    block_size: BlockSize = StreamConfig.block_size,
    budget: Budget = str(StreamConfig.budget),
    targets: Annotated[int, typer.Option(help="Number of target tokens, the last ones.", min=1)] = 1,
    first_layers: FirstLayers = StreamConfig.first_layers,
    first_budget: FirstBudget = StreamConfig.first_budget,
    n_match: NMatch = str(StreamConfig.n_match),
    allocation: AllocationOption = StreamConfig.allocation,
    store: Annotated[Path, typer.Option(help="Store whose earlier runs tell the seconds.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Say what a capture would take: edges, bytes, peak memory, seconds if known.

    Of a hub id only the configuration is fetched. Exits with 2 if the memory would not do.

    Example: attngraph estimate --model smollm2-135m --length 32768
    """
    config = config_of(
        block_size, budget, n_match, allocation=allocation, first_layers=first_layers, first_budget=first_budget
    )
    config.budget_for(length)
    found = ag.estimate(model, length, config, targets=targets, store=store if store.is_dir() else None)
    if json:
        print_json(asdict(found))
    else:
        print_screen(_summary(found))
    # The numbers are worth having either way; scripts see from the exit code whether a capture would be refused.
    found.refuse_if_too_large()


def _summary(found: Estimate) -> str:
    available = "unknown" if found.available_bytes is None else size(found.available_bytes)
    seconds = "unknown: no earlier run to go by" if found.seconds is None else f"{found.seconds:.0f} s"
    parts = ", ".join(f"{name} {size(count)}" for name, count in found.peak_parts.items())
    return "\n".join(
        [
            f"model     {found.model}, {found.tokens:,} tokens in {found.blocks:,} blocks of {found.block_size}, "
            f"budget {found.budget}",
            f"edges     {'' if found.exact else 'about '}{found.edges:,} and {found.target_edges:,} into "
            f"{found.targets:,} target{'' if found.targets == 1 else 's'}",
            f"on disk   {size(found.run_bytes)} (all patterns: {size(found.dense_cache_bytes)})",
            f"memory    {size(found.peak_bytes)} at the peak ({parts})",
            f"available {available} on {found.device}",
            f"time      {seconds}" + (f" (from run {found.seconds_from})" if found.seconds_from else ""),
        ]
    )
