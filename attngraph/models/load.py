"""`load_model`: from a name to a `LanguageModel`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attngraph.errors import ConfigError, ModelError
from attngraph.models.extras import CAPTURE_PACKAGES, require
from attngraph.models.language_model import LanguageModel
from attngraph.models.sources import Source, find
from attngraph.models.support import check_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "auto")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    name
        A bundled demo model (``"smollm2-135m"``, ``"gemma3-270m"``), a local folder in transformers' layout,
        a local ``.gguf`` file, or a hub id; asked in this order.
    revision
        Branch, tag or commit of a hub id.
    dtype
        ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the one that the model was saved in.
    device
        ``"auto"`` (``"cuda"`` where there is one, else ``"cpu"``), or a torch device such as ``"cuda:1"``.
    cache_dir
        Where converted GGUF models are kept; by default $ATTNGRAPH_CACHE, else the user's cache folder. A
        first load of a GGUF model takes up to a minute, later ones a few seconds.

    Returns
    -------
    LanguageModel
        In evaluation mode, without gradients, with scaled-dot-product attention. The tokenizer is ``None``
        for a local folder without one.

    Raises
    ------
    ModelError
        When there is no such model, or it can't be loaded whole.
    UnsupportedModelError
        When attngraph can't trace this architecture.
    MissingDependencyError
        When torch, transformers or a bundled model's package isn't installed.
    ConfigError
        For an unknown dtype or device.

    Examples
    --------
    >>> lm = load_model("smollm2-135m")  # doctest: +SKIP
    """
    require(*CAPTURE_PACKAGES)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    place = _device(device)
    source = find(name, revision, cache_dir)
    with _loading(name):
        model, tokenizer = _read(source, name, dtype)
    return LanguageModel.from_parts(model.to(place), tokenizer, id=name)


def load_tokenizer(
    name: str, *, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model, without the model; None for a local folder without one.

    Parameters and errors are those of `load_model`.
    """
    require(*CAPTURE_PACKAGES)
    source = find(name, revision, cache_dir)
    with _loading(name):
        return _tokenizer(source, _where(source))


def load_outline(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[PreTrainedModel, torch.device, int]:
    """A model's outline without its weights (on torch's meta device), where it would live, and bytes per weight.

    Parameters and errors are those of `load_model`; of a hub id only the configuration is fetched.
    """
    import torch
    from transformers import AutoConfig

    require(*CAPTURE_PACKAGES)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    place = _device(device)
    source = find(name, revision, cache_dir)
    with _loading(name):
        config = AutoConfig.from_pretrained(source.location, **_where(source))
        outline = check_config(config, name)
    kind = getattr(config, "dtype", None) or "float32" if dtype == "auto" else dtype
    return outline, place, (kind if isinstance(kind, torch.dtype) else getattr(torch, kind)).itemsize


def _where(source: Source) -> dict[str, Any]:
    return {"revision": source.revision, "local_files_only": source.offline}


def _read(source: Source, name: str, dtype: str) -> tuple[Any, PreTrainedTokenizerBase | None]:
    from transformers import AutoConfig, AutoModelForCausalLM

    where = _where(source)
    config = AutoConfig.from_pretrained(source.location, **where)
    check_config(config, name)
    model, report = AutoModelForCausalLM.from_pretrained(
        source.location,
        config=config,
        dtype=dtype,
        attn_implementation="sdpa",
        output_loading_info=True,
        **where,
    )
    # transformers fills what is missing with random numbers; a trace of those would be nonsense.
    absent = sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})
    if absent:
        raise ModelError(
            f"{name!r} lacks {len(absent)} weights of {type(model).__name__}, or has them in another shape: "
            f"{', '.join(absent[:3])}{', …' if len(absent) > 3 else ''}. Give a complete causal language model."
        )
    return model, _tokenizer(source, where)


def _tokenizer(source: Source, where: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    # For a folder without tokenizer files transformers makes up an empty tokenizer.
    if source.is_folder and not any((Path(source.location) / file).is_file() for file in TOKENIZER_FILES):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.location, **where)
    return tokenizer


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is no torch device; give 'auto', 'cpu', 'cuda' or 'cuda:1'.") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device!r}, but torch sees {torch.cuda.device_count()} CUDA devices; give 'cpu'.")
    return place


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Keep transformers' progress bars quiet, and say in attngraph's words what it can't load."""
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"transformers can't load {name!r}: {error}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
