"""Nodes, processes, batches, types, ways of generating, and stores that fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import kvstore
from kvstore.client import connection
from kvstore.client.huggingface import PrefixCache
from kvstore.client.sync import SyncClient
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys
from kvstore.node.config import NodeConfig
from kvstore.testing.node_process import NodeProcess, node_process
from kvstore.tiers.base import TierKind
from kvstore.transports.process import this_process
from model_runner.config import WorkerConfig
from model_runner.kv_groups import BlockTable
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk

from .conftest import BLOCK, VOCAB, generate, tokens

Watch = Callable[[PreTrainedModel], list[int]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with node_process(NodeConfig(host=16 << 20, arena_folder=tmp_path)) as process:
        yield process


def run(prefixes: PrefixCache, model: PreTrainedModel, prompt: torch.Tensor, **settings: object):
    """Generate with the store; the output, and what was known of the prompt."""
    with prefixes.prompt(prompt) as cached:
        output = generate(model, prompt, past_key_values=cached.cache, **settings)
    return output, cached


def test_a_hit_computes_only_the_tail(
    llama: PreTrainedModel, store: SyncClient, forward_lengths: Watch
) -> None:
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    lengths = forward_lengths(llama)
    prompt = tokens(24)
    run(prefixes, llama, prompt, max_new_tokens=2)
    _, cached = run(prefixes, llama, prompt, max_new_tokens=2)
    assert cached.num_cached_tokens == 20  # of 6 full blocks: one token at least is computed
    assert lengths == [24, 1, 4, 1]
    statistics = prefixes.statistics()
    assert (statistics.prompt_tokens, statistics.cached_tokens) == (48, 20)
    assert (statistics.saved_blocks, statistics.errors) == (6, {})


SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM
from kvstore.client.huggingface import PrefixCache
from kvstore.client.sync import SyncClient

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompt = torch.tensor([[int(token) for token in sys.argv[3].split()]])
with SyncClient.connect(sys.argv[2]) as client:
    prefixes = PrefixCache(client, model, block_size_tokens=4)
    with prefixes.prompt(prompt) as cached:
        output = model.generate(
            prompt, past_key_values=cached.cache, max_new_tokens=12, do_sample=False,
            eos_token_id=None, attention_mask=torch.ones_like(prompt),
        )
print(cached.num_cached_tokens, *output[0].tolist())
"""


def test_a_second_process_hits_what_the_first_one_saved(
    llama: PreTrainedModel, llama_folder: Path, node: NodeProcess
) -> None:
    prompt = tokens(30)
    with SyncClient.connect(node.zmq_endpoint) as client:
        output, _ = run(PrefixCache(client, llama, block_size_tokens=BLOCK), llama, prompt)
    words = " ".join(str(token) for token in prompt[0].tolist())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(llama_folder), node.zmq_endpoint, words],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert [int(word) for word in done.stdout.split()] == [28, *output[0].tolist()]


