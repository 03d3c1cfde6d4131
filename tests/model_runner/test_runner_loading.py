"""What cannot be loaded is refused with one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    T5Config,
)

from kvstore.client.huggingface.architecture import architecture
from kvstore.client.huggingface.checkpoint import weights_digest
from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockHash
from model_runner import loading
from model_runner.config import WorkerConfig
from model_runner.loading import (
    load_config,
    load_tokenizer,
    no_progress_bar,
    resolve_folder,
)
from model_runner.runner import ModelRunner

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def load(folder: Path | str, **settings: Any) -> ModelRunner:
    return ModelRunner(WorkerConfig(model=str(folder), device_blocks=4, **settings))


def assert_refused(folder: Path | str, message: str, **settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value)


def save(config: PreTrainedConfig, folder: Path) -> Path:
    with no_progress_bar():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(small_checkpoint, tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_loads_and_knows_the_model(small_checkpoint: Path) -> None:
    runner = load(small_checkpoint, block_size_tokens=8, threads=torch.get_num_threads())
    assert runner.layout.shape == (2, 2, 2, 8, 16)
    assert runner.max_context_tokens == 512
    assert runner.eos_token_ids == {1}
    assert runner.vocab_size == load_tokenizer(small_checkpoint).vocab_size
    assert "LlamaForCausalLM" in repr(runner)


def test_no_such_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent", "no such folder")
    assert_refused("./absent", "no such folder")
    assert_refused("not an id at all", "neither a folder nor a hub id")


def test_hub_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand more")

    monkeypatch.setattr(loading, "snapshot_download", unreachable)
    assert_refused("someone/model", "the hub did not give it: cannot reach the hub and more$")


def test_a_hub_id_is_its_snapshot(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(model: str, allow_patterns: list[str]) -> str:
        asked.append((model, "*.safetensors" in allow_patterns))
        return str(small_checkpoint)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert resolve_folder("someone/model") == small_checkpoint
    assert asked == [("someone/model", True)]


def test_no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert_refused(checkpoint, r"it has no config\.json")


@pytest.mark.parametrize("text", ["{ not json", '{"model_type": "no-such-type"}', "{}"])
def test_unusable_config(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert_refused(checkpoint, r"config\.json cannot be used")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "sixty-four"},
        {"num_attention_heads": 5},
        {"hidden_act": "no-such-function"},
        {"auto_map": {"AutoConfig": "theirs.Config"}, "model_type": "theirs"},
    ],
)
def test_config_that_makes_no_model(checkpoint: Path, changes: dict[str, Any]) -> None:
    edit_config(checkpoint, **changes)
    assert_refused(checkpoint, "cannot be used: .*(sixty|heads|no-such-function|custom code)")


def test_no_safetensors(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert_refused(checkpoint, r"it has no model\.safetensors.*convert them to safetensors")


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_weights(checkpoint: Path, keep: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(checkpoint, "weights cannot be used")


def test_missing_shard(checkpoint: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "a.safetensors", "x": "b.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(checkpoint, r"it has no a\.safetensors")


def test_weights_that_are_not_this_model(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=3)
    assert_refused(checkpoint, r"its weights lack model\.layers\.2")


def test_weights_of_another_shape(checkpoint: Path) -> None:
    edit_config(checkpoint, intermediate_size=96)
    assert_refused(checkpoint, "weights cannot be used")


def test_encoder_decoder(tmp_path: Path) -> None:
    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8).save_pretrained(tmp_path)
    assert_refused(tmp_path, "t5 is an encoder-decoder")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2), "Bloom"),
        (MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4), "Mamba"),
        (
            Qwen2MoeConfig(
                **TINY, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
                shared_expert_intermediate_size=8, use_sliding_window=True, sliding_window=4,
                max_window_layers=2,
            ),
            "do not pass their sliding window on",
        ),
        (
            DeepseekV3Config(
                **TINY, first_k_dense_replace=2, kv_lora_rank=8, q_lora_rank=8,
                qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=12,
            ),
            "K and V differ in shape",
        ),
    ],
    ids=["no attention interface", "no attention", "hidden window", "latent attention"],
)  # fmt: skip
def test_architectures_that_would_be_computed_wrongly(
    config: PreTrainedConfig, message: str, tmp_path: Path
) -> None:
    assert_refused(save(config, tmp_path), message)


def test_no_tokenizer(checkpoint: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="tokenizer cannot be used"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("text", ["{ not json", "{}", '{"added_tokens": [], "model": {}}'])
def test_corrupt_tokenizer(checkpoint: Path, text: str) -> None:
    (checkpoint / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigurationError, match="tokenizer cannot be used"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("device", ["no-such-device", "cuda:77"])
def test_no_such_device(small_checkpoint: Path, device: str) -> None:
    assert_refused(small_checkpoint, f"device '{device}' cannot be used", device=device)


def test_context_beyond_the_model(small_checkpoint: Path) -> None:
    assert load(small_checkpoint, max_context_tokens=100).max_context_tokens == 100
    assert_refused(
        small_checkpoint, "max_context_tokens=513 is more than the 512", max_context_tokens=513
    )


def test_rope_that_changes_with_length_limits_the_context(tmp_path: Path) -> None:
    """Beyond its first range, KV of a prefix would depend on what follows it."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 32
    folder = save(LlamaConfig(**TINY, rope_parameters=rope), tmp_path)
    assert load(folder).max_context_tokens == 32
    assert_refused(folder, "more than the 32 .* cacheable prefix", max_context_tokens=33)


def test_identity_is_of_the_weights_and_not_of_their_name(
    small_checkpoint: Path, checkpoint: Path
) -> None:
    assert weights_digest(checkpoint) == weights_digest(small_checkpoint)
    assert load(checkpoint).identity == load(small_checkpoint).identity
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_digest(checkpoint) != weights_digest(small_checkpoint)
    assert load(checkpoint).identity.root() != load(small_checkpoint).identity.root()


def test_digest_covers_every_shard(checkpoint: Path) -> None:
    names = ["a.safetensors", "b.safetensors"]
    index = {"weight_map": dict(zip("xy", names, strict=True))}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    digests = set()
    for contents in [("1", "2"), ("1", "3"), ("12", ""), ("", "12")]:
        for name, content in zip(names, contents, strict=True):
            (checkpoint / name).write_text(content)
        digests.add(weights_digest(checkpoint))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"rope_theta": 5e5}, False),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, False),
        ({"rms_norm_eps": 1e-5}, False),
        ({"some_future_setting": 7}, False),
        ({"use_cache": False}, True),
        ({"eos_token_id": 3}, True),
        ({"dtype": "float16"}, True),
    ],
)
def test_architecture_changes_with_what_shapes_the_kv(
    small_checkpoint: Path, checkpoint: Path, changes: dict[str, Any], same: bool
) -> None:
    if "rope_theta" in changes:
        changes = {"rope_parameters": {"rope_type": "default", **changes}}
    edit_config(checkpoint, **changes)
    before, after = (
        architecture(load_config(small_checkpoint)),
        architecture(load_config(checkpoint)),
    )
    assert (before == after) is same


def test_block_size_and_dtype_are_part_of_the_identity(small_checkpoint: Path) -> None:
    roots = {
        BlockHash(load(small_checkpoint, **settings).identity.root())
        for settings in ({}, {"block_size_tokens": 8}, {"dtype": "bfloat16"})
    }
    assert len(roots) == 3
