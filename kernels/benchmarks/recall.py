"""How much of what the exact selection keeps do the searches keep, on the queries and keys of real models?

Run: python kernels/benchmarks/recall.py [--lengths 4096 …] [--settings 16x8 …] [--answers] [--json]
Each model reads needle prompts with its own attention. In every layer, each selector chooses blocks; the true block
masses of a sample of query blocks (40 anywhere, and the last 8) say what it found. Relative to `exact`:

- retained: mass of all kept blocks;
- far: mass of the kept blocks that are not forced (sink, own, previous); mean, 5th percentile and worst over all heads;
- needle: mass on the needle's blocks in the last 8 query blocks, over all heads together.

No row is exact by decree (`exact_tail=0`), but for the line `stream, in a capture`. With --answers the pruned model
reads each prompt too, with the tail of a capture: how many of the answer's tokens are still its first choice,
teacher-forced, and the divergence at the target.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

import attngraph as ag
from attngraph.capture.attention import replaced_attention
from attngraph.capture.fidelity import logits_after
from attngraph.capture.sparse import SparseAttention, selector_for
from attngraph_kernels import BlockGrid, Softmax, dense_attention, select

SELECTORS = ("stream", "flat", "representative")
SETTINGS = ("32x4", "32x6", "16x6", "16x8", "16x12", "8x8", "8x16")
CAPTURED = "stream, in a capture"
ANYWHERE, LAST = 40, 8


class Found(NamedTuple):
    """Sums over the sampled rows of each head, [H], of a selector's blocks and of the exact ones."""

    kept: Tensor
    far: Tensor
    needle: Tensor


