"""Families, when a worker's process is killed in the middle of an answer: another one goes on
from its tokens, with what it had published."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest

from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from decode_worker.worker import DecodeWorker
from model_runner.wire.v1.generation_pb2 import GenerateChunk, GenerateRequest, SamplingParams
from model_runner.worker_testing import StandsStill, WorkerProcess, worker_process
from prefill_worker.wire.v1.prefill_pb2_grpc import PrefillServiceStub
from prefill_worker.worker import PrefillWorker

from .bench import Lab
from .families import ANSWER_TOKENS, make_prompt
from .nodes import DEADLINE_S, HOST, REMOTE, Nodes, StoreNode

PROMPT = make_prompt(38)
FULL = 36
CHUNK = 16


SOME = pytest.mark.parametrize(
    "family", ["llama", "mistral-sliding", "gemma3-sliding", "mixtral-moe"], indirect=True
)


class Victim:
    """A worker process on a node, and the stream of one answer from it."""

    def __init__(
        self, lab: Lab, node: StoreNode, stands_still: StandsStill, *, prefill: bool = False
    ) -> None:
        self._stack = ExitStack()
        config = lab.config(node, served_model_name="m", threads=1, max_batch_tokens=CHUNK)
        kind = PrefillWorker if prefill else DecodeWorker
        preload = [PrefillWorker.__module__, DecodeWorker.__module__]
        self._process: WorkerProcess = self._stack.enter_context(
            worker_process(kind, config, stands_still, preload)
        )
        channel = self._stack.enter_context(grpc.insecure_channel(self._process.grpc_address))
        verb = (
            PrefillServiceStub(channel).Prefill if prefill else DecodeServiceStub(channel).Generate
        )
        message = GenerateRequest(
            request_id="r",
            model="m",
            prompt_token_ids=PROMPT,
            cache_salt=lab.salt,
            sampling=SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True),
        )
        self._chunks: Iterator[GenerateChunk] = verb(message, timeout=DEADLINE_S)

    def read(self, num_tokens: int) -> list[int]:
        tokens = (token for chunk in self._chunks for token in chunk.token_ids)
        return list(itertools.islice(tokens, num_tokens))

    def finish(self) -> None:
        """Read to the end."""
        *_, last = self._chunks
        assert last.published
        self._process.kill()
        self._stack.close()

    def kill(self) -> None:
        """In the middle: whoever reads its stream is told so."""
        self._process.kill()
        with pytest.raises(grpc.RpcError) as raised:
            list(self._chunks)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        self._stack.close()


def test_killed_while_answering(lab: Lab, nodes: Nodes) -> None:
    expected = lab.reference(PROMPT, ANSWER_TOKENS)
    victim = Victim(lab, nodes.near, StandsStill(before_step=3 + 5))
    told = victim.read(5)
    assert told == expected[:5]
    bench = lab.bench(nodes.near)
    published = [*PROMPT, *told][:40]
    nodes.near.wait_for(bench.keys(published), tier=HOST)
    victim.kill()
    answer = bench.ask(PROMPT, output=told)
    assert [*told, *answer.tokens] == expected
    assert answer.hits == {HOST: len(PROMPT)}
    assert bench.computed() == len(PROMPT) + ANSWER_TOKENS - 1 - len(published)


@SOME
def test_killed_while_prefilling(lab: Lab, nodes: Nodes) -> None:
    victim = Victim(lab, nodes.near, StandsStill(before_step=2), prefill=True)
    bench = lab.bench(nodes.near)
    nodes.near.wait_for(bench.keys(PROMPT[:CHUNK]), tier=HOST)
    victim.kill()
    answer = bench.ask(PROMPT)
    assert answer.tokens == lab.reference(PROMPT, ANSWER_TOKENS)
    assert answer.hits == {HOST: CHUNK}


def test_prefill_peer_killed_before_its_hand_off_is_complete(lab: Lab, nodes: Nodes) -> None:
    """Its first token was told, and its blocks are written but not visible: nobody waits for them
    or reads them."""
    victim = Victim(lab, nodes.near, StandsStill(before_commit=True), prefill=True)
    told = victim.read(1)
    victim.kill()
    bench = lab.bench(nodes.near)
    answer = bench.ask(PROMPT, output=told)
    assert [*told, *answer.tokens] == lab.reference(PROMPT, ANSWER_TOKENS)
    assert answer.hits == {}


@SOME
def test_prefill_peer_killed_while_its_blocks_are_read(lab: Lab, nodes: Nodes) -> None:
    """Who waits for what it was writing computes it."""
    victim = Victim(lab, nodes.quiet, StandsStill(before_commit=True), prefill=True)
    told = victim.read(1)
    nodes.quiet.wait_until(lambda counted: counted.reservations > 0)
    bench = lab.bench(nodes.quiet)
    answer = bench.submit(PROMPT, output=told)
    victim.kill()
    answer.wait()
    assert [*told, *answer.tokens] == lab.reference(PROMPT, ANSWER_TOKENS)
    assert len(PROMPT) + ANSWER_TOKENS - 1 == bench.computed() + answer.hit_tokens


@SOME
def test_prefill_peer_killed_after_its_hand_off(lab: Lab, nodes: Nodes) -> None:
    """What it published is its node's, which lives on: other hosts get it from there."""
    victim = Victim(lab, nodes.near, StandsStill(), prefill=True)
    told = victim.read(1)
    victim.finish()
    bench = lab.bench(nodes.far)
    nodes.far.wait_for(bench.keys(PROMPT), tier=REMOTE)
    answer = bench.ask(PROMPT, output=told)
    assert [*told, *answer.tokens] == lab.reference(PROMPT, ANSWER_TOKENS)
    assert answer.hit_tokens == FULL
    assert REMOTE in answer.hits
