"""For tests: an engine's core without its thread, and a store in memory that can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.cache import DeviceCache
from model_runner.engine_core import EngineCore
from model_runner.engine_output import EngineOutput, EngineStatistics
from model_runner.engine_request import LiveRequest, LiveRequests
from model_runner.inventory import RecordedInventory
from model_runner.runner import ModelRunner
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.step import ForwardChunk
from model_runner.store import BlockRun, Fetched, LayerWriter, NullStore, Published, Wanted
from model_runner.types import FinishReason, Request, Scheduler


class Fate(Enum):
    """What becomes of the store."""

    FINE = 1
    REFUSES = 2
    """Takes nothing: too much is on its way."""
    DIES = 3
    """In the middle: it takes and gives nothing any more."""
    BUSY = 4
    """Takes every other batch."""


@dataclass
class MemoryStore:
    """A connector that keeps real copies, and answers some steps later."""

    cache: DeviceCache
    fate: Fate = Fate.FINE
    delay_steps: int = 0
    dies_at_step: int = 10
    enabled: bool = True
    now: int = 0
    kept: dict[BlockHash, bytearray] = field(default_factory=dict)
    num_fetched: int = 0
    num_offered: int = 0
    """Batches."""
    _answers: list[tuple[int, Callable[[], None]]] = field(default_factory=list)

    @property
    def _alive(self) -> bool:
        return self.fate is not Fate.DIES or self.now < self.dies_at_step

    def fetch(self, wanted: Wanted, done: Fetched) -> None:
        self._later(lambda: done(self._load(wanted.hashes, wanted.block_ids[0])))

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        return None

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        self.num_offered += 1
        if self.fate is Fate.REFUSES or (self.fate is Fate.BUSY and self.num_offered % 2):
            return False

        def save() -> None:
            for run in runs:
                self._save(run.hashes, run.block_ids)
            done()

        self._later(save)
        return True

    def close(self) -> None:
        pass

    def answer(self) -> None:
        """Call back what is due; one step passes."""
        due = [answer for at, answer in self._answers if at <= self.now]
        self._answers = [one for one in self._answers if one[0] > self.now]
        self.now += 1
        for answer in due:
            answer()

    @property
    def idle(self) -> bool:
        return not self._answers

    def _later(self, answer: Callable[[], None]) -> None:
        self._answers.append((self.now + self.delay_steps, answer))

    def _load(self, hashes: Sequence[BlockHash], block_ids: Sequence[int]) -> list[TierKind]:
        found: list[memoryview] = []
        for block_hash in hashes:
            if not self._alive or block_hash not in self.kept:
                break
            found.append(memoryview(self.kept[block_hash]))
        self.cache.import_blocks(block_ids[: len(found)], found)
        self.num_fetched += len(found)
        return [TierKind.HOST] * len(found)

    def _save(self, hashes: Sequence[BlockHash], block_ids: Sequence[int]) -> None:
        for block_hash, block in zip(hashes, block_ids, strict=True):
            if self._alive and block_hash not in self.kept:
                self.kept[block_hash] = bytearray(self.cache.layout.block_bytes)
                self.cache.export_blocks([block], [memoryview(self.kept[block_hash])])


class Counting:
    """A runner that says how many tokens it computed."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.layout, self.cache = runner.layout, runner.cache
        self.eos_token_ids = runner.eos_token_ids
        self.num_computed = 0

    def forward(self, chunks: Sequence[ForwardChunk]) -> torch.Tensor:
        self.num_computed += sum(len(chunk.token_ids) for chunk in chunks)
        return self._runner.forward(chunks)


@dataclass
class Told:
    """What a request was told, put together."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    ends: list[FinishReason] = field(default_factory=list)
    error: KVStoreError | None = None
    num_first: int = 0
    over: bool = False

    def __call__(self, output: EngineOutput) -> None:
        assert not self.over, "told something after the end"
        self.tokens += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.ends += [output.finish_reason] if output.finish_reason else []
        self.error = output.error
        self.num_first += output.first is not None
        cancelled = output.finish_reason is FinishReason.CANCELLED
        self.over = output.published or cancelled or output.error is not None


class Stage:
    """Steps a core, with whatever the store answers in between. One thread, no clock."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, store: MemoryStore | None = None
    ) -> None:
        self.model = Counting(runner)
        self.store = store
        self._live = LiveRequests(100)
        self._calls: list[Callable[[], None]] = []
        self.core = EngineCore(
            self.model,
            scheduler,
            store or NullStore(),
            RecordedInventory(runner.layout.fingerprint),
            self._live,
            self._calls.append,
            lambda: 0.0,
        )

    def add(self, request: Request) -> Told:
        told = Told()
        self._live.enter(LiveRequest(request, told))
        self.core.add(request)
        return told

    def step(self) -> bool:
        """False if nothing can happen any more without a new request."""
        if self.store:
            self.store.answer()
        calls = list(self._calls)
        self._calls.clear()
        for call in calls:
            call()
        more = self.core.step()
        return more or bool(self._calls) or not (self.store is None or self.store.idle)

    def run(self) -> None:
        """Until nothing happens any more."""
        for _ in range(5_000):
            if not self.step():
                return
        raise AssertionError("it does not come to an end")

    def statistics(self) -> EngineStatistics:
        return self.core.statistics()

    @property
    def all_free(self) -> bool:
        load = self.core.load()
        return load.free_blocks == load.total_blocks
