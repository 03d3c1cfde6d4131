"""vLLM beside ours: run by the Python that it is installed in, which knows nothing of us.

    python engine_vllm_driver.py MODEL NUM_SEQUENCES MAX_TOKENS

One engine in this process, eager, float32. It answers commands: one JSON object a line on stdin,
one on stdout. It ends when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

KV_CACHE_BYTES = 1 << 30
"""Given, for vLLM would take most of the machine; it is more than these sequences fill."""
BLOCK_SIZE_TOKENS = 32
"""The smallest that its kernels take here."""


class Peer:
    def __init__(self, model: str, num_sequences: int, max_tokens: int) -> None:
        from vllm import LLM  # type: ignore[import-not-found]

        self._llm: Any = LLM(
            model=model,
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            block_size=BLOCK_SIZE_TOKENS,
            max_model_len=max_tokens,
            max_num_seqs=num_sequences,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            disable_log_stats=True,
        )

    def answer(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy, past EOS."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(inputs, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def prepare_environment() -> None:
    """Before vLLM and torch are imported. One process, so that a pause stops all of it."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


def main() -> None:
    prepare_environment()
    model, num_sequences, max_tokens = sys.argv[1:]
    os.environ["VLLM_CACHE_ROOT"] = str(Path(model).parent / "vllm-cache")
    peer = Peer(model, int(num_sequences), int(max_tokens))
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        command = json.loads(line)
        result = getattr(peer, command.pop("verb"))(**command)
        print(json.dumps({"result": result}), flush=True)  # noqa: T201
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
