"""Which models attngraph can trace: decoder-only, causal, with attention that goes through transformers' interface, and
with layers whose parts it finds.

Judged from the config and from a model without weights (torch's meta device), so that a refusal costs
milliseconds and no download of weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attngraph.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WAY_OUT = "Give a decoder-only language model, such as Llama, Qwen 2, Qwen 3, Gemma 3 or Mistral (see docs/models.md)."

LAYER_TYPES = ("full_attention", "sliding_attention")
"""The layer types of transformers' configurations that can be traced."""


def check_config(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Refuse a config whose causal language model attngraph can't trace; returns that model without weights.

    Raises
    ------
    UnsupportedModelError
        For an encoder-decoder, an architecture without a causal language model, and whatever `check_model`
        refuses.
    """
    import torch
    from transformers import AutoModelForCausalLM

    architecture = _architecture(config)
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name!r} is an encoder-decoder model ({architecture}). {WAY_OUT}")
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UnsupportedModelError(
            f"{name!r} ({architecture}) is not a causal language model that transformers knows. {WAY_OUT}"
        ) from error
    check_model(model, name)
    return model


def check_model(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose attention isn't causal, doesn't go through transformers' attention interface, is cut into
    chunks, or whose layers lack a part that a capture reads.

    Raises
    ------
    UnsupportedModelError
        Naming the architecture.
    """
    from attngraph.models.structure import check_structure, text_config

    kind: Any = type(model)
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name!r} is an encoder-decoder model ({kind.__name__}). {WAY_OUT}")
    # transformers' own two signs of a model whose attention function can be replaced.
    if not (kind._supports_attention_backend and kind._can_set_attn_implementation()):
        raise UnsupportedModelError(
            f"{name!r} ({kind.__name__}) doesn't use transformers' attention interface, so its attention "
            f"can't be traced. {WAY_OUT}"
        )
    # Layers of the language model are numbered; those of a vision tower beside it aren't.
    if any(hasattr(module, "layer_idx") and getattr(module, "is_causal", True) is False for module in model.modules()):
        raise UnsupportedModelError(f"{name!r} ({kind.__name__}) is an encoder: its attention isn't causal. {WAY_OUT}")
    others = sorted(set(getattr(text_config(model), "layer_types", None) or ()) - set(LAYER_TYPES))
    if others:
        raise UnsupportedModelError(
            f"{name!r} ({kind.__name__}) has layers of type {', '.join(others)}; attngraph can trace "
            f"{' and '.join(LAYER_TYPES)} only. {WAY_OUT}"
        )
    check_structure(model)


def _architecture(config: PreTrainedConfig) -> str:
    return ", ".join(config.architectures or [type(config).__name__])
