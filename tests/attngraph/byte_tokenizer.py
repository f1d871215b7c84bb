"""A tokenizer for prompts of text: bytes, and a few pairs of them that reach over the edges of words."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attngraph.tasks import Prompt


def word_tokenizer(*, space_sticks_to_digits: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a token for every common pair, so that tokens reach over word edges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("i", "n"), ("e", "r"), ("Ġ", "i"), ("Ġi", "s"), ("Ġ", "O")]
    if space_sticks_to_digits:
        merges += [("Ġ", digit) for digit in "0123456789"]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


WORDS = word_tokenizer()


def span_texts(tokenizer: Any, prompt: Prompt, name: str) -> list[str]:
    """The texts of all spans called `name`, without the white space that tokens bring along."""
    return [
        tokenizer.decode(prompt.token_ids[span.start : span.end]).strip() for span in prompt.spans if span.name == name
    ]


def span_text(tokenizer: Any, prompt: Prompt, name: str) -> str:
    """The text of the one span called `name`."""
    (text,) = span_texts(tokenizer, prompt, name)
    return text
