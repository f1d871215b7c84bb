"""The attention function registered with transformers, and the context manager that switches it on.

transformers calls it for every layer with q, k, v after rotary embedding and q/k norms, not repeated over head groups,
and with the layer's window, soft cap and sinks. What can't be traced faithfully is refused by name: batches, padding,
packed sequences, caches, bidirectional attention, position biases, keys chosen by the model itself, and masks other
than causal ones with or without a window. No mask is ever built: the mask function only looks at the two diagonals that
tell these from chunked, packed and prefix-bidirectional ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from attngraph.errors import UnsupportedModelError
from attngraph_kernels import BlockGrid, Softmax, dense_attention

NAME = "attngraph"

LayerAttention = Callable[[nn.Module, Tensor, Tensor, Tensor, int | None, float, Softmax], Tensor]
"""(attention module, q [H, T, d], k [G, T, d], v [G, T, d_v], window, scale, softmax) -> output [H, T, d_v]."""

NOT_TRACED = {
    "position_bias": "attention scores with a position bias",
    "indices": "attention over keys that the model chooses itself",
    "block_indices": "attention over keys that the model chooses itself",
    "sinks": "attention sinks that are not given as `s_aux`",
}
"""Arguments of an attention function that change what it computes, and that attngraph has no use for yet."""

DENSE_BLOCK = 16
"""Rows are streamed in multiples of this; the result doesn't depend on it."""

_active: ContextVar[LayerAttention | None] = ContextVar("attngraph_attention", default=None)


@contextmanager
def replaced_attention(model: PreTrainedModel, attention: LayerAttention) -> Iterator[None]:
    """Let `attention` compute every attention layer of `model` inside the block; then restore its own.

    Raises
    ------
    UnsupportedModelError
        If the architecture does not look its attention function up through transformers' interface.
    """
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} computes attention in its own code, not through transformers' attention "
            f"interface; attngraph can't trace it."
        )
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    token = _active.set(attention)
    try:
        yield
    finally:
        _active.reset(token)
        model.set_attn_implementation(own)


def streamed_attention(
    _: nn.Module, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, softmax: Softmax
) -> Tensor:
    """The model's own dense attention, computed in O(T) memory; a `LayerAttention`."""
    grid = BlockGrid(q.shape[1], DENSE_BLOCK, window)
    if not grid.windowed and softmax.softcap is None and softmax.sinks is None and q.shape[-1] == v.shape[-1]:
        # Nothing but causal: torch's fused kernel, on every device.
        return scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=len(k) < len(q)
        )[0]
    return dense_attention(q, k, v, grid, scale, softmax.softcap, softmax.sinks).output


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_ids: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    attention = _active.get()
    if attention is None:
        raise UnsupportedModelError("The attention implementation 'attngraph' works inside a capture only.")
    tokens = query.shape[2]
    _refuse_if(query.shape[0] != 1, f"a batch of {query.shape[0]} prompts; capture them one at a time")
    _refuse_if(attention_mask is not None, "padding; give the prompt without it")
    _refuse_if(key.shape[2] != tokens, "a key/value cache; capture the whole prompt in one forward pass")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _refuse_if(not causal, "attention that is not causal")
    for name, what in NOT_TRACED.items():
        _refuse_if(others.get(name) is not None, what)
    own_window = getattr(module, "sliding_window", None) if getattr(module, "is_sliding", True) else None
    unsaid = sliding_window is None and own_window is not None
    _refuse_if(unsaid, "a sliding window that the layer does not pass on to its attention function")
    if position_ids is not None:
        plain = torch.equal(position_ids.flatten(), torch.arange(tokens, device=position_ids.device))
        _refuse_if(not plain, "position ids that are not 0, 1, 2, … (packed sequences)")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    softmax = Softmax(softcap, None if s_aux is None else s_aux.detach().flatten())
    output = attention(module, query[0], key[0], value[0], sliding_window, scale, softmax)
    return output.transpose(0, 1).unsqueeze(0).contiguous(), None


def _no_mask(
    *,
    q_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    device: torch.device | None = None,
    **_: Any,
) -> Tensor | None:
    """None for a causal mask, with or without a window; the padding where there is some, for `_attention` to refuse."""
    if attention_mask is not None and not attention_mask.all():
        return attention_mask
    later = torch.arange(1, q_length, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    # Each token must see the one before it and none the one after it: not so where a chunk begins, or inside a prefix.
    before, after = mask_function(zero, zero, later, later - 1), mask_function(zero, zero, later - 1, later)
    _refuse_if(not before.all(), "a mask that cuts the prompt into pieces (chunked attention, packed sequences)")
    _refuse_if(bool(after.any()), "attention that is not causal")
    return None


def _refuse_if(condition: bool, what: str) -> None:
    if condition:
        raise UnsupportedModelError(f"attngraph can't trace {what}.")


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)
