"""What a capture would take, said before it runs, and the check that it fits into memory.

Edges are exact, bytes and peak memory are computed (`footprint.py`), seconds are those of an earlier run of the same
model in the same store on the same kind of machine, scaled with T log T; without one they are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attngraph.capture.cost import dense_cache_bytes
from attngraph.capture.description import environment
from attngraph.capture.footprint import (
    FIXED,
    LIBRARIES,
    Shape,
    edge_count,
    peak_bytes,
    run_bytes,
    target_edge_count,
)
from attngraph.capture.memory import available_bytes, resident_bytes
from attngraph.config import StreamConfig
from attngraph.errors import ConfigError
from attngraph.models import LanguageModel
from attngraph.models.load import load_outline
from attngraph.store import Run, Store, open_store

if TYPE_CHECKING:
    from attngraph.tasks.prompt import Prompt

AUTO_BUDGET = 32
"""Blocks assumed for ``budget="auto"``, whose budget is known only when it is found."""
ANSWER_TOKENS = 8
"""Tokens assumed for ``n_match="answer"`` where there is no prompt yet."""
FARTHEST = 8
"""Seconds are scaled from runs that are at most this many times shorter or longer."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a capture would take.

    `edges` and `target_edges` are exact, unless `exact` is False: with ``allocation="mass"`` they are the most that can
    be kept, with ``budget="auto"`` those of a budget of 32 blocks. `run_bytes` leaves out the rows of `span_edges`.
    `peak_bytes` is the sum of `peak_parts`; `available_bytes` what this process could hold at most, None where the
    system doesn't say, of the GPU's memory if `device` is one. `dense_cache_bytes` is what all attention patterns would
    take. `seconds` of the captured pass come from the run `seconds_from`; both are None where there is no run to scale.
    """

    model: str
    device: str
    tokens: int
    blocks: int
    block_size: int
    budget: int
    targets: int
    edges: int
    target_edges: int
    exact: bool
    run_bytes: int
    dense_cache_bytes: int
    peak_bytes: int
    peak_parts: dict[str, int]
    available_bytes: int | None
    fits: bool
    seconds: float | None = None
    seconds_from: str | None = None

    def refuse_if_too_large(self) -> None:
        """Raise a ConfigError where the memory would not do, with the numbers and the ways out."""
        if self.fits or self.available_bytes is None:
            return
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in self.peak_parts.items())
        fixed = sum(self.peak_parts.get(name, 0) for name in ("libraries", "weights", "process"))
        room = (self.available_bytes - fixed) / (self.peak_bytes - fixed)
        fitting = f"about {max(0, int(self.tokens * room)):,} tokens would fit" if room > 0 else "no length would fit"
        raise ConfigError(
            f"Capturing {self.tokens:,} tokens with {self.model!r} needs about {_gigabytes(self.peak_bytes)} at its "
            f"peak ({parts}), but only {_gigabytes(self.available_bytes)} are available on {self.device}; {fitting}. "
            f"Give a shorter prompt, a smaller model, a smaller budget, bigger blocks, fewer targets, or n_match=0."
        )


def estimate(
    model: str | LanguageModel,
    length: int,
    config: StreamConfig | None = None,
    *,
    targets: int = 1,
    store: str | Path | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> Estimate:
    """Say what a capture of `length` tokens would take, without running or downloading the model.

    Parameters
    ----------
    model
        As in `load_model`; of a hub id only the configuration is fetched. Or a model in memory.
    length
        Tokens of the prompt, its completion included.
    config
        As in `capture`.
    targets
        Number of target tokens, the last ones of the prompt. Where there are more than one, they count as a completion
        whose predictions are compared.
    store
        Where earlier runs are looked for, to know the seconds.
    dtype, device
        As in `load_model`; for a model in memory they are its own.

    Raises
    ------
    ConfigError
        If settings and length don't go together.
    ModelError
        If there is no such model, or it can't be traced.
    """
    config = config or StreamConfig()
    if not 1 <= targets <= length:
        raise ConfigError(f"targets={targets!r} must be between 1 and the length of {length} tokens.")
    if isinstance(model, LanguageModel):
        shape, place, name = Shape.of(model.model), model.model.device, model.id
    else:
        outline, place, item_bytes = load_outline(model, dtype=dtype, device=device)
        shape, name = Shape.of(outline, item_bytes), model
    positions = range(length - targets, length)
    n_match = ANSWER_TOKENS if config.n_match == "answer" else config.n_match
    found = _estimate(
        shape, name, place, length, config, positions, following=max(n_match - 1, 0), completion=targets - 1,
        loaded=isinstance(model, LanguageModel),
    )  # fmt: skip
    run = None if store is None else _like(open_store(store), found, config, shape)
    if run is None:
        return found
    before = run.manifest.prompt.tokens
    scale = length * math.log(length) / (before * math.log(before))
    return replace(found, seconds=run.cost.capture_seconds * scale, seconds_from=run.id)


def check_memory(
    lm: LanguageModel, prompt: Prompt, config: StreamConfig, targets: Sequence[int], following: int
) -> None:
    """Refuse a capture that would not fit into the memory that is left.

    Parameters
    ----------
    following
        Tokens that are read after the prompt to compare the models.

    Raises
    ------
    ConfigError
        With what it needs, what there is, and the ways out.
    """
    span = prompt.completion
    found = _estimate(
        Shape.of(lm.model), lm.id, lm.model.device, len(prompt), config, targets, following=following,
        completion=span.end - span.start if span else 0, loaded=True,
    )  # fmt: skip
    found.refuse_if_too_large()


def _estimate(
    shape: Shape,
    name: str,
    device: torch.device,
    tokens: int,
    config: StreamConfig,
    targets: Sequence[int],
    *,
    following: int,
    completion: int,
    loaded: bool,
) -> Estimate:
    exact = config.budget != "auto" and config.allocation == "uniform"
    if config.budget == "auto":
        config = replace(config, budget=min(AUTO_BUDGET, config.budget_for(tokens)))
    parts = peak_bytes(shape, tokens, config, targets, following, completion)
    left = available_bytes(device)
    if device.type == "cuda":
        del parts["libraries"], parts["recording"]  # these are the host's
    elif left is not None:
        left += resident_bytes()
    # Whatever else this process holds, such as a notebook's data, stays beside the model.
    other = resident_bytes() - LIBRARIES - (shape.weight_bytes if loaded else 0)
    if loaded and device.type != "cuda" and other > FIXED:
        parts = {"process": other, **parts}
    peak = sum(parts.values())
    return Estimate(
        model=name,
        device=str(device),
        tokens=tokens,
        blocks=config.blocks(tokens),
        block_size=config.block_size,
        budget=config.budget_for(tokens),
        targets=len(targets),
        edges=edge_count(shape, tokens, config),
        target_edges=target_edge_count(shape, tokens, config, targets),
        exact=exact,
        run_bytes=run_bytes(shape, tokens, config, targets),
        dense_cache_bytes=dense_cache_bytes(len(shape.windows), shape.heads, tokens, shape.item_bytes),
        peak_bytes=peak,
        peak_parts=parts,
        available_bytes=left,
        fits=left is None or peak <= left,
    )


def _like(store: Store, found: Estimate, config: StreamConfig, shape: Shape) -> Run | None:
    """The run nearest in length of the same model, settings and kind of machine; None where there is none."""
    wanted, here = replace(config, n_match=1, targets=()), environment()
    near = []
    for run in store:
        manifest = run.manifest
        same = (
            manifest.model.id == found.model
            and manifest.model.device == found.device
            and getattr(torch, manifest.model.dtype).itemsize == shape.item_bytes
            and replace(manifest.config, n_match=1, targets=()) == wanted
            and all(manifest.environment.get(name) == here[name] for name in ("platform", "threads", "torch"))
            and len(manifest.prompt.targets) == found.targets
        )
        distance = abs(math.log(manifest.prompt.tokens / found.tokens))
        if same and distance <= math.log(FARTHEST):
            near.append((distance, run.id, run))
    return min(near, default=(None, None, None))[2]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
