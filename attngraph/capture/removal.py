"""A captured prompt read once more, with some of the graph's edges removed before the softmax.

1. The run says which blocks every row kept. The sparse pass attends over these and searches for none: what differs
   between two passes is what was removed, never the selection. Removing nothing gives the captured pass.
2. A removed edge takes all its pairs of query row and key out of the softmax, which is then over what remains. Edges
   into a block leave the rows of targets in it alone; those have edges of their own. A row's own block stays, so that
   no row is ever without keys.
3. The dense pass attends over all visible keys but those of removed edges. To keep nothing but a set of edges and the
   forced blocks leaves both passes with the same keys: they are one pass then.
4. Layers before the first one that loses an edge compute what they did before, so every pass begins at its first
   changed layer, with what the pass without any removal handed on there.

No T × T mask is built: the sparse pass gathers the kept blocks of each row, the dense pass computes the few rows that
change anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attngraph.capture.attention import replaced_attention, streamed_attention
from attngraph.capture.fidelity import logits_after
from attngraph.capture.heap import kept_heap
from attngraph.capture.kept import KeptBlocks, Removal
from attngraph.capture.outcome import answer_margin
from attngraph.capture.progress import Passes
from attngraph.capture.resumed import HandedOn
from attngraph.config import Forward
from attngraph.errors import ModelError, PromptError
from attngraph.graph.edge_set import joined
from attngraph.models import LanguageModel
from attngraph.models.structure import attention_of, decoder_layers
from attngraph.store import Run
from attngraph.tasks.prompt import Prompt
from attngraph_kernels import BlockGrid, Softmax, attend_given, attend_without


class Prediction(NamedTuple):
    """What a pass says of the answer's first token.

    Its `log_probability` and its `margin` over the best other token, in nats (above 0: it is the first choice), and how
    many `layers` were computed for that.
    """

    log_probability: float
    margin: float
    layers: int


def predictions(
    lm: LanguageModel,
    run: Run,
    removals: Sequence[Removal],
    *,
    forward: Forward,
    progress: bool | None = None,
) -> tuple[Prediction, list[Prediction]]:
    """The prediction of the answer's first token without any removal, and with each of `removals`.

    Parameters
    ----------
    lm
        The model that the run was captured with.
    run
        Its prompt has an answer.
    removals
        Edges that the run hasn't recorded can be removed from the dense pass only.
    forward
        ``"sparse"``: over the run's kept blocks; ``"dense"``: over all visible keys.
    progress
        Show a progress bar on stderr; by default where stderr is a terminal.

    Raises
    ------
    ModelError
        If the run is another model's.
    PromptError
        If it has no answer, or the model no tokenizer to read it.
    GraphError
        If an edge is not the run's, or leads from a row's own block.
    """
    token, kept, dense = answer_token(lm, run), KeptBlocks(run), forward == "dense"
    for removal in removals:
        kept.check(removal, dense=dense)
    ids = run.tokens().sort("position").collect()["token_id"].to_list()
    layers = decoder_layers(lm.model)
    handed = HandedOn(lm, layers, len(ids), [removal.first_layer(len(layers)) for removal in removals])

    def predicted(removal: Removal, name: str) -> Prediction:
        start = handed.start(removal.first_layer(len(layers)))
        attention = _Remaining(layers, kept, removal, dense=dense and not removal.keep)
        with passes.measured(name), replaced_attention(lm.model, attention), handed.begun(start):
            logits = logits_after(lm.model, ids, ())[0]
        return Prediction(float(logits.log_softmax(-1)[token]), answer_margin(logits, token), len(layers) - start)

    with kept_heap(), Passes(layers, progress) as passes:
        with handed.kept():
            base = predicted(Removal(joined([])), "nothing removed")
        return base, [predicted(one, f"removal {number} of {len(removals)}") for number, one in enumerate(removals, 1)]


def answer_token(lm: LanguageModel, run: Run) -> int:
    """The first token of the answer to a run's prompt.

    Raises
    ------
    ModelError
        If the run is another model's.
    PromptError
        If there is no answer, or no tokenizer to read it.
    """
    prompt, model = run.manifest.prompt, run.manifest.model
    if lm.fingerprint != model.fingerprint:
        raise ModelError(
            f"This run is of {model.id!r} ({model.fingerprint}), the model given is {lm.id!r} ({lm.fingerprint}); the "
            f"run's edges mean nothing there. Load the run's own model."
        )
    if prompt.answer is None:
        raise PromptError("This run's prompt has no answer whose log-probability could fall; capture one that has.")
    if prompt.answer_tokens:
        return prompt.answer_tokens[0]
    if lm.tokenizer is None:
        raise PromptError(f"The answer {prompt.answer!r} can't be read: the model {lm.id!r} has no tokenizer.")
    # The run is older than the record of its answer's tokens.
    return Prompt(token_ids=(0,), answer=prompt.answer).answer_token_ids(lm.tokenizer)[0]


class _Remaining:
    """A `LayerAttention` over what a removal leaves of every row; `dense`: of all that it sees."""

    def __init__(self, layers: Sequence[nn.Module], kept: KeptBlocks, removal: Removal, *, dense: bool) -> None:
        self.number = {attention_of(layer): index for index, layer in enumerate(layers)}
        self.kept, self.removal, self.dense = kept, removal, dense

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, softmax: Softmax
    ) -> Tensor:
        layer, targets = self.number[module], self.kept.source.targets
        grid = BlockGrid(q.shape[1], self.kept.source.block_size, window)
        if self.dense:
            output = streamed_attention(module, q, k, v, window, scale, softmax)
            gone = self.removal.edges.of_layer(layer)
            removed = torch.from_numpy(np.stack([gone.head, gone.node, gone.key_block], axis=1))
            return attend_without(output, q, k, v, grid, removed, scale=scale, softmax=softmax, targets=targets)
        blocks = self.kept.remaining(layer, self.removal).to(q.device)
        queries, keys, values = q.float(), k.float(), v.float()
        output = attend_given(queries, keys, values, grid, blocks, scale=scale, softmax=softmax, targets=targets)
        return output.to(q.dtype)
