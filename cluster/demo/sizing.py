"""How large the demo's tiers are: small, so that its workload overflows them. Pure.

For a context of 1024 tokens, which is 64 blocks:

    device    72 blocks   two comparison prompts of 40 do not fit
    host     200 blocks   all three do; the trace after them, of 300 or more, pushes them out
    disk    1024 blocks   everything fits
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ByteSize

from cluster.conductor.config import ConductorConfig
from cluster.config import Settings
from cluster.demo.model import ModelFacts
from cluster.demo.workload import WorkloadSize
from cluster.gateway.config import GatewayConfig
from kvstore.node.config import NodeConfig
from model_runner.config import WorkerConfig

CONTEXT_TOKENS_MAX = 1024
BLOCK_SIZE_TOKENS = 16


def demo_size(facts: ModelFacts) -> WorkloadSize:
    context_tokens = min(CONTEXT_TOKENS_MAX, facts.context_tokens)
    context_blocks = context_tokens // BLOCK_SIZE_TOKENS
    return WorkloadSize(
        users=3 if facts.chats else 0,
        comparison_prompts=3,
        comparison_blocks=context_blocks * 5 // 8,
        trace_blocks=_host_blocks(context_blocks) * 3 // 2,
        block_size_tokens=BLOCK_SIZE_TOKENS,
        context_tokens=context_tokens,
        vocab_size=facts.vocab_size,
    )


def demo_settings(facts: ModelFacts, size: WorkloadSize, disk_folder: Path) -> Settings:
    """Everything on free ports of the loopback interface."""
    context_blocks = size.context_tokens // size.block_size_tokens
    block_bytes = facts.token_bytes * size.block_size_tokens
    device_blocks = context_blocks * 9 // 8
    prefill = WorkerConfig(
        worker_id="prefill-0",
        model=str(facts.folder),
        block_size_tokens=size.block_size_tokens,
        device_blocks=device_blocks,
        max_context_tokens=size.context_tokens,
    )
    return Settings(
        model=str(facts.folder),
        node=NodeConfig(
            host=ByteSize(_host_blocks(context_blocks) * block_bytes),
            disk=ByteSize(16 * context_blocks * block_bytes),
            disk_path=disk_folder,
        ),
        prefill=prefill,
        decode=prefill.model_copy(update={"worker_id": "decode-0"}),
        conductor=ConductorConfig(),
        gateway=GatewayConfig(port=0),
    )


def _host_blocks(context_blocks: int) -> int:
    return context_blocks * 25 // 8
