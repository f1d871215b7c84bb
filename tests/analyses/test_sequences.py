"""The weight of a hop sequence over all its placements, against enumeration."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attngraph.errors import ConfigError, UnknownNodeError
from attngraph.graph import AttentionGraph
from attngraph.graph.testing import all_paths, random_source
from attngraph.testing import layered_graphs
from attngraph_analyses import routes, sequence_weight


def chain(layers: int = 3) -> AttentionGraph:
    """Block 1 reads block 0 in every layer, and stays with one half; head 1 carries a quarter of what it reads."""
    edges = {
        "layer": np.repeat(np.arange(layers), 2),
        "head": [0, 1] * layers,
        "query_block": [1, 1] * layers,
        "key_block": [0, 0] * layers,
        "weight": [3.0, 1.0] * layers,
    }
    return AttentionGraph.from_edges(edges, residual=0.5, block_size=4, spans={"both": (2, 6), "late": (5, 8)})


def test_a_chain_by_hand():
    found = sequence_weight(chain(), ["block:0", "block:1"])
    # the hop may happen at any of 3 layers; after it the stream of block 1 stays, at one half per layer
    assert found.total == pytest.approx(1 / 2 + 1 / 4 + 1 / 8)
    assert (found.best, found.best_layers) == (pytest.approx(1 / 2), (2,))
    np.testing.assert_allclose(found.share, [[1 / 7, 2 / 7, 4 / 7]])
    by_head = sequence_weight(chain(), ["block:0", "late"], [1])
    assert by_head.total == pytest.approx(found.total / 4)
    assert by_head.to_polars().rows() == [
        (0, "block:0", "late", 1, layer, pytest.approx(share)) for layer, share in enumerate([1 / 7, 2 / 7, 4 / 7])
    ]


@given(layered_graphs(max_layers=4), st.sampled_from(["output", "last"]))
def test_sequences_group_the_enumerated_paths(graph: AttentionGraph, end: str):
    assume(end == "last" or graph.targets)
    target = "output" if end == "output" else f"block:{graph.blocks - 1}"
    names = [f"block:{block}" for block in range(graph.blocks)] + [f"token:{token}" for token in graph.targets]
    sums: dict[tuple[tuple[str, ...], tuple[int, ...]], list[tuple[float, tuple[int, ...]]]] = defaultdict(list)
    for weight, steps in all_paths(graph, "block:0", target):
        hops = [step for step in steps if step[1] is not None]
        if hops:
            stops = (*(names[lower] for _, _, lower, _ in hops), names[hops[-1][3]])
            sums[stops, tuple(head for _, head, _, _ in hops)].append((weight, tuple(step[0] for step in hops)))
    for (stops, heads), found in sums.items():
        answer = sequence_weight(graph, stops, heads)
        assert answer.total == pytest.approx(sum(weight for weight, _ in found), rel=1e-9)
        assert answer.best == pytest.approx(max(found)[0], rel=1e-9)
        np.testing.assert_allclose(answer.share.sum(1), 1.0, rtol=1e-9)
        shares = np.zeros_like(answer.share)
        for weight, layers in found:
            shares[range(len(layers)), layers] += weight / answer.total
        np.testing.assert_allclose(answer.share, shares, atol=1e-9)
    by_stops: dict[tuple[str, ...], float] = defaultdict(float)
    for (stops, _), found in sums.items():
        by_stops[stops] += sum(weight for weight, _ in found)
    for stops, total in by_stops.items():
        assert sequence_weight(graph, stops).total == pytest.approx(total, rel=1e-9)


def test_a_route_is_one_placement_of_its_sequence():
    graph = AttentionGraph(random_source(seed=5, layers=6, heads=2, blocks=5))
    best = routes(graph, "block:0", "output", 1).routes[0]
    found = sequence_weight(graph, best.stops, best.heads)
    assert found.best == pytest.approx(best.weight, rel=1e-9)
    assert found.best_layers == tuple(hop.layer for hop in best.hops)
    assert found.total >= found.best * (1 - 1e-9)


def test_a_sequence_that_never_happens_has_weight_0():
    found = sequence_weight(chain(), ["block:1", "block:0"])
    assert (found.total, found.best, found.best_layers, found.share.sum()) == (0.0, 0.0, (), 0.0)
    assert found.to_polars().height == 0
    assert sequence_weight(chain(), ["block:0", "block:1"], [7]).total == 0.0
    assert sequence_weight(chain(1), ["block:0", "block:1", "block:1"]).total == 0.0


def test_bad_sequences():
    with pytest.raises(ConfigError, match=r"A sequence has at least two stops; got \['block:0'\]"):
        sequence_weight(chain(), ["block:0"])
    with pytest.raises(ConfigError, match=r"2 heads for 1 hops; give one head per hop"):
        sequence_weight(chain(), ["block:0", "block:1"], [0, 1])
    with pytest.raises(UnknownNodeError, match=r"'both' lies in the blocks 0, 1; a stop is one of them, .*'block:0'"):
        sequence_weight(chain(), ["both", "block:1"])
    with pytest.raises(UnknownNodeError, match=r"'both' lies in the blocks 0, 1"):
        sequence_weight(chain(), ["block:0", "both"])
    with pytest.raises(UnknownNodeError, match="names nothing"):
        sequence_weight(chain(), ["block:0", "nowhere"])
