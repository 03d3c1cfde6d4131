"""`kvstore bench engine --peer vllm=PYTHON`: the same answers by us and by vLLM on this CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cluster.bench import engine_vllm_driver
from cluster.bench.case import BenchOptions, Case
from cluster.bench.driven_peer import DrivenPeer, driven_peer
from cluster.bench.engine_decode import OURS, Race
from cluster.bench.engine_local import local_engine
from cluster.bench.engine_setup import FULL, EngineSize, Prompt, Prompts, model_folder, vocab_size

PEER = "vllm"
CASE = "decode_vs_vllm"
_ANSWER_S = 300.0


def engine_vllm(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case]:
    """Nothing without that peer. Raises ConfigurationError if it does not start, KVStoreError if
    it answers otherwise than we do."""
    if PEER not in options.peers or not options.wants(CASE):
        return
    folder = model_folder(options.folder, size.shape)
    with local_engine(folder, size) as ours, vllm_peer(options.peers[PEER], folder, size) as peer:
        answers = {
            OURS: lambda prompts: ours.answer(prompts, size.short_tokens),
            PEER: _awake(peer, size.short_tokens),
        }
        race = Race(answers, size, Prompts(vocab_size(folder)))
        turns = race.run()
    against = "vLLM on this CPU, eager, float32"
    note = f"{race.note(PEER)}; {torch.get_num_threads()} threads each, the other one stopped"
    yield turns.case(CASE, "tokens/s", OURS, PEER, against, goal="ratio >= 0.7", note=note)


@contextmanager
def vllm_peer(python: Path, model: Path, size: EngineSize) -> Iterator[DrivenPeer]:
    """It stands still between two answers."""
    threads = torch.get_num_threads()
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}" if threads > 1 else "0",
    }
    arguments = [str(model), str(size.num_sequences), str(2 * size.short_tokens)]
    driver = Path(engine_vllm_driver.__file__)
    with driven_peer(
        "vLLM", python, driver, arguments, environment=environment, answer_s=_ANSWER_S
    ) as peer:
        peer.pause()
        yield peer


def _awake(peer: DrivenPeer, new_tokens: int) -> Callable[[Sequence[Prompt]], list[list[int]]]:
    def answer(prompts: Sequence[Prompt]) -> list[list[int]]:
        peer.go_on()
        try:
            told: list[list[int]] = peer.command("answer", prompts=prompts, new_tokens=new_tokens)
        finally:
            peer.pause()
        return told

    return answer
