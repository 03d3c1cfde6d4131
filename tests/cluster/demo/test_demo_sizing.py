from __future__ import annotations

from pathlib import Path

import pytest

from cluster.demo.model import ModelFacts
from cluster.demo.sizing import demo_settings, demo_size
from cluster.demo.workload import comparison_requests, trace_requests


@pytest.mark.parametrize("context_tokens", [256, 512, 1024, 8192])
def test_tiers_overflow_as_the_demo_needs_it(context_tokens: int, tmp_path: Path) -> None:
    facts = ModelFacts(tmp_path, 1000, context_tokens, token_bytes=2048, chats=True)
    size = demo_size(facts)
    settings = demo_settings(facts, size, tmp_path)
    block_bytes = 2048 * size.block_size_tokens
    host_blocks = settings.node.host // block_bytes
    prompts = comparison_requests(size, "cold")
    prompt_blocks = len(prompts[0].prompt) // size.block_size_tokens
    trace = sum(len(r.prompt) // size.block_size_tokens for r in trace_requests(size, []))

    longest = -(-size.context_tokens // size.block_size_tokens)
    assert longest <= settings.prefill.device_blocks < 2 * prompt_blocks
    assert 3 * prompt_blocks < host_blocks < trace
    assert settings.node.disk > settings.node.host + trace * block_bytes
    assert size.context_tokens <= context_tokens


def test_model_without_chat_template_is_not_asked_to_chat(tmp_path: Path) -> None:
    facts = ModelFacts(tmp_path, 1000, 1024, token_bytes=2048, chats=False)
    assert demo_size(facts).users == 0
