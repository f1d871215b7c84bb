"""Where a decoder keeps the parts that a capture reads: its layers, attention modules and output projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attngraph.errors import UnsupportedModelError


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model (of its text part, where it has several)."""
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers, in order.

    Raises
    ------
    UnsupportedModelError
        If no list of `num_hidden_layers` modules with a `self_attn` each is found.
    """
    count = text_config(model).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and all(hasattr(x, "self_attn") for x in module):
            return list(module)
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of {count} decoder layers with a `self_attn` each; "
        f"attngraph can't trace it."
    )


def output_gram(attention: nn.Module, heads: int) -> Tensor:
    """W_O^h W_O^hᵀ of every head, [heads, d_v, d_v] fp32, for the value norms.

    Raises
    ------
    UnsupportedModelError
        If the attention module has no linear `o_proj`.
    """
    projection = getattr(attention, "o_proj", None)
    if not isinstance(projection, nn.Linear) or projection.in_features % heads:
        raise UnsupportedModelError(
            f"{type(attention).__name__} has no linear output projection `o_proj` that splits into {heads} heads; "
            f"attngraph can't weigh its edges by contribution."
        )
    weight: Tensor = projection.weight.detach().float()
    parts = weight.view(len(weight), heads, -1).permute(1, 2, 0)
    return torch.matmul(parts, parts.transpose(1, 2))


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
    for name in ("pre_feedforward_layernorm", "pre_mlp_layernorm", last):
        if isinstance(found := getattr(layer, name, None), nn.Module):
            return found
    raise UnsupportedModelError(
        f"{type(layer).__name__} has no norm between attention and MLP; attngraph can't measure its residual shares."
    )
