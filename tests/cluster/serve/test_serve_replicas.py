"""Which replica a prompt goes to, and what in a request is the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from cluster.serve.prompts import ServePrompt, prompt_of
from cluster.serve.replicas import Replicas
from kvstore.core.errors import InvalidArgumentError
from kvstore.testing.clock import ManualClock

NAMES = [f"replica-{number}" for number in range(4)]


class Deployment:
    def __init__(self, blocks_per_replica: int = 1000) -> None:
        self.clock = ManualClock(100.0)
        self.replicas = Replicas(
            self.clock,
            policy="joint",
            block_size_tokens=16,
            blocks_per_replica=blocks_per_replica,
        )
        self.replicas.update(NAMES)
        self.asked = 0

    def ask(self, text: str, *, among: list[str] = NAMES, complete: bool = True) -> str:
        """Where it goes."""
        self.asked += 1
        self.clock.advance(0.5)
        prompt, request_id = text_prompt(text), f"r{self.asked}"
        ranked = self.replicas.rank(request_id, prompt, among)
        assert sorted(ranked) == sorted(among)
        self.replicas.routed(request_id, ranked[0], prompt)
        if complete:
            self.replicas.completed(request_id, ranked[0])
        return ranked[0]


def text_prompt(text: str) -> ServePrompt:
    prompt = prompt_of([text], {}, 16)
    assert prompt is not None
    return prompt


def story(seed: str, words: int = 2000) -> str:
    return " ".join(f"{seed}{number}" for number in range(words))


def test_the_next_turn_goes_where_the_first_one_was() -> None:
    deployment = Deployment()
    texts = [story(seed) for seed in "abcdefgh"]
    where = [deployment.ask(text) for text in texts]
    assert len(set(where)) == len(NAMES)
    for _ in range(2):
        texts = [text + story("more", 50) for text in texts]
        assert [deployment.ask(text) for text in texts] == where


def test_one_hot_prefix_is_not_one_hot_replica() -> None:
    deployment = Deployment()
    where = [deployment.ask(story("hot"), complete=False) for _ in range(60)]
    assert set(where) == set(NAMES)


def test_a_full_replica_is_passed_over() -> None:
    deployment = Deployment()
    first = deployment.ask(story("a"))
    others = [name for name in NAMES if name != first]
    second = deployment.ask(story("a"), among=others)
    assert second in others
    assert deployment.ask(story("a")) in (first, second)


def test_what_a_replica_reports_counts() -> None:
    deployment = Deployment()
    for name in NAMES[1:]:
        deployment.replicas.report(name, 200)
    assert {deployment.ask(story(str(number))) for number in range(4)} == {NAMES[0]}
    deployment.replicas.report("nobody", 1)


def test_replicas_come_and_go() -> None:
    deployment = Deployment()
    first = deployment.ask(story("a"))
    deployment.replicas.forget(first)
    deployment.replicas.forget(first)
    rest = [name for name in NAMES if name != first]
    assert deployment.ask(story("a"), among=rest) in rest
    deployment.replicas.update(["replica-9"])
    assert deployment.ask(story("a"), among=["replica-9"]) == "replica-9"
    deployment.replicas.update([])
    assert deployment.replicas.rank("x", text_prompt("a"), ["unknown"]) == ["unknown"]
    deployment.replicas.routed("x", "unknown", text_prompt("a"))
    deployment.replicas.completed("x", "unknown")
    deployment.replicas.cancel("x")


def test_what_was_computed_long_ago_is_taken_to_be_gone() -> None:
    deployment = Deployment(blocks_per_replica=400)
    hot = story("hot", 400)
    where = deployment.ask(hot)
    for number in range(40):
        deployment.ask(story(str(number), 400), among=[where])
    index = deployment.replicas._conductor.statistics().indexed_blocks
    assert index <= 400
    deployment.replicas.rank("x", text_prompt(hot), NAMES)
    told = deployment.replicas._conductor.explain("x")  # type: ignore[arg-type]
    assert told is not None
    assert {candidate.tokens.usable for candidate in told.alone} == {0}


def test_asked_again_it_counts_once() -> None:
    deployment = Deployment()
    prompt = text_prompt(story("a"))
    for _ in range(5):
        _, *others = deployment.replicas.rank("x", prompt, NAMES)
        deployment.replicas.completed("x", others[0])  # it had refused the request
    statistics = deployment.replicas._conductor.statistics()
    assert (statistics.in_flight, statistics.failed) == (1, 0)
    deployment.replicas.cancel("x")
    assert deployment.replicas._conductor.statistics().in_flight == 0


def test_settings_are_checked() -> None:
    for settings in ({"policy": "magic"}, {"block_size_tokens": 0}):
        with pytest.raises(InvalidArgumentError):
            Replicas(
                ManualClock(0.0),
                **{  # type: ignore[arg-type]
                    "policy": "joint",
                    "block_size_tokens": 16,
                    "blocks_per_replica": 10,
                    **settings,
                },
            )


@dataclass
class Body:
    prompt: Any = None
    messages: Any = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class Message:
    def model_dump(self) -> dict[str, str]:
        return {"role": "user", "content": "x" * 100}


def hashes(*args: Any, **kwargs: Any) -> Any:
    prompt = prompt_of(args, kwargs, 16)
    return None if prompt is None else list(prompt.hashes)


def test_prompts_are_found() -> None:
    ids = list(range(40))
    assert prompt_of([], {"request_token_ids": ids}, 16) == prompt_of([Body(ids)], {}, 16)
    assert len(hashes(Body("text is not looked at"), request_token_ids=ids)) == 2
    for same in (ids, Body(ids), {"prompt": ids}, {"prompt_token_ids": ids}):
        assert hashes(same) == hashes(ids)
    text = "x" * 130
    assert len(hashes(text)) == 2
    for same in (Body(text), Body([text, "another"]), {"prompt": text}):
        assert hashes(same) == hashes(text)
    assert hashes("other", Body(text)) == hashes("other")
    chat = [{"role": "user", "content": "y" * 200}]
    longer = [*chat, {"role": "assistant", "content": "z" * 200}]
    assert hashes(Body(messages=longer))[: len(hashes({"messages": chat}))] == hashes(
        {"messages": chat}
    )
    assert hashes(Body(messages=[Message()])) == hashes(
        {"messages": [{"role": "user", "content": "x" * 100}]}
    )
    for nothing in ((), (3,), (b"bytes",), (Body(),), ({"messages": []},)):
        assert hashes(*nothing) is None
    assert hashes([-1, 5]) is None
    assert hashes([1 << 40]) is None


def test_lengths_and_models() -> None:
    prompt = prompt_of([Body("x" * 129, max_tokens=7)], {}, 16)
    assert prompt is not None
    assert (prompt.tokens, prompt.answer_tokens_max) == (33, 7)
    body = Body("x", max_completion_tokens=5)
    short = prompt_of([body], {}, 16)
    assert short == ServePrompt(1, (), 5)
    assert prompt_of(["x" * 64], {}, 16, "lora") != prompt_of(["x" * 64], {}, 16)
    assert prompt_of([""], {}, 16) is None
    assert prompt_of(["\ud800" * 100], {}, 16) is not None
