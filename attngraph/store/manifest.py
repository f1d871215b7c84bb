"""The manifest of a run, ``run.json``: what was captured, how, at what cost, and which files hold it.

It is written last, so a folder that holds one holds everything. Unknown fields are ignored and every field
added later has a default, so that runs of one major schema version can be read by every attngraph of that
major version.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from attngraph.config import StreamConfig
from attngraph.errors import IntegrityError, RunNotFoundError, StoreError
from attngraph.store.schema import FORMAT, SCHEMA_VERSION, Table, is_older, tables_of

MANIFEST_FILE = "run.json"
FIRST_LAYERS_SINCE = "1.2.0"
"""Schema version from which on first layers could keep more than others."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The model that was captured.

    `windows` holds one entry per layer: tokens that a query sees at most, itself included, or None for all of
    them. With `sinks` heads give part of their attention to a learned sink, which is no key. `fingerprint` and
    `tokenizer_fingerprint` identify weights, configuration and tokenizer.
    """

    id: str
    architecture: str
    fingerprint: str
    tokenizer_fingerprint: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    dtype: str
    parameters: int
    device: str
    sinks: bool = False


class SpanInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A named token range, half open."""

    name: str
    start: int
    end: int


class PromptInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt: its size, the hash of its token ids, its task, targets (token positions) and spans.

    `answer_tokens` are the answer's token ids as they follow the prompt; empty without an answer or a tokenizer.
    """

    tokens: int
    blocks: int
    sha256: str
    targets: tuple[int, ...]
    task: str | None = None
    answer: str | None = None
    answer_tokens: tuple[int, ...] = ()
    spans: tuple[SpanInfo, ...] = ()
    metadata: dict[str, Any] = {}


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the sparse model still says what the dense one says.

    The sparse model is the pruned one, also where the graph was observed beside a dense forward pass. `kl` is the
    divergence of the sparse from the dense next-token distribution, in nats; margins are top-1 minus top-2
    log-probability; the answer's tokens are counted teacher-forced, None where the prompt has no answer. Along a
    completion `completion_agreement` is the share of its tokens for which both models have the same first choice (from
    0 to 1), `completion_kl` the mean divergence, teacher-forced; None where the prompt has no completion.
    """

    n_match: int
    dense_tokens: tuple[int, ...]
    sparse_tokens: tuple[int, ...]
    next_tokens_match: bool
    kl: float
    dense_margin: float
    sparse_margin: float
    answer_tokens: int | None = None
    answer_tokens_kept: int | None = None
    dense_answer_tokens_kept: int | None = None
    dense_answer: tuple[int, ...] = ()
    sparse_answer: tuple[int, ...] = ()
    completion_tokens: int | None = None
    completion_agreement: float | None = None
    completion_kl: float | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model solved the prompt's task.

    `dense_answer` and `sparse_answer` are the first choices along the expected answer (teacher-forced), as text; their
    scores, from 0 to 1, are the task's own. `success` (score 1) and `margin` (log-probability of the answer's first
    token minus that of the best other one, in nats) are those of the forward pass that the graph shows.
    """

    expected: str
    dense_answer: str
    sparse_answer: str
    dense_score: float
    sparse_score: float
    success: bool
    margin: float


class BudgetProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What the pruned model says with one budget: `match` where the next tokens are all the dense model's.

    `kl` and `margin` (the pruned model's own, top-1 minus top-2) are in nats at the prompt's last token; `pruned` is
    the share of causal pairs left out.
    """

    budget: int
    match: bool
    kl: float
    margin: float
    pruned: float


class FoundBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What ``budget="auto"`` found: the budget in `blocks`, and the `curve` of all budgets tried, in that order.

    Its last entry is the captured pass; the others come from passes that read the tokens to match after the prompt.
    """

    blocks: int
    curve: tuple[BudgetProbe, ...]


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """Share of token pairs dropped: of the causal T(T+1)/2, of T², of those within each layer's window."""

    causal: float
    square: float
    visible: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the run took, in wall seconds and bytes.

    `capture_seconds` is the pruned forward pass with all that it recorded; `dense_forward_seconds` the model's own over
    prompt and answer; `fidelity_seconds` the pruned passes that were compared with it, those of a budget search
    included. `dense_cache_bytes` is what all attention patterns would have taken, `peak_rss_bytes` the process's
    highest resident memory so far.

    The writer fills `edges`, `target_edges` and `run_bytes` (all Parquet files of the run, without
    ``run.json``).
    """

    capture_seconds: float
    peak_rss_bytes: int
    dense_cache_bytes: int
    pruned: Pruned
    dense_forward_seconds: float | None = None
    fidelity_seconds: float | None = None
    edges: int = 0
    target_edges: int = 0
    run_bytes: int = 0


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Size, number of rows and SHA-256 (hexadecimal) of one file of the run."""

    bytes: int
    rows: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a run but its tables.

    `key` identifies the task (model, prompt, config, schema), so that a run can be found again. The writer
    fills `run` (a ULID), `created` (UTC, ISO 8601; when the writer was opened), `files`, and the counts and
    bytes of `cost`. `found_budget` is None unless the configured budget is ``"auto"``.
    """

    format: str = FORMAT
    schema_version: str = SCHEMA_VERSION
    run: str = ""
    created: str = ""
    key: str
    attngraph_version: str
    model: ModelInfo
    prompt: PromptInfo
    config: StreamConfig
    fidelity: Fidelity | None = None
    outcome: Outcome | None = None
    found_budget: FoundBudget | None = None
    cost: Cost
    environment: dict[str, str] = {}
    files: dict[str, FileInfo] = {}

    @property
    def budget(self) -> int:
        """Key blocks kept per row: as configured, all blocks of the prompt, or what was found."""
        if self.found_budget is not None:
            return self.found_budget.blocks
        budget = self.config.budget
        return budget if isinstance(budget, int) else self.prompt.blocks

    @property
    def most_kept(self) -> int:
        """Key blocks kept per row at most: those of the first layers, if these keep more."""
        return replace(self.config, budget=self.budget).layer_budget(0, self.prompt.tokens)

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that a run of this schema version has, by name."""
        return tables_of(self.schema_version)


class _Header(msgspec.Struct):
    """The two fields that every version of the manifest has."""

    format: str
    schema_version: Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)*$")]


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON that :func:`decode_manifest` reads back unchanged.

    Raises
    ------
    StoreError
        If a value can't be written as JSON, such as a NaN (JSON has none) or an object in `prompt.metadata`.
    """
    try:
        document = msgspec.json.encode(manifest)
        msgspec.json.decode(document, type=Manifest)
    except (msgspec.MsgspecError, TypeError) as error:
        raise StoreError(
            f"The manifest can't be written as JSON: {error}. Give finite numbers, and text, numbers, lists "
            f"or mappings in prompt.metadata."
        ) from error
    return msgspec.json.format(document, indent=2) + b"\n"


def decode_manifest(document: bytes, source: Path) -> Manifest:
    """The manifest in `document`; `source` names it in errors.

    Raises
    ------
    IntegrityError
        If it isn't valid JSON or lacks a field.
    StoreError
        If it is another format, or another major version of the schema.
    """
    try:
        header = msgspec.json.decode(document, type=_Header)
        _check_version(header, source)
        manifest = msgspec.json.decode(document, type=Manifest)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{source} isn't a manifest: {error}. The run is damaged; capture it again.") from error
    if is_older(header.schema_version, FIRST_LAYERS_SINCE):
        manifest = msgspec.structs.replace(manifest, config=replace(manifest.config, first_layers=0))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in `folder`; RunNotFoundError where there is none."""
    path = folder / MANIFEST_FILE
    try:
        document = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunNotFoundError(_no_run(folder)) from error
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}.") from error
    return decode_manifest(document, path)


def _check_version(header: _Header, source: Path) -> None:
    if header.format != FORMAT:
        raise StoreError(f"{source} has the format {header.format!r}; attngraph reads {FORMAT!r}.")
    if header.schema_version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise StoreError(
            f"{source} has schema version {header.schema_version}, this attngraph reads {SCHEMA_VERSION}: "
            f"update attngraph (pip install -U attngraph)."
        )


def _no_run(folder: Path) -> str:
    if folder.name.startswith(".partial-"):
        return f"{folder} is a run that was never finished; the next capture into its store removes it."
    if not folder.exists():
        return f"There is no run at {folder}."
    runs = sorted(path.name for path in folder.glob("run=*")) if folder.is_dir() else []
    if runs:
        return f"{folder} is a store, not a run; give one of its {len(runs)} runs, such as {folder / runs[-1]}."
    return f"{folder} is not a run: it has no {MANIFEST_FILE}. Give a folder run=… that a capture has written."
