"""The engine's figures beside other generators, on a model that takes milliseconds."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from cluster.bench.case import BenchOptions, Skipped
from cluster.bench.engine_cuda_copies import copies, engine_cuda_copies
from cluster.bench.engine_cuda_decode import StaticDecode, engine_cuda_decode, step_ms
from cluster.bench.engine_decode import OURS, Race, engine_decode
from cluster.bench.engine_local import local_engine
from cluster.bench.engine_setup import EngineSize, Prompts
from cluster.bench.engine_transformers import generate_batched, plain_model
from cluster.bench.engine_turns import Turns, percentile
from cluster.bench.engine_vllm import engine_vllm
from kvstore.core.errors import KVStoreError
from kvstore.core.layout import KVLayout
from model_runner.testing import small_checkpoint
from model_runner.tiny import SMALL

SIZE = EngineSize(SMALL, num_sequences=3, short_tokens=16, decode_rounds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    small_checkpoint(folder / "engine-model")
    return folder


def test_ours_and_three_of_transformers_answer_the_same(folder):
    cases = list(engine_decode(BenchOptions(folder), SIZE))
    names = ["generate", "generate_batched", "continuous_batching"]
    assert [case.name for case in cases] == [f"decode_vs_{name}" for name in names]
    for case in cases:
        assert "100.0% of the answers equal" in case.note
        assert len(case.ratios) == 2
        assert case.value > 0
        assert case.ceiling > 0
        assert case.goal.startswith("ratio >= ")


def test_nothing_is_measured_that_is_not_asked_for(folder):
    options = BenchOptions(folder, cases=["ttft_95_host"])
    assert list(engine_decode(options, SIZE)) == []


def test_speed_of_wrong_answers_is_no_figure(folder):
    def right(prompts):
        return [[1] * SIZE.short_tokens for _ in prompts]

    def wrong(prompts):
        return [[2] * SIZE.short_tokens for _ in prompts]

    def short(prompts):
        return [[1] for _ in prompts]

    Race({OURS: right, "peer": right}, SIZE, Prompts(100)).run()
    for peer in (wrong, short):
        with pytest.raises(KVStoreError, match="answers of 'peer' are ours"):
            Race({OURS: right, "peer": peer}, SIZE, Prompts(100)).run()


def test_all_get_the_same_prompts_in_a_round_and_new_ones_in_the_next():
    asked = {"ours": [], "peer": []}

    def answer(name):
        def of(prompts):
            asked[name].append(prompts)
            return [[1] * SIZE.short_tokens for _ in prompts]

        return of

    Race({name: answer(name) for name in asked}, SIZE, Prompts(100)).run(few_to_warm_up=["peer"])
    assert [len(prompts) for prompts in asked["peer"]] == [1, 3, 3]
    assert asked["ours"][1:] == asked["peer"][1:]
    assert asked["ours"][1] != asked["ours"][2]


_DRIVER_STAND_IN = """
import json, sys
sys.path[:0] = {path!r}
from model_runner.testing import plain_generate

answer = plain_generate(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    command = json.loads(line)
    assert command["verb"] == "answer"
    answers = [answer(prompt, command["new_tokens"]) for prompt in command["prompts"]]
    print("a line of a log")
    print(json.dumps({{"result": answers}}), flush=True)
"""


def test_a_peer_in_a_process_of_its_own_takes_turns(folder, tmp_path):
    script = tmp_path / "stand_in.py"
    script.write_text(_DRIVER_STAND_IN.format(path=sys.path))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    [case] = engine_vllm(BenchOptions(folder, peers={"vllm": python}), SIZE)
    assert case.name == "decode_vs_vllm"
    assert "100.0% of the answers equal" in case.note
    assert list(engine_vllm(BenchOptions(folder), SIZE)) == []


def test_static_decode_answers_as_generate_does(folder):
    size = replace(SIZE, num_sequences=4)
    model = folder / "engine-model"
    prompts = Prompts(SMALL.vocab_size // 2).several(4, size.short_tokens)
    static = StaticDecode(model, size, "cpu", "float32", compiled=False)
    expected = generate_batched(plain_model(model), prompts, size.short_tokens)
    for _ in range(2):
        assert static.answer(prompts)[0].tolist() == expected
    with local_engine(model, size) as engine:
        assert step_ms(engine, prompts, size.short_tokens) > 0


def test_copies_are_measured_and_compared(tmp_path):
    layout = KVLayout(
        num_layers=2, num_kv_heads=2, head_dim=8, block_size_tokens=4, dtype="float32"
    )
    cases = list(copies(tmp_path, layout, 16, "cpu"))
    assert [case.name for case in cases] == ["device_to_host_copy", "host_to_device_copy"]
    assert all(case.ratio > 0 for case in cases)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_its_cases_are_listed_as_skipped(folder):
    skipped = [
        *engine_cuda_copies(BenchOptions(folder)),
        *engine_cuda_decode(BenchOptions(folder)),
    ]
    names = ["device_to_host_copy", "host_to_device_copy", "decode_vs_compiled"]
    assert skipped == [Skipped(name, "no CUDA device here") for name in names]


def test_the_ratio_is_the_median_of_the_rounds():
    turns = Turns({"ours": [1.0, 2.0, 30.0], "theirs": [1.0, 4.0, 10.0]})
    case = turns.case("x", "s", "ours", "theirs", "them", goal="", note="")
    assert case.ratios == [1.0, 0.5, 3.0]
    assert (case.value, case.ceiling, case.ratio) == (2.0, 4.0, 1.0)


def test_percentile_is_a_value_that_was_there():
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 99) == 99
    assert percentile(values, 50) == 50
    assert percentile([5.0], 99) == 5
