"""What the demo asks, as plain data. Pure: same arguments, same requests.

Three parts, in the order in which they make the tiers work:

    chat        three users, several turns, one long system prompt     device hits
    comparison  long prompts, cold; then again                         host hits: the device forgot
    trace       requests of a recorded trace                           push all before onto the disk
    comparison  the same prompts once more                             disk hits
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.demo.trace import TRACE_BLOCK_TOKENS, TraceRequest

Phase = Literal["chat", "cold", "warm host", "trace", "warm disk"]
Message = dict[str, str]

TRACE_SCALE = 16
"""One token of the demo stands for this many of the trace: a 512-token block becomes 32 tokens."""
LOWEST_TOKEN_ID = 8
"""Below it many vocabularies keep their special tokens."""

SYSTEM_PROMPT = """\
You answer questions about a distributed store for the key and value tensors of language models. \
The store keeps blocks of sixteen tokens. A block is named by a hash over all tokens before it, so \
that two prompts which begin alike share their first blocks, whoever asked first. Blocks live in \
three tiers: the memory of the device, the memory of the host and a disk. A block that is evicted \
from one tier stays in the tiers below. Prefill workers compute blocks and publish them; decode \
workers fetch them and write the answer, token by token. A conductor places every request where \
its first token comes soonest: it adds the time in the queue, the time to load what is stored and \
the time to compute the rest. When a worker or a node dies, nothing is lost but time, because \
every block can be computed again from its tokens. Bytes are checked whenever they cross a tier \
or a network, and a block that does not match its checksum counts as missing. Answer in short \
sentences. Name the tier that you speak of. Say what a number means before you give it. If the \
question is not about the store, say so politely and offer what you know instead. If the question \
has several parts, answer them in the order in which they were asked. Never invent a figure."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "Ada": (
        "What happens to a block when the device has no room for it?",
        "And how does it come back when somebody asks for it again?",
        "How long does that take compared with computing it?",
    ),
    "Grace": (
        "Two of our services send the same instructions first. Do they share anything?",
        "Would one changed word at the beginning of the instructions matter?",
        "Then where should we put the date of today?",
    ),
    "Edsger": (
        "Why should I believe that a cached answer equals a computed one?",
        "What if a bit flips on the disk?",
        "What does a reader see while a writer is not ready?",
    ),
}


@dataclass(frozen=True)
class DemoRequest:
    """One request: a chat (`messages`) or a completion of token ids (`prompt`)."""

    name: str
    phase: Phase
    max_tokens: int
    messages: tuple[Message, ...] = ()
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorkloadSize:
    """How much to ask. Lengths in tokens."""

    users: int = 3
    turns: int = 3
    chat_tokens: int = 16
    comparison_prompts: int = 3
    comparison_blocks: int = 40
    comparison_tokens: int = 8
    trace_requests: int = 12
    trace_output_tokens: int = 24
    trace_blocks: int = 300
    """The trace part touches at least so many blocks: enough to push others out of the host."""
    block_size_tokens: int = 16
    context_tokens: int = 1024
    vocab_size: int = 4096


def users(size: WorkloadSize) -> list[str]:
    return list(QUESTIONS)[: size.users]


def chat_request(size: WorkloadSize, user: str, turn: int, answers: Sequence[str]) -> DemoRequest:
    """Turn `turn` (from 0) of a user, after the answers to the turns before."""
    assert len(answers) >= turn
    messages = [{"role": "system", "content": SYSTEM_PROMPT}]
    for question, answer in zip(QUESTIONS[user], answers[:turn], strict=False):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": QUESTIONS[user][turn]})
    return DemoRequest(f"{user} {turn + 1}", "chat", size.chat_tokens, messages=tuple(messages))


def comparison_requests(size: WorkloadSize, phase: Phase) -> list[DemoRequest]:
    """The same prompts in every phase. A few tokens beyond whole blocks are left to compute."""
    length = size.comparison_blocks * size.block_size_tokens + size.block_size_tokens // 2
    length = min(length, size.context_tokens - size.comparison_tokens)
    return [
        DemoRequest(
            f"{phase} {number + 1}",
            phase,
            size.comparison_tokens,
            prompt=token_run(f"comparison {number}", length, size.vocab_size),
        )
        for number in range(size.comparison_prompts)
    ]


def trace_requests(size: WorkloadSize, trace: Sequence[TraceRequest]) -> list[DemoRequest]:
    """The first requests of the trace, then made-up ones until `trace_blocks` are touched."""
    requests = [
        trace_request(size, number, traced)
        for number, traced in enumerate(trace[: size.trace_requests])
    ]
    while sum(len(r.prompt) for r in requests) < size.trace_blocks * size.block_size_tokens:
        number = len(requests)
        length = size.context_tokens - size.trace_output_tokens
        prompt = token_run(f"filler {number}", length, size.vocab_size)
        requests.append(DemoRequest(f"trace {number + 1}", "trace", 1, prompt=prompt))
    return requests


def trace_request(size: WorkloadSize, number: int, traced: TraceRequest) -> DemoRequest:
    """A traced request at 1/16 of its length, cut to the context."""
    max_tokens = max(1, min(traced.output_length // TRACE_SCALE, size.trace_output_tokens))
    length = max(1, min(traced.input_length // TRACE_SCALE, size.context_tokens - max_tokens))
    prompt = expand(traced.hash_ids, length, size.vocab_size)
    return DemoRequest(f"trace {number + 1}", "trace", max_tokens, prompt=prompt)


def expand(hash_ids: Sequence[int], length: int, vocab_size: int) -> tuple[int, ...]:
    """`length` token ids in which every hash id has become its own fixed run of 32.

    Prompts agree as far as their hash ids do.
    """
    run = TRACE_BLOCK_TOKENS // TRACE_SCALE
    needed = hash_ids[: -(-length // run)]
    ids = [token for i in needed for token in token_run(f"hash id {i}", run, vocab_size)]
    return tuple(ids[:length])


def token_run(seed: str, length: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids that depend on the seed alone; a longer run begins with the shorter one."""
    assert vocab_size > LOWEST_TOKEN_ID
    stream = hashlib.shake_256(seed.encode()).digest(4 * length)
    span = vocab_size - LOWEST_TOKEN_ID
    return tuple(LOWEST_TOKEN_ID + word % span for word in struct.unpack(f"<{length}I", stream))
