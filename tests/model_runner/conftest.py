from __future__ import annotations

from pathlib import Path

import pytest

from model_runner.tiny import SMALL, build_checkpoint

TEXTS = ["A cache cannot hurt serving.", "def prefill(blocks): return [b for b in blocks]"] * 20


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: do not write into it."""
    return build_checkpoint(tmp_path_factory.mktemp("small"), texts=TEXTS, shape=SMALL)
