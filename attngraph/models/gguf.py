"""GGUF files: converted to safetensors once, kept in the user's cache.

Reading a GGUF file through transformers takes 15 to 45 seconds, a converted folder one or two. A cache entry
is a folder in transformers' layout plus `entry.json`, which records where it came from and the sha256 of
every file.

1. The entry's name holds the sha256 of the GGUF file, so a changed file is a new entry.
2. A complete entry is one whose files have the recorded sizes and hashes; anything else is built again.
3. It is built in a temporary folder under a lock and renamed into place, so two processes never see half an
   entry.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock

from attngraph.errors import ModelError
from attngraph.models.extras import CAPTURE_PACKAGES, GGUF_PACKAGES, require
from attngraph.models.fingerprint import PIECE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 1
"""Part of an entry's name: raise it when the conversion changes."""

ENTRY = "entry.json"

UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error)
"""What the readers of GGUF files raise at files that are damaged, or of an architecture that they don't know."""

DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Values of `tokenizer.ggml.pre` that split every digit off before GPT-2's pattern, as llama.cpp defines
them.
"""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where converted models are kept: `cache_dir`, else $ATTNGRAPH_CACHE, else the user's cache folder."""
    return Path(cache_dir or os.environ.get("ATTNGRAPH_CACHE") or platformdirs.user_cache_dir("attngraph"))


def converted(
    name: str,
    source_sha256: str,
    materialise: Callable[[Path], Path],
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the folder of a GGUF file's conversion, converting it first if there is no complete one.

    Parameters
    ----------
    name
        Beginning of the entry's folder name.
    source_sha256
        Hex sha256 of the GGUF file.
    materialise
        Given a scratch folder, returns the path of the GGUF file; called only when there is something to
        convert.
    cache_dir
        As in `cache_folder`.

    Raises
    ------
    ModelError
        When the file can't be converted or the cache can't be written.
    """
    root = cache_folder(cache_dir) / "models"
    entry = root / f"{name}-{source_sha256[:16]}-v{CONVERTER_VERSION}"
    if is_complete(entry):
        return entry
    require(*CAPTURE_PACKAGES, *GGUF_PACKAGES)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{entry.name}.lock"):
            # Another process may have built it while this one waited for the lock.
            if not is_complete(entry):
                _build(entry, source_sha256, materialise)
    except OSError as error:
        raise ModelError(
            f"Can't keep the converted model in {root}: {error}. "
            "Make room there, or set ATTNGRAPH_CACHE to a folder that can be written."
        ) from error
    return entry


def is_complete(entry: Path) -> bool:
    """Whether every file of a cache entry has the size and sha256 that were recorded when it was built."""
    try:
        recorded = json.loads((entry / ENTRY).read_text(encoding="utf-8"))["files"]
        return bool(recorded) and all(
            (entry / name).stat().st_size == expected["bytes"] and pieces_sha256(entry / name) == expected["sha256"]
            for name, expected in recorded.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def pieces_sha256(path: Path) -> str:
    """Hex sha256 over the sha256 of each 64 MiB piece of a file: pieces can be hashed in parallel."""

    def digest(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(PIECE)).digest()

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(digest, range(0, path.stat().st_size, PIECE)))).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(entry: Path, source_sha256: str, materialise: Callable[[Path], Path]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=entry.parent))
    try:
        built = scratch / "model"
        source = materialise(scratch)
        logger.info("Converting %s to safetensors; this happens once and takes up to a minute.", source.name)
        convert(source, built)
        record = {
            "source": {"name": source.name, "bytes": source.stat().st_size, "sha256": source_sha256},
            "converter": CONVERTER_VERSION,
            "transformers": version("transformers"),
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": pieces_sha256(path)}
                for path in sorted(built.iterdir())
            },
        }
        (built / ENTRY).write_text(json.dumps(record, indent=1), encoding="utf-8")
        if entry.exists():
            # A folder can't be replaced by a rename; the damaged one leaves with the scratch folder.
            entry.rename(scratch / "damaged")
        built.rename(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def convert(source: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a transformers folder, in float32.

    float32 holds every dequantised value as transformers computes it; shorter floats would round once more.

    Raises
    ------
    ModelError
        When transformers can't read the file.
    """
    import torch
    import transformers

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            **where,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(gguf_file=source.name, dequantize=True),
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **where)
        _split_digits(tokenizer, source)
    except UNREADABLE as error:
        raise ModelError(
            f"transformers can't read the GGUF file {source.name}: {error}. "
            "Give the model as a folder in transformers' layout instead."
        ) from error
    if report["missing_keys"]:
        # transformers would fill them with random numbers.
        raise ModelError(
            f"The GGUF file {source.name} lacks weights of {type(model).__name__}, such as "
            f"{min(report['missing_keys'])}. Give a complete file."
        )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _name_generic_class(target / "tokenizer_config.json", tokenizer)


def _split_digits(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """Split digits off first where the file says so; transformers falls back to GPT-2's pattern alone."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    kind = GGUFReader(source).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() in DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _name_generic_class(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name the class that reads tokenizer.json as it is; the model's own rebuilds it in Python, slower."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": tokenizer.padding_side}
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
