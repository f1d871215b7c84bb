"""A prompt: token ids, and the named token ranges in them that questions are asked about.

Ranges are given in characters of the text and mapped to tokens by the tokenizer's offsets: a token belongs to
every range that it shares a character with, so a range is never cut short by a token that reaches over its
edge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attngraph.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETION = "completion"
"""Name of the span that holds what a model wrote after the prompt."""

CharacterSpans = Mapping[str, tuple[int, int]] | Iterable[Mapping[str, Any]]
"""``{"needle": (120, 180)}``, or ``[{"name": "needle", "start": 120, "end": 180}]`` where a name may come
twice.
"""


@dataclass(frozen=True)
class Span:
    """A named token range, half open: tokens `start` to `end - 1`."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """Token ids that a model reads, with what is known about them.

    Parameters
    ----------
    token_ids
        The tokens, special tokens included; at least one.
    spans
        Named token ranges; names may repeat, ranges may overlap. A span ``completion`` marks what a model wrote after
        the prompt, such as its chain of thought: there is one at most, and something before it.
    answer
        What should follow the prompt (and its completion), as text, white space included.
    text
        The text that the tokens were made of.
    task
        Name of the task that made the prompt.
    metadata
        Anything else worth keeping in a run's manifest; JSON values, read-only here.

    Raises
    ------
    PromptError
        For an empty prompt, a negative token id, a span that is empty or outside the prompt, or a second completion.
    """

    token_ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()
    answer: str | None = None
    text: str | None = field(default=None, repr=False)
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        # Arrays and lists are welcome; numpy integers become ints, so that a manifest can be written.
        object.__setattr__(self, "token_ids", tuple(int(token) for token in self.token_ids))
        object.__setattr__(self, "spans", tuple(self.spans))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        if not self.token_ids:
            raise PromptError("The prompt has no tokens; give at least one.")
        if min(self.token_ids) < 0:
            position = next(index for index, token in enumerate(self.token_ids) if token < 0)
            raise PromptError(f"Token id {self.token_ids[position]} at position {position} is negative.")
        for span in self.spans:
            _check_span(span, len(self.token_ids))
        _check_completion(self.spans)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def sha256(self) -> str:
        """Hex sha256 of the token ids, each as a little-endian unsigned 64-bit integer."""
        return hashlib.sha256(b"".join(token.to_bytes(8, "little") for token in self.token_ids)).hexdigest()

    @property
    def completion(self) -> Span | None:
        """The span of what a model wrote after the prompt; None where there is nothing of that kind."""
        return next((span for span in self.spans if span.name == COMPLETION), None)

    def with_completion(self, token_ids: Sequence[int], *, answer: str | None = None) -> Prompt:
        """This prompt followed by the tokens that a model wrote, as a span ``completion``.

        Parameters
        ----------
        token_ids
            The tokens as they were generated; nothing is tokenised again. For a completion given as text see
            `from_text`.
        answer
            What should follow the completion. This prompt's own answer followed the prompt, so it is left out.

        Raises
        ------
        PromptError
            Without any token, or where the prompt has a completion already.
        """
        whole = (*self.token_ids, *token_ids)
        return replace(
            self,
            token_ids=whole,
            spans=(*self.spans, Span(COMPLETION, len(self), len(whole))),
            answer=answer,
            text=None,
        )

    def named(self, name: str) -> tuple[Span, ...]:
        """The spans called `name`, in the order of the prompt.

        Raises
        ------
        PromptError
            When there is none; it lists the names that there are.
        """
        found = tuple(sorted((span for span in self.spans if span.name == name), key=lambda span: span.start))
        if not found:
            names = ", ".join(dict.fromkeys(span.name for span in self.spans)) or "none"
            raise PromptError(f"The prompt has no span {name!r}; its spans are: {names}.")
        return found

    def check_vocabulary(self, size: int) -> None:
        """Check that every token id is below a model's vocabulary size.

        Raises
        ------
        PromptError
            Naming the first id outside, its position and the limit.
        """
        for position, token in enumerate(self.token_ids):
            if token >= size:
                raise PromptError(
                    f"Token id {token} at position {position} is outside the model's vocabulary of {size} "
                    f"(0 to {size - 1}); make the prompt with this model's own tokenizer."
                )

    def answer_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Token ids of the answer as they follow the prompt; empty without an answer.

        Where tokens would reach over the edge between prompt and answer, those of the answer alone.
        """
        if not self.answer:
            return ()
        if self.text is not None:
            whole = tuple(tokenizer(self.text + self.answer, verbose=False)["input_ids"])
            if whole[: len(self)] == self.token_ids and len(whole) > len(self):
                return whole[len(self) :]
        return tuple(tokenizer(self.answer, add_special_tokens=False)["input_ids"])

    @classmethod
    def from_text(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        spans: CharacterSpans = (),
        *,
        completion: str | None = None,
        answer: str | None = None,
        task: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Make a prompt of a text, with spans given in characters.

        Parameters
        ----------
        tokenizer
            A fast tokenizer (one that gives offsets); it adds the special tokens that it always adds.
        text
            The prompt's text; no chat template is applied.
        spans
            Character ranges, half open: a mapping from name to ``(start, end)``, or dicts with ``name``,
            ``start``, ``end``. They may reach into the completion.
        completion
            What a model wrote after the text, appended as it is. Both are tokenised as one; a token that reaches over
            the edge belongs to the span ``completion``.
        answer, task, metadata
            As in `Prompt`.

        Raises
        ------
        PromptError
            For a range that is empty, outside the text or without any token, and for a tokenizer without
            offsets.
        """
        whole, ranges = text, _character_ranges(spans)
        if completion is not None:
            whole = text + completion
            ranges.append((COMPLETION, len(text), len(whole)))
        token_ids, offsets = encode(tokenizer, whole)
        return cls(
            token_ids=tuple(token_ids),
            spans=tuple(_token_span(name, start, end, whole, offsets) for name, start, end in ranges),
            answer=answer,
            text=whole,
            task=task,
            metadata=metadata or {},
        )

    @classmethod
    def from_file(cls, tokenizer: PreTrainedTokenizerBase, path: str | PathLike[str]) -> Prompt:
        """Make a prompt of a JSON file ``{"text", "spans": [{"name", "start", "end"}], "completion", "answer"}``.

        Spans are in characters of text and completion together; all but ``text`` may be left out, as may ``task`` and
        ``metadata``.

        Raises
        ------
        PromptError
            When the file can't be read, isn't JSON or lacks ``text``, and for whatever `from_text` refuses.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PromptError(f"Can't read the prompt file {str(path)!r}: {error.strerror}.") from error
        except ValueError as error:
            raise PromptError(f"The prompt file {str(path)!r} isn't valid JSON in UTF-8: {error}.") from error
        if not isinstance(content, dict) or not isinstance(content.get("text"), str):
            raise PromptError(f'The prompt file {str(path)!r} needs an object with a string "text".')
        for key, kind in (("completion", str), ("answer", str), ("task", str), ("metadata", dict), ("spans", list)):
            if content.get(key) is not None and not isinstance(content[key], kind):
                raise PromptError(f'"{key}" in the prompt file {str(path)!r} must be a {kind.__name__}.')
        return cls.from_text(
            tokenizer,
            content["text"],
            content.get("spans") or (),
            completion=content.get("completion"),
            answer=content.get("answer"),
            task=content.get("task"),
            metadata=content.get("metadata"),
        )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text, special tokens included, and each token's character range.

    Raises
    ------
    PromptError
        When the tokenizer is missing or gives no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            "Spans in characters need a fast tokenizer (one that gives offsets); this model has none. "
            "Build Prompt(token_ids, spans) with token ranges instead."
        )
    # Not truncated: a text longer than the tokenizer's nominal limit would only draw a warning.
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
    return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def _character_ranges(spans: CharacterSpans) -> list[tuple[str, int, int]]:
    ranges: list[tuple[Any, Any, Any]] = []
    if isinstance(spans, Mapping):
        for name, limits in spans.items():
            if not isinstance(limits, Sequence) or len(limits) != 2:
                raise PromptError(f"Span {name!r} must be a pair (start, end) of characters, not {limits!r}.")
            ranges.append((name, limits[0], limits[1]))
    else:
        for span in spans:
            if not isinstance(span, Mapping) or not {"name", "start", "end"} <= set(span):
                raise PromptError(f'A span needs "name", "start" and "end"; got {span!r}.')
            ranges.append((span["name"], span["start"], span["end"]))
    for name, start, end in ranges:
        if not isinstance(name, str) or not all(type(limit) is int for limit in (start, end)):
            raise PromptError(
                f"Span {name!r} needs a string as name and whole numbers as limits, not {start!r} to {end!r}."
            )
    return ranges


