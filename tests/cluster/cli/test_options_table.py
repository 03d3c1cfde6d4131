from __future__ import annotations

from pathlib import Path

from cluster.cli.options_table import main, options, render
from cluster.config import Settings


def test_every_option_has_one_row_with_its_meaning() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    described = list(options(Settings()))
    assert len(rows) == len(described) > 50
    assert [o.path for o in described if not o.field.description] == []


def test_rows_name_the_environment_variable() -> None:
    row = next(line for line in render().splitlines() if "`gateway.port`" in line)
    assert row.endswith("| `KVSTORE_GATEWAY__PORT` |")


def test_check_tells_whether_the_file_is_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "configuration.md"
    assert main(file, check=True) == 1
    assert main(file, check=False) == 0
    assert main(file, check=True) == 0
    file.write_text(file.read_text() + "x")
    assert main(file, check=True) == 1


def test_page_of_the_documentation_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "configuration.md"
    assert main(page, check=True) == 0
