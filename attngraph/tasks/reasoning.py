"""Chains of thought as prompts: what was asked, what a model thought, sentence by sentence.

1. A trace is a prompt, a solution, and the sentences of the solution with a label each; from a file (`from_json`), or
   from bare text (`from_text`), which `split` cuts and `tag` labels.
2. The sentences are looked up in the solution in turn, white space aside, and become spans ``sentence:0`` to
   ``sentence:n`` of the prompt's tokens. What a solution says after its last sentence is left out: nothing is known
   about it.
3. With ``until="answer"`` the trace stops before its boxed answer, so that the next token is the answer's first.

Three traces of the project's own come with it (`trace`): problems, solutions, labels and dependences written by hand in
the manner of a reasoning model, not sampled from one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from attngraph.errors import PromptError
from attngraph.tasks.frames import check_choice, check_count
from attngraph.tasks.prompt import Prompt, Span
from attngraph.tasks.sentences import split
from attngraph.tasks.tagger import CATEGORIES, tag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Until = Literal["end", "answer"]

TRACES = ("coins", "handshakes", "tank")
"""The project's own traces, by name and number."""

_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})+)\}")


class Trace(NamedTuple):
    """A prompt and its solution, with the character ranges of the solution's sentences and what is known of each."""

    prompt: str
    question: str
    solution: str
    sentences: tuple[tuple[int, int], ...]
    known: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]


def from_json(
    tokenizer: PreTrainedTokenizerBase,
    path: str | PathLike[str],
    *,
    length: int | None = None,
    until: Until = "end",
) -> Prompt:
    """Make a prompt of a trace file with labelled sentences.

    Parameters
    ----------
    tokenizer
        A fast tokenizer.
    path
        JSON: ``{"prompt", "solution", "sentences": [{"text", "tags": [category], …}], "question", "answer", …}``. The
        sentences are in order, each as it is in the solution but for white space. All but the first three may be left
        out.
    length
        At most this many tokens: as many whole sentences as they hold. All of the trace without it.
    until
        ``"end"``: up to the last sentence. ``"answer"``: up to the last ``\\boxed{``; what is in it is the `answer`
        then.

    Returns
    -------
    Prompt
        With the spans ``sink`` (the first token), ``question`` (in the prompt), ``completion`` (what was thought), and
        one
        ``sentence:N`` each. `metadata` has ``sentences``: of each its ``category`` (the first tag) and whatever else
        the file says of it, such as ``depends_on`` or its counterfactual importance; and the file's other entries.

    Raises
    ------
    PromptError
        When the file can't be read or lacks something, when a sentence isn't in the solution where it should be, and
        when `length` holds no sentence, or not the answer that was asked for.
    """
    return _prompt(tokenizer, labelled(path), length, until)


def labelled(path: str | PathLike[str]) -> Trace:
    """Read a trace file as `from_json` does, without a tokenizer.

    Raises
    ------
    PromptError
        When the file can't be read or lacks something, and when a sentence isn't in the solution where it should be.
    """
    what = f"trace {str(path)!r}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PromptError(f"Can't read the {what}: {error.strerror}.") from error
    except ValueError as error:
        raise PromptError(f"The {what} isn't valid JSON in UTF-8: {error}.") from error
    return _labelled(content, what)


def from_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    solution: str,
    *,
    length: int | None = None,
    until: Until = "end",
) -> Prompt:
    """Make a prompt of a text and what a model wrote after it, cut into sentences by `split` and labelled by `tag`.

    Parameters
    ----------
    tokenizer, length, until
        As in `from_json`.
    prompt, solution
        Both texts, as they are; the question's span is the whole of the prompt.

    Returns
    -------
    Prompt
        As of `from_json`; ``labels`` in `metadata` says that they come from rules.

    Raises
    ------
    PromptError
        For a prompt or a solution without any text, and as `from_json` for `length` and `until`.
    """
    if not prompt.strip() or not solution.strip():
        raise PromptError("A chain of thought needs a prompt and a solution, both with some text.")
    sentences = tuple(split(solution))
    known = tuple({"category": category} for category in tag([solution[start:end] for start, end in sentences]))
    trace = Trace(prompt, prompt.strip(), solution, sentences, known, {"labels": "rules"})
    return _prompt(tokenizer, trace, length, until)


def trace(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int | None = None,
    seed: int = 0,
    trace: int | str | None = None,
    until: Until = "end",
) -> Prompt:
    """One of the project's own traces as a prompt, or a trace file; the task by name.

    Parameters
    ----------
    tokenizer, length, until
        As in `from_json`.
    seed
        Chooses the trace where `trace` doesn't: its number is the seed modulo the number of traces.
    trace
        The trace's number or name in `TRACES`, or the path of a file for `from_json`.

    Returns
    -------
    Prompt
        As of `from_json`; `metadata` has its name under ``trace``.

    Raises
    ------
    PromptError
        If there is no such trace, and as `from_json` for `length` and `until`.
    """
    number = seed % len(TRACES) if trace is None else trace
    if isinstance(number, str) and number.endswith(".json"):
        return from_json(tokenizer, number, length=length, until=until)
    if isinstance(number, str):
        check_choice("trace", number, (*TRACES, "a path that ends in .json"))
        name = number
    else:
        check_count("trace", number, 0, len(TRACES) - 1)
        name = TRACES[number]
    text = (files("attngraph.tasks") / "data" / f"{name}.json").read_text(encoding="utf-8")
    return _prompt(tokenizer, _labelled({**json.loads(text), "trace": name}, f"trace {name!r}"), length, until)


