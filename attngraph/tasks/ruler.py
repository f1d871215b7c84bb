"""RULER's single needle in a haystack (Hsieh et al. 2024, arXiv 2404.06654, task niah_single_1).

1. A sentence ("the needle") says that a word's magic number is seven random digits.
2. It stands between sentences that say nothing about it: RULER's noise, or varied prose.
3. A question asks for the number, and an answer prefix leads up to it, so that the next token is its first
   digit.

The wording is RULER's. All sentences stand in one line, as in RULER's prose haystacks (its noise breaks the line after
every fifth sentence and around the needle). No chat template is applied: the prompt ends in the middle of the answer.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Literal, get_args

from attngraph.errors import PromptError
from attngraph.tasks.haystacks import NOISE, key_words, varied_sentences
from attngraph.tasks.prompt import Prompt, Span, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Haystack = Literal["noise", "varied"]

INSTRUCTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n"
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = "What is the special magic number for {key} mentioned in the provided text?"
ANSWER_PREFIX = "The special magic number for {key} mentioned in the provided text is"
DIGITS = 7


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
        Decides key, value and, for the varied haystack, the order of the sentences. The same seed gives the
        same prompt everywhere; seeds differ in nothing else.
    haystack
        ``"noise"``: RULER's five sentences, over and over. ``"varied"``: prose written for attngraph; its
        sentences come again, in another order, only when all of them have been used (at about 9,000 tokens).

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
    if haystack not in get_args(Haystack):
        raise PromptError(f"haystack={haystack!r} is not one of {', '.join(get_args(Haystack))}.")
    if not 0.0 <= depth <= 1.0:
        raise PromptError(f"depth={depth!r} must be between 0 (start of the haystack) and 1 (its end).")
    draw = random.Random(seed)
    key = "-".join(draw.choice(words) for words in key_words())
    value = "".join([draw.choice("123456789"), *draw.choices("0123456789", k=DIGITS - 1)])
    ending = _ending(tokenizer, key, value)
    frame = _Frame(key, value, depth, ending)

    shortest = len(encode(tokenizer, frame.fill([])[0])[0])
    if shortest > length:
        raise PromptError(
            f"length={length!r} is too short: without any haystack this prompt has {shortest} tokens; "
            f"give at least {shortest}."
        )
    text, spans = frame.fill(_fitted(tokenizer, frame, _endless(haystack, draw), length, shortest))
    prompt = Prompt.from_text(
        tokenizer,
        text,
        spans,
        answer=value if ending.endswith(" ") else f" {value}",
        task="needle",
        metadata={
            "key": key,
            "value": value,
            "depth": depth,
            "seed": seed,
            "haystack": haystack,
            "length": length,
        },
    )
    return replace(prompt, spans=(Span("sink", 0, 1), *prompt.spans))


@dataclass(frozen=True)
class _Frame:
    """Everything of the prompt but its haystack."""

    key: str
    value: str
    depth: float
    ending: str

    def fill(self, sentences: list[str]) -> tuple[str, dict[str, tuple[int, int]]]:
        """The prompt's text around `sentences`, and its spans in characters."""
        place = round(self.depth * len(sentences))
        hidden = NEEDLE.format(key=self.key, value=self.value)
        parts = {
            "before": INSTRUCTION + "".join(f"{sentence} " for sentence in sentences[:place]),
            "needle": hidden,
            "after": "".join(f" {sentence}" for sentence in sentences[place:]) + "\n",
            "question": QUESTION.format(key=self.key),
            "gap": " ",
            "answer_prefix": ANSWER_PREFIX.format(key=self.key) + self.ending,
        }
        ends = list(accumulate(len(part) for part in parts.values()))
        ranges = {name: (end - len(part), end) for (name, part), end in zip(parts.items(), ends, strict=True)}
        value = ranges["needle"][0] + hidden.index(self.value)
        spans = {name: ranges[name] for name in ("needle", "question", "answer_prefix")}
        return "".join(parts.values()), spans | {"value": (value, value + len(self.value))}


def _fitted(
    tokenizer: PreTrainedTokenizerBase, frame: _Frame, supply: Iterator[str], length: int, shortest: int
) -> list[str]:
    """As many sentences of `supply` as `length` tokens hold.

    Encoding the haystack once gives the tokens up to every sentence, hence the count to within a sentence or
    two; the last one is then settled by encoding the prompt itself, so the cost stays linear in `length`.
    """
    room = length - shortest
    sentences: list[str] = []
    ends: list[int] = []
    while not ends or ends[-1] <= room:
        filled = ends[-1] if ends else 0
        # Few sentences have under four tokens, so a second batch is rarely needed.
        batch = list(islice(supply, 10 * (1 + (room - filled) // 40)))
        starts = accumulate((len(sentence) + 1 for sentence in batch), initial=0)
        reached = [end for _, end in encode(tokenizer, " ".join(batch))[1]]
        ends += [filled + bisect_left(reached, start) for start in islice(starts, 1, None)]
        sentences += batch
    count = bisect_right(ends, room)

    def tokens(count: int) -> int:
        return len(encode(tokenizer, frame.fill(sentences[:count])[0])[0])

    while count < len(sentences) and tokens(count + 1) <= length:
        count += 1
    while count > 0 and tokens(count) > length:
        count -= 1
    return sentences[:count]


def _ending(tokenizer: PreTrainedTokenizerBase, key: str, value: str) -> str:
    """What follows RULER's answer prefix, so that the next token holds the value's first digit.

    The needle's own colon, then a space where the tokenizer keeps it apart from the digits, nothing where it joins the
    two. Without the colon a small model often expects one, or any number, and its next token says little of the needle.
    """
    prefix = " " + ANSWER_PREFIX.format(key=key)
    whole, offsets = encode(tokenizer, f"{prefix}: {value}")
    digit = len(prefix) + 2
    for ending in (": ", ":"):
        start = encode(tokenizer, prefix + ending)[0]
        if whole[: len(start)] == start and len(start) < len(whole):
            first, last = offsets[len(start)]
            if first <= digit < last:
                return ending
    raise PromptError(
        "This tokenizer merges the end of the answer prefix with the number's first digit, so no token of the "
        "prompt predicts it. Build a Prompt of your own instead."
    )


def _endless(haystack: Haystack, draw: random.Random) -> Iterator[str]:
    while True:
        sentences = list(NOISE if haystack == "noise" else varied_sentences())
        if haystack == "varied":
            draw.shuffle(sentences)
        yield from sentences
