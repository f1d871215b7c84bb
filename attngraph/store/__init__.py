"""Runs on disk: written whole or not at all, readable by anything that reads Parquet."""

from attngraph.store.background import Background
from attngraph.store.encoding import round_mantissa
from attngraph.store.integrity import Verification, verify_run, verify_store
from attngraph.store.keys import KeyIndex, remove_idle_locks, working_on
from attngraph.store.manifest import (
    MANIFEST_FILE,
    BudgetProbe,
    Cost,
    Fidelity,
    FileInfo,
    FoundBudget,
    Manifest,
    ModelInfo,
    Outcome,
    PromptInfo,
    Pruned,
    SpanInfo,
)
from attngraph.store.run import Run, open_run
from attngraph.store.schema import SCHEMA_VERSION, TABLES
from attngraph.store.store import Store, open_store
from attngraph.store.writer import RunWriter

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "TABLES",
    "Background",
    "BudgetProbe",
    "Cost",
    "Fidelity",
    "FileInfo",
    "FoundBudget",
    "KeyIndex",
    "Manifest",
    "ModelInfo",
    "Outcome",
    "PromptInfo",
    "Pruned",
    "Run",
    "RunWriter",
    "SpanInfo",
    "Store",
    "Verification",
    "open_run",
    "open_store",
    "remove_idle_locks",
    "round_mantissa",
    "verify_run",
    "verify_store",
    "working_on",
]
