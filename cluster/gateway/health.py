"""Whether requests can be served now, and if not, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cluster.gateway.openai_format import Json
from cluster.wire.v1 import conductor_pb2 as conductor

_ROLES = {
    conductor.ROLE_NODE: "nodes",
    conductor.ROLE_PREFILL: "prefill_workers",
    conductor.ROLE_DECODE: "decode_workers",
}


def health_json(members: Sequence[conductor.MemberStatus]) -> tuple[int, Json]:
    """Status and body. Decode workers can serve alone; nothing can without one."""
    roles = Counter(s.member.role for s in members if not s.draining)
    counts = {name: roles[role] for role, name in _ROLES.items()}
    reasons = [] if counts["decode_workers"] else ["no decode worker is registered"]
    return _answer(reasons, counts)


def unreachable_json(reason: str) -> tuple[int, Json]:
    return _answer([reason], {})


def _answer(reasons: list[str], counts: dict[str, int]) -> tuple[int, Json]:
    status = "unavailable" if reasons else "ok"
    return (503 if reasons else 200), {"status": status, "reasons": reasons, "members": counts}
