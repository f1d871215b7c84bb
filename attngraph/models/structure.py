"""Where a decoder keeps the parts that a capture reads: its layers, attention modules and output projections.

Families name these parts differently; each is looked up among the known names, and a model without one of them is
refused (`check_structure`), before any forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attngraph.errors import UnsupportedModelError

ATTENTIONS = ("self_attn", "attn", "attention")
"""Names of a layer's attention module."""

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""Names of an attention module's output projection."""

NORMS_BEFORE_MLP = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "ln_2")
"""Names of the norm that reads the stream between attention and MLP, and nothing else."""


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model (of its text part, where it has several)."""
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


def check_structure(model: nn.Module) -> None:
    """Find every part that a capture reads, layer by layer; reads no weight.

    Raises
    ------
    UnsupportedModelError
        Naming the part that is missing.
    """
    heads = text_config(model).num_attention_heads
    for layer in decoder_layers(model):
        output_projection(attention_of(layer), heads)
        if not is_parallel(layer):
            before_mlp(layer)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers, in order.

    Raises
    ------
    UnsupportedModelError
        If no list of `num_hidden_layers` modules with an attention module each is found.
    """
    count = text_config(model).num_hidden_layers
    for module in model.modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == count
            and all(any(hasattr(layer, name) for name in ATTENTIONS) for layer in module)
        ):
            return list(module)
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of {count} decoder layers with an attention module each "
        f"({', '.join(ATTENTIONS)}); attngraph can't trace it."
    )


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention module of one of `decoder_layers`."""
    module: nn.Module = next(getattr(layer, name) for name in ATTENTIONS if hasattr(layer, name))
    return module


def output_projection(attention: nn.Module, heads: int) -> nn.Linear | Conv1D:
    """The linear map from the heads' outputs, side by side, to the residual stream.

    Raises
    ------
    UnsupportedModelError
        If the attention module has none of a known name, or none that splits into `heads` heads.
    """
    for name in OUTPUT_PROJECTIONS:
        projection = getattr(attention, name, None)
        if isinstance(projection, nn.Linear | Conv1D) and _by_input(projection).shape[0] % heads == 0:
            return projection
    raise UnsupportedModelError(
        f"{type(attention).__name__} has no linear output projection ({', '.join(OUTPUT_PROJECTIONS)}) that splits "
        f"into {heads} heads; attngraph can't weigh its edges by contribution."
    )


def output_gram(attention: nn.Module, heads: int) -> Tensor:
    """W_O^h W_O^hᵀ of every head, [heads, d_v, d_v] fp32, for the value norms."""
    weight = _by_input(output_projection(attention, heads)).float()
    parts = weight.reshape(heads, -1, weight.shape[1])
    return torch.matmul(parts, parts.transpose(1, 2))


def _by_input(projection: nn.Linear | Conv1D) -> Tensor:
    """The weight as [in, out], the heads side by side in the input: Conv1D (GPT-2) keeps it so, Linear transposed."""
    weight: Tensor = projection.weight.detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def is_parallel(layer: nn.Module) -> bool:
    """Whether attention and MLP read the same stream and are added to it together (GPT-NeoX, Phi, Cohere)."""
    said = getattr(layer, "use_parallel_residual", None)
    if said is not None:
        return bool(said)
    norms = [name for name, _ in layer.named_children() if "norm" in name or name.startswith("ln_")]
    return norms == ["input_layernorm"] and hasattr(layer, "mlp")


def before_mlp(layer: nn.Module) -> nn.Module:
    """The module whose input is the residual stream between a layer's attention and its MLP.

    Raises
    ------
    UnsupportedModelError
        If the layer has no norm of a known name there.
    """
    # Where each branch is normed at its end alone (OLMo 2, EXAONE 4), the MLP itself reads the stream, and
    # `post_attention_layernorm` the attention's output.
    last = "mlp" if hasattr(layer, "post_feedforward_layernorm") else "post_attention_layernorm"
    for name in (*NORMS_BEFORE_MLP, last):
        if isinstance(found := getattr(layer, name, None), nn.Module):
            return found
    raise UnsupportedModelError(
        f"{type(layer).__name__} has no norm between attention and MLP; attngraph can't measure its residual shares."
    )
