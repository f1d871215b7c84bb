"""Where a graph reads its layers from.

`AttentionGraph` knows nothing of files: it asks a `LayerSource` for one layer at a time. A run on disk is one
such source, `ArraySource` is another that holds everything in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from attngraph.errors import GraphError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
AnyIntegers = npt.NDArray[np.integer[Any]]
AnyFloats = npt.NDArray[np.floating[Any]]
SpanRanges = Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerArrays:
    """One layer of a run: edges into query blocks, edges into targets, and the residual shares.

    Parameters
    ----------
    head, query_block, key_block
        One entry per edge into a query block, any integer type, any order.
    mass, contribution
        Weights of those edges, finite and at least 0.
    target_head, target, target_key_block, target_mass, target_contribution
        The same for the edges into targets; `target` is an index into `LayerSource.targets`, not a token
        position.
    residual
        Share of each block's update that stays in place, ``[blocks]``, from 0 to 1; ``None`` if not measured.
    target_residual
        The same per target, ``[targets]``.
    """

    head: AnyIntegers
    query_block: AnyIntegers
    key_block: AnyIntegers
    mass: AnyFloats
    contribution: AnyFloats
    target_head: AnyIntegers
    target: AnyIntegers
    target_key_block: AnyIntegers
    target_mass: AnyFloats
    target_contribution: AnyFloats
    residual: AnyFloats | None
    target_residual: AnyFloats | None


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptMass:
    """How much of its dense attention each row of a layer keeps, from 0 to 1; NaN where that isn't known.

    Parameters
    ----------
    blocks
        ``[heads, blocks]``: audited, that is exact.
    estimate
        ``[heads, blocks]``: the search's estimate.
    targets
        ``[heads, targets]``: audited.
    dense_masses
        Whether a row's masses are shares of its dense softmax, and sum to what it keeps. Otherwise they are shares of
        the softmax over its kept keys, and sum to 1.
    """

    blocks: AnyFloats
    estimate: AnyFloats
    targets: AnyFloats
    dense_masses: bool = False


class LayerSource(Protocol):
    """What a graph needs to know of a run; `spans` maps a name to its half-open token ranges."""

    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def targets(self) -> tuple[int, ...]: ...
    @property
    def spans(self) -> SpanRanges: ...
    def layer(self, layer: int) -> LayerArrays: ...
    def kept_mass(self, layer: int) -> KeptMass | None: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class ArraySource:
    """A `LayerSource` in memory, for tests and for graphs that come from elsewhere.

    Parameters
    ----------
    arrays
        One `LayerArrays` per layer, the first layer first.
    heads
        Number of heads per layer.
    tokens, block_size
        The prompt's length and the number of tokens per block; the last block may be shorter.
    targets
        Token positions of the targets.
    spans
        Half-open token ranges by name.
    kept
        One `KeptMass` per layer, if known.
    in_range
        Whether all indices are known to be in range, so that a layer's need not be looked at when it is read.

    Examples
    --------
    A model of one layer and one head over three blocks, the last of which looks at the first:

    >>> import numpy as np
    >>> from attngraph.graph import ArraySource, AttentionGraph, LayerArrays
    >>> edge, none = np.array([1.0]), np.array([])
    >>> layer = LayerArrays(
    ...     head=np.array([0]), query_block=np.array([2]), key_block=np.array([0]), mass=edge,
    ...     contribution=edge, target_head=np.array([], int), target=np.array([], int),
    ...     target_key_block=np.array([], int), target_mass=none, target_contribution=none,
    ...     residual=np.full(3, 0.5), target_residual=none)
    >>> graph = AttentionGraph(ArraySource(arrays=(layer,), heads=1, tokens=24, block_size=8))
    >>> graph.to_scipy(0).toarray()[2].tolist()
    [0.5, 0.0, 0.5]
    """

    arrays: Sequence[LayerArrays]
    heads: int
    tokens: int
    block_size: int
    targets: tuple[int, ...] = ()
    spans: SpanRanges = field(default_factory=dict)
    kept: Sequence[KeptMass] | None = None
    in_range: bool = False

    @property
    def layers(self) -> int:
        return len(self.arrays)

    @property
    def blocks(self) -> int:
        return -(-self.tokens // self.block_size)

    def layer(self, layer: int) -> LayerArrays:
        return self.arrays[layer]

    def kept_mass(self, layer: int) -> KeptMass | None:
        return None if self.kept is None else self.kept[layer]


def check_source(source: LayerSource) -> None:
    """Refuse a source whose numbers contradict each other.

    Raises
    ------
    GraphError
        If blocks, targets or spans don't fit the number of tokens.
    """
    if min(source.layers, source.heads, source.tokens, source.block_size) < 1:
        raise GraphError(
            f"A graph needs at least one layer, one head, one token, and blocks of at least one token; got "
            f"{source.layers}, {source.heads}, {source.tokens} and {source.block_size}."
        )
    blocks = -(-source.tokens // source.block_size)
    if source.blocks != blocks:
        raise GraphError(
            f"{source.tokens} tokens in blocks of {source.block_size} make {blocks} blocks, "
            f"but the source says {source.blocks}."
        )
    for target in source.targets:
        if not 0 <= target < source.tokens:
            raise GraphError(f"Target {target} is not a position in the prompt's tokens 0 to {source.tokens - 1}.")
    for name, ranges in source.spans.items():
        for start, end in ranges:
            if not 0 <= start < end <= source.tokens:
                raise GraphError(
                    f"Span {name!r} has the range {start} to {end}, which is empty or outside the prompt's "
                    f"{source.tokens} tokens."
                )


def check_layer(arrays: LayerArrays, source: LayerSource, layer: int) -> None:
    """Refuse a layer whose indices or weights are out of range.

    Raises
    ------
    GraphError
        Naming the layer, the column, the first bad value and what is allowed.
    """
    same = arrays.contribution is arrays.mass
    known = isinstance(source, ArraySource) and source.in_range
    _check_columns(
        layer,
        {"head": (arrays.head, source.heads), "query_block": (arrays.query_block, source.blocks),
         "key_block": (arrays.key_block, source.blocks)},
        {"mass": arrays.mass} | ({} if same else {"contribution": arrays.contribution}),
        known,
    )  # fmt: skip
    _check_columns(
        layer,
        {"target_head": (arrays.target_head, source.heads), "target": (arrays.target, len(source.targets)),
         "target_key_block": (arrays.target_key_block, source.blocks)},
        {"target_mass": arrays.target_mass, "target_contribution": arrays.target_contribution},
        known,
    )  # fmt: skip


def check_kept_mass(kept: KeptMass, source: LayerSource, layer: int) -> None:
    """Refuse kept masses that don't fit the source.

    Raises
    ------
    GraphError
        Naming the layer, and the shape or the first bad value.
    """
    rows = {"blocks": source.blocks, "estimate": source.blocks, "targets": len(source.targets)}
    for name, size in rows.items():
        value = getattr(kept, name)
        if value.shape != (source.heads, size):
            raise GraphError(
                f"Layer {layer} has kept masses ({name}) of shape {value.shape}, not {source.heads, size}."
            )
        bad = (value < 0) | (value > 1)
        if bad.any():
            raise GraphError(f"Layer {layer} has the kept mass {value[bad][0]} ({name}); kept masses are from 0 to 1.")


def _check_columns(
    layer: int, indices: Mapping[str, tuple[AnyIntegers, int]], weights: Mapping[str, AnyFloats], in_range: bool
) -> None:
    lengths = {name: len(column) for name, (column, _) in indices.items()}
    lengths |= {name: len(column) for name, column in weights.items()}
    if len(set(lengths.values())) > 1:
        raise GraphError(f"Layer {layer} has columns of different lengths: {lengths}.")
    if not next(iter(lengths.values())):
        return
    for name, (column, size) in () if in_range else indices.items():
        if column.max() >= size or (column.dtype.kind != "u" and column.min() < 0):
            bad = (column < 0) | (column >= size)
            raise GraphError(f"Layer {layer} has {name}={column[bad.argmax()]}, but the source has {size} of them.")
    for name, weight in weights.items():
        # NaN survives min and max, and fails both comparisons.
        if not (weight.min() >= 0 and weight.max() < np.inf):
            bad = ~(np.isfinite(weight) & (weight >= 0))
            raise GraphError(
                f"Layer {layer} has {name}={weight[bad.argmax()]} on edge {bad.argmax()}; "
                f"weights are finite and at least 0."
            )
