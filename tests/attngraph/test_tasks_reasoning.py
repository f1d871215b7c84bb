"""Chains of thought as prompts: sentences at their exact tokens, what is known of them, and where they may stop."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attngraph.errors import PromptError
from attngraph.tasks import Prompt, make, reasoning, score
from attngraph.tasks.reasoning import TRACES
from attngraph.tasks.sentences import split
from attngraph.tasks.tagger import CATEGORIES
from tests.attngraph.byte_tokenizer import WORDS, span_text

SHARED = Path(os.environ.get("ATTNGRAPH_TRACES", Path(__file__).parents[3] / "shared/data/reasoning"))

CONTENT: dict[str, Any] = {
    "prompt": "Problem: what is 2 + 3? Solution:\n",
    "question": "what is 2 + 3?",
    "solution": "I have to add.\n\nSo 2 + 3\n= 5.  Yes. **Final Answer** \\boxed{5}. And a postscript.",
    "sentences": [
        {"text": "I have to add.", "tags": ["plan_generation"], "depends_on": []},
        {"text": "So 2 + 3 = 5.", "tags": ["active_computation"], "depends_on": [0], "counterfactual_kl": 0.25},
        {"text": "Yes. **Final Answer** \\boxed{5}.", "tags": ["final_answer_emission", "self_checking"]},
    ],
    "model": "by hand",
}


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    return written(tmp_path, CONTENT)


def written(folder: Path, content: Any) -> Path:
    path = folder / "trace.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sentence_spans(prompt: Prompt) -> list[Any]:
    found = [span for span in prompt.spans if span.name.startswith("sentence:")]
    assert [span.name for span in found] == [f"sentence:{index}" for index in range(len(found))]
    return found


def check_sentences(tokenizer: Any, prompt: Prompt) -> None:
    """In order, without overlap, inside the completion, and between them nothing but white space."""
    completion = prompt.completion
    assert completion is not None
    reached = completion.start
    for span in sentence_spans(prompt):
        assert reached <= span.start
        assert tokenizer.decode(prompt.token_ids[reached : span.start]).strip() == ""
        reached = span.end
    assert reached == completion.end == len(prompt)


def test_a_trace_file_by_hand(trace_file: Path) -> None:
    prompt = reasoning.from_json(WORDS, trace_file)
    check_sentences(WORDS, prompt)
    assert prompt.text == CONTENT["prompt"] + CONTENT["solution"].removesuffix(" And a postscript.")
    assert span_text(WORDS, prompt, "question") == CONTENT["question"]
    assert (prompt.named("sink")[0].start, prompt.named("sink")[0].end) == (0, 1)
    texts = [WORDS.decode(prompt.token_ids[span.start : span.end]) for span in sentence_spans(prompt)]
    assert texts == ["I have to add.", "So 2 + 3\n= 5.", "Yes. **Final Answer** \\boxed{5}."]
    assert prompt.answer is None
    assert dict(prompt.metadata) == {
        "question": CONTENT["question"],
        "model": "by hand",
        "sentences": [
            {"category": "plan_generation", "depends_on": []},
            {"category": "active_computation", "depends_on": [0], "counterfactual_kl": 0.25},
            {"category": "final_answer_emission", "tags": ["final_answer_emission", "self_checking"]},
        ],
    }


def test_a_trace_can_stop_before_its_answer(trace_file: Path) -> None:
    prompt = reasoning.from_json(WORDS, trace_file, until="answer")
    assert prompt.text is not None
    assert prompt.text.endswith("**Final Answer** \\boxed{")
    assert prompt.answer == "5"
    assert WORDS.decode(prompt.answer_token_ids(WORDS)) == "5"
    assert prompt.named("sentence:2")[0].end == len(prompt)
    assert score(prompt.task, prompt.answer, " 5") == 1


def test_a_length_keeps_whole_sentences(trace_file: Path) -> None:
    whole = reasoning.from_json(WORDS, trace_file)
    ends = [span.end for span in sentence_spans(whole)]
    for length in range(ends[0], len(whole) + 3):
        prompt = reasoning.from_json(WORDS, trace_file, length=length)
        kept = sum(end <= length for end in ends)
        assert len(prompt) == ends[kept - 1]
        assert len(sentence_spans(prompt)) == len(prompt.metadata["sentences"]) == kept
        check_sentences(WORDS, prompt)
    with pytest.raises(PromptError, match=f"length={ends[0] - 1} is too short: .* give at least {ends[0]}"):
        reasoning.from_json(WORDS, trace_file, length=ends[0] - 1)
    with pytest.raises(PromptError, match="length=60 is too short: up to its answer"):
        reasoning.from_json(WORDS, trace_file, length=60, until="answer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "isn't valid JSON"),
        ([], 'needs an object with the strings "prompt" and "solution"'),
        ({"solution": 5}, 'strings "prompt" and "solution"'),
        ({"sentences": []}, 'needs "sentences"'),
        ({"sentences": [{"tags": []}]}, 'Sentence 0 of the trace .* has no "text"'),
        ({"sentences": ["So"]}, 'Sentence 0 of the trace .* has no "text"'),
        ({"sentences": [{"text": "Yes."}, {"text": "I have to add."}]}, "has no sentence 1, 'I have to add.'"),
        (
            {"sentences": [{"text": "Yes.", "tags": ["joke"]}]},
            r"has the tags \['joke'\], which must be .* one of problem",
        ),
        (
            {"sentences": [{"text": "Yes.", "tags": "self_checking"}]},
            "has the tags 'self_checking', which must be a list",
        ),
        ({"sentences": [{"text": 5}]}, 'Sentence 0 of the trace .* has no "text"'),
        ({"question": "what is 3?"}, '"question" of the trace .* is not a part of its prompt'),
        ({"question": 3}, '"question" of the trace'),
    ],
)
def test_bad_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    content = CONTENT | change if isinstance(change, dict) else change
    with pytest.raises(PromptError, match=message):
        reasoning.from_json(WORDS, written(tmp_path, content))


def test_bad_wishes_are_refused(trace_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"Can't read the trace .*gone\.json"):
        reasoning.from_json(WORDS, tmp_path / "gone.json")
    with pytest.raises(PromptError, match="until='lunch' is not one of end, answer"):
        reasoning.from_json(WORDS, trace_file, until="lunch")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="length=0 must be a whole number"):
        reasoning.from_json(WORDS, trace_file, length=0)
    with pytest.raises(PromptError, match=r"needs a trace whose sentences give the answer as \\boxed"):
        reasoning.from_text(WORDS, "What?", "It is five.", until="answer")
    with pytest.raises(PromptError, match="needs a prompt and a solution"):
        reasoning.from_text(WORDS, "What?", " \n")
    with pytest.raises(PromptError, match="trace='boats' is not one of coins, handshakes, tank"):
        make("reasoning", WORDS, trace="boats")
    with pytest.raises(PromptError, match="trace=3 must be a whole number from 0 to 2"):
        make("reasoning", WORDS, trace=3)


@pytest.mark.parametrize("name", TRACES)
def test_own_traces(name: str) -> None:
    prompt = make("reasoning", WORDS, trace=name, until="answer")
    assert prompt.task == "reasoning"
    assert prompt.answer == prompt.metadata["answer"]
    assert prompt.metadata["trace"] == name
    check_sentences(WORDS, prompt)
    known = prompt.metadata["sentences"]
    assert {sentence["category"] for sentence in known} == set(CATEGORIES)
    assert all(max(sentence["depends_on"], default=-1) < index for index, sentence in enumerate(known))
    assert make("reasoning", WORDS, trace=TRACES.index(name), until="answer") == prompt
    assert make("reasoning", WORDS, seed=TRACES.index(name) + 3, until="answer") == prompt


@pytest.mark.parametrize("name", TRACES)
def test_the_splitter_finds_the_sentences_of_own_traces(name: str) -> None:
    labelled = make("reasoning", WORDS, trace=name)
    question, _, solution = labelled.text.partition("<think>\n")
    bare = reasoning.from_text(WORDS, f"{question}<think>\n", solution)
    assert bare.token_ids == labelled.token_ids
    assert sentence_spans(bare) == sentence_spans(labelled)
    assert bare.metadata["labels"] == "rules"
    assert {sentence["category"] for sentence in bare.metadata["sentences"]} <= set(CATEGORIES)


def test_a_trace_file_is_a_task_too(trace_file: Path) -> None:
    assert make("reasoning", WORDS, trace=str(trace_file)) == reasoning.from_json(WORDS, trace_file)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="aB1 .?!\n$\\()é the", min_size=1, max_size=60).filter(str.strip))
def test_sentences_of_any_text_cover_the_completion_in_order(solution: str) -> None:
    prompt = reasoning.from_text(WORDS, "What is it?\n", solution)
    check_sentences(WORDS, prompt)
    assert len(sentence_spans(prompt)) == len(split(solution))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of labelled traces isn't there (ATTNGRAPH_TRACES)")
def test_labelled_traces_become_prompts() -> None:
    for path in sorted(SHARED.glob("*.json"))[::3]:
        prompt = reasoning.from_json(WORDS, path)
        check_sentences(WORDS, prompt)
        labels = [sentence["tags"][0] for sentence in json.loads(path.read_text(encoding="utf-8"))["sentences"]]
        assert [known["category"] for known in prompt.metadata["sentences"]] == labels
        assert "counterfactual_kl" in prompt.metadata["sentences"][0]
