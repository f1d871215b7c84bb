"""What a capture refuses: by name, with the limit and the way out, and with nothing left behind."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import transformers

import attngraph as ag
from attngraph.capture.attention import NAME, replaced_attention
from attngraph.capture.shares import measured_shares
from attngraph.capture.sparse import SparseAttention
from attngraph.errors import AttngraphError, ConfigError, PromptError, StoreError, UnsupportedModelError
from tests.attngraph.tiny_models import SMALL, dense, hook_count, random_prompt, tiny, tiny_model

CONFIG = ag.StreamConfig(block_size=8, budget=3, first_layers=0)


@contextmanager
def nothing_left(lm: ag.LanguageModel, store):
    """The model computes as before, with its own attention and no hooks; the store has not come to be."""
    prompt = random_prompt(40)
    own, hooks = lm.model.config._attn_implementation, hook_count(lm.model)
    with torch.no_grad():
        before = lm.model(torch.tensor([prompt.token_ids]), use_cache=False).logits
    yield
    assert not store.exists()
    assert lm.model.config._attn_implementation == own
    assert hook_count(lm.model) == hooks
    with torch.no_grad():
        assert torch.equal(lm.model(torch.tensor([prompt.token_ids]), use_cache=False).logits, before)


def refused(lm: ag.LanguageModel, prompt: ag.Prompt, config: ag.StreamConfig, store, error: type, match: str) -> None:
    with nothing_left(lm, store), pytest.raises(error, match=match) as raised:
        ag.capture(lm, prompt, config, store=store, progress=False)
    assert isinstance(raised.value, AttngraphError)


def test_token_ids_outside_the_vocabulary(tmp_path) -> None:
    prompt = ag.Prompt((*range(50), 97, *range(10)))
    match = r"Token id 97 at position 50 is outside the model's vocabulary of 97 \(0 to 96\); make the prompt with"
    refused(tiny(), prompt, CONFIG, tmp_path / "runs", PromptError, match)
    with pytest.raises(PromptError, match="Token id -1 at position 1 is negative"):
        ag.Prompt((3, -1))


@pytest.mark.parametrize(("tokens", "blocks"), [(16, 2), (8, 1), (1, 1)])
def test_a_prompt_under_three_blocks(tokens: int, blocks: int, tmp_path) -> None:
    match = rf"has {tokens} tokens, that is {blocks} block\(s\) of 8; at least 3 blocks .* longer prompt or a smaller"
    refused(tiny(), random_prompt(tokens), CONFIG, tmp_path / "runs", ConfigError, match)


def test_three_blocks_are_enough(tmp_path) -> None:
    run = ag.capture(tiny(), random_prompt(17), CONFIG, store=tmp_path, progress=False)
    assert (run.manifest.prompt.blocks, run.cost.edges) == (3, 2 * 4 * 6)


def test_a_budget_over_the_number_of_blocks(tmp_path) -> None:
    config = ag.StreamConfig(block_size=8, budget=8)
    match = r"budget=8 is over the prompt's 7 blocks \(50 tokens in blocks of 8\); give 3 to 7, or 'all'"
    refused(tiny(), random_prompt(50), config, tmp_path / "runs", ConfigError, match)


@pytest.mark.parametrize("budget", [2, 0, -1, "most", 4.5])
def test_a_budget_under_the_forced_blocks(budget) -> None:
    with pytest.raises(ConfigError, match=rf"budget={budget!r} is too small: .* at least 3 blocks, or 'all'"):
        ag.StreamConfig(budget=budget)


@pytest.mark.parametrize("size", [0, 7, 12, 256])
def test_a_block_size_that_is_not_allowed(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"block_size={size} is not one of 8, 16, 32, 64, 128"):
        ag.StreamConfig(block_size=size)


@pytest.mark.parametrize("setting", [{"first_layers": -1}, {"first_layers": 1.5}, {"first_budget": 2}])
def test_first_layers_that_make_no_sense(setting) -> None:
    ((name, value),) = setting.items()
    least = 3 if name == "first_budget" else 0
    with pytest.raises(ConfigError, match=rf"{name}={value!r} must be a whole number of at least {least}"):
        ag.StreamConfig(**setting)


def test_the_first_layers_keep_more_unless_the_budget_is_more() -> None:
    config = ag.StreamConfig(block_size=8, budget=5, first_layers=2, first_budget=9)
    assert [config.layer_budget(layer, 800) for layer in range(4)] == [9, 9, 5, 5]
    assert config.layer_budget(0, 48) == 6  # all blocks
    assert config.layer_budget(0, 800, window=100) == 5
    assert replace(config, budget=12).layer_budget(0, 800) == 12
    assert replace(config, budget="all").layer_budget(1, 800) == 100


def test_a_store_where_a_file_is_in_the_way(tmp_path) -> None:
    lm, file = tiny(), tmp_path / "file"
    file.write_text("mine")
    for store in (file, file / "below"):
        with nothing_left(lm, tmp_path / "none"), pytest.raises(StoreError, match=r"Opening the store .*file.* failed"):
            ag.capture(lm, random_prompt(50), CONFIG, store=store, progress=False)
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written(tmp_path) -> None:
    tmp_path.chmod(0o500)
    refused(tiny(), random_prompt(50), CONFIG, tmp_path / "runs", StoreError, "Check that the folder is writable")


@contextmanager
def inside(lm: ag.LanguageModel, match: str):
    """A forward pass under attngraph's attention that must be refused, and the model's own attention after it."""
    own = lm.model.config._attn_implementation
    with (
        pytest.raises(UnsupportedModelError, match=match),
        replaced_attention(lm.model, SparseAttention(CONFIG)),
        torch.no_grad(),
    ):
        yield
    assert lm.model.config._attn_implementation == own


IDS = torch.tensor([random_prompt(40).token_ids])


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text", "Mistral"])
def test_batches_padding_caches_and_packed_sequences(kind: str) -> None:
    lm = tiny(kind)
    with inside(lm, "a batch of 2 prompts; capture them one at a time"):
        lm.model(IDS.repeat(2, 1), use_cache=False)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with inside(lm, "padding; give the prompt without it"):
        lm.model(IDS, attention_mask=mask, use_cache=False)
    packed = torch.cat([torch.arange(25), torch.arange(15)])[None]
    with inside(lm, "packed sequences"):
        lm.model(IDS, position_ids=packed, use_cache=False)
    with inside(lm, r"position ids that are not 0, 1, 2"):
        lm.model(IDS, position_ids=torch.arange(40)[None] + 5, use_cache=False)
    with torch.no_grad():
        cache = lm.model(IDS, use_cache=True).past_key_values
    with inside(lm, "a key/value cache; capture the whole prompt in one forward pass"):
        lm.model(IDS[:, :4], past_key_values=cache, use_cache=True)


def test_a_static_cache() -> None:
    lm = tiny()
    static = transformers.StaticCache(config=lm.model.config, max_cache_len=64)
    with inside(lm, "a key/value cache"):
        lm.model(IDS, past_key_values=static, use_cache=True)


def test_a_mask_without_padding_is_fine() -> None:
    lm = tiny()
    with replaced_attention(lm.model, SparseAttention(ag.StreamConfig(block_size=8, budget="all"))), torch.no_grad():
        logits = lm.model(IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits[0]
    assert (logits - dense(lm, ag.Prompt(tuple(IDS[0].tolist()))).logits).abs().max() < 1e-4


def test_the_attention_works_inside_a_capture_only() -> None:
    model = tiny_model("Llama")
    model.set_attn_implementation(NAME)
    with pytest.raises(UnsupportedModelError, match="'attngraph' works inside a capture only"):
        model(IDS, use_cache=False)


CHUNKED = {
    "attention_chunk_size": 16,
    "num_local_experts": 1,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 64,
    "moe_layers": [],
    "layer_types": ["chunked_attention"] * 3,
    "no_rope_layers": [1, 1, 1],
}
SILENT_WINDOW = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "use_sliding_window": True,
    "sliding_window": 20,
    "layer_types": ["sliding_attention"] * 3,
}


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        (
            "Llama4Text",
            CHUNKED,
            r"'tiny' \(Llama4ForCausalLM\) has layers of type chunked_attention; attngraph can trace",
        ),
        ("Lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, r"\(Lfm2ForCausalLM\) has layers of type conv;"),
        ("OPT", {}, "OPTDecoderLayer has no norm between attention and MLP"),
    ],
)
def test_models_that_are_refused_before_any_forward_pass(kind: str, changes: dict, match: str) -> None:
    config = getattr(transformers, f"{kind}Config")(**(SMALL | changes))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=match):
        ag.LanguageModel.from_parts(model, id="tiny")


@pytest.mark.parametrize("n_match", [0, 2])
def test_a_window_that_only_shows_in_the_first_layer(n_match: int, tmp_path) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(**(SMALL | SILENT_WINDOW))
    lm = ag.LanguageModel.from_parts(transformers.AutoModelForCausalLM.from_config(config), id="tiny")
    settings = ag.StreamConfig(block_size=8, budget=3, n_match=n_match)
    match = "a sliding window that the layer does not pass on to its attention function"
    ended: list[object] = []
    hook = lm.model.model.layers[0].register_forward_hook(lambda *_: ended.append(1))
    with pytest.raises(UnsupportedModelError, match=match):
        ag.capture(lm, random_prompt(60), settings, store=tmp_path / "runs", progress=False)
    hook.remove()
    assert ended == []  # not even the dense reference got past its first attention
    assert not (tmp_path / "runs").exists()


def test_a_chunked_mask() -> None:
    model = tiny_model("Llama")
    with (
        pytest.raises(
            UnsupportedModelError, match=r"cuts the prompt into pieces \(chunked attention, packed sequences\)"
        ),
        replaced_attention(model, SparseAttention(CONFIG)),
    ):
        transformers.masking_utils.create_chunked_causal_mask(
            transformers.Llama4TextConfig(**(SMALL | CHUNKED), attn_implementation=NAME),
            torch.zeros(1, 40, 48),
            None,
            None,
        )


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices", "sinks"])
def test_arguments_that_attngraph_has_no_use_for(name: str) -> None:
    lm = tiny()
    with inside(lm, "position bias|keys that the model chooses itself|sinks that are not given"):
        lm.model(IDS, use_cache=False, **{name: torch.zeros(1)})


def test_a_parallel_block_that_is_not_the_sum_of_its_parts(tmp_path) -> None:
    lm = tiny("GPTNeoX")
    layer = lm.model.gpt_neox.layers[1]
    hook = layer.register_forward_hook(lambda _, __, output: 3 * output)
    match = "GPTNeoXLayer is not the sum of its input, its attention and its MLP"
    with pytest.raises(UnsupportedModelError, match=match):
        ag.capture(lm, random_prompt(60), CONFIG, store=tmp_path / "runs", progress=False)
    hook.remove()


def test_an_mlp_that_reads_the_stream_before_attention(tmp_path) -> None:
    lm = tiny("GPTNeoX")
    for layer in lm.model.gpt_neox.layers:
        layer.use_parallel_residual = None  # says neither yes nor no, and has two norms
    match = "GPTNeoXLayer lets its MLP read the stream before attention"
    with (
        pytest.raises(UnsupportedModelError, match=match),
        measured_shares(list(lm.model.gpt_neox.layers), lambda *_: None),
    ):
        for layer in lm.model.gpt_neox.layers:
            layer.use_parallel_residual = True
        lm.model(IDS, use_cache=False)


def test_attention_that_is_not_causal(tmp_path) -> None:
    lm = tiny(num_hidden_layers=3)
    for layer in lm.model.model.layers:
        layer.self_attn.is_causal = False
    refused(lm, random_prompt(60), CONFIG, tmp_path / "runs", UnsupportedModelError, "attention that is not causal")
    both_ways = tiny_model("Gemma3Text", use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match="isn't causal"):
        ag.LanguageModel.from_parts(both_ways)


def test_a_prefix_that_is_read_both_ways() -> None:
    lm = tiny()
    inner = lm.model.model
    own = inner.config._attn_implementation
    with (
        pytest.raises(UnsupportedModelError, match="attention that is not causal"),
        replaced_attention(lm.model, SparseAttention(CONFIG)),
    ):
        transformers.masking_utils.create_causal_mask(
            inner.config, torch.zeros(1, 40, 48), None, None, or_mask_function=lambda _, __, q, k: (q < 9) & (k < 9)
        )
    assert inner.config._attn_implementation == own


def test_a_model_without_the_attention_interface() -> None:
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=2)
    )
    with pytest.raises(UnsupportedModelError, match=r"doesn't use transformers' attention interface"):
        ag.LanguageModel.from_parts(model, id="bloom")
    with (
        pytest.raises(UnsupportedModelError, match="BloomForCausalLM computes attention in its own code"),
        replaced_attention(model, SparseAttention(CONFIG)),
    ):
        raise AssertionError("never entered")


class Stop(Exception):
    """Raised in the middle of a forward pass."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["dense reference", "captured pass", "sparse check"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_exception_in_a_layer_leaves_nothing_behind(error: type, where: str, attention: str, tmp_path) -> None:
    lm = tiny("Qwen3")
    lm.model.set_attn_implementation(attention)
    passes = {"dense reference": 1, "captured pass": 3, "sparse check": 4}  # two dense: the second with a greedy token
    calls: list[str] = []

    def fail(*_: object) -> None:
        calls.append(lm.model.config._attn_implementation)
        if len(calls) == passes[where]:
            raise error

    store = tmp_path / "a" / "runs"
    with nothing_left(lm, store):
        hook = lm.model.model.layers[2].mlp.register_forward_hook(fail)
        with pytest.raises(error):
            ag.capture(lm, random_prompt(60), CONFIG, store=store, progress=False)
        hook.remove()
    assert calls[-1] == NAME
    assert not store.parent.exists()
    run = ag.capture(lm, random_prompt(60), CONFIG, store=store, progress=False)
    assert [path.name for path in store.iterdir()] == [run.path.name]


def test_a_failed_capture_leaves_the_runs_of_the_store_alone(tmp_path) -> None:
    lm = tiny()
    run = ag.capture(lm, random_prompt(60), CONFIG, store=tmp_path, progress=False)
    with pytest.raises(ConfigError):
        ag.capture(lm, random_prompt(16), CONFIG, store=tmp_path, progress=False)
    hook = lm.model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ag.capture(lm, random_prompt(60), CONFIG, store=tmp_path, progress=False)
    hook.remove()
    assert [path.name for path in tmp_path.iterdir()] == [run.path.name]
    assert ag.verify_run(run.path).ok


def test_attngraph_capture_is_callable_whatever_was_imported_first(tmp_path) -> None:
    import attngraph.capture

    assert attngraph.capture is not None
    run = attngraph.capture(tiny(), random_prompt(60), CONFIG, store=tmp_path, progress=False)
    assert run.path.parent == tmp_path
