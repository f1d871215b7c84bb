"""Which tokens a run's targets are."""

from __future__ import annotations

from collections.abc import Sequence

from attngraph.errors import PromptError
from attngraph.tasks.prompt import Prompt


def target_positions(prompt: Prompt, names: Sequence[str]) -> tuple[int, ...]:
    """The positions of the targets that `StreamConfig.targets` names, ascending; the last token is always the last.

    Raises
    ------
    PromptError
        For a token outside the prompt, or a span that it has not.
    """
    positions = {len(prompt) - 1}
    for name in names:
        kind, _, which = name.partition(":")
        if kind == "span":
            positions.update(position for span in prompt.named(which) for position in range(span.start, span.end))
        elif kind == "token":
            if int(which) >= len(prompt):
                raise PromptError(
                    f"The target {name!r} is not among the prompt's {len(prompt)} tokens: give a number from 0 to "
                    f"{len(prompt) - 1}."
                )
            positions.add(int(which))
    return tuple(sorted(positions))
