"""What a run says about itself: its manifest, and the tables of its prompt."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
import transformers

from attngraph.capture.recorder import Recorder
from attngraph.config import StreamConfig
from attngraph.models import LanguageModel
from attngraph.models.structure import text_config
from attngraph.store import (
    SCHEMA_VERSION,
    Cost,
    Fidelity,
    FoundBudget,
    Manifest,
    ModelInfo,
    Outcome,
    PromptInfo,
    SpanInfo,
)
from attngraph.tasks.prompt import Prompt
from attngraph.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe(
    lm: LanguageModel,
    prompt: Prompt,
    answer: tuple[int, ...],
    config: StreamConfig,
    recorder: Recorder,
    cost: Cost,
    fidelity: Fidelity | None,
    outcome: Outcome | None,
    found_budget: FoundBudget | None,
) -> Manifest:
    """The manifest of a run, but for what the writer fills in; `answer` are the ids of the answer's tokens."""
    return Manifest(
        key=task_key(lm, prompt, config),
        attngraph_version=__version__,
        model=_model_info(lm, tuple(grid.window for grid in recorder.tally.grids), recorder.tally.sinks),
        prompt=PromptInfo(
            tokens=len(prompt.token_ids),
            blocks=config.blocks(len(prompt.token_ids)),
            sha256=prompt.sha256,
            targets=recorder.targets,
            task=prompt.task,
            answer=prompt.answer,
            answer_tokens=answer,
            spans=tuple(SpanInfo(name=span.name, start=span.start, end=span.end) for span in prompt.spans),
            metadata=dict(prompt.metadata),
        ),
        config=config,
        cost=cost,
        fidelity=fidelity,
        outcome=outcome,
        found_budget=found_budget,
        environment=environment(),
    )


def environment() -> dict[str, str]:
    """Versions, platform and number of threads that a run is made with."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


def task_key(lm: LanguageModel, prompt: Prompt, config: StreamConfig) -> str:
    """What identifies a run before it exists: a hash of model, prompt (spans and answer too), settings and schema."""
    spans = [(span.name, span.start, span.end) for span in prompt.spans]
    # Fields are encoded in the order in which they were set, which for settings read from a file is that of the file.
    settings = replace(config)
    parts = (lm.fingerprint, prompt.sha256, spans, prompt.answer, settings, SCHEMA_VERSION)
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def prompt_tables(
    tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt, block_size: int
) -> dict[str, Mapping[str, Any]]:
    """The tables `tokens`, `blocks` and `spans`; texts are empty without a tokenizer."""
    ids = list(prompt.token_ids)
    starts = np.arange(0, len(ids), block_size)
    ends = np.minimum(starts + block_size, len(ids))

    def texts(pieces: list[list[int]]) -> list[str]:
        return [""] * len(pieces) if tokenizer is None else list(tokenizer.batch_decode(pieces))

    vocabulary = sorted(set(ids))
    text_of = dict(zip(vocabulary, texts([[token] for token in vocabulary]), strict=True))
    return {
        "tokens": {
            "position": np.arange(len(ids)),
            "token_id": np.array(ids),
            "block": np.arange(len(ids)) // block_size,
            "text": [text_of[token] for token in ids],
        },
        "blocks": {
            "block": np.arange(len(starts)),
            "token_start": starts,
            "token_end": ends,
            "text": texts([ids[start:end] for start, end in zip(starts, ends, strict=True)]),
        },
        "spans": {
            "span": np.arange(len(prompt.spans)),
            "name": [span.name for span in prompt.spans],
            "token_start": np.array([span.start for span in prompt.spans], dtype=np.int64),
            "token_end": np.array([span.end for span in prompt.spans], dtype=np.int64),
        },
    }


def _model_info(lm: LanguageModel, windows: tuple[int | None, ...], sinks: bool) -> ModelInfo:
    config = text_config(lm.model)
    heads = config.num_attention_heads
    return ModelInfo(
        id=lm.id,
        architecture=type(lm.model).__name__,
        fingerprint=lm.fingerprint,
        tokenizer_fingerprint=lm.tokenizer_fingerprint or "",
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        windows=windows,
        dtype=str(lm.model.dtype).removeprefix("torch."),
        parameters=lm.model.num_parameters(),
        device=str(lm.model.device),
        sinks=sinks,
    )
