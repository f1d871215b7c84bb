"""How much of every update comes from the residual stream, the attention and the MLP, measured by hooks.

For a sum y = Σ p of parts, a part's share is its L1 proximity to the sum, c(p) = max(‖y‖₁ − ‖y − p‖₁, ε), normalised
over the parts (Ferrando & Voita 2024, arXiv 2403.00824). With x the stream before the layer, y the stream between
attention and MLP and z the stream after it, the attention sub-layer's parts are x and y − x, the MLP's are y and z − y.
Reading the stream itself makes norms after a branch (Gemma) part of the branch.

A parallel block (GPT-NeoX, Phi) adds attention a and MLP m to the stream at once. It has one sum, z = x + a + m, of
three parts, and the residual share is all but attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attngraph.errors import UnsupportedModelError
from attngraph.models.structure import attention_of, before_mlp, is_parallel

EPSILON = 1e-5


ROUNDING = 0.02
"""How far, relative to the stream, a parallel block's parts may be from adding up: half precision needs some."""


class Shares(NamedTuple):
    """Shares of every token in one layer, each [T]: `residual` + `attention` = 1; `mlp` against the stream it joins.

    In a parallel block `mlp` is part of `residual`.
    """

    residual: Tensor
    attention: Tensor
    mlp: Tensor


def proximity_shares(norm: Tensor, *rests: Tensor) -> tuple[Tensor, ...]:
    """The share of each part of a sum, [T] in (0, 1), from the L1 norm of the sum and of the sum without the part."""
    closeness = [(norm - rest).clamp_min(EPSILON) for rest in rests]
    whole = torch.stack(closeness).sum(dim=0)
    return tuple(part / whole for part in closeness)


def l1(x: Tensor) -> Tensor:
    """L1 norms of the rows of x [T, d], [T]."""
    return x.abs().sum(dim=-1)  # vector_norm takes twice as long


@contextmanager
def measured_shares(layers: Sequence[nn.Module], report: Callable[[int, Shares], None]) -> Iterator[None]:
    """Call `report(layer, shares)` after each layer of every forward pass inside the block."""
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            measure = _parallel if is_parallel(layer) else _sequential
            for handle in measure(layer, partial(report, index)):
                stack.callback(handle.remove)
        yield


def _sequential(layer: nn.Module, report: Callable[[Shares], None]) -> list[RemovableHandle]:
    """Hooks on a layer whose MLP reads what the attention has written."""
    streams: dict[str, Tensor] = {}

    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        before, middle, after = streams.pop("before"), streams.pop("between"), _stream(output)
        if middle.data_ptr() == before.data_ptr():
            raise UnsupportedModelError(
                f"{type(layer).__name__} lets its MLP read the stream before attention; attngraph can't measure its "
                f"residual shares."
            )
        before, middle, after = before.float(), middle.float(), after.float()
        of_before, of_middle = l1(before), l1(middle)
        # What a sum is without one of its two parts is the other.
        attention = proximity_shares(of_middle, l1(middle - before), of_before)[1]
        mlp = proximity_shares(l1(after), l1(after - middle), of_middle)[1]
        report(Shares(1 - attention, attention, mlp))

    return [
        _keep_input(layer, streams, "before"),
        _keep_input(before_mlp(layer), streams, "between"),
        layer.register_forward_hook(leaving),
    ]


def _parallel(layer: nn.Module, report: Callable[[Shares], None]) -> list[RemovableHandle]:
    """Hooks on a layer that adds its attention and its MLP to the stream at once."""
    streams: dict[str, Tensor] = {}

    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        before, attention, mlp = (streams.pop(name).float() for name in ("before", "attention", "mlp"))
        after = _stream(output).float()
        if (after - before - attention - mlp).abs().sum() > ROUNDING * after.abs().sum():
            raise UnsupportedModelError(
                f"{type(layer).__name__} is not the sum of its input, its attention and its MLP; attngraph can't "
                f"measure its residual shares."
            )
        rests = (l1(after - part) for part in (before, attention, mlp))
        of_attention, of_mlp = proximity_shares(l1(after), *rests)[1:]
        report(Shares(1 - of_attention, of_attention, of_mlp))

    return [
        _keep_input(layer, streams, "before"),
        _keep_output(attention_of(layer), streams, "attention"),
        _keep_output(layer.get_submodule("mlp"), streams, "mlp"),
        layer.register_forward_hook(leaving),
    ]


def _keep_input(module: nn.Module, streams: dict[str, Tensor], name: str) -> RemovableHandle:
    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams[name] = (args[0] if args else kwargs["hidden_states"])[0]

    return module.register_forward_pre_hook(entering, with_kwargs=True)


def _keep_output(module: nn.Module, streams: dict[str, Tensor], name: str) -> RemovableHandle:
    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        streams[name] = _stream(output)

    return module.register_forward_hook(leaving)


def _stream(output: Any) -> Tensor:
    """[T, d] of the one prompt in a module's output."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first[0]
