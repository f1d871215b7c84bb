"""A language model ready to be traced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attngraph.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from attngraph.models.support import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, its tokenizer and their identity; `load_model` and `from_parts` make one.

    Attributes
    ----------
    model
        The transformers model, in evaluation mode and without gradients.
    tokenizer
        Its tokenizer; ``None`` for a model that only reads token ids.
    id
        The name that it was asked for by.
    fingerprint
        ``"sha256:<hex>"`` of weights, config and tokenizer.
    tokenizer_fingerprint
        ``"sha256:<hex>"`` of the tokenizer; ``None`` without one.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)
    id: str
    fingerprint: str
    tokenizer_fingerprint: str | None

    @classmethod
    def from_parts(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, *, id: str = "model"
    ) -> LanguageModel:
        """Make a `LanguageModel` of a transformers model that is already in memory.

        The model is put into evaluation mode and its gradients are switched off, in place.

        Raises
        ------
        UnsupportedModelError
            When attngraph can't trace this architecture.
        """
        check_model(model, id)
        model.eval().requires_grad_(False)
        tokenizer_digest = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
        return cls(
            model=model,
            tokenizer=tokenizer,
            id=id,
            fingerprint=model_fingerprint(model, tokenizer_digest),
            tokenizer_fingerprint=tokenizer_digest,
        )

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that the model has an embedding for."""
        return int(self.model.get_input_embeddings().weight.shape[0])
