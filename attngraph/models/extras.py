"""The optional packages that loading and running a model needs."""

from __future__ import annotations

from importlib.util import find_spec

from attngraph.errors import MissingDependencyError

CAPTURE_PACKAGES = ("torch", "transformers", "safetensors")
GGUF_PACKAGES = ("gguf", "accelerate")


def require(*packages: str) -> None:
    """Check that `packages` are installed, without importing them.

    Raises
    ------
    MissingDependencyError
        Naming the missing packages and the command that installs them.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"Running a model needs {', '.join(missing)}, which is not installed. "
            'Install it with: pip install "attngraph[capture]"'
        )
