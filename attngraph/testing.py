"""Small synthetic runs and graphs, for tests of code that reads runs or asks graphs questions.

`write_random_run` writes a run that satisfies every rule of the format. `layered_graphs` is a strategy for
hypothesis (which only it needs)::

    @given(attngraph.testing.layered_graphs())
    def test_my_analysis(graph): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attngraph.config import StreamConfig
from attngraph.store import Cost, Fidelity, Manifest, ModelInfo, Outcome, PromptInfo, Pruned, Run, RunWriter, SpanInfo

if TYPE_CHECKING:
    from attngraph.graph.testing import layered_graphs as layered_graphs

SPANS = (("sink", 0.0, 0.02), ("needle", 0.3, 0.34), ("question", 0.9, 1.0))
"""Spans of a random run: name, and start and end as shares of the prompt."""
ANCHOR, DRAW = 1, 10.0
"""The sentence that planted receiver heads come back to, and how much more of their mass it gets."""


def __getattr__(name: str) -> Any:
    if name != "layered_graphs":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attngraph.graph.testing import layered_graphs

    return layered_graphs


def write_random_run(
    store: Path | str,
    *,
    layers: int = 3,
    heads: int = 2,
    blocks: int = 8,
    budget: int = 4,
    block_size: int = 16,
    targets: Sequence[int] | None = None,
    model: str = "random",
    task: str | None = "needle",
    success: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
    sharpness: float = 2.0,
    sentences: int = 0,
    receivers: Sequence[tuple[int, int]] = (),
    seed: int = 0,
) -> Run:
    """Write a run of random attention to a store, deterministic but for its id.

    Every query block keeps the sink, itself, the one before it and random others up to the budget; masses sum
    to 1 per row; the last block is three tokens short.

    Parameters
    ----------
    store
        Folder of the store.
    layers, heads, blocks, budget, block_size
        Sizes; `budget` is from 3 to `blocks`.
    targets
        Token positions; the last token by default.
    model, task
        Names for the manifest.
    success
        The outcome; None for a run without one.
    metadata
        Of the prompt, beside the seed.
    sharpness
        Exponent of the random weights: with more of it rows have fewer effective keys.
    sentences
        Spans ``sentence:0``, ``sentence:1``, … over all tokens but the question's.
    receivers
        Heads (layer, head) whose later sentences come back to sentence 1.
    seed
        Seed of the random numbers.
    """
    tokens = blocks * block_size - 3
    positions = np.array([tokens - 1] if targets is None else targets, dtype=np.int64)
    config = StreamConfig(block_size=block_size, budget=budget, first_layers=0)
    prompt = PromptInfo(
        tokens=tokens,
        blocks=blocks,
        sha256=hashlib.sha256(f"{tokens} tokens of seed {seed}".encode()).hexdigest(),
        targets=tuple(positions.tolist()),
        task=task,
        answer="42",
        spans=tuple(
            SpanInfo(name=name, start=int(start * tokens), end=max(int(start * tokens) + 1, int(end * tokens)))
            for name, start, end in SPANS
        )
        + _sentences(sentences, tokens),
        metadata={"seed": seed, **(metadata or {})},
    )
    manifest = _random_manifest(_model_info(model, layers, heads), prompt, config, success)
    random = np.random.default_rng(seed)
    with RunWriter(store) as writer:
        for layer in range(layers):
            drawn = [head for at, head in receivers if at == layer]
            _append_layer(writer, layer, random, manifest, sharpness, drawn)
        _append_prompt(writer, prompt, block_size, random)
        return writer.commit(manifest)


def _sentences(count: int, tokens: int) -> tuple[SpanInfo, ...]:
    limits = np.linspace(0, int(SPANS[-1][1] * tokens), count + 1).astype(int).tolist()
    return tuple(
        SpanInfo(name=f"sentence:{index}", start=start, end=end) for index, (start, end) in enumerate(pairwise(limits))
    )


def _append_layer(
    writer: RunWriter,
    layer: int,
    random: np.random.Generator,
    manifest: Manifest,
    sharpness: float,
    receivers: Sequence[int],
) -> None:
    heads, blocks, budget = (
        manifest.model.heads,
        manifest.prompt.blocks,
        manifest.config.budget_for(manifest.prompt.tokens),
    )
    targets = np.array(manifest.prompt.targets, dtype=np.int64)
    query_block, edges = _random_edges(random, heads, np.arange(blocks), budget, sharpness)
    writer.append("edges", {"layer": layer, "query_block": query_block, **edges})
    kept = np.zeros((heads, blocks), dtype=np.int64)
    np.add.at(kept, (edges["head"], query_block), 1)
    head, row = np.indices((heads, blocks)).reshape(2, -1)
    audited = np.ma.MaskedArray(random.uniform(0.8, 1.0, head.size), mask=row != blocks - 1)
    writer.append(
        "rows",
        {
            "layer": layer,
            "head": head,
            "query_block": row,
            "kept": kept.ravel(),
            "kept_mass": audited,
            "kept_mass_estimate": random.uniform(0.8, 1.0, head.size),
        },
    )
    if targets.size:
        target, target_edges = _random_edges(random, heads, targets // manifest.config.block_size, budget, sharpness)
        writer.append("target_edges", {"layer": layer, "target": targets[target], **target_edges})
        kept = np.zeros((heads, targets.size), dtype=np.int64)
        np.add.at(kept, (target_edges["head"], target), 1)
        head, row = np.indices(kept.shape).reshape(2, -1)
        kept_mass = random.uniform(0.8, 1.0, head.size)
        rows = {"head": head, "target": targets[row], "kept": kept.ravel(), "kept_mass": kept_mass}
        writer.append("target_rows", {"layer": layer, **rows})
    residual = random.uniform(0.3, 0.9, blocks + targets.size)
    no_blocks, no_targets = [None] * blocks, [None] * targets.size
    writer.append(
        "shares",
        {
            "layer": layer,
            "block": [*range(blocks), *no_targets],
            "position": [*no_blocks, *targets.tolist()],
            "residual": residual,
            "attention": 1 - residual,
            "mlp": random.uniform(0.0, 0.5, residual.size),
        },
    )
    spans = len(manifest.prompt.spans)
    head, query_span, key_span = np.indices((heads, spans, spans)).reshape(3, -1)
    causal = key_span <= query_span
    mass = random.random(int(causal.sum())) / spans
    anchors = [index for index, span in enumerate(manifest.prompt.spans) if span.name == f"sentence:{ANCHOR}"]
    drawn = np.isin(head[causal], receivers) & np.isin(key_span[causal], anchors)
    mass[drawn] *= DRAW
    span_columns = {"head": head[causal], "query_span": query_span[causal], "key_span": key_span[causal]}
    writer.append("span_edges", {"layer": layer, **span_columns, "mass": mass, "contribution": mass * 2})


def _random_edges(
    random: np.random.Generator, heads: int, query_blocks: npt.NDArray[np.int64], budget: int, sharpness: float
) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]:
    """For every row of `query_blocks` its kept edges: the rows' numbers, and the columns that edges share."""
    own = np.broadcast_to(query_blocks[:, None, None], (query_blocks.size, heads, 1))
    slot = np.arange(budget)
    # One key from each of as many stretches as there is room for, between the sink and the previous block.
    stretch = np.maximum(budget - 3, 1)
    start, end = ((own - 2) * (slot - 1 + after) // stretch for after in (0, 1))
    key_block = 1 + start + (random.random((query_blocks.size, heads, budget)) * (end - start)).astype(np.int64)
    key_block = np.where(slot == 0, 0, np.where(slot >= budget - 2, own - (budget - 1 - slot), key_block))
    key_block = np.where(own < budget, slot, key_block)
    row, head, _ = kept = np.nonzero(key_block <= own)
    weight = np.where(key_block <= own, random.exponential(size=key_block.shape) ** sharpness + 1e-6, 0.0)
    mass = (weight / weight.sum(axis=-1, keepdims=True))[kept]
    value_norm = random.lognormal(0.0, 1.5, size=head.size)
    return row, {
        "head": head,
        "key_block": key_block[kept],
        "mass": mass,
        "contribution": mass * value_norm,
    }


def _append_prompt(writer: RunWriter, prompt: PromptInfo, block_size: int, random: np.random.Generator) -> None:
    position = np.arange(prompt.tokens)
    texts = [f" word{index % 97}" for index in position]
    start = np.arange(prompt.blocks) * block_size
    end = np.minimum(start + block_size, prompt.tokens)
    token_columns = {"position": position, "token_id": random.integers(0, 50_000, prompt.tokens)}
    writer.append("tokens", {**token_columns, "block": position // block_size, "text": texts})
    block_texts = ["".join(texts[first:last]) for first, last in zip(start, end, strict=True)]
    block_columns = {
        "block": np.arange(prompt.blocks),
        "token_start": start,
        "token_end": end,
        "text": block_texts,
    }
    writer.append("blocks", block_columns)
    span_columns = {
        "span": np.arange(len(prompt.spans)),
        "name": [span.name for span in prompt.spans],
        "token_start": [span.start for span in prompt.spans],
        "token_end": [span.end for span in prompt.spans],
    }
    writer.append("spans", span_columns)


def _model_info(model: str, layers: int, heads: int) -> ModelInfo:
    return ModelInfo(
        id=model,
        architecture="RandomForCausalLM",
        fingerprint=hashlib.sha256(model.encode()).hexdigest(),
        tokenizer_fingerprint=hashlib.sha256(b"tokenizer").hexdigest(),
        layers=layers,
        heads=heads,
        kv_heads=1,
        head_dim=64,
        windows=(None,) * layers,
        dtype="float32",
        parameters=layers * heads * 1000,
        device="cpu",
    )


def _outcome(success: bool) -> Outcome:
    said, score = ("42", 1.0) if success else ("17", 0.0)
    return Outcome(
        expected="42",
        dense_answer=said,
        sparse_answer=said,
        dense_score=score,
        sparse_score=score,
        success=success,
        margin=2.0 if success else -2.0,
    )


def _random_manifest(model: ModelInfo, prompt: PromptInfo, config: StreamConfig, success: bool | None) -> Manifest:
    matching = Fidelity(
        n_match=2,
        dense_tokens=(4, 2),
        sparse_tokens=(4, 2),
        next_tokens_match=True,
        kl=0.01,
        dense_margin=2.5,
        sparse_margin=2.25,
        answer_tokens=2,
        answer_tokens_kept=2,
        dense_answer_tokens_kept=2,
    )
    cost = Cost(
        capture_seconds=1.5,
        dense_forward_seconds=1.25,
        peak_rss_bytes=1 << 30,
        dense_cache_bytes=4 * model.layers * model.heads * prompt.tokens**2,
        pruned=Pruned(causal=0.95, square=0.975, visible=0.95),
    )
    return Manifest(
        key=hashlib.sha256(f"{model.id} {prompt.sha256} {config}".encode()).hexdigest(),
        attngraph_version="0.1.0",
        model=model,
        prompt=prompt,
        config=config,
        fidelity=matching,
        outcome=None if success is None else _outcome(success),
        cost=cost,
        environment={"python": "3.11"},
    )