def block_masses(q: Tensor, k: Tensor, grid: BlockGrid, rows: list[int], softmax: Softmax) -> Tensor:
    """True block masses [H, rows, blocks] of some query blocks; q scaled."""
    at = torch.tensor([p for row in rows for p in range(row * grid.size, row * grid.size + grid.rows(row))])
    hidden = ~grid.visible(at[:, None], torch.arange(grid.tokens))
    padding = grid.count * grid.size - grid.tokens
    lengths = [grid.rows(row) for row in rows]
    masses = []
    for head in range(len(q)):
        scores = softmax.capped(q[head, at] @ k[head * len(k) // len(q)].T).masked_fill_(hidden, -torch.inf)
        spread = torch.nn.functional.pad(scores.softmax(dim=-1), (0, padding)).unflatten(1, (-1, grid.size)).sum(dim=-1)
        masses.append(torch.stack([part.mean(dim=0) for part in spread.split(lengths)]))
    return torch.stack(masses)


def forced_blocks(grid: BlockGrid, rows: list[int]) -> Tensor:
    forced = torch.zeros(len(rows), grid.count, dtype=torch.bool)
    for index, row in enumerate(rows):
        forced[index, list(grid.forced(row))] = True
    return forced


def found(blocks: Tensor, mass: Tensor, forced: Tensor, needle: Tensor) -> Found:
    """What the kept `blocks` [H, rows, budget] of the sampled rows hold; `needle` [blocks]."""
    held = mass.gather(-1, blocks.clamp_min(0)) * (blocks >= 0)
    near = forced.expand(len(mass), -1, -1).gather(-1, blocks.clamp_min(0))
    at_needle = needle[blocks.clamp_min(0)]
    return Found(held.sum(dim=(1, 2)), (held * ~near).sum(dim=(1, 2)), (held * at_needle)[:, -LAST:].sum(dim=(1, 2)))


class Recall:
    """A `LayerAttention` that attends densely and measures the selectors beside."""

    def __init__(self, settings: list[ag.StreamConfig], needle: tuple[int, int]) -> None:
        self.settings, self.needle = settings, needle
        self.sums: dict[tuple[str, str], list[Found]] = defaultdict(list)

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, softmax: Softmax
    ) -> Tensor:
        for config in self.settings:
            grid = BlockGrid(q.shape[1], config.block_size, window)
            draw = torch.Generator().manual_seed(0)
            rows = torch.randperm(grid.count - LAST, generator=draw)[:ANYWHERE].sort().values.tolist()
            rows += range(grid.count - LAST, grid.count)
            mass, forced = block_masses(q * scale, k, grid, rows, softmax), forced_blocks(grid, rows)
            needle = torch.zeros(grid.count, dtype=torch.bool)
            needle[self.needle[0] // grid.size : (self.needle[1] - 1) // grid.size + 1] = True
            best = mass.masked_fill(forced, 2.0).topk(config.budget_for(grid.tokens), dim=-1).indices
            self.sums[name(config), "exact"].append(found(best, mass, forced, needle))
            searches = {selector: replace(config, selector=selector, exact_tail=0) for selector in SELECTORS}
            for selector, search in {CAPTURED: config, **searches}.items():
                chosen = selector_for(search, grid, (), layer=cast(int, module.layer_idx))
                blocks = select(q, k, grid, chosen, scale=scale, softmax=softmax).blocks[:, rows]
                self.sums[name(config), selector].append(found(blocks, mass, forced, needle))
        grid = BlockGrid(q.shape[1], 16, window)
        return dense_attention(q, k, v, grid, scale, softmax.softcap, softmax.sinks).output

    def rows(self) -> Iterator[dict[str, Any]]:
        for (setting, selector), parts in self.sums.items():
            if selector == "exact":
                continue
            exact = [torch.cat(columns) for columns in zip(*self.sums[setting, "exact"], strict=True)]
            kept, far, needle = (torch.cat(columns) for columns in zip(*parts, strict=True))
            share = (far / exact[1].clamp_min(1e-9)).numpy()
            yield {
                "setting": setting,
                "selector": selector,
                "retained": float((kept / exact[0]).mean()),
                "far_mean": float(share.mean()),
                "far_p5": float(np.quantile(share, 0.05)),
                "far_worst": float(share.min()),
                "needle": float(needle.sum() / exact[2].sum()),
            }


def name(config: ag.StreamConfig) -> str:
    return f"{config.block_size}x{config.budget}"


def answers(lm: ag.LanguageModel, prompt: ag.Prompt, configs: list[ag.StreamConfig]) -> dict[tuple[str, str], Any]:
    """For every setting and selector: the answer's tokens kept, of how many, and KL at the target."""
    answer = prompt.answer_token_ids(lm.tokenizer)
    ids, told = prompt.token_ids, torch.tensor(answer)
    dense = logits_after(lm.model, ids, answer[:-1]).log_softmax(dim=-1)
    kept = {}
    for config in configs:
        for selector in (*SELECTORS, "exact"):
            attention = SparseAttention(
                replace(config, selector=selector), range(len(ids) - 1, len(ids) + len(answer) - 1)
            )
            with replaced_attention(lm.model, attention):
                sparse = logits_after(lm.model, ids, answer[:-1]).log_softmax(dim=-1)
            kept[name(config), selector] = {
                "answer_kept": int((sparse.argmax(dim=-1) == told).sum()),
                "answer_tokens": len(answer),
                "kl": float((dense[0].exp() * (dense[0] - sparse[0])).sum()),
            }
    return kept


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    # One budget for all layers: what is compared is how well it is used.
    configs = [
        ag.StreamConfig(block_size=int(b), budget=int(k), first_layers=0)
        for b, k in (s.split("x") for s in arguments.settings)
    ]
    for model in arguments.models:
        lm = ag.load_model(model)
        for haystack in arguments.haystacks:
            for length in arguments.lengths:
                prompt = ag.tasks.needle(lm.tokenizer, length=length, seed=arguments.seed, haystack=haystack)
                span = next(span for span in prompt.spans if span.name == "needle")
                recall = Recall(configs, (span.start, span.end))
                with replaced_attention(lm.model, recall):
                    logits_after(lm.model, prompt.token_ids, ())
                ends = answers(lm, prompt, configs) if arguments.answers else {}
                for row in recall.rows():
                    where = {"model": model, "haystack": haystack, "tokens": len(prompt.token_ids)}
                    yield where | row | ends.get((row["setting"], row["selector"]), {})
                for setting, selector in ends:
                    if selector == "exact":
                        yield where | {"setting": setting, "selector": selector} | ends[setting, selector]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--haystacks", nargs="+", default=["noise", "varied"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="block x budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", action="store_true", help="let the pruned models answer, too")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    arguments = parser.parse_args()
    columns = ("retained", "far_mean", "far_p5", "far_worst", "needle", "kl")
    if not arguments.json:
        print(f"| model | haystack | tokens | setting | selector | {' | '.join(columns)} | answer |")
        print("|---" * (len(columns) + 6) + "|")
    for row in measure(arguments):
        if arguments.json:
            print(json.dumps(row), flush=True)
            continue
        numbers = [f"{row[column]:.3f}" if column in row else "" for column in columns]
        answer = f"{row['answer_kept']} of {row['answer_tokens']}" if "answer_kept" in row else ""
        where = (row["model"], row["haystack"], f"{row['tokens']:,}", row["setting"], row["selector"])
        print(f"| {' | '.join([*where, *numbers, answer])} |", flush=True)


if __name__ == "__main__":
    main()
