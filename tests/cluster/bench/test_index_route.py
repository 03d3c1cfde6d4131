"""The benchmark of asking for a placement, made small."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.bench import index_route
from cluster.bench.case import BenchOptions, Case


def test_latency_is_measured_over_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKERS": 4, "ROUTES": 40, "WARM_UP": 4, "PER_S": 1000.0}.items():
        monkeypatch.setattr(index_route, name, value)
    wanted = BenchOptions(tmp_path, cases=(index_route.GRPC,))
    cases = list(index_route.index_route(wanted))
    assert [case.name for case in cases] == [index_route.GRPC, index_route.GATEWAYS]
    for case in cases:
        assert isinstance(case, Case)
        assert case.unit == "ms"
        assert 0 < case.value < 10_000
    assert list(index_route.index_route(BenchOptions(tmp_path, cases=("other",)))) == []