def _token_span(name: str, start: int, end: int, text: str, offsets: list[tuple[int, int]]) -> Span:
    if not 0 <= start < end <= len(text):
        raise PromptError(
            f"Span {name!r} covers characters {start} to {end} (half open), but the text has {len(text)}; "
            f"give 0 <= start < end <= {len(text)}."
        )
    tokens = [index for index, (first, last) in enumerate(offsets) if first < end and last > start and first < last]
    if not tokens:
        raise PromptError(f"Span {name!r}, characters {start} to {end}, contains no token; widen it.")
    return Span(name, tokens[0], tokens[-1] + 1)


def _check_span(span: Span, length: int) -> None:
    if span.start >= span.end:
        raise PromptError(
            f"Span {span.name!r} is empty: tokens {span.start} to {span.end} (half open) "
            f"of a prompt of {length} tokens."
        )
    if span.start < 0 or span.end > length:
        raise PromptError(
            f"Span {span.name!r} covers tokens {span.start} to {span.end} (half open), "
            f"outside the prompt of {length} tokens."
        )


def _check_completion(spans: Sequence[Span]) -> None:
    completions = [span for span in spans if span.name == COMPLETION]
    if len(completions) > 1:
        raise PromptError(
            f"The prompt has {len(completions)} spans {COMPLETION!r}; the name stands for what a model wrote after the "
            f"prompt, so give one at most."
        )
    if completions and completions[0].start == 0:
        raise PromptError(f"The span {COMPLETION!r} begins at token 0; a completion follows a prompt.")
