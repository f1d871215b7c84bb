"""Variable tracking: a chain that can be followed by hand, its spans in order, and others beside it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from attngraph.errors import PromptError
from attngraph.tasks import make, score, variable_tracking
from tests.attngraph.byte_tokenizer import WORDS, span_text, span_texts

ASSIGNMENT = re.compile(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})\.")


def followed(text: str) -> dict[str, str]:
    """The value of every variable, by carrying out the assignments of a text one after the other."""
    values: dict[str, str] = {}
    for name, source in ASSIGNMENT.findall(text):
        assert name not in values
        values[name] = source if source.isdigit() else values[source]
    return values


@pytest.mark.parametrize("haystack", ["noise", "varied"])
@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_the_text_itself_leads_to_the_answer(hops: int, haystack: Any) -> None:
    for seed in range(5):
        prompt = variable_tracking(WORDS, length=2500, seed=seed, hops=hops, distractors=2, haystack=haystack)
        truth = prompt.metadata
        assert prompt.text is not None
        values = followed(prompt.text)
        assert len(values) == 3 * (hops + 1)
        assert values[truth["variables"][-1]] == truth["value"] == prompt.answer.strip()
        assert [name for name, value in values.items() if value == truth["value"]] == truth["variables"]


def test_hops_and_distractors_have_exact_spans_in_order() -> None:
    prompt = variable_tracking(WORDS, length=2000, seed=1, hops=3, distractors=1)
    first, *others = names = prompt.metadata["variables"]
    assert span_text(WORDS, prompt, "hop:0") == f"VAR {first} = {prompt.metadata['value']}."
    assert span_text(WORDS, prompt, "value") == prompt.metadata["value"]
    for hop, (name, source) in enumerate(zip(others, names, strict=False), 1):
        assert span_text(WORDS, prompt, f"hop:{hop}") == f"VAR {name} = VAR {source}."
    starts = [prompt.named(f"hop:{hop}")[0].start for hop in range(4)]
    assert starts == sorted(starts)
    distractors = span_texts(WORDS, prompt, "distractor")
    assert len(distractors) == 4
    (other,) = prompt.metadata["distractors"]
    assert followed(" ".join(distractors)) == dict.fromkeys(other["variables"], other["value"])
    assert names[-1] in span_text(WORDS, prompt, "question")
    assert prompt.named("answer_prefix")[0].end == len(prompt)


def test_all_variables_can_be_asked_for() -> None:
    prompt = variable_tracking(WORDS, length=1500, hops=2, ask="variables")
    names = prompt.metadata["variables"]
    assert prompt.answer.strip() == ", ".join(names)
    assert prompt.metadata["value"] in span_text(WORDS, prompt, "question")
    assert score("variable_tracking", prompt.answer, f"{names[2]} {names[0]}") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hops": 0}, "hops=0 must be a whole number from 1 to 4"),
        ({"hops": 5}, "hops=5 must be"),
        ({"hops": True}, "hops=True must be"),
        ({"distractors": 101}, "distractors=101 must be a whole number from 0 to 100"),
        ({"ask": "name"}, "ask='name' is not one of value, variables"),
        ({"haystack": "needles"}, "haystack='needles' is not one of noise, varied"),
        ({"length": 150}, "length=150 is too short"),
        ({"depth": 0.5}, "can't be made with"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make("variable_tracking", WORDS, **options)
