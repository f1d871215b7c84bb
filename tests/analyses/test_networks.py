"""The network-based statistic on toy graphs, against NetworkX's components and an enumeration."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import ConfigError
from attngraph_analyses.networks import Hops, greatest_sizes, joined, network_based_statistic
from attngraph_analyses.permutation import Labels, assignments, max_t


def hops_of(*hops: tuple[int, int, int]) -> Hops:
    return Hops(*np.array(hops).T)


NEEDLE, QUESTION, OUTPUT = 0, 1, 2
CHAIN = hops_of((0, NEEDLE, QUESTION), (1, QUESTION, OUTPUT), (4, NEEDLE, OUTPUT), (4, NEEDLE, OUTPUT))
"""Two hops in a row, and two heads of one layer three layers above."""


def test_a_toy_graph_by_hand():
    every = np.ones((1, 4), bool)
    member, size = joined(every, CHAIN, gap=0)
    assert size.tolist() == [2, 2]
    assert member.tolist() == [[0, 0, 1, 1]]
    # The output's stream leads from level 2 to level 5, the needle's from level 0 to level 4.
    assert joined(every, CHAIN, gap=2)[1].tolist() == [2, 2]
    assert joined(every, CHAIN, gap=3)[1].tolist() == [4]
    member, size = joined(np.array([[False, True, True, True]]), CHAIN, gap=0)
    assert member.tolist() == [[-1, 1, 0, 0]]
    assert size.tolist() == [2, 1]
    assert joined(np.zeros((2, 4), bool), CHAIN, gap=1)[1].tolist() == []


@given(st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_components_are_networkxs(gap: int, seed: int):
    random = np.random.default_rng(seed)
    hops = Hops(random.integers(0, 6, 12), random.integers(0, 4, 12), random.integers(0, 4, 12))
    kept = random.random((5, 12)) < 0.4
    sizes = []
    for row in kept:
        graph = nx.Graph()
        ends = [
            ((int(hops.layer[hop]), int(hops.key_role[hop])), (int(hops.layer[hop]) + 1, int(hops.query_role[hop])))
            for hop in np.flatnonzero(row)
        ]
        graph.add_edges_from(ends)
        nodes = list(graph)
        graph.add_edges_from((a, b) for a in nodes for b in nodes if a[1] == b[1] and 0 < b[0] - a[0] <= gap)
        sizes.append([sum(lower in part for lower, _ in ends) for part in nx.connected_components(graph)])
    assert greatest_sizes(kept, hops, gap).tolist() == [max(size, default=0) for size in sizes]
    member, size = joined(kept, hops, gap)
    assert sorted(size) == sorted(count for row in sizes for count in row)
    assert ((member >= 0) == kept).all()


def test_p_against_enumeration():
    random = np.random.default_rng(0)
    labels = Labels(first=np.arange(8) < 4, stratum=np.zeros(8, int))
    values = random.normal(size=(8, 4)) + 2.0 * labels.first[:, None] * np.array([1, 1, 0, 0])
    found = network_based_statistic(values, CHAIN, labels, threshold=1.5, gap=0, statistic="t")
    placed, exact = assignments(labels, 9_999, 0)
    assert exact
    largest = []
    for first in placed:
        t = max_t(values, Labels(first=first, stratum=labels.stratum), statistic="t").t
        largest.append(int(greatest_sizes(np.abs(t)[None] >= 1.5, CHAIN, 0)[0]))
    assert found.size.tolist() == sorted(found.size.tolist(), reverse=True)
    np.testing.assert_allclose(found.p, [np.mean(np.array(largest) >= size) for size in found.size])
    np.testing.assert_allclose(found.t, max_t(values, labels, statistic="t").t)
    assert ((found.member >= 0) == (np.abs(found.t) >= 1.5)).all()


def test_a_planted_chain_is_found_and_nothing_is_not():
    """Differences too small to survive one by one, but neighbours of one another."""
    random = np.random.default_rng(1)
    labels = Labels(first=np.arange(40) % 2 == 0, stratum=np.zeros(40, int))
    hops = Hops(np.arange(400) // 10, np.arange(400) % 3, (np.arange(400) // 3) % 3)
    values = random.normal(size=(40, 400))
    chain = np.flatnonzero((hops.layer >= 10) & (hops.layer < 14))
    values[np.ix_(labels.first, chain)] += 1.0
    options = {"threshold": 2.5, "gap": 1, "permutations": 499}
    found = network_based_statistic(values, hops, labels, **options)
    assert found.p[0] <= 0.01
    inside = np.isin(np.flatnonzero(found.member == 0), chain)
    assert inside.mean() >= 0.8
    shuffled = Labels(first=random.permutation(labels.first), stratum=labels.stratum)
    silent = network_based_statistic(random.normal(size=(40, 400)), hops, shuffled, **options)
    assert (silent.p > 0.05).all()


def test_bad_input():
    labels = Labels(first=np.arange(8) < 4, stratum=np.zeros(8, int))
    with pytest.raises(ConfigError, match="threshold=0 is a least"):
        network_based_statistic(np.zeros((8, 4)), CHAIN, labels, threshold=0)
    with pytest.raises(ConfigError, match="gap=-1"):
        network_based_statistic(np.zeros((8, 4)), CHAIN, labels, gap=-1)
