"""Where the sentences of a chain of thought begin and end.

1. A sentence may end after ``.``, ``?``, ``!`` (and what closes after it: quotes, brackets, emphasis) where white space
   follows, at a blank line, and before an item of a list.
2. It doesn't end inside mathematics (LaTeX between its delimiters), after an abbreviation, an initial or the number of
   a list item, before a small letter, or after a factorial in a formula. Decimals have no white space after their
   point.
3. Pieces too short to say anything ("Correct.") join what follows, as in Bogdan et al. 2025 (arXiv 2506.19143).
"""

from __future__ import annotations

import re
from itertools import pairwise

SHORTEST = 10
"""Characters of the shortest sentence; the number of Bogdan et al.'s code."""

_WORDS = "approx cf ch dr e.g eq eqn eqs ex fig figs i.e ineq jr mr mrs ms no p pp prof resp sec st thm vs w.r.t"
ABBREVIATIONS = frozenset(_WORDS.split())

_MATH = re.compile(
    r"\\\[.*?\\\]|\\\(.*?\\\)|\$\$.*?\$\$|\$(?=\S)(?:[^$\n]*[^$\s])?\$(?!\d)|\\begin\{(\w+\*?)\}.*?\\end\{\1\}",
    re.DOTALL,
)
_ITEM = r"(?:[-*•]|\d{1,3}[.)]|\([a-z0-9]\)|(?:Step|Case) \d+[:.])\s"
_EDGE = re.compile(
    rf"(?P<mark>[.?!]+)[\"'”’)\]*_]*(?P<gap>\s+)|(?P<blank>\s*\n[^\S\n]*\n\s*)|(?P<line>\s*\n[^\S\n]*)(?={_ITEM})"
)
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘*]+$")
_NUMBER_OF_ITEM = re.compile(r"(?:^|\n)[^\S\n]*(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})$")


def split(text: str, shortest: int = SHORTEST) -> list[tuple[int, int]]:
    """Character ranges of the sentences of a text, half open, in order, without the white space around them.

    Parameters
    ----------
    text
        Prose, mathematics, lists.
    shortest
        A sentence of fewer characters joins the next one, the last one the one before; 1 keeps them all.

    Returns
    -------
    list of (start, end)
        Every character that isn't white space is in exactly one of them; none for a text without any.
    """
    mathematics = [found.span() for found in _MATH.finditer(text)]
    cuts = [0, *(edge.end() for edge in _EDGE.finditer(text) if _is_end(text, edge, mathematics)), len(text)]
    pieces = [_trimmed(text, start, end) for start, end in pairwise(cuts)]
    return _joined([piece for piece in pieces if piece[0] < piece[1]], shortest)


def _is_end(text: str, edge: re.Match[str], mathematics: list[tuple[int, int]]) -> bool:
    if any(start < edge.end() < end for start, end in mathematics):
        return False
    if edge["mark"] is None or re.search(r"\n\s*\n", edge["gap"]):
        return True
    before, after = text[: edge.start("mark")], text[edge.end() : edge.end() + 1]
    if edge["mark"] == "!" and re.search(r"[\d)}]$", before) and not re.match(r"[A-Z\"“]?$", after):
        return False  # 6! / (3! · 3!)
    if after.islower():
        return False
    return edge["mark"] != "." or not (_NUMBER_OF_ITEM.search(before) or _is_abbreviation(before))


def _is_abbreviation(before: str) -> bool:
    """Whether a full stop after this text is part of its last word: e.g. that, U.S. or an initial after a title."""
    found = _LAST_WORD.search(before)
    word = found.group() if found else ""
    if word.lower() in ABBREVIATIONS or re.fullmatch(r"[A-Z](?:\.[A-Z])+", word):
        return True
    # "Take the point A." ends a sentence, "Dr. J." doesn't.
    left = before[: len(before) - len(word)].split()[-1:]
    return bool(re.fullmatch(r"[A-Z]", word) and left and re.fullmatch(r"(?:[A-Z]|dr|mr|mrs|ms|prof)\.", left[0], re.I))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _joined(pieces: list[tuple[int, int]], shortest: int) -> list[tuple[int, int]]:
    """Pieces in which short ones have joined the next, the last one the one before."""
    joined: list[tuple[int, int]] = []
    begin: int | None = None
    for start, end in pieces:
        begin = start if begin is None else begin
        if end - begin >= shortest:
            joined.append((begin, end))
            begin = None
    if begin is not None:
        end = pieces[-1][1]
        joined = [*joined[:-1], (joined[-1][0], end)] if joined else [(begin, end)]
    return joined
