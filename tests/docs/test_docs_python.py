"""The Python of the docs runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["store.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    code = "".join(FENCE.findall((DOCS / page).read_text("utf-8")))
    code = code.replace("/var/tmp/kvstore-example", str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "6 leading blocks are here" in ran.stdout
