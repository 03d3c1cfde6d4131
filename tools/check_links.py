"""Every relative link in the Markdown files leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def broken_links(page: Path) -> list[str]:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    return [t for t in targets if "://" not in t and not (page.parent / t).exists()]


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], check=True, capture_output=True, text=True
    ).stdout.split()
    broken = [(page, link) for page in listed for link in broken_links(Path(page))]
    for page, link in broken:
        sys.stderr.write(f"error: {page} links to {link}, which does not exist\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
