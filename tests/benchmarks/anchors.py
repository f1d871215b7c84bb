"""Are the thought anchors of pruned attention those of dense attention? On labelled reasoning traces.

Run: python tests/benchmarks/anchors.py FOLDER --rows anchors.jsonl --store runs [--traces NAME …] [--seconds 240]
Every trace (FOLDER/NAME.json) is read once with all attention (``forward="dense"``, ``budget="all"``, streamed), then
pruned for every block size, share, selector and pass: the greatest budget that prunes at least the share of causal
pairs. The sparse pass attends over what is kept alone; the dense one is the model's own: only the graph is pruned.
Each capture's agreement with the dense scores goes to the JSON-lines file as soon as it is there; what the file has
already isn't done again, so a run that was stopped (or has used up its --seconds) goes on where it was.

Receiver heads, as published, are those of greatest kurtosis on average over texts: where a setting's runs of several
traces are in the store, scores and heads are compared by the heads of all of them too, the pruned runs' and the dense
runs', and beside that stands how far the heads of one half of the dense runs are those of the other half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from json_lines import append_rows, read_rows

import attngraph as ag
from attngraph.config import BudgetSetting, Forward, Selector
from attngraph.errors import GraphError
from attngraph.models.structure import text_config

SHARES = (0.80, 0.85, 0.90, 0.95, 0.97, 0.985)
BLOCKS = (8, 16, 32)
SELECTORS: tuple[Selector, ...] = ("stream", "exact")
FORWARDS: tuple[Forward, ...] = ("sparse", "dense")
NORMALISE = ("recorded", "dense", "spread")
LONG = 5_000
"""Tokens above which the mark at 97 % holds."""
MARKS = ((0.90, 0.90, 0.80, 0), (0.97, 0.75, 0.0, LONG))
"""Share pruned, least median Spearman, least median overlap, and the tokens from which it holds."""
FEWEST_POOLED, HALVINGS = 3, 100
"""Traces that heads are pooled over at least; random halves of them."""
COLUMNS = (
    "blocks",
    "share",
    "selector",
    "pass",
    "first layers",
    "normalise",
    "heads of",
    "traces",
    "pruned",
    "Spearman",
    "least",
    "any heads",
    "same heads",
    "overlap",
    "dropped",
)


class Setting(NamedTuple):
    """What one capture is: the dense reference has the share 0."""

    trace: str
    share: float
    block_size: int
    selector: Selector
    forward: Forward
    first_layers: int


def settings(
    traces: list[str], shares: list[float], blocks: list[int], selectors: list[Selector], forwards: list[Forward]
) -> Iterator[Setting]:
    """The reference of a trace first, then all that is compared with it."""
    first = ag.StreamConfig().first_layers
    for trace in traces:
        yield reference_of(trace)
        for share in shares:
            for block_size in blocks:
                for selector, forward in product(selectors, forwards):
                    yield Setting(trace, share, block_size, selector, forward, first)


def reference_of(trace: str) -> Setting:
    return Setting(trace, 0.0, 16, "exact", "dense", 0)


def config_of(setting: Setting, budget: BudgetSetting) -> ag.StreamConfig:
    return ag.StreamConfig(
        block_size=setting.block_size,
        budget=budget,
        first_layers=setting.first_layers,
        selector=setting.selector,
        forward=setting.forward,
        n_match=0,
    )


def budget_for(setting: Setting, tokens: int, layers: int) -> BudgetSetting | None:
    """The greatest budget that prunes at least the share; None where even the forced blocks are more."""
    if not setting.share:
        return "all"
    size, budget = setting.block_size, None
    blocks = -(-tokens // size)
    for candidate in range(3, blocks + 1):
        config = config_of(setting, candidate)
        budgets = [config.layer_budget(layer, tokens) for layer in range(layers)]
        kept = sum(min(each, block + 1) for block in range(blocks) for each in budgets) * size * size / layers
        if kept > (1 - setting.share) * tokens * (tokens + 1) / 2:
            break
        budget = candidate
    return budget


def captured(lm: ag.LanguageModel, setting: Setting, prompt: ag.Prompt, store: Path) -> ag.Run | None:
    """The run of a setting, from the store where it has been captured already."""
    budget = budget_for(setting, len(prompt), text_config(lm.model).num_hidden_layers)
    if budget is None:
        return None
    config = config_of(setting, budget)
    known = stored(store).get((lm.id, prompt.sha256, config))
    return known if known is not None else ag.capture(lm, prompt, config, store=store, progress=False)


def stored(store: Path) -> dict[tuple[str, str, ag.StreamConfig], ag.Run]:
    """The runs of a store by model, prompt and settings, the first of each."""
    known: dict[tuple[str, str, ag.StreamConfig], ag.Run] = {}
    for run in ag.open_store(store) if store.is_dir() else ():
        known.setdefault((run.manifest.model.id, run.manifest.prompt.sha256, run.manifest.config), run)
    return known


def measure(lm: ag.LanguageModel, setting: Setting, prompt: ag.Prompt, store: Path) -> Iterator[dict[str, Any]]:
    """Rows of one setting: one for every way to normalise, one for a reference."""
    start = time.perf_counter()
    run = captured(lm, setting, prompt, store)
    if run is None:
        yield {**setting._asdict(), "model": lm.id, "budget": None}
        return
    row = {
        **setting._asdict(),
        "model": lm.id,
        "tokens": len(prompt),
        "budget": run.manifest.budget,
        "pruned": run.cost.pruned.causal,
        "seconds": run.cost.capture_seconds,
    }
    if not setting.share:
        found = ag.anchors(run)
        importance = asdict(ag.importance_correlation(found))
        profile = ag.category_profile(found).to_dicts()
        yield {**row, "importance": importance, "profile": profile, "heads": found.receiver_heads}
        return
    dense = captured(lm, reference_of(setting.trace), prompt, store)
    assert dense is not None, "all blocks are always a budget"
    reference = ag.anchors(dense)
    known = run.rows().select("kept_mass", "kept_mass_estimate").collect()
    estimated = known["kept_mass"].fill_null(known["kept_mass_estimate"]).null_count() == 0
    for normalise in NORMALISE if estimated else NORMALISE[:1]:
        try:
            found = ag.anchors(run, normalise=normalise)
        except GraphError as error:  # so little is left that no head comes back to anything
            reason = str(error).replace(str(run.path), "the run")
            yield {**row, "normalise": normalise, "spearman": None, "reason": reason}
            continue
        agreement = ag.compare_anchors(found, reference).to_dict()
        dropped = None if found.dropped_source is None else float(found.dropped.mean())
        yield {**row, "normalise": normalise, "dropped": dropped, **agreement}
    elapsed = time.perf_counter() - start
    print(f"{setting.trace} {setting.block_size}×{run.manifest.budget} {setting.selector}: {elapsed:.0f} s", flush=True)


def pooled(
    rows: list[dict[str, Any]], prompts: dict[str, ag.Prompt], model: str, store: Path
) -> Iterator[dict[str, Any]]:
    """Rows of all traces by the heads of all of them, for settings that `rows` have of more traces than before."""
    curve = [row for row in rows if row["model"] == model and row["trace"] in prompts and _recorded(row)]
    runs = stored(store)
    for key in sorted({_setting(row) for row in curve}):
        group = [row for row in curve if _setting(row) == key]
        single = sorted((row for row in group if not row.get("pooled")), key=lambda row: str(row["trace"]))
        if len(single) < FEWEST_POOLED or len(single) <= max(row.get("pooled", 0) for row in group):
            continue
        places = [(model, prompts[row["trace"]].sha256) for row in single]
        pruned = [(*at, config_of(_of(row), row["budget"])) for at, row in zip(places, single, strict=True)]
        dense = [(*at, config_of(reference_of(row["trace"]), "all")) for at, row in zip(places, single, strict=True)]
        if not runs.keys() >= {*pruned, *dense}:
            continue  # they are in another store
        found, reference = ([ag.anchors(runs[each]) for each in some] for some in (pruned, dense))
        halves = _halves(reference)
        found, reference = (
            [ag.anchors(runs[each], heads=heads) for each in some]
            for some, heads in ((pruned, ag.receiver_heads(found)), (dense, ag.receiver_heads(reference)))
        )
        for row, one, other in zip(single, found, reference, strict=True):
            names = (*Setting._fields, "model", "tokens", "budget", "pruned", "normalise", "dropped")
            agreement = ag.compare_anchors(one, other).to_dict()
            yield {**{name: row[name] for name in names}, "pooled": len(single), **agreement, **halves}


def _recorded(row: dict[str, Any]) -> bool:
    """Whether a row compares scores from masses as recorded."""
    return row.get("spearman") is not None and row["normalise"] == NORMALISE[0]


def _of(row: dict[str, Any]) -> Setting:
    return Setting(*(row[name] for name in Setting._fields))


def _halves(found: list[ag.Anchors]) -> dict[str, float]:
    """How far halves of the runs agree on their heads, on average: overlap, and Spearman's correlation of kurtosis."""
    random, overlaps, correlations = np.random.default_rng(0), [], []
    for _ in range(HALVINGS):
        order = random.permutation(len(found))
        half, other = ([found[place] for place in some] for some in np.array_split(order, 2))
        heads = [set(ag.receiver_heads(some)) for some in (half, other)]
        overlaps.append(len(heads[0] & heads[1]) / len(heads[0]))
        kurtosis = [np.mean([each.kurtosis for each in some], axis=0).ravel() for some in (half, other)]
        known = np.isfinite(kurtosis).all(axis=0)
        correlations.append(scipy.stats.spearmanr(*(each[known] for each in kurtosis)).statistic)
    return {"halves_overlap": float(np.mean(overlaps)), "halves_spearman": float(np.mean(correlations))}


