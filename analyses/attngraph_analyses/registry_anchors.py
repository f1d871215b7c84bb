"""What a study can ask of chains of thought: sentence scores, heads, categories, importance, agreement (`anchors`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.store import Run
from attngraph_analyses.anchor_checks import category_profile, compare_anchors, importance_correlation
from attngraph_analyses.anchors import anchors
from attngraph_analyses.groups import field_of
from attngraph_analyses.selection import Where, selected
from attngraph_analyses.vertical import AnchorSettings

SETTINGS = AnchorSettings()
DENSE: Where = {"config.forward": "dense"}


def anchors_table(run: Run, settings: AnchorSettings = SETTINGS) -> pl.DataFrame:
    """Every sentence with its score; as `attngraph_analyses.anchors`."""
    return anchors(run, **asdict(settings)).to_polars()


def anchor_heads(run: Run, settings: AnchorSettings = SETTINGS) -> pl.DataFrame:
    """Every head with its kurtosis, and whether it is a receiver head; as `attngraph_analyses.Anchors.heads`."""
    return anchors(run, **asdict(settings)).heads()


def category_profile_table(
    run: Run,
    stretches: int = 5,
    permutations: int = 9_999,
    seed: int = 0,
    settings: AnchorSettings = SETTINGS,
) -> pl.DataFrame:
    """How categories are scored above others; as `attngraph_analyses.category_profile`. No rows without categories."""
    found = anchors(run, **asdict(settings))
    if all(name is None for name in found.sentences.categories):
        return pl.DataFrame()
    table = category_profile(found, stretches=stretches, permutations=permutations, seed=seed)
    return table.sort("category")  # the same order in every run


def importance_correlation_table(
    run: Run,
    stretches: int = 5,
    permutations: int = 9_999,
    seed: int = 0,
    settings: AnchorSettings = SETTINGS,
) -> pl.DataFrame:
    """One row: the rank correlation of scores and counterfactual importance; none where no importance is known."""
    found = anchors(run, **asdict(settings))
    if np.isnan(found.sentences.importance).all():
        return pl.DataFrame()
    correlation = importance_correlation(found, stretches=stretches, permutations=permutations, seed=seed)
    return pl.DataFrame([asdict(correlation)])


def anchor_agreement(
    runs: Sequence[Run],
    reference: Where = DENSE,
    draws: int = 100,
    seed: int = 0,
    settings: AnchorSettings = SETTINGS,
) -> pl.DataFrame:
    """How far every run's anchors are those of the reference run of the same model and prompt, such as a dense one.

    One row per run that has a reference: model, prompt (hash), trace (the prompt's name, if it has one), config,
    block_size, budget, tokens, pruned_causal, and the fields of `attngraph_analyses.AnchorAgreement`.

    Raises
    ------
    ConfigError
        If no run is a reference, or two are for one prompt.
    """
    references = {}
    for run in selected(runs, reference):
        if _prompt_of(run) in references:
            raise ConfigError(
                f"Several runs of one prompt and model are {dict(reference)}; add what tells one of them apart, such "
                f"as config.block_size."
            )
        references[_prompt_of(run)] = run
    anchored = {prompt: anchors(run, **asdict(settings)) for prompt, run in references.items()}
    compared = [run for run in runs if _prompt_of(run) in references and run.id != references[_prompt_of(run)].id]
    rows = [
        {
            **_described(run),
            **compare_anchors(
                anchors(run, **asdict(settings)), anchored[_prompt_of(run)], draws=draws, seed=seed
            ).to_dict(),
        }
        for run in compared
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _prompt_of(run: Run) -> tuple[str, str]:
    return run.manifest.model.fingerprint, run.manifest.prompt.sha256


def _described(run: Run) -> dict[str, object]:
    manifest = run.manifest
    return {
        "model": manifest.model.id,
        "prompt": manifest.prompt.sha256,
        "trace": field_of(manifest, "trace"),
        "config": field_of(manifest, "config"),
        "block_size": manifest.config.block_size,
        "budget": manifest.budget,
        "tokens": manifest.prompt.tokens,
        "pruned_causal": manifest.cost.pruned.causal,
    }