def _labelled(content: Any, what: str) -> Trace:
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in ("prompt", "solution")):
        raise PromptError(f'The {what} needs an object with the strings "prompt" and "solution".')
    sentences = content.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise PromptError(
            f'The {what} needs "sentences", a list with one at least; for bare text there is `from_text`.'
        )
    question = content.get("question", content["prompt"])
    if not isinstance(question, str) or not (question := question.strip()) or question not in content["prompt"]:
        raise PromptError(f'"question" of the {what} is not a part of its prompt.')
    return Trace(
        content["prompt"],
        question,
        content["solution"],
        tuple(_located(content["solution"], sentences, what)),
        tuple(_known(sentence, index, what) for index, sentence in enumerate(sentences)),
        {key: value for key, value in content.items() if key not in ("prompt", "solution", "sentences")},
    )


def _located(solution: str, sentences: Sequence[Any], what: str) -> Iterator[tuple[int, int]]:
    """Where each sentence is in the solution, one after the other; white space may differ."""
    reached = 0
    for index, sentence in enumerate(sentences):
        text = sentence.get("text") if isinstance(sentence, dict) else None
        words = text.split() if isinstance(text, str) else []
        if not words:
            raise PromptError(f'Sentence {index} of the {what} has no "text".')
        found = re.compile(r"\s+".join(map(re.escape, words))).search(solution, reached)
        if found is None:
            raise PromptError(
                f"The {what} has no sentence {index}, {' '.join(words)[:60]!r}, in its solution after character "
                f"{reached}; sentences must be in order, and differ from the solution in white space alone."
            )
        yield found.span()
        reached = found.end()


def _known(sentence: Mapping[str, Any], index: int, what: str) -> dict[str, Any]:
    tags = sentence.get("tags") or [None]
    if not isinstance(tags, list) or tags[0] not in (None, *CATEGORIES):
        raise PromptError(
            f"Sentence {index} of the {what} has the tags {tags!r}, which must be a list that begins with one of "
            f"{', '.join(CATEGORIES)}."
        )
    rest = {key: value for key, value in sentence.items() if key not in ("text", "tags")}
    return {"category": tags[0], **rest, **({"tags": tags} if len(tags) > 1 else {})}


def _prompt(tokenizer: PreTrainedTokenizerBase, trace: Trace, length: int | None, until: Until) -> Prompt:
    check_choice("until", until, get_args(Until))
    if length is not None:
        check_count("length", length, 1, 1 << 40)
    end, answer = trace.sentences[-1][1], None
    if until == "answer":
        end, answer = _before_answer(trace)
    prompt = _up_to(tokenizer, trace, end, answer)
    if length is None or len(prompt) <= length:
        return prompt
    if until == "answer":
        raise PromptError(
            f"length={length!r} is too short: up to its answer this trace has {len(prompt)} tokens; give at least "
            f"as many, or until='end'."
        )
    # The first tokens stay the same where less follows, so this is settled in one step, or two at an odd edge.
    count = sum(span.end <= length for span in prompt.spans if span.name.startswith("sentence:"))
    while count > 0:
        prompt = _up_to(tokenizer, trace, trace.sentences[count - 1][1], None)
        if len(prompt) <= length:
            return prompt
        count -= 1
    first = len(_up_to(tokenizer, trace, trace.sentences[0][1], None))
    raise PromptError(
        f"length={length!r} is too short: with its first sentence this trace has {first} tokens; give at least {first}."
    )


def _before_answer(trace: Trace) -> tuple[int, str]:
    """Where the last boxed answer of the sentences begins, and what it is."""
    boxed = list(_BOXED.finditer(trace.solution, 0, trace.sentences[-1][1]))
    if not boxed:
        raise PromptError(
            r"until='answer' needs a trace whose sentences give the answer as \boxed{…}; this one doesn't."
        )
    return boxed[-1].start(1), boxed[-1].group(1)


def _up_to(tokenizer: PreTrainedTokenizerBase, trace: Trace, end: int, answer: str | None) -> Prompt:
    """The prompt with the solution's first `end` characters, and the sentences that begin in them."""
    shift = len(trace.prompt)
    kept = [(start, min(stop, end)) for start, stop in trace.sentences if start < end]
    question = trace.prompt.index(trace.question)
    spans = [{"name": "question", "start": question, "end": question + len(trace.question)}]
    spans += [
        {"name": f"sentence:{index}", "start": shift + start, "end": shift + stop}
        for index, (start, stop) in enumerate(kept)
    ]
    prompt = Prompt.from_text(
        tokenizer,
        trace.prompt,
        spans,
        completion=trace.solution[:end],
        answer=answer,
        task="reasoning",
        metadata={**trace.metadata, "sentences": [dict(known) for known in trace.known[: len(kept)]]},
    )
    return replace(prompt, spans=(Span("sink", 0, 1), *prompt.spans))
