"""What RULER's prompts have in common: sentences hidden in a haystack, a question, and an answer that is led up to.

1. A frame is everything but the haystack: an instruction, the hidden sentences with their places, a question and an
   answer prefix.
2. `fitted` takes as many sentences of a haystack as a number of tokens holds.
3. `prompt_of` puts both together, with the spans in tokens.

All sentences stand in one line, the question in the next one. No chat template is applied: the prompt ends in the
middle of the answer, so that the next token is the beginning of what is asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from attngraph.errors import PromptError
from attngraph.tasks.prompt import Prompt, Span, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Hidden(NamedTuple):
    """A sentence in the haystack, with a span of its own.

    `depth` is its place among the haystack's sentences, 0 before the first and 1 after the last; equal places keep the
    order of the frame. `inner` names parts of the sentence: ``{"value": "1234567"}``, each at its first occurrence.
    """

    name: str
    text: str
    depth: float
    inner: Mapping[str, str]


@dataclass(frozen=True)
class Frame:
    """Everything of a prompt but its haystack; the answer prefix ends as `ending` says."""

    instruction: str
    question: str
    answer_prefix: str
    hidden: tuple[Hidden, ...] = ()

    def fill(self, sentences: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
        """The prompt's text around `sentences`, and its spans in characters."""
        lines, at = self._line(sentences)
        ends = list(accumulate((len(line) + 1 for line in lines), initial=len(self.instruction)))
        text = f"{self.instruction}{' '.join(lines)}\n"
        outer, inner = [], []
        for index, hidden in sorted(at.items()):
            outer.append(_span(hidden.name, ends[index], len(hidden.text)))
            inner += [
                _span(name, ends[index] + hidden.text.index(part), len(part)) for name, part in hidden.inner.items()
            ]
        outer.append(_span("question", len(text), len(self.question)))
        outer.append(_span("answer_prefix", len(text) + len(self.question) + 1, len(self.answer_prefix)))
        return f"{text}{self.question} {self.answer_prefix}", [*outer, *inner]

    def _line(self, sentences: Sequence[str]) -> tuple[list[str], dict[int, Hidden]]:
        """Haystack and hidden sentences in order, and where the hidden ones are in it."""
        places: dict[int, list[Hidden]] = defaultdict(list)
        for hidden in self.hidden:
            places[round(hidden.depth * len(sentences))].append(hidden)
        lines: list[str] = []
        at: dict[int, Hidden] = {}
        for index in range(len(sentences) + 1):
            for hidden in places.get(index, ()):
                at[len(lines)] = hidden
                lines.append(hidden.text)
            lines += sentences[index : index + 1]
        return lines, at


def ending(tokenizer: PreTrainedTokenizerBase, answer_prefix: str, answer: str, mark: str = ":") -> str:
    """What follows an answer prefix, so that the next token holds the answer's first character.

    The sentences' own colon, then a space where the tokenizer keeps it apart from the answer, nothing where it joins
    the two. Without the colon a small model often expects one, or any answer, and its next token says little of what
    was hidden.

    Raises
    ------
    PromptError
        For a tokenizer without a token that begins there.
    """
    prefix = f" {answer_prefix}"
    whole, offsets = encode(tokenizer, f"{prefix}{mark} {answer}")
    begin = len(prefix) + len(mark) + 1
    for end in (f"{mark} ", mark):
        start = encode(tokenizer, prefix + end)[0]
        if whole[: len(start)] == start and len(start) < len(whole):
            first, last = offsets[len(start)]
            if first <= begin < last:
                return end
    raise PromptError(
        "This tokenizer merges the end of the answer prefix with the answer's first character, so no token of the "
        "prompt predicts it. Build a Prompt of your own instead."
    )


def fitted(tokenizer: PreTrainedTokenizerBase, frame: Frame, supply: Iterator[str], length: int) -> list[str]:
    """As many sentences of an endless `supply` as `length` tokens hold, the frame's own included.

    Encoding the haystack once gives the tokens up to every sentence, hence the count to within a sentence or
    two; the last one is then settled by encoding the prompt itself, so the cost stays linear in `length`.

    Raises
    ------
    PromptError
        Where the frame alone is longer; it names the shortest length.
    """
    shortest = len(encode(tokenizer, frame.fill([])[0])[0])
    if shortest > length:
        raise PromptError(
            f"length={length!r} is too short: without any haystack this prompt has {shortest} tokens; "
            f"give at least {shortest}."
        )
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


def prompt_of(
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame,
    sentences: Sequence[str],
    *,
    answer: str,
    task: str,
    metadata: Mapping[str, Any],
) -> Prompt:
    """The frame around a haystack as a prompt; a span ``sink`` marks its first token."""
    text, spans = frame.fill(sentences)
    prompt = Prompt.from_text(
        tokenizer,
        text,
        spans,
        answer=answer if frame.answer_prefix.endswith(" ") else f" {answer}",
        task=task,
        metadata=metadata,
    )
    return replace(prompt, spans=(Span("sink", 0, 1), *prompt.spans))


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an option is one of `choices`.

    Raises
    ------
    PromptError
        Naming the option, its value and the choices.
    """
    if value not in choices:
        raise PromptError(f"{name}={value!r} is not one of {', '.join(choices)}.")


def check_count(name: str, value: object, least: int, most: int) -> None:
    """Check that an option is a whole number from `least` to `most`.

    Raises
    ------
    PromptError
        Naming the option, its value and the limits.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise PromptError(f"{name}={value!r} must be a whole number from {least} to {most}.")


def check_depth(depth: object) -> None:
    """Check that a depth is a number from 0 to 1.

    Raises
    ------
    PromptError
        Naming the value.
    """
    if not isinstance(depth, int | float) or not 0.0 <= depth <= 1.0:
        raise PromptError(f"depth={depth!r} must be between 0 (start of the haystack) and 1 (its end).")


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: ``a``, ``a and b``, ``a, b, and c``."""
    if len(words) < 3:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"


def _span(name: str, start: int, length: int) -> dict[str, Any]:
    return {"name": name, "start": start, "end": start + length}
