"""Along a completion: does the sparse model choose the tokens that the dense one would?

Both models read prompt and completion once (teacher forcing), so every token of the completion is a prediction to
compare. Logits of thousands of positions would fill the memory; hidden states don't. So what the decoder hands to its
head is kept in each pass, and the head is run on a few positions at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attngraph.tasks.prompt import Span

LOGIT_ELEMENTS = 1 << 22
"""Logits of one model that are held at once: 16 MB."""


class Agreement(NamedTuple):
    """Over `tokens` predictions: the share with the same first choice, and the mean divergence KL(dense ‖ sparse)."""

    tokens: int
    same: float
    kl: float


class States:
    """The hidden states [n, d] that the head reads at some positions of the latest forward pass.

    Parameters
    ----------
    model
        A causal language model.
    positions
        The positions of interest.
    """

    def __init__(self, model: PreTrainedModel, positions: range) -> None:
        self.model, self.positions = model, positions
        self._output: Any = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the states of the forward passes inside the block; nothing where there are no positions."""
        if not self.positions:
            yield
            return

        def keep(_: Any, __: Any, output: Any) -> None:
            self._output = self._with(output, output.last_hidden_state[:, list(self.positions)])

        handle = self.model.base_model.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, some: slice) -> Tensor:
        """Logits [some, vocabulary], fp32, as the model's own forward makes them of its decoder's output."""
        hidden = self._output.last_hidden_state[:, some]
        decoder = self.model.base_model
        # Heads are not all linear (soft caps, scales): the model's own forward runs, on a decoder that is through.
        decoder.forward = lambda *_, **__: self._with(self._output, hidden)
        try:
            with torch.inference_mode():
                ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
                logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        finally:
            del decoder.forward
        return logits[0].float()

    @staticmethod
    def _with(output: Any, hidden: Tensor) -> Any:
        replaced = copy.copy(output)
        replaced.last_hidden_state = hidden
        return replaced


def predicting(completion: Span | None) -> range:
    """The positions that predict the tokens of a completion; none without one."""
    return range(completion.start - 1, completion.end - 1) if completion else range(0)


def agreement(dense: States, sparse: States, vocabulary: int, elements: int = LOGIT_ELEMENTS) -> Agreement | None:
    """How far two models agree at the positions whose states were kept; None without any position.

    Of each model at most `elements` logits, or those of one position, are held at once.
    """
    if not dense.positions:
        return None
    count, step = len(dense.positions), max(1, elements // vocabulary)
    same, divergence = 0, 0.0
    for start in range(0, count, step):
        ours, theirs = (states.logits(slice(start, start + step)) for states in (dense, sparse))
        same += int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
        ours, theirs = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
        divergence += float((ours.exp() * (ours - theirs)).sum(dim=-1).clamp_min(0).sum())
    return Agreement(count, same / count, divergence / count)
