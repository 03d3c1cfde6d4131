"""What a KV cache is: a decoder of random weights gives the same answer four times.

python examples/kv_cache_from_scratch.py
"""

import time

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

import kvstore
from kvstore.core.hashing import block_hashes
from kvstore.core.identity import ModelIdentity
from kvstore.core.ids import BlockKeys
from kvstore.core.layout import KVLayout

LAYERS, HEADS, DIM, WIDTH, VOCAB, CONTEXT, BLOCK = 4, 4, 64, 256, 512, 512, 16
LAYOUT = KVLayout(LAYERS, HEADS, DIM, BLOCK, "float32")  # [layer, k|v, head, token, dim]
torch.manual_seed(0)
EMBEDDING, POSITION, HEAD = (torch.randn(n, WIDTH) / 4 for n in (VOCAB, CONTEXT, VOCAB))
SHAPES = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
WEIGHTS = [[torch.randn(a, b) * a**-0.5 for a, b in SHAPES] for _ in range(LAYERS)]


# 1. No cache: every step computes K and V of the whole sequence again.
class NoCache:
    length = 0  # tokens whose K and V are known

    def extend(self, layer, keys, values):
        """Takes K and V of the new tokens, [head, token, dim]; gives those of all tokens."""
        return keys, values


# 2. Cache: K and V of a token never change, for it sees only what is before it. Keep them.
class Cache(NoCache):
    def __init__(self):
        self.kv = [torch.empty(2, HEADS, 0, DIM)] * LAYERS

    def extend(self, layer, keys, values):
        self.kv[layer] = torch.cat([self.kv[layer], torch.stack([keys, values])], dim=2)
        self.length = self.kv[-1].shape[2]
        return self.kv[layer]


# 3. Paged cache: the same in blocks of 16 tokens from a pool. Nothing moves when a sequence grows,
# and blocks can be evicted, shared, or sent elsewhere. The block table says which are ours.
class PagedCache(NoCache):
    def __init__(self):
        self.pool = torch.zeros(CONTEXT // BLOCK, *LAYOUT.shape)
        self.table = torch.randperm(len(self.pool))  # anywhere, in any order

    def extend(self, layer, keys, values):
        end = self.length + keys.shape[1]
        slots, kv = torch.arange(self.length, end), torch.stack([keys, values])
        self.pool[self.table[slots // BLOCK], layer, :, :, slots % BLOCK] = kv.permute(2, 0, 1, 3)
        self.length = end if layer == LAYERS - 1 else self.length
        blocks = self.pool[self.table[: -(-end // BLOCK)], layer]
        return blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :end]


def forward(token_ids, memory):
    """Logits after the last token; computes the tokens that `memory` does not know."""
    new, start = torch.tensor(token_ids[memory.length :]), memory.length
    x = EMBEDDING[new] + POSITION[start : start + len(new)]
    mask = torch.ones(len(new), start + len(new), dtype=torch.bool).tril(start)
    for layer, (qkv, out, up, down) in enumerate(WEIGHTS):
        q, k, v = (rms_norm(x, [WIDTH]) @ qkv).view(-1, 3, HEADS, DIM).permute(1, 2, 0, 3)
        attended = scaled_dot_product_attention(q, *memory.extend(layer, k, v), mask, scale=0.5)
        x = x + attended.transpose(0, 1).flatten(1) @ out
        x = x + silu(rms_norm(x, [WIDTH]) @ up) @ down
    return rms_norm(x[-1], [WIDTH]) @ HEAD.T


def answer(name, prompt, memory, count=32):
    token_ids, known, times = list(prompt), memory.length, [time.perf_counter()]
    for _ in range(count):
        token_ids.append(int(forward(token_ids, memory).argmax()))
        times.append(time.perf_counter())
    first_ms, all_ms = 1e3 * (times[1] - times[0]), 1e3 * (times[-1] - times[0])
    print(f"{name:13}{known:4} cached {first_ms:7.1f} ms to first token {all_ms:8.1f} ms to last")
    return token_ids


prompt = torch.randint(VOCAB, (448,)).tolist()
reference = answer("no cache", prompt, NoCache())
assert answer("cache", prompt, Cache()) == reference
first = PagedCache()
assert answer("paged cache", prompt, first) == reference

# 4. Shared store: a block is named by all that shaped it, the model and every token up to its end.
# Whoever comes to the same name may use it: another request, another process, after a restart.
root = ModelIdentity("random, seed 0", "kv_cache_from_scratch", LAYOUT).root()
with kvstore.open(host="64MiB") as store:
    keys = BlockKeys(LAYOUT.fingerprint, block_hashes(root, prompt, BLOCK)[:-1])  # leave one to do
    store.put(keys, [first.pool[block] for block in first.table[: len(keys)]])
    second = PagedCache()  # of somebody else
    missed = store.get(keys, [second.pool[block] for block in second.table[: len(keys)]])
    second.length = BLOCK * min(missed, default=len(keys))
    assert answer("shared store", prompt, second) == reference
print(f"all answers are equal: {reference[-5:]} are their last tokens")
