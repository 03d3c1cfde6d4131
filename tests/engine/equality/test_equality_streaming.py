"""Every family, when one engine reads what another one of its host is still computing."""

from __future__ import annotations

import threading

import pytest

from .bench import Answer, Bench, Lab
from .families import ANSWER_TOKENS, make_prompt
from .nodes import DEADLINE_S, HOST, Nodes, wait_until

PROMPT = make_prompt(38)
FULL, CHUNK = 36, 16
MIDDLE_LAYER = 1


@pytest.fixture(autouse=True)
def _every_layer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of small models are gathered up to the end of the step, else."""
    monkeypatch.setattr("model_runner.store_publishing.BATCH_BYTES", 1)


class Gate:
    """Holds an engine up in the middle of its n-th step: some layers are there, some are not."""

    def __init__(self, bench: Bench, step: int, *, fails: bool = False) -> None:
        self._steps = step
        self._fails = fails
        self._reached, self._open = threading.Event(), threading.Event()
        bench.model.after_layer = self._after_layer

    def wait_reached(self) -> None:
        assert self._reached.wait(DEADLINE_S)

    def open(self) -> None:
        self._open.set()

    def _after_layer(self, layer: int) -> None:
        if layer != MIDDLE_LAYER:
            return
        self._steps -= 1
        if self._steps == 0:
            self._reached.set()
            assert self._open.wait(DEADLINE_S)
            if self._fails:
                raise RuntimeError("the device fell off")


def read_while_written(lab: Lab, nodes: Nodes, step: int, *, fails: bool = False) -> Answer:
    """What the reader answers, which asks in the middle of the writer's step. Ends when both are
    done."""
    writer = lab.bench(nodes.quiet, prefill=True, max_batch_tokens=CHUNK if step > 1 else 64)
    reader = lab.bench(nodes.quiet)
    gate = Gate(writer, step, fails=fails)
    written = writer.submit(PROMPT, 1)
    gate.wait_reached()
    nodes.quiet.wait_for(writer.keys(PROMPT[: CHUNK * (step - 1)]), tier=HOST)
    nodes.quiet.wait_until(lambda counted: counted.reservations > 0)
    answer = reader.submit(PROMPT)
    wait_until(reader.has_loaded_any)
    gate.open()
    assert written.over.wait(DEADLINE_S)
    assert (written.outputs[-1].error is not None) == fails
    answer.wait()
    assert reader.computed() == len(PROMPT) + ANSWER_TOKENS - 1 - answer.hit_tokens
    return answer


def test_layer_by_layer(lab: Lab, nodes: Nodes) -> None:
    answer = read_while_written(lab, nodes, step=1)
    assert answer.tokens == lab.reference(PROMPT, ANSWER_TOKENS)
    assert answer.hits == {HOST: FULL}


def test_after_blocks_that_are_complete(lab: Lab, nodes: Nodes) -> None:
    """The writer is in its second chunk, and has not begun the third."""
    answer = read_while_written(lab, nodes, step=2)
    assert answer.tokens == lab.reference(PROMPT, ANSWER_TOKENS)
    assert set(answer.hits) == {HOST}
    assert answer.hit_tokens >= 2 * CHUNK


def test_of_a_step_that_fails(lab: Lab, nodes: Nodes) -> None:
    """Nothing of it is used, though some layers were there already."""
    answer = read_while_written(lab, nodes, step=2, fails=True)
    assert answer.tokens == lab.reference(PROMPT, ANSWER_TOKENS)
    assert answer.hits == {HOST: CHUNK}
