"""The tasks by name: how each makes a prompt, and how it scores an answer.

A maker takes a tokenizer, and by keyword at least `length` and `seed`, each with a default; the name under which it
stands here is the `task` of its prompts. A scorer takes what was expected and what was said, both as text, and returns
the share that is right, from 0 to 1; 1 is a success.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from attngraph.errors import PromptError
from attngraph.tasks import reasoning
from attngraph.tasks.needles import multikey, multiquery, multivalue, needle
from attngraph.tasks.prompt import Prompt
from attngraph.tasks.variables import variable_tracking
from attngraph.tasks.words import common_words, frequent_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(NamedTuple):
    """How a task makes its prompts and scores answers to them."""

    make: Callable[..., Prompt]
    score: Callable[[str, str], float]


def same_text(expected: str, said: str) -> float:
    """1 if both texts are the same but for white space around them, else 0."""
    return float(said.strip() == expected.strip())


def values_found(expected: str, said: str) -> float:
    """Share of the values listed in `expected` that are in `said`, whole and in any order (RULER's score).

    Values are the words and numbers of the list but for its ``and``. RULER looks for them as parts of the text; here
    "12" is not found in "123".
    """
    values = [word for word in re.findall(r"\w+", expected) if word != "and"]
    words = set(re.findall(r"\w+", said))
    return sum(value in words for value in values) / len(values)


TASKS = {
    "needle": Task(needle, same_text),
    "multikey": Task(multikey, values_found),
    "multivalue": Task(multivalue, values_found),
    "multiquery": Task(multiquery, values_found),
    "variable_tracking": Task(variable_tracking, values_found),
    "common_words": Task(common_words, values_found),
    "frequent_words": Task(frequent_words, values_found),
    "reasoning": Task(reasoning.trace, same_text),
}


def make(task: str, tokenizer: PreTrainedTokenizerBase, /, **options: Any) -> Prompt:
    """A prompt of the task named `task`.

    Parameters
    ----------
    task
        One of `TASKS`.
    tokenizer
        A fast tokenizer.
    **options
        What the task's own function takes by keyword, such as `length`, `seed`, `depth`.

    Raises
    ------
    PromptError
        If there is no such task, or the task's function refuses an option.
    """
    if task not in TASKS:
        raise PromptError(f"task={task!r} is not one of {', '.join(TASKS)}.")
    try:
        return TASKS[task].make(tokenizer, **options)
    except TypeError as error:
        raise PromptError(f"The task {task!r} can't be made with {options}: {error}.") from error


def score(task: str | None, expected: str, said: str) -> float:
    """Share of `expected` that `said` gets right, from 0 to 1, by the scorer of `task`; `same_text` if it has none."""
    scorer = TASKS[task].score if task in TASKS else same_text
    return scorer(expected, said)
