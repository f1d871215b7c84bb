"""RULER's aggregation tasks (Hsieh et al. 2024, arXiv 2404.06654): which words come most often?

``common_words``: a numbered list in which some words come again and again and the others seldom.

1. The list is made in rounds: every common word once, and twice as many rare ones, shuffled.
2. The rare words take turns, so that each comes once before any comes twice.

``frequent_words``: a text of made-up words, drawn by Zipf's law, the k-th of them in proportion to k to the power of
minus alpha. As in RULER the first one is written as dots, and the three after it are asked for.

Truth is what was counted in the finished prompt; where the count leaves a tie, the last words are taken off.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

from attngraph.errors import PromptError
from attngraph.tasks.frames import Frame, check_count, ending, fitted, listed, prompt_of
from attngraph.tasks.haystacks import key_words
from attngraph.tasks.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMMON_INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
COMMON_QUESTION = "Question: What are the {count} most common words in the above list?"
COMMON_PREFIX = "Answer: The top {count} words that appear most often in the list are"
FREQUENT_INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
FREQUENT_QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FREQUENT_PREFIX = "Answer: According to the coded text above, the three most frequently appeared words are"
DOTS = "...."
CODED = 200
"""Made-up words to draw from; the last of them comes once in 25,000 words."""
LETTERS = 6


def common_words(tokenizer: PreTrainedTokenizerBase, *, length: int = 4096, seed: int = 0, common: int = 10) -> Prompt:
    """Make a list of words, and ask for the most common ones.

    Parameters
    ----------
    tokenizer
        A fast tokenizer.
    length
        Tokens of the prompt, special tokens included: met within one word, never exceeded.
    seed
        Decides the words and their order. The same seed gives the same prompt everywhere.
    common
        How many words come often, and are asked for: 1 to 50.

    Returns
    -------
    Prompt
        With the spans ``sink``, ``question`` and ``answer_prefix``, the common words in the order in which they first
        appear as `answer`, and the count of every word in `metadata`.

    Raises
    ------
    PromptError
        For a length so short that the common words don't stand out, and for options outside their limits.
    """
    check_count("common", common, 1, 50)
    draw = random.Random(seed)
    words = [word for kind in key_words() for word in kind]
    words = list(dict.fromkeys(words))
    draw.shuffle(words)
    often = words[:common]
    prefix = COMMON_PREFIX.format(count=common)
    frame = Frame(
        COMMON_INSTRUCTION, COMMON_QUESTION.format(count=common), prefix + ending(tokenizer, prefix, often[0])
    )
    numbered = (f"{index}. {word}" for index, word in enumerate(_rounds(often, words[common:], draw), 1))
    items = fitted(tokenizer, frame, numbered, length)
    counts = Counter(item.split(" ")[1] for item in items)
    if counts.total() == 0 or min(counts[word] for word in often) <= max(
        (count for word, count in counts.items() if word not in often), default=0
    ):
        raise PromptError(
            f"length={length!r} is too short: in the {len(items)} words that it holds, {common} common words "
            f"don't stand "
            f"out. Give more, or fewer common words."
        )
    answer = [word for word in counts if word in often]
    return prompt_of(
        tokenizer,
        frame,
        items,
        answer=", ".join(answer),
        task="common_words",
        metadata={"words": answer, "counts": dict(counts.most_common()), "seed": seed, "length": length},
    )


def frequent_words(
    tokenizer: PreTrainedTokenizerBase, *, length: int = 4096, seed: int = 0, alpha: float = 2.0
) -> Prompt:
    """Make a text of made-up words, and ask for the three most frequent ones.

    Parameters
    ----------
    tokenizer, length, seed
        As in `common_words`; a few more words may be left out.
    alpha
        How fast frequency falls with rank, above 1 and at most 5; RULER takes 2.0, and 3.5 is easier.

    Returns
    -------
    Prompt
        With the spans ``sink``, ``question`` and ``answer_prefix``, the three words, most frequent first, as `answer`,
        and the count of every word in `metadata`.

    Raises
    ------
    PromptError
        For a length so short that three words don't stand out, and for an `alpha` outside its limits.
    """
    if not isinstance(alpha, int | float) or not 1.0 < alpha <= 5.0:
        raise PromptError(f"alpha={alpha!r} must be above 1 and at most 5.")
    draw = random.Random(seed)
    coded = [DOTS]
    while len(coded) < CODED:
        word = "".join(draw.choices(ascii_lowercase, k=LETTERS))
        coded += [word] * (word not in coded)
    frame = Frame(
        FREQUENT_INSTRUCTION, FREQUENT_QUESTION, FREQUENT_PREFIX + ending(tokenizer, FREQUENT_PREFIX, coded[1])
    )
    found = fitted(tokenizer, frame, _zipf(coded, alpha, draw), length)
    while found and not _clear(found):
        found.pop()
    if not found:
        raise PromptError(
            f"length={length!r} is too short: no three words are more frequent than the others. Give more."
        )
    counts = Counter(word for word in found if word != DOTS)
    answer = [word for word, _ in counts.most_common(3)]
    return prompt_of(
        tokenizer,
        frame,
        found,
        answer=listed(answer),
        task="frequent_words",
        metadata={
            "words": answer,
            "counts": dict(counts.most_common()),
            "alpha": alpha,
            "seed": seed,
            "length": length,
        },
    )


def _rounds(often: Sequence[str], rare: Sequence[str], draw: random.Random) -> Iterator[str]:
    turn = 0
    while True:
        some = [rare[(turn + index) % len(rare)] for index in range(2 * len(often))]
        turn += len(some)
        words = [*often, *some]
        draw.shuffle(words)
        yield from words


def _zipf(words: Sequence[str], alpha: float, draw: random.Random) -> Iterator[str]:
    weights = [rank**-alpha for rank in range(1, len(words) + 1)]
    while True:
        yield from draw.choices(words, weights, k=100)


def _clear(found: Sequence[str]) -> bool:
    """Whether the three most frequent words are told apart from each other and from the rest."""
    counts = [count for _, count in Counter(word for word in found if word != DOTS).most_common(4)]
    return len(counts) >= 3 and len(set(counts)) == len(counts)
