"""How few blocks keep the next two tokens, and how few the whole answer? Needle prompts, both bundled models.

Run: python tests/benchmarks/budgets.py --rows FILE.jsonl [--length 8192] [--seeds 10] [--models …] [--selectors …]
         [--first-layers 1] [--default-only]

For every prompt the dense model is read once, and the pruned one once per budget; one pass tells both criteria. So a
prompt's row holds what ``budget="auto"`` finds with ``n_match=2`` and with ``n_match="answer"`` (the same search, less
the captured pass that confirms it, and not beyond `MOST` blocks), and what becomes of the answer at the default budget.
With exact selection, to compare with, there is the default budget alone, and so with --default-only. Rows are appended
to FILE as they are measured, and what it holds isn't measured again: the command goes on where it was stopped, and
prints the summary of all that is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Literal

from json_lines import append_rows, read_rows
from torch import Tensor

import attngraph as ag
from attngraph.capture.attention import replaced_attention, streamed_attention
from attngraph.capture.budget import smallest_match
from attngraph.capture.cost import Tally
from attngraph.capture.fidelity import agreeing, dense_reference, divergence, logits_after, tokens_to_read
from attngraph.capture.heap import kept_heap
from attngraph.capture.sparse import SparseAttention
from attngraph.config import FORCED_BLOCKS
from attngraph.models.structure import text_config

MODELS = ("smollm2-135m", "gemma3-270m")
HAYSTACKS: tuple[Literal["noise", "varied"], ...] = ("noise", "varied")
SELECTORS = ("stream", "exact")
NAMES = ("model", "selector", "first_layers", "length", "seed", "haystack")
"""What tells rows apart, and whether a search was made."""
CRITERIA = {"two tokens": 2, "whole answer": None}
"""What is kept: so many tokens, or as many as the answer has."""
MARKS = {"two tokens": 0.97, "whole answer": 0.965}
"""Pruned shares to be reached at the median."""
MOST = 32
"""The largest budget tried; what a prompt needs beyond it prunes too little to count."""
WHOLE_ANSWERS = 0.9
"""Share of prompts whose whole answer should survive the default budget."""


@dataclass(frozen=True)
class Pass:
    """One pruned pass: how many of the dense model's greedy tokens and of the answer's it says, from the first on."""

    budget: int
    pruned: float
    same: int
    answer_kept: int
    kl: float


def pruned_logits(
    lm: ag.LanguageModel, prompt: ag.Prompt, following: tuple[int, ...], config: ag.StreamConfig
) -> tuple[Tensor, float]:
    """Logits from the prompt's last token on, and the causal share pruned; every position that predicts is a target."""
    ids, tally = prompt.token_ids, Tally()
    at = range(len(ids) - 1, len(ids) + len(following))
    attention = SparseAttention(replace(config, audit="none"), at, record=tally.attended)
    with replaced_attention(lm.model, attention):
        logits = logits_after(lm.model, ids, following)
    return logits, tally.pruned(text_config(lm.model).num_attention_heads).causal


def searched(lm: ag.LanguageModel, prompt: ag.Prompt, config: ag.StreamConfig) -> dict[str, Any]:
    """The budget found by either criterion, and all passes on the way, that of the default budget first."""
    answer = prompt.answer_token_ids(lm.tokenizer)

    def dense(following: Sequence[int]) -> Tensor:
        with replaced_attention(lm.model, streamed_attention):
            return logits_after(lm.model, prompt.token_ids, tuple(following))

    reference = dense_reference(dense, len(answer), answer)
    read = tokens_to_read(reference, answer)
    passes: dict[int, Pass] = {}

    def tried(budget: int) -> Pass:
        if budget not in passes:
            logits, share = pruned_logits(lm, prompt, read, replace(config, budget=budget))
            choices = logits.argmax(dim=-1).tolist()
            # Where the dense model does not say the answer, its own words were read.
            kept = agreeing(choices, answer) if read == tuple(answer[:-1]) else 0
            kl = divergence(reference.target, logits[0])
            passes[budget] = Pass(budget, share, agreeing(choices, reference.greedy), kept, kl)
        return passes[budget]

    def keeps(tokens: int) -> Callable[[int], bool]:
        return lambda budget: tried(budget).same >= tokens

    tried(int(config.budget))
    found = {
        name: smallest_match(keeps(tokens or len(answer)), FORCED_BLOCKS, MOST) for name, tokens in CRITERIA.items()
    }
    dense_kept = sum(a == b for a, b in zip(reference.answer, answer, strict=True))
    return {"found": found, "dense_kept": dense_kept, "passes": [asdict(one) for one in passes.values()]}


