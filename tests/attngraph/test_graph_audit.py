"""Completeness: hand-computed walks, enumeration of the dense paths that stay on recorded edges, and its laws."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.errors import GraphError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph, KeptMass, completeness
from attngraph.graph.testing import all_paths, layer_arrays, random_source
from tests.attngraph.test_graph_transition import POLICIES

BLOCKS, HEADS, LAYERS, SIZE = 4, 2, 3, 2
TARGET = BLOCKS * SIZE - 1


class Pruned(NamedTuple):
    """A graph of dense attention, the graph of the edges kept of it, and which those are, per layer."""

    dense: ArraySource
    kept: ArraySource
    edges: list[set[tuple[int, int, int]]]


def pruned(seed: int, budget: int, *, norms: bool = False) -> Pruned:
    """Random dense attention over blocks and a target, and its `budget` best keys per row, besides sink and own block.

    Edges are (head, node, key block). With `norms`, contributions are masses times a value norm per head and layer.
    """
    random = np.random.default_rng(seed)
    dense, kept, masses, edges = [], [], [], []
    for _ in range(LAYERS):
        shares = random.random(BLOCKS + 1)
        every, some, sums = [], [], np.zeros((HEADS, BLOCKS + 1))
        for node in range(BLOCKS + 1):
            for head in range(HEADS):
                visible = min(node, BLOCKS - 1) + 1
                mass = random.dirichlet(np.full(visible, 0.5))
                best = {0, visible - 1, *np.argsort(-mass, kind="stable")[:budget].tolist()}
                sums[head, node] = mass[list(best)].sum()
                every += [(head, node, key, mass[key]) for key in range(visible)]
                some += [(head, node, key, mass[key] / sums[head, node]) for key in best]
        norm = random.lognormal(size=HEADS) if norms else np.ones(HEADS)
        dense.append(layer(every, shares, norm))
        kept.append(layer(some, shares, norm))
        sums = sums.clip(0, 1)
        masses.append(
            KeptMass(blocks=sums[:, :BLOCKS], estimate=np.full((HEADS, BLOCKS), np.nan), targets=sums[:, BLOCKS:])
        )
        edges.append({edge[:3] for edge in some})
    sizes = {"heads": HEADS, "tokens": BLOCKS * SIZE, "block_size": SIZE, "targets": (TARGET,)}
    return Pruned(ArraySource(arrays=dense, **sizes), ArraySource(arrays=kept, kept=masses, **sizes), edges)


def layer(edges, shares, norm):
    into_blocks = [edge for edge in edges if edge[1] < BLOCKS]
    into_target = [(head, 0, key, mass) for head, node, key, mass in edges if node == BLOCKS]
    arrays = layer_arrays(into_blocks, into_target, residual=shares[:BLOCKS], target_residual=shares[BLOCKS:])
    return replace(
        arrays,
        contribution=arrays.mass * norm[arrays.head],
        target_contribution=arrays.target_mass * norm[arrays.target_head],
    )


def on_recorded_edges(found: Pruned, target: str, **policy) -> float:
    """The weight of the dense graph's paths whose every step is a residual one or a recorded edge."""
    graph = AttentionGraph(found.dense, **policy)
    return sum(
        weight
        for block in range(BLOCKS)
        for weight, steps in all_paths(graph, f"block:{block}", target)
        if all(head is None or (head, upper, lower) in found.edges[level] for level, head, lower, upper in steps)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from(["keep", "exclude"]), st.booleans())
def test_it_is_the_dense_walk_on_recorded_edges(seed, budget, sink, norms) -> None:
    found = pruned(seed, budget, norms=norms)
    policy = {"weight": "contribution" if norms else "mass", "sink": sink}
    for target in ("output", "block:2"):
        share, source, lost = completeness(AttentionGraph(found.kept, **policy), target)
        assert share == pytest.approx(on_recorded_edges(found, target, **policy), abs=1e-9)
        assert source == "audited"
        assert share + sum(lost) == pytest.approx(1, abs=1e-9)


@given(st.integers(0, 2**32 - 1), POLICIES)
def test_masses_may_be_shares_of_the_dense_softmax(seed, policy) -> None:
    source = pruned(seed, 1, norms=True).kept
    scaled, kept = [], []
    for arrays, known in zip(source.arrays, source.kept, strict=True):
        blocks = known.blocks[arrays.head, arrays.query_block]
        targets = known.targets[arrays.target_head, arrays.target]
        masses = {"mass": arrays.mass * blocks, "contribution": arrays.contribution * blocks}
        of_targets = {name: getattr(arrays, name) * targets for name in ("target_mass", "target_contribution")}
        scaled.append(replace(arrays, **masses, **of_targets))
        kept.append(replace(known, dense_masses=True))
    # The same attention written down in two ways; which of two heads' edges is the stronger may depend on it.
    if policy["heads"] == "sum":
        same = completeness(AttentionGraph(replace(source, arrays=scaled, kept=kept), **policy))
        assert same.share == pytest.approx(completeness(AttentionGraph(source, **policy)).share, abs=1e-9)


@given(st.integers(0, 2**32 - 1), POLICIES)
def test_it_is_a_share_and_loses_what_rows_lose(seed, policy) -> None:
    source = pruned(seed, 2, norms=True).kept
    graph = AttentionGraph(source, **policy)
    found = completeness(graph)
    assert 0 <= found.share <= 1
    assert found.share + sum(found.lost) == pytest.approx(1, abs=1e-9)
    for number in range(LAYERS):
        kept, plain = graph.kept_transition(number), graph.transition(number)
        rows = kept.stay + kept.lost + np.bincount(kept.query, kept.probability, minlength=graph.nodes)
        np.testing.assert_allclose(rows, 1, atol=1e-12)
        np.testing.assert_array_equal(kept.query, plain.query)
        np.testing.assert_array_equal(kept.key_block, plain.key_block)
        np.testing.assert_array_equal(kept.stay, plain.stay)


