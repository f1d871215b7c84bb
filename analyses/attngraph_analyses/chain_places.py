"""Where the hops of a chain could have stood instead: the controls of `chains.py`.

A prompt puts the sentences of a chain at random places, in order. So a hop might as well stand anywhere between its
two neighbours, and a whole chain at any places in order: if its sentences are nothing special, the chain's weight is no
more likely to be great than that of a chain with other places. Places are sets of blocks:

1. ``"haystack"``: as many blocks as the hop has, in the same pattern, that neither the chain nor another chain touches.
2. ``"distractor"``: those of other chains of the same form. The whole chain is compared with each of them; a hop with
   theirs of the same number, where the two could change places and leave both chains in order.

All lie after the sink and before the question, and hops of one chain don't share a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from attngraph.graph.source import IntArray

BoolArray = npt.NDArray[np.bool_]
Control = Literal["haystack", "distractor"]
Controls = dict[tuple[str, Control], BoolArray]
"""Chains with other places, ``[alternatives, hops, blocks]``, by the hop that was replaced and by what."""
WHOLE = "chain"
"""In place of a hop's name: all hops were replaced."""
TRIES = 200
"""Tuples tried for every one that is asked for; of five hops one tuple in 120 is in order."""


def haystack_controls(
    names: Sequence[str], chain: BoolArray, others: BoolArray, end: int, draws: int, seed: int
) -> Controls:
    """A chain with one hop, or all of them, at other places in the haystack.

    Parameters
    ----------
    names
        Those of the hops.
    chain
        ``[hops, blocks]``.
    others
        ``[blocks]``: which blocks other chains touch.
    end
        The question's first block.
    draws, seed
        Places for each hop, and for all, at most; and how those that are drawn are drawn.
    """
    outside = np.arange(chain.shape[1]) >= end
    outside[0] = True
    places = [untouched(shifted(own), outside | others | chain.any(0)) for own in chain]
    random = np.random.default_rng(seed)
    alone = _alone(chain, end)
    sets: Controls = {(WHOLE, "haystack"): all_replaced(places, draws, random)[: None if alone.all() else 0]}
    for hop, name in enumerate(names):
        sets[name, "haystack"] = one_replaced(chain, hop, places[hop], draws, random)[: None if alone[hop] else 0]
    return sets


def other_controls(names: Sequence[str], chain: BoolArray, others: Sequence[BoolArray], end: int) -> Controls:
    """A chain with one hop, or all of them, at the places of other chains, ``[hops, blocks]`` each."""
    apart = [other for other in others if not (other & chain.any(0)).any() and _alone(other, end).all()]
    known = np.stack([chain, *apart])[1 : None if _alone(chain, end).all() else 1]
    sets: Controls = {(WHOLE, "distractor"): known}
    for hop, name in enumerate(names):
        sets[name, "distractor"] = exchanged(chain, known, hop)
    return sets


def _alone(chain: BoolArray, end: int) -> BoolArray:
    """Whether every hop shares no block with its neighbours, the sink and what begins at `end`, ``[hops]``."""
    apart = np.append(0, last_block(chain)) < np.append(first_block(chain), end)
    return np.asarray(apart[:-1] & apart[1:])


def first_block(places: BoolArray) -> IntArray:
    """The first block of every set, ``[...]`` of ``[..., blocks]``."""
    return np.asarray(places.argmax(-1), np.int64)


def last_block(places: BoolArray) -> IntArray:
    """The last block of every set, ``[...]`` of ``[..., blocks]``."""
    return np.asarray(places.shape[-1] - 1 - places[..., ::-1].argmax(-1), np.int64)


def as_sets(places: Sequence[Sequence[int] | IntArray], blocks: int) -> BoolArray:
    """Lists of blocks as sets, ``[places, blocks]``."""
    return np.array([np.isin(np.arange(blocks), place) for place in places], bool).reshape(len(places), blocks)


def shifted(own: BoolArray) -> BoolArray:
    """A set of blocks moved to every place that there is, ``[places, blocks]``."""
    pattern = np.flatnonzero(own) - first_block(own)
    start = np.arange(len(own) - pattern[-1])
    return as_sets(list(start[:, None] + pattern), len(own))


def untouched(places: BoolArray, taken: BoolArray) -> BoolArray:
    """The places without a block that is taken, ``[places, blocks]``."""
    return np.asarray(places[~(places & taken).any(1)])


def one_replaced(chain: BoolArray, hop: int, places: BoolArray, draws: int, random: np.random.Generator) -> BoolArray:
    """The chain with one hop at other places between its neighbours, ``[alternatives, hops, blocks]``.

    Parameters
    ----------
    chain
        ``[hops, blocks]``.
    hop
        Which one is replaced.
    places
        ``[places, blocks]``.
    draws
        If more places lie between the neighbours, as many are drawn.
    """
    after = last_block(chain[hop - 1]) if hop else -1
    before = first_block(chain[hop + 1]) if hop + 1 < len(chain) else chain.shape[1]
    between = places[(first_block(places) > after) & (last_block(places) < before)]
    between = between[_some(len(between), draws, random)]
    alternatives = np.repeat(chain[None], len(between), axis=0)
    alternatives[:, hop] = between
    return alternatives


def all_replaced(places: Sequence[BoolArray], draws: int, random: np.random.Generator) -> BoolArray:
    """Chains whose every hop is at another place, in order and apart, ``[alternatives, hops, blocks]``.

    Parameters
    ----------
    places
        Those of every hop, ``[places, blocks]`` each.
    draws
        At most as many different chains.
    """
    blocks = places[0].shape[1]
    if not all(map(len, places)):
        return np.zeros((0, len(places), blocks), bool)
    tried = np.stack([random.integers(len(own), size=TRIES * draws) for own in places], axis=1)
    first, last = (
        np.stack([end(own)[number] for own, number in zip(places, tried.T, strict=True)], axis=1)
        for end in (first_block, last_block)
    )
    # As `in_order`, of numbers: sets of all that is tried would be large.
    different = np.unique(tried[(last[:, :-1] < first[:, 1:]).all(1)], axis=0)
    chosen = different[_some(len(different), draws, random)]
    return np.stack([own[number] for own, number in zip(places, chosen.T, strict=True)], axis=1)


def in_order(chains: BoolArray) -> BoolArray:
    """Whether the hops of every chain come one after another, without a block in common, ``[chains]``."""
    return np.asarray((last_block(chains)[:, :-1] < first_block(chains)[:, 1:]).all(1))


def exchanged(chain: BoolArray, others: BoolArray, hop: int) -> BoolArray:
    """The chain with one hop of each other chain in place of its own, ``[alternatives, hops, blocks]``.

    Only where the other chain, with the hop that it gets in return, is in order as well: then either of the two could
    have been the one that was asked for.
    """
    given, taken = np.repeat(chain[None], len(others), axis=0), others.copy()
    given[:, hop], taken[:, hop] = others[:, hop], chain[hop]
    return np.asarray(given[in_order(given) & in_order(taken)])


def _some(count: int, draws: int, random: np.random.Generator) -> IntArray:
    """All of `count` numbers, or `draws` of them at random."""
    return np.arange(count) if count <= draws else np.sort(random.choice(count, draws, replace=False))
