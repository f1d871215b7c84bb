"""`attngraph demo`: from a needle prompt to the needle's routes, on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.capture import load, summary
from attngraph.cli.options import BlockSize, Budget, Depth, Haystack, Json, Length, Model, Seed, config_of
from attngraph.cli.output import print_json, print_screen
from attngraph.cli.routes import routes_table
from attngraph.config import StreamConfig
from attngraph.errors import GraphError, ModelError, StoreError

if TYPE_CHECKING:
    from attngraph.graph import AttentionGraph
    from attngraph.store import Run


def demo(
    length: Length = 4096,
    model: Model = "smollm2-135m",
    seed: Seed = 0,
    haystack: Haystack = "noise",
    depth: Depth = 0.5,
    block_size: BlockSize = StreamConfig.block_size,
    budget: Budget = str(StreamConfig.budget),
    out: Annotated[Path, typer.Option(help="Store that keeps the run.")] = Path("runs"),
    k: Annotated[int, typer.Option("-k", help="Number of routes.", min=1)] = 5,
    json: Json = False,
) -> None:
    """Hide a needle in a long text, let a real model find it, and show the routes from the needle to the answer.

    Example: attngraph demo --model gemma3-270m --length 4096 --haystack varied
    """
    config = config_of(block_size, budget)
    config.budget_for(length)  # the needle prompt has at most this many tokens
    lm = load(model, out)
    if lm.tokenizer is None:
        raise ModelError(f"The model {lm.id!r} has no tokenizer, so no needle prompt can be made for it.")
    prompt = ag.tasks.needle(lm.tokenizer, length=length, depth=depth, seed=seed, haystack=haystack)
    run = ag.capture(lm, prompt, config, store=out)
    document = demo_document(run, k)
    if json:
        print_json(document)
    else:
        _print(run, document)


def demo_document(run: Run, k: int) -> dict[str, Any]:
    """What the demo found, as JSON values."""
    manifest, cost, fidelity, outcome = run.manifest, run.cost, run.fidelity, run.manifest.outcome
    if fidelity is None or outcome is None:
        raise StoreError(f"{run.path} holds no answers to show; capture it with a tokenizer and n_match of at least 1.")
    graph = run.graph()
    routes = ag.routes(graph, source="needle", target="output", k=k).to_dict()
    blocks = ag.graph.blocks_of(graph, "needle").tolist()
    return {
        "model": manifest.model.id,
        "tokens": manifest.prompt.tokens,
        "block_size": manifest.config.block_size,
        "budget": manifest.budget,
        "answer": {
            "expected": outcome.expected,
            "dense": outcome.dense_answer,
            "sparse": outcome.sparse_answer,
            "tokens": fidelity.answer_tokens,
            "tokens_kept": fidelity.answer_tokens_kept,
        },
        "next_tokens_match": fidelity.next_tokens_match,
        "kl": fidelity.kl,
        "pruned": msgspec.to_builtins(cost.pruned),
        "bytes": {"dense_cache": cost.dense_cache_bytes, "run": cost.run_bytes, "peak_rss": cost.peak_rss_bytes},
        "edges": cost.edges,
        "seconds": {
            "dense_forward": cost.dense_forward_seconds,
            "capture": cost.capture_seconds,
            "fidelity": cost.fidelity_seconds,
        },
        "needle": {
            "blocks": blocks,
            "rank": needle_rank(graph, "targets"),
            "rank_uniform": needle_rank(graph, "uniform"),
            "strongest_edge": strongest_edge(run, blocks),
        },
        **{name: value for name, value in routes.items() if name != "block_size"},
        "run": str(run.path),
    }


def needle_rank(graph: AttentionGraph, null: Literal["targets", "uniform"]) -> int | None:
    """The needle's rank by excess influence; None where it shares its blocks with the sink or the question, or where
    the null has nothing to compare with.
    """
    try:
        rank: int = ag.influence(graph, target="output", null=null).rank_of("needle", before="question")
    except GraphError:
        return None
    return rank


def strongest_edge(run: Run, blocks: list[int]) -> dict[str, Any] | None:
    """The edge of the greatest contribution from one of the blocks straight into the target, if any is kept."""
    edges = run.target_edges().collect()
    edges = edges.filter(edges["key_block"].is_in(blocks)).sort("contribution", descending=True)
    return edges.row(0, named=True) if len(edges) else None


def _print(run: Run, document: dict[str, Any]) -> None:
    needle = document["needle"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rank = (
        "not ranked"
        if needle["rank"] is None
        else f"rank {needle['rank']} by excess influence over other targets (0 = first)"
    )
    table.add_row("needle", f"blocks {', '.join(map(str, needle['blocks']))}; {rank}")
    if edge := needle["strongest_edge"]:
        table.add_row(
            "strongest", f"layer {edge['layer']}, head {edge['head']}: {edge['mass']:.0%} of the target's attention"
        )
    print_screen(summary(run), table, routes_table(document))
