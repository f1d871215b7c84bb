"""What a model *is*, as a hash: its weights, its config and its tokenizer.

Two runs are comparable when their fingerprints are equal, wherever the weights came from. So everything that
depends on the way of loading (paths, library versions, attention implementation, file layout) is left out,
and tied weights count once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PIECE = 1 << 26
"""Bytes hashed as one piece: hashlib releases the GIL, so pieces of a large tensor are hashed in parallel."""

VOLATILE_CONFIG = frozenset(
    {"_name_or_path", "architectures", "dtype", "quantization_config", "torch_dtype", "transformers_version"}
)
"""Config fields that say how a model was saved or loaded, not what it computes; dtypes count with weights."""


def model_fingerprint(model: PreTrainedModel, tokenizer_digest: str | None) -> str:
    """Hash a model's weights, config and tokenizer.

    Returns
    -------
    str
        ``"sha256:<hex>"``. Any changed weight, config field or tokenizer changes it; the folder, file format
        and transformers version that it came from don't.
    """
    return _digest(
        {
            "architecture": type(model).__name__,
            "config": config_digest(model.config),
            "tokenizer": tokenizer_digest,
            "weights": weights_digest(model),
        }
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what decides the token ids of a text: the tokenizer's backend, else its vocabulary.

    Returns
    -------
    str
        ``"sha256:<hex>"``.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _digest(
            {
                "class": type(tokenizer).__name__,
                "special": tokenizer.special_tokens_map,
                "vocabulary": tokenizer.get_vocab(),
            }
        )
    # The serialisation opens with version, truncation and padding; the last two are left there by the latest
    # call of the tokenizer, so they are no part of its identity.
    content = backend.to_str().partition('"added_tokens"')[2]
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def config_digest(config: PreTrainedConfig) -> str:
    """Hash the fields of a config that differ from its class's defaults, without the volatile ones."""
    return _digest({"type": config.model_type, "fields": _stable(config.to_diff_dict())})


def weights_digest(model: PreTrainedModel) -> str:
    """Hash name, dtype, shape and bytes of all parameters and persistent buffers; a tied weight counts once."""
    state = model.state_dict()
    seen: dict[tuple[int, int, tuple[int, ...]], str] = {}
    names: list[str] = []
    # A tied weight counts under its alphabetically first name, so the order of the modules doesn't matter.
    for name in sorted(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.numel(), tuple(tensor.shape))
        if tensor.numel() == 0 or seen.setdefault(place, name) == name:
            names.append(name)
    with ThreadPoolExecutor() as pool:
        digests = {name: list(pool.map(_sha256, _pieces(state[name]))) for name in names}
    return _digest(
        {
            name: [str(state[name].dtype).removeprefix("torch."), list(state[name].shape), digests[name]]
            for name in names
        }
    )


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    import torch

    if tensor.numel() == 0:
        return
    array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, array.nbytes, PIECE):
        yield array[start : start + PIECE].data


def _sha256(piece: memoryview) -> str:
    return hashlib.sha256(piece).hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _stable(item) for key, item in value.items() if key not in VOLATILE_CONFIG}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
