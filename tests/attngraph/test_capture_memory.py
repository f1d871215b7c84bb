"""No tensor of a capture is near tokens times tokens, and the largest grows at most in line with the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attngraph as ag
from attngraph_kernels.chosen import DENSE_ELEMENTS
from tests.attngraph.tiny_models import implementation, random_prompt, tiny

ARCHITECTURES = {
    "Llama": {"num_hidden_layers": 1},
    "Gemma3Text": {
        "num_hidden_layers": 2,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


class Largest(TorchDispatchMode):
    """The most elements that any operation's output holds in memory (a view holds those of its base)."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return output


def largest(kind: str, tokens: int, config: ag.StreamConfig, store) -> int:
    lm = tiny(kind, num_attention_heads=2, num_key_value_heads=1, hidden_size=32, **ARCHITECTURES[kind])
    prompt = random_prompt(tokens, spans=[("needle", 900, 950), ("question", tokens - 30, tokens)])
    with Largest() as found:
        ag.capture(lm, prompt, config, store=store, progress=False)
    return found.elements


def test_the_measure_sees_a_dense_pattern() -> None:
    lm = tiny("Llama", num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
    ids = torch.tensor([random_prompt(500).token_ids])
    with torch.no_grad(), implementation(lm.model, "eager"), Largest() as found:
        lm.model(ids, use_cache=False, logits_to_keep=1)
    assert found.elements == 2 * 500**2


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    "config",
    [ag.StreamConfig(n_match=0), ag.StreamConfig(n_match=1, forward="dense")],
    ids=["pruned", "observed, with the dense reference"],
)
def test_no_tensor_is_quadratic_in_the_prompt(kind: str, config: ag.StreamConfig, tmp_path) -> None:
    short, long = (largest(kind, tokens, config, tmp_path) for tokens in (4096, 8192))
    # One head's pattern would hold 16.8 and 67.1 million elements.
    assert short <= DENSE_ELEMENTS < 4096**2 // 3
    assert long <= max(2 * short, DENSE_ELEMENTS)
