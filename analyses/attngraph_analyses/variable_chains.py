"""The other chains of a variable-tracking prompt: where the sentences of each stand.

All of their sentences have the span ``distractor``. Which chain and which hop one is, its text tells: it begins with
the variable that it assigns, and the prompt's metadata says in which order each chain assigns its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attngraph.graph.source import IntArray
from attngraph.store import Run

TASK, SPAN = "variable_tracking", "distractor"


def other_chains(run: Run) -> list[list[IntArray]]:
    """The blocks of every hop of every other chain, in the order of the prompt's metadata; none for other tasks.

    Examples
    --------
    >>> chain(run.graph(), others=other_chains(run))    # doctest: +SKIP
    """
    prompt = run.manifest.prompt
    if prompt.task != TASK:
        return []
    found = dict(_assigned(run))
    chains = [chain["variables"] for chain in prompt.metadata["distractors"]]
    return [[found[name] for name in variables] for variables in chains]


def _assigned(run: Run) -> Iterator[tuple[str, IntArray]]:
    """Every variable of the other chains, and the blocks of the sentence that assigns it."""
    prompt, size = run.manifest.prompt, run.manifest.config.block_size
    names = [name for chain in prompt.metadata["distractors"] for name in chain["variables"]]
    texts = run.tokens().sort("position").collect()["text"]
    for span in prompt.spans:
        if span.name == SPAN:
            text = "".join(texts[span.start : span.end])
            said = min((name for name in names if name in text), key=text.index)
            yield said, np.arange(span.start // size, (span.end - 1) // size + 1)