def done(rows: list[dict[str, Any]], setting: Setting, model: str) -> bool:
    return any(
        row["model"] == model and all(row[name] == value for name, value in setting._asdict().items()) for row in rows
    )


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The curve, what each reference says, and the marks."""
    curve = _latest([row for row in rows if row.get("spearman") is not None])
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for key in sorted({_key(row) for row in curve}):
        group = [row for row in curve if _key(row) == key]
        names = ("pruned", "spearman", "spearman_random_heads", "spearman_same_heads", "overlap")
        pruned, rho, chance, same, overlap = (median(row[name] for row in group) for name in names)
        dropped = [row["dropped"] for row in group if row["dropped"] is not None]
        lost = f"{median(dropped):.2f}" if dropped else "–"
        least = min(row["spearman"] for row in group)
        yield (
            f"| {key[0]} | {key[1]:.3f} | {' | '.join(map(str, key[2:]))} | {len(group)} | {pruned:.3f} | {rho:.2f} | "
            f"{least:.2f} | {chance:.2f} | {same:.2f} | {overlap:.2f} | {lost} |"
        )
    for setting, missing in _without_scores(rows):
        yield f"without scores, {setting}: {', '.join(missing)}"
    yield ""
    for traces, overlap, rho in sorted({_halves_of(row) for row in curve if row.get("pooled")}):
        yield (
            f"control: heads of one half of {traces} dense runs against the other half's: overlap {overlap:.2f}, "
            f"Spearman of kurtosis {rho:.2f} (means over {HALVINGS} random halvings)"
        )
    yield ""
    for row in rows:
        if not row["share"]:
            yield from _reference_lines(row)
    yield ""
    for share, spearman, overlap, tokens in MARKS:
        for key in sorted({_key(row) for row in curve if row["share"] == share and _recorded(row)}):
            yield _mark([row for row in curve if _key(row) == key], spearman, overlap, tokens)


def _without_scores(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Settings that leave no room for a budget, or no head that comes back to a sentence, and the traces."""
    found = {(*_setting(row), row["trace"]) for row in rows if row.get("spearman", 0) is None or row["budget"] is None}
    for (size, share, selector, forward, first), group in groupby(sorted(found), key=lambda each: each[:5]):
        setting = f"blocks of {size}, {share:.1%}, {selector}, {forward} pass, first_layers={first}"
        yield setting, [trace for *_, trace in group]


