"""The model families that are tested, and the table of them in docs/models.md.

Run: python -m tests.attngraph.families       prints the table, each column read off the tiny model of the tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.attngraph.tiny_models import kind_of, layers_of, projection_name, tiny_model, windows_of


class Family(NamedTuple):
    """A family under the name of its configuration in transformers, and what it is known from."""

    kind: str
    such_as: str


FAMILIES = (
    Family("Llama", "Llama 2 and 3, SmolLM2, TinyLlama, DeepSeek-R1-Distill-Llama"),
    Family("Mistral", "Mistral 7B"),
    Family("Mixtral", "Mixtral 8x7B"),
    Family("Qwen2", "Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen"),
    Family("Qwen3", "Qwen 3"),
    Family("Qwen3Moe", "Qwen 3 30B-A3B"),
    Family("Gemma2", "Gemma 2"),
    Family("Gemma3Text", "Gemma 3"),
    Family("Phi3", "Phi 3 and 4"),
    Family("GPT2", "GPT-2"),
    Family("GPTNeoX", "Pythia, GPT-NeoX 20B"),
    Family("Olmo2", "OLMo 2"),
    Family("SmolLM3", "SmolLM3"),
    Family("GptOss", "gpt-oss 20B and 120B"),
    Family("Granite", "Granite 3"),
    Family("Starcoder2", "StarCoder2"),
)


def table() -> str:
    """The families as a Markdown table."""
    head = ("transformers", "such as", "windows (tested)", "softmax", "block", "queries, keys, values", "output")
    rows = [head, ("---",) * len(head), *(_row(family) for family in FAMILIES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(family: Family) -> tuple[str, ...]:
    model = tiny_model(family.kind)
    names = [name for name, _ in model.named_parameters()]
    return (
        f"`{type(model).__name__}`",
        family.such_as,
        _window(model),
        _softmax(model, names),
        _block(model, names),
        _inputs(names),
        f"`{projection_name(kind_of(model)).rpartition('.')[2]}`",
    )


def _window(model: Any) -> str:
    windowed = [window is not None for window in windows_of(model)]
    return "all layers" if all(windowed) else "some layers" if any(windowed) else "–"


def _softmax(model: Any, names: list[str]) -> str:
    parts = ["soft cap"] if getattr(model.config, "attn_logit_softcapping", None) else []
    return ", ".join([*parts, *(["learned sinks"] if any(name.endswith("sinks") for name in names) else [])]) or "plain"


def _block(model: Any, names: list[str]) -> str:
    order = "parallel" if getattr(layers_of(model)[0], "use_parallel_residual", False) else "attention, then MLP"
    return f"{order}, experts" if any("expert" in name for name in names) else order


def _inputs(names: list[str]) -> str:
    fused = any(part in name for name in names for part in ("c_attn", "query_key_value", "qkv_proj"))
    return ("fused" if fused else "split") + (", q/k norms" if any("q_norm" in name for name in names) else "")


if __name__ == "__main__":
    print(table())
