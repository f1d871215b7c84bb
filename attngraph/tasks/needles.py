"""RULER's needles in a haystack (Hsieh et al. 2024, arXiv 2404.06654): one, among others like it, and several at once.

1. A sentence ("a needle") says that a word's magic number is seven random digits.
2. It stands between sentences that say nothing about it: RULER's noise, varied prose, or needles of other words.
3. A question asks for the number, and an answer prefix leads up to it, so that the next token is its first
   digit.

The wording is RULER's, whose tasks these are: ``needle`` is niah_single_1 (noise) and niah_single_2 (prose),
``multikey`` niah_multikey_1, and with the haystack ``needles`` niah_multikey_2; ``multivalue`` and ``multiquery`` are
those of that name. All sentences stand in one line, as in RULER's prose haystacks (its noise breaks the line after
every fifth sentence and around the needle).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from attngraph.tasks.frames import (
    Frame,
    Hidden,
    check_choice,
    check_count,
    check_depth,
    ending,
    fitted,
    listed,
    prompt_of,
)
from attngraph.tasks.haystacks import endless, key_words
from attngraph.tasks.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Haystack = Literal["noise", "varied", "needles"]

INSTRUCTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n"
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = "What is the special magic number for {key} mentioned in the provided text?"
ANSWER_PREFIX = "The special magic number for {key} mentioned in the provided text is"
INSTRUCTION_FOR_ALL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n"
)
QUESTION_FOR_ALL = "What are all the special magic numbers for {keys} mentioned in the provided text?"
ANSWER_PREFIX_FOR_ALL = "The special magic numbers for {keys} mentioned in the provided text are"
DIGITS = 7
MOST = 1000
"""Needles of one prompt that have spans."""


class Pair(NamedTuple):
    """What a needle says."""

    key: str
    value: str

    @property
    def text(self) -> str:
        """The needle."""
        return NEEDLE.format(key=self.key, value=self.value)


def needle(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 4096,
    depth: float = 0.5,
    seed: int = 0,
    haystack: Haystack = "noise",
) -> Prompt:
    """Make a needle-in-a-haystack prompt.

    Parameters
    ----------
    tokenizer
        A fast tokenizer.
    length
        Tokens of the prompt, special tokens included: met within one haystack sentence, never exceeded.
    depth
        Where the needle stands among the haystack's sentences: 0 before the first, 1 after the last.
    seed
        Decides key, value and, but for the noise, the haystack. The same seed gives the same prompt
        everywhere; seeds differ in nothing else.
    haystack
        ``"noise"``: RULER's five sentences, over and over. ``"varied"``: prose written for attngraph; its
        sentences come again, in another order, only when all of them have been used (at about 9,000 tokens).
        ``"needles"``: needles of other keys.

    Returns
    -------
    Prompt
        With the spans ``sink`` (the first token), ``needle``, ``value`` (the digits in the needle),
        ``question`` and ``answer_prefix``, the seven digits as `answer` (after a space where the tokenizer
        joins the two), and key, value, depth, seed and haystack in `metadata`.

    Raises
    ------
    PromptError
        For a length too short (it names the shortest), a depth outside 0 to 1, or an unknown haystack.
    """
    return _one(tokenizer, "needle", length, depth, seed, haystack, distractors=None)


def multikey(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 4096,
    depth: float = 0.5,
    seed: int = 0,
    haystack: Haystack = "varied",
    distractors: int = 3,
) -> Prompt:
    """Make a prompt with one needle that is asked for, among `distractors` needles of other keys.

    Parameters
    ----------
    tokenizer, length, depth, seed, haystack
        As in `needle`; `depth` is that of the needle that is asked for. In the haystack ``"needles"`` every other
        sentence is a needle too, but only `distractors` of them have spans.
    distractors
        Needles of other keys at random places, 0 to 1,000, each with a span ``distractor``.

    Returns
    -------
    Prompt
        As of `needle`, with the keys, values and depths of the distractors in `metadata`.

    Raises
    ------
    PromptError
        As `needle`, and for a number of distractors outside its limits.
    """
    check_count("distractors", distractors, 0, MOST)
    return _one(tokenizer, "multikey", length, depth, seed, haystack, distractors)


def multivalue(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 4096,
    seed: int = 0,
    haystack: Haystack = "varied",
    values: int = 4,
    distractors: int = 0,
) -> Prompt:
    """Make a prompt with several needles of one key, all of whose values are asked for.

    Parameters
    ----------
    tokenizer, length, seed, haystack, distractors
        As in `multikey`; all needles stand at random places.
    values
        Needles of the key that is asked for, 1 to 100.

    Returns
    -------
    Prompt
        As of `multikey`; the spans ``needle`` and ``value`` come `values` times, the answer lists the values in the
        order of the text, and `metadata` has ``keys`` (one) and ``values``.

    Raises
    ------
    PromptError
        As `multikey`.
    """
    check_count("values", values, 1, 100)
    return _several(tokenizer, "multivalue", length, seed, haystack, 1, values, distractors)


def multiquery(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 4096,
    seed: int = 0,
    haystack: Haystack = "varied",
    queries: int = 4,
    distractors: int = 0,
) -> Prompt:
    """Make a prompt with several needles, all of whose keys are asked for.

    Parameters
    ----------
    tokenizer, length, seed, haystack, distractors
        As in `multikey`; all needles stand at random places.
    queries
        Keys that are asked for, 1 to 100.

    Returns
    -------
    Prompt
        As of `multikey`; the spans ``needle`` and ``value`` come `queries` times, the answer lists the values in the
        order of the question, and `metadata` has ``keys`` and ``values`` in that order.

    Raises
    ------
    PromptError
        As `multikey`.
    """
    check_count("queries", queries, 1, 100)
    return _several(tokenizer, "multiquery", length, seed, haystack, queries, 1, distractors)


def _one(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    length: int,
    depth: float,
    seed: int,
    haystack: Haystack,
    distractors: int | None,
) -> Prompt:
    """One needle asked for; without distractors, None, their part of the metadata is left out."""
    check_choice("haystack", haystack, get_args(Haystack))
    check_depth(depth)
    draw = random.Random(seed)
    asked, *others = islice(_pairs(draw), 1 + (distractors or 0))
    depths = [draw.random() for _ in others]
    prefix = ANSWER_PREFIX.format(key=asked.key)
    frame = Frame(
        INSTRUCTION,
        QUESTION.format(key=asked.key),
        prefix + ending(tokenizer, prefix, asked.value),
        (Hidden("needle", asked.text, depth, {"value": asked.value}), *_distractors(others, depths)),
    )
    metadata = {
        **asked._asdict(),
        "depth": depth,
        "seed": seed,
        "haystack": haystack,
        "length": length,
    }
    if distractors is not None:
        metadata |= {"distractors": _described(others, depths)}
    sentences = fitted(tokenizer, frame, _supply(haystack, draw, [asked, *others]), length)
    return prompt_of(tokenizer, frame, sentences, answer=asked.value, task=task, metadata=metadata)


def _several(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    length: int,
    seed: int,
    haystack: Haystack,
    keys: int,
    values: int,
    distractors: int,
) -> Prompt:
    """`values` needles of each of `keys` keys asked for."""
    check_choice("haystack", haystack, get_args(Haystack))
    check_count("distractors", distractors, 0, MOST)
    draw = random.Random(seed)
    drawn = list(islice(_pairs(draw), keys * values + distractors))
    others = drawn[keys * values :]
    # As many distinct values as needles, and of their keys the first ones.
    asked = [Pair(drawn[index // values].key, pair.value) for index, pair in enumerate(drawn[: keys * values])]
    depths = [draw.random() for _ in drawn]
    if keys == 1:
        depths[:values] = sorted(depths[:values])
    names = [pair.key for pair in asked[::values]]
    prefix = ANSWER_PREFIX_FOR_ALL.format(keys=listed(names))
    frame = Frame(
        INSTRUCTION_FOR_ALL,
        QUESTION_FOR_ALL.format(keys=listed(names)),
        prefix + ending(tokenizer, prefix, asked[0].value),
        (
            *(
                Hidden("needle", pair.text, depth, {"value": pair.value})
                for pair, depth in zip(asked, depths[: len(asked)], strict=True)
            ),
            *_distractors(others, depths[len(asked) :]),
        ),
    )
    metadata = {
        "keys": names,
        "values": [pair.value for pair in asked],
        "depths": depths[: len(asked)],
        "distractors": _described(others, depths[len(asked) :]),
        "seed": seed,
        "haystack": haystack,
        "length": length,
    }
    sentences = fitted(tokenizer, frame, _supply(haystack, draw, drawn), length)
    answer = ", ".join(pair.value for pair in asked)
    return prompt_of(tokenizer, frame, sentences, answer=answer, task=task, metadata=metadata)


def _pairs(draw: random.Random, taken: Sequence[Pair] = ()) -> Iterator[Pair]:
    """Keys with their values, all different from each other and from those taken."""
    keys, values = {pair.key for pair in taken}, {pair.value for pair in taken}
    while True:
        pair = _pair(draw)
        if pair.key not in keys and pair.value not in values:
            keys.add(pair.key)
            values.add(pair.value)
            yield pair


def _pair(draw: random.Random) -> Pair:
    key = "-".join(draw.choice(words) for words in key_words())
    return Pair(key, "".join([draw.choice("123456789"), *draw.choices("0123456789", k=DIGITS - 1)]))


def _supply(haystack: Haystack, draw: random.Random, taken: Sequence[Pair]) -> Iterator[str]:
    if haystack != "needles":
        yield from endless(haystack, draw)
    while True:  # keys are used up in the end, so round after round
        yield from (pair.text for pair in islice(_pairs(draw, taken), MOST))


def _distractors(pairs: Sequence[Pair], depths: Sequence[float]) -> tuple[Hidden, ...]:
    return tuple(Hidden("distractor", pair.text, depth, {}) for pair, depth in zip(pairs, depths, strict=True))


def _described(pairs: Sequence[Pair], depths: Sequence[float]) -> list[dict[str, Any]]:
    return [{**pair._asdict(), "depth": depth} for pair, depth in zip(pairs, depths, strict=True)]