@pytest.mark.parametrize("way", ["zmq", "grpc", "zmq from elsewhere", "grpc from elsewhere"])
def test_every_way_to_a_node(
    llama: PreTrainedModel, node: NodeProcess, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "elsewhere" in way:  # another host: the bytes come over the network
        stranger = replace(this_process(), start_ticks=1)
        monkeypatch.setattr(connection, "this_process", lambda: stranger)
    endpoint = node.zmq_endpoint if "zmq" in way else f"grpc://{node.grpc_address}"
    prompt = tokens(30)
    plain = generate(llama, prompt)
    with SyncClient.connect(endpoint) as client:
        prefixes = PrefixCache(client, llama, block_size_tokens=BLOCK)
        for cached_tokens in (0, 28):
            output, cached = run(prefixes, llama, prompt)
            assert torch.equal(output, plain)
            assert cached.num_cached_tokens == cached_tokens


def test_a_batch_starts_from_what_all_of_its_rows_have(
    llama: PreTrainedModel, store: SyncClient
) -> None:
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    rows = tokens(30, rows=3)
    rows[1, :20] = rows[0, :20]
    plain = generate(llama, rows)
    run(prefixes, llama, rows[:1])
    output, cached = run(prefixes, llama, rows[:2])
    assert (cached.num_cached_tokens, dict(cached.hit_tokens)) == (20, {TierKind.HOST: 40})
    assert torch.equal(output, plain[:2])
    output, cached = run(prefixes, llama, rows)
    assert (cached.num_cached_tokens, cached.num_saved_blocks) == (0, 10)
    output, cached = run(prefixes, llama, rows)
    assert (cached.num_cached_tokens, dict(cached.hit_tokens)) == (28, {TierKind.HOST: 84})
    assert torch.equal(output, plain)
    twins, cached = run(prefixes, llama, rows[[0, 0]])
    assert cached.num_cached_tokens == 28
    assert torch.equal(twins, plain[[0, 0]])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back_bit_for_bit(
    llama_folder: Path, store: SyncClient, dtype: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=dtype)
    prefixes = PrefixCache(store, model, block_size_tokens=BLOCK)
    prompt = tokens(30)
    _, cold = run(prefixes, model, prompt)
    with prefixes.prompt(prompt) as warm:
        assert warm.num_cached_tokens == 28
    for before, after in zip(cold.cache.layers, warm.cache.layers, strict=True):
        assert after.keys.dtype == getattr(torch, dtype)
        assert torch.equal(before.keys[:, :, :28], after.keys)
        assert torch.equal(before.values[:, :, :28], after.values)
    assert prefixes.identity.layout.dtype == dtype


def test_prefill_in_chunks(llama: PreTrainedModel, store: SyncClient) -> None:
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    prompt = tokens(30)
    plain = generate(llama, prompt)
    for cached_tokens in (0, 28):
        output, cached = run(prefixes, llama, prompt, prefill_chunk_size=7)
        assert torch.equal(output, plain)
        assert cached.num_cached_tokens == cached_tokens


def test_guesses_that_are_taken_back_out_of_the_cache(
    llama: PreTrainedModel, store: SyncClient
) -> None:
    """Assisted decoding begins with an empty cache; what it leaves there can be hit."""
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    half = tokens(15)
    prompt = torch.cat([half, half], dim=1)
    plain = generate(llama, prompt)
    output, _ = run(prefixes, llama, prompt, prompt_lookup_num_tokens=3)
    assert torch.equal(output, plain)
    turn = torch.cat([plain, half[:, :2]], dim=1)
    output, cached = run(prefixes, llama, turn)
    assert cached.num_cached_tokens == 40
    assert torch.equal(output, generate(llama, turn))
    with pytest.raises(InvalidArgumentError, match="assisted decoding cannot start"):
        run(prefixes, llama, turn, prompt_lookup_num_tokens=3)


def test_a_loop_of_ones_own(llama: PreTrainedModel, store: SyncClient) -> None:
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    prompt = tokens(30)
    plain = generate(llama, prompt)
    for cached_tokens in (0, 28):
        with prefixes.prompt(prompt) as cached, torch.inference_mode():
            assert cached.num_cached_tokens == cached_tokens
            token_ids = prompt
            while token_ids.shape[1] < plain.shape[1]:
                new = token_ids[:, cached.cache.get_seq_length() :]
                logits = llama(new, past_key_values=cached.cache).logits
                token_ids = torch.cat([token_ids, logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(token_ids, plain)


def test_two_threads_generate_with_one_model(llama: PreTrainedModel, store: SyncClient) -> None:
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    prompts = [tokens(30, seed=seed) for seed in range(2)]
    plain = [generate(llama, prompt) for prompt in prompts]
    outputs: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(3):
            outputs[number].append(run(prefixes, llama, prompts[number])[0])

    threads = [Thread(target=work, args=(number,)) for number in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(plain):
        assert len(outputs[number]) == 3
        assert all(torch.equal(output, expected) for output in outputs[number])
    assert prefixes.statistics().cached_tokens == 2 * 2 * 28


def test_a_call_of_another_thread_may_see_half_a_hook(
    llama: PreTrainedModel, store: SyncClient
) -> None:
    """torch keeps the hook and its wish for keyword arguments in two places, and takes them away
    one after the other: calls in between come without."""
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    with prefixes.prompt(tokens(30)):
        assert len(llama._forward_pre_hooks_with_kwargs) == 1
        llama._forward_pre_hooks_with_kwargs.clear()
        assert llama(tokens(5), use_cache=False).logits.shape == (1, 5, VOCAB)


def test_blocks_are_those_of_the_workers(
    llama: PreTrainedModel, llama_folder: Path, store: SyncClient
) -> None:
    """Under the same names, with the same content: either can go on from what the other saved."""
    runner = ModelRunner(
        WorkerConfig(model=str(llama_folder), block_size_tokens=BLOCK, device_blocks=8)
    )
    prefixes = PrefixCache(store, llama, checkpoint=llama_folder, block_size_tokens=BLOCK)
    assert prefixes.identity == runner.identity
    in_memory = PrefixCache(store, llama, block_size_tokens=BLOCK)
    assert in_memory.identity.root() != runner.identity.root()

    prompt = tokens(13)
    run(prefixes, llama, prompt, max_new_tokens=1)
    runner.forward([ForwardChunk(prompt[0].tolist(), 0, [BlockTable([5, 2, 7, 0])])])
    hashes = block_hashes(runner.identity.root(), prompt[0].tolist(), BLOCK)
    with store.acquire(BlockKeys(runner.layout.fingerprint, hashes)) as lease:
        assert lease.prefix_length == 3
        for found, computed in zip(lease.found, runner.cache.tensor[[5, 2, 7]], strict=True):
            torch.testing.assert_close(found.torch(runner.layout), computed, atol=1e-5, rtol=0)


def test_another_model_gets_no_hit(
    llama: PreTrainedModel, llama_folder: Path, store: SyncClient
) -> None:
    prompt = tokens(30)
    run(PrefixCache(store, llama, block_size_tokens=BLOCK), llama, prompt)
    other = AutoModelForCausalLM.from_pretrained(llama_folder)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    plain = generate(other, prompt)
    output, cached = run(PrefixCache(store, other, block_size_tokens=BLOCK), other, prompt)
    assert cached.num_cached_tokens == 0
    assert torch.equal(output, plain)


def test_a_store_that_dies_costs_the_hit(
    llama: PreTrainedModel, node: NodeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = tokens(30)
    plain = generate(llama, prompt)
    with SyncClient.connect(node.zmq_endpoint) as client:
        prefixes = PrefixCache(client, llama, block_size_tokens=BLOCK, deadline_s=0.3)
        run(prefixes, llama, prompt)
        node.kill()
        output, cached = run(prefixes, llama, prompt)
    assert torch.equal(output, plain)
    assert (cached.num_cached_tokens, cached.num_saved_blocks) == (0, 0)
    assert sum(prefixes.statistics().errors.values()) == 2
    assert "could not load blocks" in caplog.text
    assert "could not save blocks" in caplog.text


def test_a_full_store_keeps_what_it_has_room_for(llama: PreTrainedModel) -> None:
    prompt = tokens(100)
    plain = generate(llama, prompt)
    with kvstore.open(host="64KiB") as store:
        prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
        output, cached = run(prefixes, llama, prompt)
        assert 0 < cached.num_saved_blocks < 27
        assert torch.equal(output, plain)
        output, cached = run(prefixes, llama, prompt)
        assert 0 < cached.num_cached_tokens < 96
        assert torch.equal(output, plain)


def test_bytes_that_changed_are_a_miss(llama: PreTrainedModel, store: SyncClient) -> None:
    prefixes = PrefixCache(store, llama, block_size_tokens=BLOCK)
    prompt = tokens(30)
    plain, _ = run(prefixes, llama, prompt)
    damaged = _damage(prefixes, store, prompt, block=3)
    output, cached = run(prefixes, llama, prompt)
    assert damaged
    assert cached.num_cached_tokens == 3 * BLOCK
    assert torch.equal(output, plain)


def _damage(prefixes: PrefixCache, store: SyncClient, prompt: torch.Tensor, block: int) -> bool:
    """Write to the arena behind the back of everyone: as defective memory would."""
    keys = BlockKeys(prefixes.identity.layout.fingerprint, prefixes._hashes(prompt)[0])
    with store.acquire(keys) as lease:
        found = lease.found[block]
        found.torch(prefixes.identity.layout)[1, 0, 0, 0, 0] += 1
        return bool(found.index == block)


def test_without_torch_in_the_way() -> None:
    """`kvstore` and its clients work where torch and transformers are not installed."""
    script = (
        "import sys; sys.modules.update(torch=None, transformers=None, safetensors=None)\n"
        "import kvstore, kvstore.client.sync, kvstore.client.aio\n"
        "kvstore.open(host='1MiB').close(); print('closed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.returncode) == ("closed\n", 0), done.stderr
