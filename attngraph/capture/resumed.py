"""Passes that begin in the middle: layers that compute what they did before are skipped.

One pass keeps what chosen layers hand on. A later pass that changes nothing before one of them begins there: the
layers before it hand on what was kept, whatever they are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from attngraph.capture.memory import available_bytes
from attngraph.models import LanguageModel
from attngraph.models.structure import text_config

MEMORY_SHARE = 0.25
"""How much of the memory that is left may hold what layers handed on."""


class HandedOn:
    """What layers handed on in one pass, for later passes to begin with.

    Parameters
    ----------
    lm
        The model.
    layers
        Its decoder layers.
    tokens
        Length of the prompt.
    firsts
        The layers at which later passes would like to begin; where not all fit into memory, some, spread evenly.
    """

    def __init__(self, lm: LanguageModel, layers: Sequence[nn.Module], tokens: int, firsts: Sequence[int]) -> None:
        self.layers = layers
        room = available_bytes(lm.model.device)
        size = tokens * text_config(lm.model).hidden_size * lm.model.dtype.itemsize
        self.starts = spread(
            sorted({first for first in firsts if first > 0}), room and int(MEMORY_SHARE * room) // size
        )
        self._output: dict[int, Any] = {}

    def start(self, first: int) -> int:
        """The layer at which a pass that changes from layer `first` on can begin."""
        return max((start for start in self._output if start <= first), default=0)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what the layers hand on inside the block."""
        with ExitStack() as stack:
            for start in self.starts:

                def keep(_: Any, __: Any, output: Any, start: int = start) -> None:
                    self._output[start] = output

                stack.callback(self.layers[start - 1].register_forward_hook(keep).remove)
            yield

    @contextmanager
    def begun(self, start: int) -> Iterator[None]:
        """Let passes inside the block begin at layer `start`, one of those that `start()` names."""
        output = self._output.get(start)

        def skipped(*_: Any, **__: Any) -> Any:
            return output

        with ExitStack() as stack:
            for layer in self.layers[:start]:
                stack.callback(_restore, layer, vars(layer).get("forward"))
                layer.forward = skipped
            yield


def spread(wanted: Sequence[int], most: int | None) -> list[int]:
    """At most `most` of what is wanted, evenly, the first one included; all of it where there is no limit."""
    if most is None or len(wanted) <= most:
        return list(wanted)
    return list(wanted[:: -(-len(wanted) // most)]) if most > 0 else []


def _restore(layer: nn.Module, forward: Any) -> None:
    """Give a layer its `forward` back: that of its class, or one that was set on it."""
    del layer.forward
    if forward is not None:
        layer.forward = forward
