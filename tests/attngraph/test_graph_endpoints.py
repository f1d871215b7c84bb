"""What the names of sources and targets mean."""

from __future__ import annotations

import numpy as np
import pytest

from attngraph.errors import UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph, blocks_of, source_state, spans_by_block, target_state
from attngraph.graph.testing import layer_arrays

SPANS = {"needle": ((3, 9),), "twice": ((0, 2), (12, 13)), "edge": ((4, 8),)}


def graph(targets: tuple[int, ...] = (9, 12)) -> AttentionGraph:
    """Four blocks of four tokens, the last of one token only."""
    return AttentionGraph(
        ArraySource(arrays=[layer_arrays([])], heads=1, tokens=13, block_size=4, targets=targets, spans=SPANS)
    )


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("needle", [0, 1, 2]),
        ("edge", [1]),
        ("twice", [0, 3]),
        ("block:3", [3]),
        ("token:0", [0]),
        ("token:11", [2]),
        ("output", [3]),
    ],
)
def test_blocks_of(name: str, blocks: list[int]):
    assert blocks_of(graph(), name).tolist() == blocks


def test_a_source_counts_the_targets_whose_tokens_lie_in_its_blocks():
    assert source_state(graph(), "needle").tolist() == [1, 1, 1, 0, 1, 0]
    assert source_state(graph(), "token:12").tolist() == [0, 0, 0, 1, 0, 1]
    assert source_state(graph(()), "twice").tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("output", [0, 0, 0, 0, 0, 1]),
        ("token:9", [0, 0, 0, 0, 1, 0]),
        ("block:2", [0, 0, 1, 0, 0, 0]),
        ("twice", [0.5, 0, 0, 0.5, 0, 0]),
    ],
)
def test_target_state(name: str, state: list[float]):
    assert target_state(graph(), name).tolist() == state


def test_spans_by_block():
    assert spans_by_block(graph()) == (("needle", "twice"), ("needle", "edge"), ("needle",), ("twice",))


@pytest.mark.parametrize("state", [source_state, target_state])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nedle",
            r"'nedle' names nothing.* Spans: edge, needle, twice\. .*'block:N' \(0 to 3\), 'token:N'",
        ),
        ("block:4", r"'block:4' is not among this graph's 4 blocks: give a number from 0 to 3"),
        ("token:13", r"'token:13' is not among this graph's 13 tokens: give a number from 0 to 12"),
        ("block:-1", r"'block:-1' is not among"),
        ("block:", r"'block:' is not among"),
        ("block:²", r"'block:²' is not among"),
        ("", r"'' names nothing"),
    ],
)
def test_unknown_names_list_what_there_is(state: object, name: str, message: str):
    with pytest.raises(UnknownNodeError, match=message):
        state(graph(), name)


def test_a_token_is_a_target_only_if_it_was_recorded():
    with pytest.raises(
        UnknownNodeError,
        match=r"'token:3' is not a target.*Targets: token:9, token:12\. Its block is 'block:0'",
    ):
        target_state(graph(), "token:3")
    with pytest.raises(UnknownNodeError, match=r"Targets: none"):
        target_state(graph(()), "token:3")


@pytest.mark.parametrize("state", [source_state, target_state])
def test_output_needs_a_target(state: object):
    with pytest.raises(UnknownNodeError, match=r"it has none\. The last block is 'block:3'"):
        state(graph(()), "output")


def test_states_are_new_arrays():
    one = graph()
    target_state(one, "output")[:] = 7.0
    assert np.sum(target_state(one, "output")) == 1.0
