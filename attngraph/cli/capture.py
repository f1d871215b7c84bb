"""`attngraph capture`: run a model on a prompt and keep the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

import attngraph as ag
from attngraph.cli.options import (
    AllocationOption,
    BlockSize,
    Budget,
    Depth,
    Haystack,
    Json,
    Length,
    MassThreshold,
    Model,
    NMatch,
    Seed,
    config_of,
)
from attngraph.cli.output import note, print_json, print_screen, size
from attngraph.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from attngraph.models import LanguageModel
    from attngraph.store import Fidelity, Run
    from attngraph.tasks import Prompt


def capture(
    model: Model,
    store: Annotated[Path, typer.Option(help="Folder of runs; made if missing.")] = Path("runs"),
    task: Annotated[Literal["needle"] | None, typer.Option(help="Make the prompt: needle.")] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            help='FILE.json: {"text", "spans": [{"name", "start", "end"}], "completion", "answer"}; ranges in '
            "characters; the completion is what a model wrote after the text.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="FILE.txt with the prompt.", exists=True, dir_okay=False)] = None,
    length: Length = 4096,
    depth: Depth = 0.5,
    seed: Seed = 0,
    haystack: Haystack = "noise",
    block_size: BlockSize = 16,
    budget: Budget = "8",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep rows at token grain: token:N, span:NAME (every token of it) or output (the last token, always "
            "kept). May be repeated.",
            show_default="output",
        ),
    ] = None,
    n_match: NMatch = "2",
    allocation: AllocationOption = "uniform",
    mass_threshold: MassThreshold = 0.9,
    selector: Annotated[str, typer.Option(help="stream, or exact (true block masses, slow).")] = "stream",
    audit: Annotated[
        str,
        typer.Option(help="Rows whose dropped attention is measured: none, targets, or full (a dense pass per layer)."),
    ] = "targets",
    forward: Annotated[
        str, typer.Option(help="sparse: compute with the kept blocks; dense: only observe them, the whole model runs.")
    ] = "sparse",
    json: Json = False,
) -> None:
    """Run a model on a prompt, pruned, and commit the run to a store.

    Example: attngraph capture --model smollm2-135m --task needle --length 4096 --budget auto --store runs
    """
    wanted = target or ("output",)
    config = config_of(block_size, budget, n_match, selector, audit, forward, allocation, mass_threshold, wanted)
    if [task, prompt, text].count(None) != 2:
        raise ConfigError("Give exactly one of --task needle, --prompt FILE.json and --text FILE.txt.")
    if task is not None:
        config.budget_for(length)  # the needle prompt has at most this many tokens
    lm = load(model, store)
    run = ag.capture(lm, _prompt(lm, prompt, text, length, depth, seed, haystack), config, store=store)
    if json:
        print_json(manifest_document(run))
    else:
        print_screen(summary(run))


def load(model: str, store: Path) -> LanguageModel:
    """Load a model whose run will go to `store`, which is tried first: loading takes longer than being refused."""
    note(f"Loading {model} …")
    with ag.store.RunWriter(store):
        pass
    return ag.load_model(model)


def _prompt(
    lm: LanguageModel, prompt: Path | None, text: Path | None, length: int, depth: float, seed: int, haystack: Haystack
) -> Prompt:
    if lm.tokenizer is None:
        raise PromptError(
            f"The model {lm.id!r} has no tokenizer, so text can't be read; use the Python API with token ids."
        )
    if prompt is not None:
        return ag.Prompt.from_file(lm.tokenizer, prompt)
    if text is not None:
        return ag.Prompt.from_text(lm.tokenizer, _read(text))
    return ag.tasks.needle(lm.tokenizer, length=length, depth=depth, seed=seed, haystack=haystack)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"Can't read the prompt from {path}: {error}.") from error


def manifest_document(run: Run) -> dict[str, Any]:
    """The manifest as JSON values, with the run's path under ``run``."""
    document: dict[str, Any] = msgspec.to_builtins(run.manifest)
    return {**document, "id": run.id, "run": str(run.path)}


def summary(run: Run) -> str:
    """A few lines on a run, for people."""
    manifest, cost, fidelity = run.manifest, run.cost, run.fidelity
    lines = [
        f"run       {run.path}",
        f"model     {manifest.model.id}, {manifest.prompt.tokens:,} tokens in {manifest.prompt.blocks:,} blocks of "
        f"{manifest.config.block_size}",
        f"pruned    {cost.pruned.causal:.1%} of causal pairs ({cost.pruned.visible:.1%} of visible ones)",
        f"edges     {cost.edges:,} in {size(cost.run_bytes)} (all patterns: {size(cost.dense_cache_bytes)})",
        f"time      {cost.capture_seconds:.1f} s captured"
        + ("" if cost.dense_forward_seconds is None else f", {cost.dense_forward_seconds:.1f} s dense forward"),
    ]
    if (found := manifest.found_budget) is not None:
        tried = ", ".join(str(budget) for budget in sorted(probe.budget for probe in found.curve))
        lines.insert(2, f"budget    {found.blocks} blocks found (tried {tried})")
    if fidelity is not None:
        lines.append(f"fidelity  {fidelity_line(fidelity)}")
    return "\n".join(lines)


def fidelity_line(fidelity: Fidelity) -> str:
    """Next tokens, answer, completion and divergence in one line."""
    tokens = f"next {fidelity.n_match} tokens {'same' if fidelity.next_tokens_match else 'DIFFER'}"
    answer = (
        ""
        if fidelity.answer_tokens is None
        else f", answer {fidelity.answer_tokens_kept} of {fidelity.answer_tokens} tokens kept"
    )
    completion = (
        ""
        if fidelity.completion_agreement is None
        else f", completion {fidelity.completion_agreement:.1%} of {fidelity.completion_tokens:,} tokens same"
    )
    return f"{tokens}{answer}{completion}, KL {fidelity.kl:.2g} nats"
