"""Tiny random models whose attention is peaked, prompts for them, and dense truths computed without attngraph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import tokenizers
import torch
import transformers
from torch import Tensor, nn

import attngraph as ag

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOW = 41
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {"num_hidden_layers": 2},
    "Qwen2": {"hidden_size": 64, "num_key_value_heads": 1},
    "Qwen3": {"num_hidden_layers": 4},
    "Gemma3Text": {
        "num_hidden_layers": 6,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 16,
    },
    "Mistral": {"sliding_window": WINDOW + 1, "hidden_size": 32},
    "Mixtral": {"sliding_window": WINDOW, **MOE},
    "Qwen3Moe": MOE,
    "Gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 9.0},
    "Phi3": {"sliding_window": WINDOW},
    "GPT2": {},
    "GPTNeoX": {},
    "Olmo2": {},
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
    "GptOss": {"sliding_window": WINDOW, **MOE},
    "Granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "Starcoder2": {"sliding_window": WINDOW},
}
"""Settings over `SMALL`; windows are smaller than most prompts here.

Seen from the first query of a block of 8, a window of 41 begins with the first key of a block, one of 42 with the last
key of the block before: both sides of an error by one.
"""
FEW = ("Llama", "Qwen2", "Qwen3", "Gemma3Text", "Mistral")
"""The architectures of tests that are about something else."""

LAYERS = {"GPT2": "transformer.h", "GPTNeoX": "gpt_neox.layers"}
PROJECTIONS = {"GPT2": "attn.c_proj", "GPTNeoX": "attention.dense", "Phi": "self_attn.dense"}


def layers_of(model: Any) -> Any:
    return model.get_submodule(LAYERS.get(kind_of(model), "model.layers"))


def projection_of(model: Any, layer: nn.Module) -> Any:
    return layer.get_submodule(projection_name(kind_of(model)))


def projection_name(kind: str) -> str:
    return PROJECTIONS.get(kind, "self_attn.o_proj")


def kind_of(model: Any) -> str:
    return type(model.config).__name__.removesuffix("Config")


def tiny_model(kind: str, *, seed: int = 0, peak: float = 1.6, **settings: Any) -> Any:
    """A random model of this architecture whose queries and keys are `peak` times as large as they would be."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | ARCHITECTURES.get(kind, {}) | settings))
    model = transformers.AutoModelForCausalLM.from_config(config)
    normed = any("q_norm" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        if "Gemma" not in kind:  # Gemma scales its embeddings itself; elsewhere attention would drown the stream
            model.get_input_embeddings().weight.mul_(6)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases start at 0 or 1, where a test would not see them
                parameter.add_(0.2 * torch.randn_like(parameter))
            if name.endswith("sinks"):
                parameter.copy_(9 + 2 * torch.randn_like(parameter))
            if normed and name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.add_(peak - 1 if "Gemma" in kind else (peak - 1) * parameter)
            elif not normed:
                _queries_and_keys(name, parameter, config).mul_(peak)
    return model


def _queries_and_keys(name: str, parameter: Tensor, config: Any) -> Tensor:
    """The part of a weight that makes queries and keys, also where one matrix makes values too."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return parameter
    if name.endswith("attn.c_attn.weight"):  # GPT-2: [in, queries, keys, values]
        return parameter[:, : 2 * config.hidden_size]
    if name.endswith("query_key_value.weight"):  # GPT-NeoX: query, key and value of each head in turn
        return parameter.view(config.num_attention_heads, 3, -1)[:, :2]
    if name.endswith("qkv_proj.weight"):  # Phi 3: queries, keys, values
        width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        return parameter[:-width]
    return parameter[:0]


def tiny(kind: str = "Llama", *, tokenizer: Any = None, **settings: Any) -> ag.LanguageModel:
    return ag.LanguageModel.from_parts(tiny_model(kind, **settings), tokenizer, id="tiny")


def word_tokenizer() -> Any:
    """Token i is the word "wi": every sequence of tokens can be written as text."""
    vocabulary = {f"w{token}": token for token in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words(token_ids: Any) -> str:
    return " ".join(f"w{token}" for token in token_ids)


def random_prompt(tokens: int, *, seed: int = 0, spans: Any = (), answer: str | None = None) -> ag.Prompt:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, tokens)
    return ag.Prompt(token_ids=ids, spans=tuple(ag.Span(*span) for span in spans), answer=answer)


class Dense(NamedTuple):
    """Eager attention: `logits` [T, vocabulary], `attention` [layers, H, T, T], `lengths` ‖v W_O^h‖ [layers, H, T]."""

    logits: Tensor
    attention: Tensor
    lengths: Tensor


@torch.no_grad()
def dense(lm: ag.LanguageModel, prompt: ag.Prompt) -> Dense:
    """The model's own eager attention; value lengths by sending each head's values alone through its projection."""
    seen: list[tuple[Tensor, Tensor]] = []

    def recorded(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **settings: Any) -> Any:
        eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        output, weights = eager(module, q, k, v, mask, **settings)
        seen.append((v[0], weights[0]))
        return output, weights

    transformers.AttentionInterface.register("recorded", recorded)
    transformers.masking_utils.AttentionMaskInterface.register("recorded", transformers.masking_utils.eager_mask)
    with implementation(lm.model, "recorded"):
        logits = lm.model(torch.tensor([prompt.token_ids]), use_cache=False).logits[0]
    heads = lm.model.config.num_attention_heads
    projections = [projection_of(lm.model, layer) for layer in layers_of(lm.model)]
    lengths = [_lengths(projection, v, heads) for projection, (v, _) in zip(projections, seen, strict=True)]
    return Dense(logits, torch.stack([weights for _, weights in seen]), torch.stack(lengths))


def _lengths(projection: nn.Module, values: Tensor, heads: int) -> Tensor:
    groups, tokens, width = values.shape
    found = []
    for head in range(heads):
        alone = torch.zeros(tokens, heads, width)
        alone[:, head] = values[head // (heads // groups)]
        projected = projection(alone.flatten(1)) - projection(torch.zeros(1, heads * width))
        found.append(projected.norm(dim=-1))
    return torch.stack(found)


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    own = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def windows(lm: ag.LanguageModel) -> list[int | None]:
    return windows_of(lm.model)


def windows_of(model: Any) -> list[int | None]:
    """The window of every layer, as the configuration has it."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def available(tokens: int, size: int, window: int | None) -> list[int]:
    """For every query block the number of key blocks that any of its tokens sees, counted token by token."""
    counts = []
    for start in range(0, tokens, size):
        seen = {
            key // size
            for query in range(start, min(start + size, tokens))
            for key in range(0 if window is None else max(0, query - window + 1), query + 1)
        }
        counts.append(len(seen))
    return counts


def by_block(x: Tensor, size: int, *, rows: bool) -> np.ndarray:
    """[..., T, T] summed over key blocks and, with `rows`, averaged over query blocks."""
    keys = torch.stack([part.sum(dim=-1) for part in x.double().split(size, dim=-1)], dim=-1)
    if rows:
        keys = torch.stack([part.mean(dim=-2) for part in keys.split(size, dim=-2)], dim=-2)
    return keys.numpy()


def as_array(frame: pl.LazyFrame, row: str, shape: tuple[int, ...], column: str) -> np.ndarray:
    """An edge table as a dense array [layers, H, rows, blocks], NaN where there is no edge."""
    table = frame.collect()
    found = np.full(shape, np.nan)
    found[tuple(table[name].to_numpy() for name in ("layer", "head", row, "key_block"))] = table[column].to_numpy()
    return found


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