@given(st.integers(0, 2**32 - 1), POLICIES)
def test_where_nothing_was_dropped_it_is_one_and_the_steps_are_the_graphs_own(seed, policy) -> None:
    graph = AttentionGraph(pruned(seed, BLOCKS).kept, **policy)
    assert completeness(graph).share == pytest.approx(1, abs=1e-9)
    kept, plain = graph.kept_transition(1), graph.transition(1)
    np.testing.assert_allclose(kept.probability, plain.probability, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["keep", "exclude"]))
def test_keeping_more_of_the_same_attention_never_lowers_it(seed, sink) -> None:
    shares = [
        completeness(AttentionGraph(pruned(seed, budget).kept, weight="mass", sink=sink)).share
        for budget in range(1, BLOCKS + 1)
    ]
    assert all(less <= more + 1e-9 for less, more in pairwise(shares))


def one_layer(kept: KeptMass | None, residual: float = 0.25) -> ArraySource:
    """The target reads block 1 in head 0, and blocks 0 and 1 in head 1, whose contributions are twice its masses."""
    arrays = layer_arrays(
        [(0, 0, 0, 1.0), (1, 0, 0, 1.0), (0, 1, 0, 1.0), (1, 1, 0, 1.0)],
        [(0, 0, 1, 1.0), (1, 0, 0, 0.5), (1, 0, 1, 0.5)],
        residual=np.array([0.5, 0.5]),
        target_residual=np.array([residual]),
    )
    arrays = replace(arrays, target_contribution=np.array([1.0, 1.0, 1.0]))
    return ArraySource(
        arrays=[arrays], heads=2, tokens=4, block_size=2, targets=(3,), kept=None if kept is None else [kept]
    )


def kept_mass(*target: float, blocks: float = np.nan, estimate: float = np.nan) -> KeptMass:
    return KeptMass(
        blocks=np.full((2, 2), blocks), estimate=np.full((2, 2), estimate), targets=np.array(target).reshape(2, 1)
    )


def test_one_layer_by_hand() -> None:
    source = one_layer(kept_mass(0.9, 0.6))
    share = {policy: completeness(AttentionGraph(source, weight=policy)).share for policy in ("contribution", "mass")}
    # By contribution head 0 weighs 1 of 3 and head 1 weighs 2 of 3, by mass one half each.
    assert share["contribution"] == pytest.approx(0.25 + 0.75 * (0.9 + 2 * 0.6) / 3)
    assert share["mass"] == pytest.approx(0.25 + 0.75 * (0.9 + 0.6) / 2)
    # Without the sink, head 1 keeps 0.3 of the 0.7 of its attention that doesn't go there.
    excluded = completeness(AttentionGraph(source, weight="mass", sink="exclude"))
    assert excluded.share == pytest.approx(0.25 + 0.75 * (0.9 + 0.3) / (1.0 + 0.7))
    assert excluded.lost == (pytest.approx(0.75 * (0.1 + 0.4) / 1.7),)
    # Of the parallel edges from block 1 head 0's is the strongest; all that was dropped counts against what is left.
    strongest = completeness(AttentionGraph(source, weight="mass", heads="max"))
    assert strongest.share == pytest.approx(0.25 + 0.75 * (0.9 + 0.3) / (1.2 + 0.1 + 0.4))


def test_what_is_said_depends_on_the_rows_that_the_walk_passes() -> None:
    exact, guessed = kept_mass(0.9, 0.6), kept_mass(0.9, 0.6, estimate=0.8)
    assert completeness(AttentionGraph(one_layer(exact))).source == "audited"
    assert completeness(AttentionGraph(one_layer(exact)), "block:1") == (None, None, ())
    estimated = completeness(AttentionGraph(one_layer(guessed)), "block:1")
    assert (estimated.share, estimated.source) == (pytest.approx(0.5 + 0.5 * 0.8), "estimated")
    audited = completeness(AttentionGraph(one_layer(kept_mass(0.9, 0.6, blocks=0.7, estimate=0.8))), "block:1")
    assert (audited.share, audited.source) == (pytest.approx(0.5 + 0.5 * 0.7), "audited")
    assert completeness(AttentionGraph(one_layer(None))) == (None, None, ())
    # A row that only stays in place drops nothing, whatever is known of it.
    staying = completeness(AttentionGraph(one_layer(kept_mass(np.nan, np.nan), residual=1.0)))
    assert (staying.share, staying.source) == (1.0, "audited")
    assert completeness(AttentionGraph(one_layer(kept_mass(np.nan, 0.6)))).share is None


def test_a_source_without_audit_tells_nothing() -> None:
    graph = AttentionGraph(random_source(seed=0))
    assert completeness(graph) == (None, None, ())
    assert graph.kept_transition(0) is None


def test_what_is_refused() -> None:
    with pytest.raises(GraphError, match=r"Layer 0 has the kept mass 1\.5 \(targets\); kept masses are from 0 to 1"):
        completeness(AttentionGraph(one_layer(kept_mass(1.5, 0.5))))
    wrong = replace(kept_mass(0.5, 0.5), estimate=np.ones((2, 3)))
    with pytest.raises(GraphError, match=r"kept masses \(estimate\) of shape \(2, 3\), not \(2, 2\)"):
        completeness(AttentionGraph(one_layer(wrong)))
    with pytest.raises(UnknownNodeError, match="'needle' names nothing"):
        completeness(AttentionGraph(one_layer(kept_mass(0.5, 0.5))), "needle")
