"""Where sentences end: cases decided by hand, and the laws that hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.tasks.sentences import split


def pieces(text: str, shortest: int = 1) -> list[str]:
    return [text[start:end] for start, end in split(text, shortest)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["It is 3.14 or so.", "That's near π."],
        ["Is it 5?", "Yes!", "It is."],
        ["Numbers, e.g. 7 or i.e. the seventh, count.", "Fine."],
        ["See eq. 5 and Fig. 2 of Dr. Smith.", "They agree."],
        ["This follows from Dr. J. Smith, or in the U.S. Senate.", "So it holds."],
        ["Take the point A.", "Then draw a line."],
        ['She said "stop."', "He (too!) stopped."],
        ["**Done.**", "Next one."],
        ["We know \\(a. B\\) holds.", "Good."],
        ["\\[\nx = 1. \\quad\n\n Y = 2\n\\] holds.", "So far."],
        ["Let $x. Y$ be one.", "It costs $5.", "The other costs $6."],
        ["$$a = 1.\n\nB = 2$$ is known.", "Now go on."],
        ["\\begin{align}a &= 1. \\\\\n\n B\\end{align} holds.", "Then."],
        ["It is 6! / (3! * 3!) = 20.", "Right."],
        ["That makes 5!", "Wow."],
        ["And so on, up to 9... and then stops.", "Really?"],
        ["x = 2 etc.", "Next."],
        ["It has parts, vs. The rest."],
    ],
)
def test_sentences_in_a_line(sentences: list[str]) -> None:
    assert pieces(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["A line without a full stop", "**Final Answer**\nIt is \\boxed{3}."],
        ["1. First one.", "2. The next."],
        ["Layer 1: 1 + 3\nLayer 2: 1 + 3(Layer 1)", "Then."],
    ],
)
def test_blank_lines_end_a_sentence(sentences: list[str]) -> None:
    assert pieces("\n\n".join(sentences)) == sentences
    assert pieces("\n \n".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["Two things:", "1. The first, that is 1.5.", "2. The second"],
        ["These:", "- one", "- two.", "* three"],
        ["Cases:", "(a) even", "(b) odd"],
        ["Do it:", "Step 1: add.", "Step 2: divide"],
    ],
)
def test_items_of_a_list_are_sentences(sentences: list[str]) -> None:
    assert pieces("\n".join(sentences)) == sentences


def test_short_pieces_join_the_next_and_at_the_end_the_one_before() -> None:
    text = "Correct. So that is what it is. Good."
    assert pieces(text, 10) == ["Correct. So that is what it is. Good."]
    assert pieces(text, 9) == ["Correct. So that is what it is. Good."]
    assert pieces(text, 8) == ["Correct.", "So that is what it is. Good."]
    assert pieces("Yes.", 10) == ["Yes."]
    assert pieces(" \n ", 10) == []


texts = st.text(alphabet=st.sampled_from('aB1 .?!\n$\\()[]{}"*-=,é'), max_size=80) | st.text(max_size=60)


@given(texts, st.integers(1, 12))
def test_sentences_are_in_order_and_cover_all_but_white_space(text: str, shortest: int) -> None:
    ranges = split(text, shortest)
    reached = 0
    for start, end in ranges:
        assert reached <= start < end <= len(text)
        assert text[reached:start].strip() == ""
        assert text[start:end] == text[start:end].strip()
        reached = end
    assert text[reached:].strip() == ""
    assert all(end - start >= shortest for start, end in ranges) or len(ranges) == 1


@given(texts)
def test_joining_changes_no_other_edges(text: str) -> None:
    assert {start for start, _ in split(text, 10)} <= {start for start, _ in split(text, 1)}
