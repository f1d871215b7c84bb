"""RULER's variable tracking (Hsieh et al. 2024, arXiv 2404.06654): the answer is reached in several hops.

1. An assignment gives a variable a number: VAR AXKPE = 51329. Each of the next ones hands it on: VAR QMZTB = VAR AXKPE.
2. They stand in this order at random places of a haystack, among other chains of the same form.
3. The question is for the value at the end of the chain, which no single sentence tells, or, as in RULER, for all the
   variables that have the value.

Each assignment of the chain has a span ``hop:0``, where the number is, to ``hop:n``; those of other chains are
``distractor``. The wording is RULER's, but for a full stop after each assignment, as all sentences stand in one line,
and for the question after the value, which is attngraph's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from attngraph.tasks.frames import Frame, Hidden, check_choice, check_count, ending, fitted, prompt_of
from attngraph.tasks.haystacks import Prose, endless
from attngraph.tasks.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ask = Literal["value", "variables"]

INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = {
    "value": "Question: What is the value of VAR {last} in the text above?",
    "variables": "Question: Find all variables that are assigned the value {value} in the text above.",
}
ANSWER_PREFIX = {
    "value": "Answer: According to the chain(s) of variable assignment in the text above, the value of VAR {last} is",
    "variables": "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
    "assigned the value {value}, they are",
}
LETTERS = 5
DIGITS = 5
MOST = 100
"""Other chains in one prompt."""


class Chain(NamedTuple):
    """A number and the variables that have it, first the one that it is assigned to."""

    value: str
    variables: tuple[str, ...]

    @property
    def assignments(self) -> tuple[str, ...]:
        """One sentence per variable."""
        sources = (self.value, *(f"VAR {name}" for name in self.variables))
        return tuple(f"VAR {name} = {source}." for name, source in zip(self.variables, sources, strict=False))


def variable_tracking(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 4096,
    seed: int = 0,
    haystack: Prose = "noise",
    hops: int = 2,
    distractors: int = 1,
    ask: Ask = "value",
) -> Prompt:
    """Make a prompt with a chain of assignments, and others like it.

    Parameters
    ----------
    tokenizer
        A fast tokenizer.
    length
        Tokens of the prompt, special tokens included: met within one haystack sentence, never exceeded.
    seed
        Decides names, values, places and, for the varied haystack, the order of the sentences. The same seed gives
        the same prompt everywhere.
    haystack
        ``"noise"`` or ``"varied"``, as in `attngraph.tasks.needle`.
    hops
        Assignments after the one of the number, 1 to 4.
    distractors
        Other chains of the same form and as many hops, 0 to 100.
    ask
        ``"value"``: the number that the last variable has. ``"variables"``: all variables of the chain, as in RULER.

    Returns
    -------
    Prompt
        With the spans ``sink``, ``hop:0`` to ``hop:n``, ``distractor`` (for every assignment of another chain),
        ``value`` (the number in hop 0), ``question`` and ``answer_prefix``; chain, value, other chains, hops and seed
        in `metadata`.

    Raises
    ------
    PromptError
        For a length too short (it names the shortest), and for options outside their limits.
    """
    check_choice("haystack", haystack, get_args(Prose))
    check_choice("ask", ask, get_args(Ask))
    check_count("hops", hops, 1, 4)
    check_count("distractors", distractors, 0, MOST)
    draw = random.Random(seed)
    chain, *others = _chains(draw, 1 + distractors, hops + 1)
    words = {"value": chain.value, "last": chain.variables[-1], "count": len(chain.variables)}
    answer = chain.value if ask == "value" else ", ".join(chain.variables)
    prefix = ANSWER_PREFIX[ask].format(**words)
    frame = Frame(
        INSTRUCTION,
        QUESTION[ask].format(**words),
        prefix + ending(tokenizer, prefix, answer),
        (
            *_hidden(chain, [f"hop:{hop}" for hop in range(hops + 1)], {0: {"value": chain.value}}, draw),
            *(hidden for other in others for hidden in _hidden(other, ["distractor"] * (hops + 1), {}, draw)),
        ),
    )
    metadata = {
        "value": chain.value,
        "variables": list(chain.variables),
        "distractors": [{"value": other.value, "variables": list(other.variables)} for other in others],
        "hops": hops,
        "ask": ask,
        "seed": seed,
        "haystack": haystack,
        "length": length,
    }
    sentences = fitted(tokenizer, frame, endless(haystack, draw), length)
    return prompt_of(tokenizer, frame, sentences, answer=answer, task="variable_tracking", metadata=metadata)


def _chains(draw: random.Random, count: int, variables: int) -> list[Chain]:
    """Chains without a name or a value in common."""
    names: dict[str, None] = {}
    while len(names) < count * variables:
        names["".join(draw.choices(ascii_uppercase, k=LETTERS))] = None
    values = draw.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)
    split = list(names)
    return [
        Chain(str(value), tuple(split[index * variables : (index + 1) * variables]))
        for index, value in enumerate(values)
    ]


def _hidden(chain: Chain, names: Sequence[str], inner: dict[int, dict[str, str]], draw: random.Random) -> list[Hidden]:
    """The chain's assignments at random places, in order."""
    depths = sorted(draw.random() for _ in chain.variables)
    return [
        Hidden(name, text, depth, inner.get(index, {}))
        for index, (name, text, depth) in enumerate(zip(names, chain.assignments, depths, strict=True))
    ]
