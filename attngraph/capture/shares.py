"""How much of every update comes from the residual stream, the attention and the MLP, measured by hooks.

For a sum y = Σ p of parts, a part's share is its L1 proximity to the sum, c(p) = max(‖y‖₁ − ‖y − p‖₁, ε), normalised
over the parts (Ferrando & Voita 2024, arXiv 2403.00824). With x the stream before the layer, y the stream between
attention and MLP and z the stream after it, the attention sub-layer's parts are x and y − x, the MLP's are y and z − y.
Reading the stream itself makes norms after a branch (Gemma) part of the branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from attngraph.capture.structure import before_mlp

EPSILON = 1e-5


class Shares(NamedTuple):
    """Shares of every token in one layer, each [T]: `residual` + `attention` = 1; `mlp` against the stream it joins."""

    residual: Tensor
    attention: Tensor
    mlp: Tensor


def proximity_shares(stream: Tensor, branch: Tensor) -> Tensor:
    """The share of `branch` in `stream + branch`, both [T, d]: [T] in (0, 1)."""
    total, without, alone = (x.abs().sum(dim=-1) for x in (stream + branch, stream, branch))
    of_branch = (total - without).clamp_min(EPSILON)
    of_stream = (total - alone).clamp_min(EPSILON)
    return of_branch / (of_branch + of_stream)


@contextmanager
def measured_shares(layers: Sequence[nn.Module], report: Callable[[int, Shares], None]) -> Iterator[None]:
    """Call `report(layer, shares)` after each layer of every forward pass inside the block."""
    streams: dict[str, Tensor] = {}

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams["before"] = (args[0] if args else kwargs["hidden_states"])[0]

    def between(_: nn.Module, args: tuple[Any, ...]) -> None:
        streams["between"] = args[0][0]

    def leaving(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            after = (output[0] if isinstance(output, tuple) else output)[0].float()
            before, middle = (streams.pop(name).float() for name in ("before", "between"))
            attention = proximity_shares(before, middle - before)
            report(layer, Shares(1 - attention, attention, proximity_shares(middle, after - middle)))

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(entering, with_kwargs=True).remove)
            stack.callback(before_mlp(layer).register_forward_pre_hook(between).remove)
            stack.callback(layer.register_forward_hook(leaving(index)).remove)
        yield
