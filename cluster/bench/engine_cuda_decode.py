"""`kvstore bench engine`: a decode step of a full batch beside one that `torch.compile` made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StaticCache

from cluster.bench.case import BenchOptions, Case, Skipped
from cluster.bench.engine_cuda_copies import NO_CUDA
from cluster.bench.engine_local import LocalEngine, local_engine
from cluster.bench.engine_setup import FULL, EngineSize, Prompt, Prompts, model_folder, vocab_size
from cluster.bench.engine_turns import in_turns
from model_runner.loading import no_progress_bar

CASE = "decode_vs_compiled"
BATCH = 32
_DTYPE = "bfloat16"


def engine_cuda_decode(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case | Skipped]:
    """Milliseconds of a step; answers are not compared, for bfloat16 rounds differently by kernel
    (`engine_decode` compares them in float32)."""
    if not options.wants(CASE):
        return
    if not torch.cuda.is_available():
        yield Skipped(CASE, NO_CUDA)
        return
    size = replace(size, num_sequences=BATCH)
    folder = model_folder(options.folder, size.shape)
    with local_engine(folder, size, device="cuda", dtype=_DTYPE) as ours:
        compiled = StaticDecode(folder, size, "cuda", _DTYPE, compiled=True)
        prompts = Prompts(vocab_size(folder))

        def new() -> list[list[int]]:
            return prompts.several(BATCH, size.short_tokens)

        works: dict[str, Callable[[int], float]] = {
            "ours": lambda number: step_ms(ours, new(), size.short_tokens),
            "compiled": lambda number: compiled.step_ms(new()),
        }
        for work in works.values():
            work(0)
        turns = in_turns(works, size.decode_rounds)
    note = f"{BATCH} sequences, tokens {size.short_tokens} to {2 * size.short_tokens}, {_DTYPE}"
    against = "torch.compile, static cache"
    yield turns.case(CASE, "ms", "ours", "compiled", against, goal="ratio <= 1.3", note=note)


def step_ms(engine: LocalEngine, prompts: Sequence[Prompt], new_tokens: int) -> float:
    """Of the engine, from the step at which all run to the last."""
    told = [0] * len(prompts)
    all_run_s = last_s = 0.0
    steps = 0
    for heard in engine.listen(prompts, new_tokens):
        told[heard.index] += len(heard.output.token_ids)
        if heard.output.token_ids and not all_run_s and all(told):
            all_run_s, steps = heard.at_s, new_tokens - max(told)
        last_s = max(last_s, heard.at_s)
    return 1e3 * (last_s - all_run_s) / steps


class StaticDecode:
    """`transformers` with a static cache: one compiled step for all tokens but the prompt's."""

    def __init__(
        self, folder: Path, size: EngineSize, device: str, dtype: str, *, compiled: bool
    ) -> None:
        with no_progress_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.to(device)
        self._device = torch.device(device)
        self._new_tokens = size.short_tokens
        self._cache = StaticCache(config=model.config, max_cache_len=2 * size.short_tokens)
        self._step = self._compiled_step() if compiled else self._next_tokens

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, float]:
        """`[sequence, token]`, greedily and past EOS, and how long all but the first took."""
        self._cache.reset()  # type: ignore[no-untyped-call]
        inputs = torch.tensor(prompts, device=self._device)
        positions = torch.arange(inputs.shape[1], device=self._device)
        told = [self._next_tokens(inputs, positions[None])]
        self._wait()
        started_s = time.perf_counter()
        for position in range(inputs.shape[1], inputs.shape[1] + self._new_tokens - 1):
            places = torch.full((1, 1), position, device=self._device)
            told.append(self._step(told[-1], places))
        self._wait()
        return torch.cat(told, dim=1), time.perf_counter() - started_s

    def step_ms(self, prompts: Sequence[Prompt]) -> float:
        return 1e3 * self.answer(prompts)[1] / (self._new_tokens - 1)

    def _compiled_step(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        compiled = torch.compile(self._next_tokens, mode="reduce-overhead", fullgraph=True)

        def step(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return compiled(tokens, positions).clone()  # the next step writes over its memory

        return step

    def _next_tokens(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._model(
            tokens, position_ids=positions, past_key_values=self._cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        picked: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return picked

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
