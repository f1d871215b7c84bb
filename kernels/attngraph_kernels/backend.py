"""Which code computes an operation: the Triton kernels on a GPU, PyTorch everywhere else.

The choice is made call by call: tensors on a GPU go to Triton where it is installed and knows the operation, and one
line in the log says why where they do not. `use("torch")` or the environment variable ATTNGRAPH_KERNELS (auto, torch or
triton) overrides it. Tensors on a processor can go to Triton in its interpreter only (TRITON_INTERPRET=1), which is how
the kernels are tested without a GPU.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, cast, get_args

from torch import Tensor

logger = logging.getLogger(__name__)

Backend = Literal["auto", "torch", "triton"]

VARIABLE = "ATTNGRAPH_KERNELS"


def _checked(backend: str) -> Backend:
    if backend not in get_args(Backend):
        raise ValueError(f"The kernels' backend {backend!r} is not one of {', '.join(get_args(Backend))}.")
    return cast(Backend, backend)


_backend = _checked(os.environ.get(VARIABLE, "auto"))


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Let `backend` compute everything inside the block, for the whole process.

    Parameters
    ----------
    backend
        "auto" (Triton on a GPU), "torch" (never Triton) or "triton" (an error where Triton can't).

    Examples
    --------
    >>> with use("torch"):                                    # doctest: +SKIP
    ...     attended = attend(q, k, v, grid, Stream(budget=8), scale=0.125)
    """
    global _backend
    before, _backend = _backend, _checked(backend)
    try:
        yield
    finally:
        _backend = before


def runs_in_triton(operation: str, tensor: Tensor, unknown: Callable[[], str | None]) -> bool:
    """Whether `operation` on `tensor` and its like is Triton's.

    Parameters
    ----------
    unknown
        Says why the kernels don't know this case of the operation, None if they do.

    Raises
    ------
    RuntimeError
        If the backend is "triton" and Triton can't.
    """
    if _backend == "torch" or (_backend == "auto" and tensor.device.type == "cpu"):
        return False
    reason = _missing(tensor.device.type) or unknown()
    if reason is None:
        return True
    if _backend == "triton":
        raise RuntimeError(f"{operation} can't run in Triton: {reason}. The backend 'auto' would use PyTorch.")
    say(operation, reason)
    return False


@cache
def say(operation: str, reason: str) -> None:
    """Tell the log why PyTorch computes an operation, once per reason."""
    logger.warning("%s runs in PyTorch: %s", operation, reason)


def _missing(device: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on a processor, where only its interpreter runs (TRITON_INTERPRET=1)"
    return None if device in ("cpu", "cuda", "meta") else f"there are no kernels for the device {device!r}"
