"""`kvstore bench engine`: tokens a second beside `transformers`, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from cluster.bench.case import BenchOptions, Case
from cluster.bench.engine_local import local_engine
from cluster.bench.engine_setup import FULL, EngineSize, Prompt, Prompts, model_folder, vocab_size
from cluster.bench.engine_transformers import (
    continuous_batching,
    generate_batched,
    generate_one_by_one,
    plain_model,
)
from cluster.bench.engine_turns import Turns, in_turns
from kvstore.core.errors import KVStoreError

Answer = Callable[[Sequence[Prompt]], list[list[int]]]

OURS = "ours"
SAME_ANSWERS_MIN = 0.75
"""Share of the sequences that must be equal: two logits may be nearer than float32 rounds, and from
there on two right answers differ; more than a few of these are a defect."""

_CASES = {
    "decode_vs_generate": ("generate", "model.generate, one by one", "ratio >= 3"),
    "decode_vs_generate_batched": (
        "batched",
        "model.generate, one dense batch",
        "ratio >= 0.95",
    ),
    "decode_vs_continuous_batching": (
        "continuous",
        "transformers generate_batch",
        "ratio >= 1.5",
    ),
}


def engine_decode(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case]:
    """All four answer the same prompts in each round. Raises KVStoreError if answers differ."""
    if not options.wants(*_CASES):
        return
    folder = model_folder(options.folder, size.shape)
    new_tokens, plain = size.short_tokens, plain_model(folder)
    with (
        local_engine(folder, size) as ours,
        continuous_batching(plain_model(folder), size) as batching,
    ):
        answers: dict[str, Answer] = {
            OURS: lambda prompts: ours.answer(prompts, new_tokens),
            "batched": lambda prompts: generate_batched(plain, prompts, new_tokens),
            "continuous": batching.answer,
            "generate": lambda prompts: list(generate_one_by_one(plain, prompts, new_tokens)),
        }
        race = Race(answers, size, Prompts(vocab_size(folder)))
        turns = race.run(few_to_warm_up=("generate",))
    for name, (peer, against, goal) in _CASES.items():
        note = f"{race.note(peer)}; {torch.get_num_threads()} threads, float32"
        yield turns.case(name, "tokens/s", OURS, peer, against, goal=goal, note=note)


class Race:
    """The same new prompts to all in each round, and their answers compared."""

    def __init__(self, answers: Mapping[str, Answer], size: EngineSize, prompts: Prompts) -> None:
        self._answers = answers
        self._size = size
        self._new_prompts = prompts
        self._prompts: dict[int, list[list[int]]] = {}
        self._told: dict[str, list[list[int]]] = {name: [] for name in answers}

    def run(self, few_to_warm_up: Sequence[str] = ()) -> Turns:
        """Tokens a second. Raises KVStoreError if too many answers differ from ours."""
        for name, answer in self._answers.items():
            prompts = self._new_prompts.several(self._size.num_sequences, self._size.short_tokens)
            answer(prompts[:1] if name in few_to_warm_up else prompts)
        works = {name: self._work(name) for name in self._answers}
        turns = in_turns(works, self._size.decode_rounds)
        for name in self._answers:
            self._check(name)
        return turns

    def same_share(self, name: str) -> float:
        """Of all sequences: whose answer is ours, token for token."""
        pairs = zip(self._told[OURS], self._told[name], strict=True)
        return sum(mine == theirs for mine, theirs in pairs) / len(self._told[OURS])

    def note(self, name: str) -> str:
        size = self._size
        return (
            f"{size.num_sequences} sequences of {size.short_tokens} + {size.short_tokens} tokens; "
            f"{self.same_share(name):.1%} of the answers equal, token for token"
        )

    def _work(self, name: str) -> Callable[[int], float]:
        def rate(number: int) -> float:
            prompts = self._of_round(number)
            started_s = time.perf_counter()
            told = self._answers[name](prompts)
            elapsed_s = time.perf_counter() - started_s
            self._told[name] += told
            return sum(map(len, told)) / elapsed_s

        return rate

    def _of_round(self, number: int) -> list[list[int]]:
        if number not in self._prompts:
            size = self._size
            self._prompts[number] = self._new_prompts.several(size.num_sequences, size.short_tokens)
        return self._prompts[number]

    def _check(self, name: str) -> None:
        lengths = {len(answer) for answer in self._told[name]}
        if lengths != {self._size.short_tokens} or self.same_share(name) < SAME_ANSWERS_MIN:
            raise KVStoreError(
                f"bench engine: only {self.same_share(name):.0%} of the answers of {name!r} are "
                f"ours (lengths {sorted(lengths)}): the speed of a wrong answer is no figure"
            )
