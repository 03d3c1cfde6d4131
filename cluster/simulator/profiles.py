"""How long an instance takes, and how fast KV moves: the machine and model that is simulated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from kvstore.core.errors import ConfigurationError

_GB = 1e9
_GBPS = 1e9 / 8


@dataclass(frozen=True)
class Profile:
    """One instance and its links. A step that computes n prompt tokens, attending over `pairs`
    (token, earlier token) pairs, beside b sequences that decode over t tokens of KV, takes

        prefill  prefill_step_s + n * prefill_token_s + n^2 * prefill_square_s
                                + pairs * prefill_pair_s              if n > 0
        decode   decode_step_s + b * decode_sequence_s + t * decode_kv_token_s
                               + t^2 * decode_kv_square_s             if b > 0

    seconds, one after the other.
    """

    name: str
    block_size_tokens: int
    device_blocks: int
    host_blocks: int
    """Of each node; 0 = no shared store."""
    kv_token_bytes: int
    prefill_step_s: float
    prefill_token_s: float
    prefill_square_s: float
    prefill_pair_s: float
    decode_step_s: float
    decode_sequence_s: float
    decode_kv_token_s: float
    decode_kv_square_s: float
    decode_kv_tokens_max: float = inf
    """Beyond this, more KV makes a decode step no slower."""
    max_batch_tokens: int = 8192
    max_running: int = 256
    host_load_bytes_per_s: float = inf
    """Host memory to device, of one instance."""
    network_bytes_per_s: float = inf
    """Of each node, in each direction, for everything below."""
    pulls: bool = True
    """Whether a node takes blocks from other nodes; if not, each is a cache of its own."""
    handover_over_network: bool = True
    """Whether KV takes time from a prefill to a decode instance."""
    first_token_at_decode: bool = False
    """Whether the first token is seen when the decode instance has made it, not the prefill one."""
    prefill_makes_all_tokens: bool = False
    """Whether a prefill instance makes, and throws away, all tokens of the answer before it hands
    over: one in each step that computes prompts, in no time, and the rest when there are none."""

    def prefill_s(self, tokens: int, pairs: float) -> float:
        if not tokens:
            return 0.0
        return (
            self.prefill_step_s
            + tokens * (self.prefill_token_s + tokens * self.prefill_square_s)
            + pairs * self.prefill_pair_s
        )

    @property
    def block_bytes(self) -> int:
        return self.block_size_tokens * self.kv_token_bytes


PAPER_EFFICIENCY = 0.47
"""The one number that the paper does not give: with it, random placement has the paper's mean time
to first token (its Fig. 5). See docs/reproduction.md."""


def paper_profile(*, efficiency: float = PAPER_EFFICIENCY) -> Profile:
    """LLaMA3-70B on 8 x A800 (80 GB, 312 TFLOP/s, 2.04 TB/s each), 800 Gbit/s between nodes.

    Prefill is the paper's Eq. 1, l (a n^2 d + b n d^2) operations with a = 4, b = 22, at
    `efficiency` of the peak; n^2 counts every pair twice. A decode step reads the weights and the
    KV of its batch, at that share of the memory bandwidth.
    """
    layers, width, pair_ops, token_ops = 80, 8192, 4, 22
    ops_per_s = 8 * 312e12 * efficiency
    bytes_per_s = 8 * 2.04e12 * efficiency
    kv_token_bytes = 320 << 10
    return Profile(
        name="paper",
        block_size_tokens=512,
        device_blocks=1_400_000 // 512,
        host_blocks=3_000_000 // 512,
        kv_token_bytes=kv_token_bytes,
        prefill_step_s=0.0,
        prefill_token_s=layers * token_ops * width**2 / ops_per_s,
        prefill_square_s=0.0,
        prefill_pair_s=2 * layers * pair_ops * width / ops_per_s,
        decode_step_s=140e9 / bytes_per_s,
        decode_sequence_s=layers * token_ops * width**2 / ops_per_s,
        decode_kv_token_s=kv_token_bytes / bytes_per_s,
        decode_kv_square_s=0.0,
        host_load_bytes_per_s=8 * 20 * _GB,
        network_bytes_per_s=800 * _GBPS,
    )


def dynamo_mocker_profile() -> Profile:
    """What Dynamo's mock engine takes by default: polynomials in the prompt tokens of a step, and
    in the share of its blocks that is in use. Its hand-over takes no time, and the client sees the
    decode worker's first token. Its prefill workers (as of release 1.4.0) keep a request until they
    have made its whole answer.

    Bytes and bandwidths, which the mocker leaves out, are those of an 8-billion-parameter model
    (32 layers, 8 KV heads of 128, 16 bit) on a PCIe 4 host with a 200 Gbit/s network.
    """
    capacity_tokens = 16_384 * 64
    return Profile(
        name="dynamo-mocker",
        block_size_tokens=64,
        device_blocks=16_384,
        host_blocks=0,
        kv_token_bytes=128 << 10,
        prefill_step_s=16.50142e-3,
        prefill_token_s=1.518344e-5,
        prefill_square_s=4.209989e-10,
        prefill_pair_s=0.0,
        decode_step_s=5.74e-3,
        decode_sequence_s=0.0,
        decode_kv_token_s=54.01e-3 / capacity_tokens,
        decode_kv_square_s=-25.74e-3 / capacity_tokens**2,
        decode_kv_tokens_max=capacity_tokens,
        host_load_bytes_per_s=20 * _GB,
        network_bytes_per_s=200 * _GBPS,
        handover_over_network=False,
        first_token_at_decode=True,
        prefill_makes_all_tokens=True,
    )


BUILT_IN = ("paper", "dynamo-mocker")


def load_profile(name: str) -> Profile:
    """A built-in profile, or one from a JSON file with the fields of `Profile`.

    Raises ConfigurationError that names the file and the field.
    """
    if name == "paper":
        return paper_profile()
    if name == "dynamo-mocker":
        return dynamo_mocker_profile()
    path = Path(name)
    if path.suffix != ".json":
        raise ConfigurationError(
            f"profile {name!r}: accepted are {', '.join(BUILT_IN)} and a .json file"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"profile {path}: cannot read it: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"profile {path}: expected one JSON object")
    return parse_profile({"name": path.stem, **content}, str(path))


def parse_profile(content: Mapping[str, Any], source: str) -> Profile:
    """Raises ConfigurationError that names `source` and the field."""
    types = {field.name: str(field.type) for field in fields(Profile)}
    if unknown := sorted(set(content) - set(types)):
        raise ConfigurationError(f"{source}: unknown field {unknown[0]}; known: {', '.join(types)}")
    try:
        profile = Profile(**content)
    except TypeError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    for name, kind in types.items():
        _check(getattr(profile, name), kind, f"{source}: {name}")
    return profile


def with_values(profile: Profile, values: Mapping[str, Any]) -> Profile:
    """Raises ConfigurationError for values that cannot be used."""
    return parse_profile({**vars(replace(profile)), **values}, f"profile {profile.name}")


_POSITIVE = ("block_size_tokens", "device_blocks", "kv_token_bytes", "max_batch_tokens")
_MAY_BE_NEGATIVE = ("decode_kv_square_s",)


def _check(value: object, kind: str, where: str) -> None:
    field = where.rpartition(" ")[2]
    if kind == "str" or kind == "bool":
        good = isinstance(value, str if kind == "str" else bool)
        if not good:
            raise ConfigurationError(f"{where} must be a {kind}, got {value!r}")
        return
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else int | float):
        raise ConfigurationError(f"{where} must be a number ({kind}), got {value!r}")
    if value != value or (value < 0 and field not in _MAY_BE_NEGATIVE):
        raise ConfigurationError(f"{where} must be >= 0, got {value}")
    if value == 0 and (field in _POSITIVE or field.endswith("bytes_per_s")):
        raise ConfigurationError(f"{where} must be > 0, got {value}")
    if field.endswith("_s") and not field.endswith("bytes_per_s") and not isfinite(value):
        raise ConfigurationError(f"{where} must be finite, got {value}")
