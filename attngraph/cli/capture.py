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
    FirstBudget,
    FirstLayers,
    Json,
    MassThreshold,
    Model,
    NMatch,
    Seed,
    TaskName,
    config_of,
    task_options,
)
from attngraph.cli.output import note, print_json, print_screen, size
from attngraph.config import StreamConfig
from attngraph.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from attngraph.models import LanguageModel
    from attngraph.store import Fidelity, Outcome, Run

DEFAULT_LENGTH = 4096


def capture(
    model: Model,
    store: Annotated[Path, typer.Option(help="Folder of runs; made if missing.")] = Path("runs"),
    task: Annotated[TaskName | None, typer.Option(help="Make the prompt.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What the task takes besides: distractors=3 (multikey, multivalue, multiquery, variable_tracking), "
            "values=4 (multivalue), queries=4 (multiquery), hops=2, ask=value|variables (variable_tracking), common=10 "
            "(common_words), alpha=2.0 (frequent_words), trace=coins, until=end|answer (reasoning). May be repeated.",
        ),
    ] = None,
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
    trace: Annotated[
        Path | None,
        typer.Option(
            help='FILE.json: a chain of thought, {"prompt", "solution", "sentences": [{"text", "tags"}]}; with '
            "--length as many sentences as it holds, with --option until=answer all but the answer.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the prompt, at most.", min=1, show_default="4096; all of a --trace")
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(help="Where the needle lies, from 0 (start) to 1 (end).", min=0, max=1, show_default="0.5"),
    ] = None,
    seed: Seed = 0,
    haystack: Annotated[
        Literal["noise", "varied", "needles"] | None,
        typer.Option(
            help="noise: RULER's five sentences; varied: natural sentences; needles: those of other keys.",
            show_default="noise; varied for multi-key, -value, -query",
        ),
    ] = None,
    block_size: BlockSize = StreamConfig.block_size,
    budget: Budget = str(StreamConfig.budget),
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep rows at token grain: token:N, span:NAME (every token of it) or output (the last token, always "
            "kept). May be repeated.",
            show_default="output",
        ),
    ] = None,
    first_layers: FirstLayers = StreamConfig.first_layers,
    first_budget: FirstBudget = StreamConfig.first_budget,
    n_match: NMatch = str(StreamConfig.n_match),
    allocation: AllocationOption = StreamConfig.allocation,
    mass_threshold: MassThreshold = StreamConfig.mass_threshold,
    selector: Annotated[str, typer.Option(help="stream, or exact (true block masses, slow).")] = StreamConfig.selector,
    audit: Annotated[
        str,
        typer.Option(help="Rows whose dropped attention is measured: none, targets, or full (a dense pass per layer)."),
    ] = StreamConfig.audit,
    forward: Annotated[
        str, typer.Option(help="sparse: compute with the kept blocks; dense: only observe them, the whole model runs.")
    ] = StreamConfig.forward,
    json: Json = False,
) -> None:
    """Run a model on a prompt, pruned, and commit the run to a store.

    Example: attngraph capture --model smollm2-135m --task needle --length 4096 --budget auto --store runs

    Example: attngraph capture --model smollm2-135m --task multikey --option distractors=8 --store runs
    """
    wanted = target or StreamConfig.targets
    config = config_of(
        block_size,
        budget,
        n_match,
        selector,
        audit,
        forward,
        allocation,
        mass_threshold,
        wanted,
        first_layers=first_layers,
        first_budget=first_budget,
    )
    if [task, prompt, text, trace].count(None) != 3:
        raise ConfigError("Give exactly one of --task NAME, --prompt FILE.json, --text FILE.txt and --trace FILE.json.")
    if option and (prompt or text):
        raise ConfigError("--option is for --task and --trace; a prompt file or a text is read as it is.")
    given = {"length": length, "depth": depth, "haystack": haystack, "trace": None if trace is None else str(trace)}
    options = {"seed": seed} | {name: value for name, value in given.items() if value is not None}
    options |= task_options(option or ())
    if task is not None:
        config.budget_for(length or DEFAULT_LENGTH)  # the prompt has at most this many tokens
    lm = load(model, store)
    tokenizer = tokenizer_of(lm)
    if prompt is not None:
        made = ag.Prompt.from_file(tokenizer, prompt)
    elif text is not None:
        made = ag.Prompt.from_text(tokenizer, _read(text))
    else:
        made = ag.tasks.make(task or "reasoning", tokenizer, **options)
    run = ag.capture(lm, made, config, store=store)
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


def tokenizer_of(lm: LanguageModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    if lm.tokenizer is None:
        raise PromptError(
            f"The model {lm.id!r} has no tokenizer, so text can't be read; use the Python API with token ids."
        )
    return lm.tokenizer


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
    if manifest.outcome is not None:
        lines.append(f"outcome   {outcome_line(manifest.outcome)}")
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


def outcome_line(outcome: Outcome) -> str:
    """Whether the task was solved, what was expected, and what both models said instead, in one line."""
    said = f"expected {outcome.expected.strip()!r}, dense said {outcome.dense_answer.strip()!r}, "
    said += f"sparse {outcome.sparse_answer.strip()!r}"
    share = f"{outcome.dense_score:.0%} and {outcome.sparse_score:.0%} right"
    return f"{'success' if outcome.success else 'FAILURE'}: {said} ({share}), margin {outcome.margin:.2g} nats"