def compared(lm: ag.LanguageModel, prompt: ag.Prompt, config: ag.StreamConfig) -> dict[str, Any]:
    """The answer's tokens that are still said at the default budget, teacher-forced."""
    answer = prompt.answer_token_ids(lm.tokenizer)
    logits, share = pruned_logits(lm, prompt, tuple(answer[:-1]), config)
    return {"answer_kept": agreeing(logits.argmax(dim=-1).tolist(), answer), "pruned": share}


def all_rows(given: argparse.Namespace, known: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for model in given.models:
        lm = ag.load_model(model)
        for selector, seed, haystack in product(given.selectors, range(given.seeds), HAYSTACKS):
            measure = compared if given.default_only or selector == "exact" else searched
            case = (model, selector, given.first_layers, given.length, seed, haystack)
            if (*case, measure is searched) in known:
                continue
            prompt = ag.tasks.needle(lm.tokenizer, length=given.length, haystack=haystack, seed=seed)
            config = ag.StreamConfig(selector=selector, first_layers=given.first_layers)
            with kept_heap():
                found = measure(lm, prompt, config)
            answer = len(prompt.answer_token_ids(lm.tokenizer))
            yield dict(zip(NAMES, case, strict=True)) | {"tokens": len(prompt), "answer": answer} | found


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per model and haystack, then the marks over all prompts."""
    stream = _once(row for row in rows if row["selector"] == "stream")
    search = [row for row in stream if "found" in row]
    exact = [row for row in rows if row["selector"] == "exact"]
    titles = [f"{name}: budget | pruned" for name in CRITERIA]
    yield f"| model | haystack | dense says it | {' | '.join(titles)} | kept at the default | with exact selection |"
    yield "|---" * 9 + "|"
    for place in sorted({_place(row) for row in stream}, reverse=True):
        cells = _cells(*([row for row in group if _place(row) == place] for group in (search, stream, exact)))
        yield f"| {' | '.join([*place, *cells])} |"
    yield ""
    for name, mark in MARKS.items() if search else ():
        within = sum(row["found"][name] is not None for row in search)
        share = median(_shares(search, name))
        met = "met" if share >= mark else "missed"
        yield (
            f"{name}: {share:.2%} pruned at the median (mark {mark:.1%}: {met}), "
            f"{len(search) - within} of {len(search)} need more than {MOST} blocks"
        )
    whole = [_whole(row) for row in stream]
    met = "met" if sum(whole) >= WHOLE_ANSWERS * len(whole) else "missed"
    yield f"default budget: whole answer in {sum(whole)} of {len(whole)} (mark {WHOLE_ANSWERS:.0%}: {met})"


def _once(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per prompt: that of a search, where there is one."""
    return list({(*_place(row), row["seed"]): row for row in sorted(rows, key=lambda row: "found" in row)}.values())


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return row["model"], row["haystack"]


def _cells(search: list[dict[str, Any]], stream: list[dict[str, Any]], exact: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{sum(row['dense_kept'] == row['answer'] for row in search)} of {len(search)}"
    for name in CRITERIA:
        if not search:
            yield from ("", "")
            continue
        budgets = sorted(row["found"][name] or inf for row in search)
        middle, least, most = (
            f"over {MOST}" if x == inf else f"{x:g}" for x in (median(budgets), budgets[0], budgets[-1])
        )
        yield f"{middle} ({least} to {most})"
        yield f"{median(_shares(search, name)):.2%}"
    for group in (stream, exact):
        yield f"{sum(map(_whole, group))} of {len(group)}"


def _shares(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Of every prompt; 0, a bound, where no budget was found."""
    return [sum(one["pruned"] for one in row["passes"] if one["budget"] == row["found"][name]) for row in rows]


def _whole(row: dict[str, Any]) -> bool:
    kept = row["passes"][0]["answer_kept"] if "passes" in row else row["answer_kept"]
    return bool(kept == row["answer"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines: read, and appended to")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--selectors", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    parser.add_argument("--length", type=int, default=8_192)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-layers", type=int, default=ag.StreamConfig().first_layers)
    parser.add_argument("--default-only", action="store_true", help="no search, the default budget alone")
    given = parser.parse_args()
    rows = read_rows(given.rows)
    known = {(*(row[name] for name in NAMES), "found" in row) for row in rows}
    for row in all_rows(given, known):
        rows.append(row)
        append_rows(given.rows, [row])
    for first in sorted({row["first_layers"] for row in rows}):
        print(f"\nfirst_layers={first}:\n")
        print("\n".join(summary([row for row in rows if row["first_layers"] == first])))


if __name__ == "__main__":
    main()