def _reference_lines(row: dict[str, Any]) -> Iterator[str]:
    found = row["importance"]
    yield (
        f"{row['trace']} ({row['tokens']:,} tokens, {found['sentences']} scored sentences), dense: counterfactual "
        f"importance ρ {found['spearman']:.2f}, p {found['p']:.3g}, within {found['stretches']} stretches "
        f"{found['p_within_stretches']:.3g}"
    )
    for each in row["profile"]:
        p = "–" if each["p"] is None else f"{each['p']:.3g}"
        share, excess = each["percentile"], each["excess"]
        yield f"  {each['category']}: {each['sentences']}, percentile {share:.2f}, excess {excess:+.2f}, p {p}"


def _setting(row: dict[str, Any]) -> tuple[int, float, str, str, int]:
    return row["block_size"], row["share"], row["selector"], row["forward"], row["first_layers"]


def _key(row: dict[str, Any]) -> tuple[int, float, str, str, int, str, str]:
    return *_setting(row), row["normalise"], "all traces" if row.get("pooled") else "each trace"


def _latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those by the heads of fewer traces than others of the same setting."""
    most: dict[tuple[Any, ...], int] = {}
    for row in rows:
        most[_key(row)] = max(most.get(_key(row), 0), row.get("pooled", 0))
    return [row for row in rows if row.get("pooled", 0) == most[_key(row)]]


def _halves_of(row: dict[str, Any]) -> tuple[int, float, float]:
    return row["pooled"], row["halves_overlap"], row["halves_spearman"]


def _mark(rows: list[dict[str, Any]], spearman: float, overlap: float, tokens: int) -> str:
    """Whether the rows of one setting reach a mark, which holds above so many tokens."""
    size, share, selector, forward, first = _setting(rows[0])
    name = f"mark: ≥ {share:.0%} pruned, blocks of {size}, {selector}, {forward} pass, first_layers={first}"
    name += f", heads of {_key(rows[0])[-1]}"
    name += f", over {tokens:,} tokens" if tokens else ""
    wanted = f"Spearman ≥ {spearman}" + (f" and overlap ≥ {overlap}" if overlap else "")
    group = [row for row in rows if row["tokens"] > tokens]
    if not group:
        return f"{name}: {wanted}: not run"
    found = median(row["spearman"] for row in group), median(row["overlap"] for row in group)
    verdict = "met" if found[0] >= spearman and found[1] >= overlap else "missed"
    return f"{name}: {wanted}: {verdict} ({found[0]:.2f}, {found[1]:.2f}; medians of {len(group)} traces)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of traces, one JSON file each")
    parser.add_argument("--rows", type=Path, default=Path("anchors.jsonl"))
    parser.add_argument("--store", type=Path, default=Path("anchor-runs"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--traces", nargs="*", help="names without .json; all of the folder by default")
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--blocks", nargs="*", type=int, default=list(BLOCKS))
    parser.add_argument("--selectors", nargs="*", default=list(SELECTORS))
    parser.add_argument("--forwards", nargs="*", default=list(FORWARDS))
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no capture after this time; 0 prints what is known"
    )
    arguments = parser.parse_args()
    begun = time.perf_counter()
    rows = read_rows(arguments.rows)
    traces = arguments.traces or sorted(file.stem for file in arguments.folder.glob("*.json"))
    wanted = list(settings(traces, arguments.shares, arguments.blocks, arguments.selectors, arguments.forwards))
    if arguments.seconds > 0:
        lm = ag.load_model(arguments.model)
        files = {trace: arguments.folder / f"{trace}.json" for trace in traces}
        prompts = {trace: ag.tasks.reasoning.from_json(lm.tokenizer, file) for trace, file in files.items()}
        for setting in wanted:
            if done(rows, setting, lm.id):
                continue
            if time.perf_counter() - begun > arguments.seconds:
                break
            new = list(measure(lm, setting, prompts[setting.trace], arguments.store))
            rows += new
            append_rows(arguments.rows, new)
        new = list(pooled(rows, prompts, lm.id, arguments.store))
        rows += new
        append_rows(arguments.rows, new)
    missing = sum(not done(rows, setting, arguments.model) for setting in wanted)
    print("\n".join(summary(rows)))
    print(f"{len(wanted) - missing} of {len(wanted)} settings measured")


if __name__ == "__main__":
    main()
