"""Capture: one forward pass of a model, pruned while it runs, recorded as a graph, committed to a store.

1. Check prompt and settings, and claim a place in the store, before anything slow happens.
2. Dense reference: the model with all its attention says which tokens come next (left out with ``n_match=0``).
3. Captured pass: every layer attends over the blocks that the selector keeps, and is written as soon as it is through.
   With ``forward="dense"`` the layer's whole attention flows on instead, and the kept blocks are only recorded.
4. Sparse check: the pruned model reads prompt and answer once more, and is compared with the reference.
5. Commit: tokens, blocks, spans, manifest; then the run folder appears under its final name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from attngraph.capture.attention import replaced_attention, streamed_attention
from attngraph.capture.cost import dense_cache_bytes, peak_rss_bytes, pruned_shares
from attngraph.capture.description import describe, prompt_tables
from attngraph.capture.fidelity import compare, dense_reference, logits_after
from attngraph.capture.progress import Passes
from attngraph.capture.recorder import Recorder
from attngraph.capture.shares import measured_shares
from attngraph.capture.sparse import SparseAttention
from attngraph.config import StreamConfig
from attngraph.models import LanguageModel
from attngraph.models.structure import decoder_layers, text_config
from attngraph.store import Cost, Run, RunWriter
from attngraph.tasks.prompt import Prompt

DENSE, CAPTURE, CHECK = "dense reference", "capture", "sparse check"
"""Names of the forward passes, in order."""


def capture(
    lm: LanguageModel,
    prompt: Prompt,
    config: StreamConfig | None = None,
    *,
    store: str | Path = "runs",
    progress: bool | None = None,
) -> Run:
    """Run the model on the prompt, pruned, and commit the run to the store.

    Parameters
    ----------
    lm
        A model from `load_model` or `LanguageModel.from_parts`.
    prompt
        Token ids, and spans whose pairwise attention is summed; its last token is the target.
    config
        What to keep and how to search; the defaults of `StreamConfig` if left out.
    store
        Folder of runs; made if missing.
    progress
        Show a progress bar on stderr; by default where stderr is a terminal.

    Returns
    -------
    Run
        Complete and on disk.

    Raises
    ------
    ConfigError, PromptError
        If settings and prompt don't go together; nothing has been computed or written.
    UnsupportedModelError
        If the model can't be traced faithfully.
    StoreError
        If the store can't be written.
    """
    config = config or StreamConfig()
    ids = prompt.token_ids
    config.budget_for(len(ids))
    prompt.check_vocabulary(lm.vocabulary_size)
    layers = decoder_layers(lm.model)
    target = len(ids) - 1
    pruned = replace(config, forward="sparse")
    answer = () if lm.tokenizer is None else prompt.answer_token_ids(lm.tokenizer)

    def dense(following: Sequence[int]) -> Tensor:
        with passes.measured(DENSE), replaced_attention(lm.model, streamed_attention):
            return logits_after(lm.model, ids, following)

    def sparse(following: Sequence[int]) -> Tensor:
        # Every position that predicts is a target, as it would be in a capture of its own.
        attention = SparseAttention(pruned, range(target, target + 1 + len(following)))
        with passes.measured(CHECK), replaced_attention(lm.model, attention):
            return logits_after(lm.model, ids, following)

    with RunWriter(store) as writer, Passes(layers, progress) as passes:
        reference = dense_reference(dense, config.n_match, answer) if config.n_match else None
        recorder = Recorder(writer, (target,))
        attention = SparseAttention(config, (target,), [(s.start, s.end) for s in prompt.spans], recorder.attended)
        with (
            passes.measured(CAPTURE),
            replaced_attention(lm.model, attention),
            measured_shares(layers, recorder.finish),
        ):
            target_logits = logits_after(lm.model, ids, ())[0]
        if reference is not None and config.forward == "dense":
            target_logits = sparse(())[0]  # fidelity is the pruned model's, and that has not been run yet
        fidelity = None if reference is None else compare(reference, target_logits, sparse, answer)
        for table, columns in prompt_tables(lm.tokenizer, prompt, config.block_size).items():
            writer.append(table, columns)
        cost = _cost(lm, recorder, passes, len(ids))
        return writer.commit(describe(lm, prompt, config, recorder, cost, fidelity))


def _cost(lm: LanguageModel, recorder: Recorder, passes: Passes, tokens: int) -> Cost:
    heads = text_config(lm.model).num_attention_heads
    return Cost(
        capture_seconds=passes.seconds[CAPTURE][0],
        dense_forward_seconds=passes.seconds[DENSE][0] if passes.seconds[DENSE] else None,
        fidelity_seconds=sum(passes.seconds[CHECK]) if passes.seconds[DENSE] else None,
        peak_rss_bytes=peak_rss_bytes(),
        dense_cache_bytes=dense_cache_bytes(len(recorder.grids), heads, tokens, lm.model.dtype.itemsize),
        pruned=pruned_shares(recorder.grids, recorder.kept_blocks, heads),
    )
