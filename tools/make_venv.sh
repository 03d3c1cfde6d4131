#!/usr/bin/env bash
# Make the virtual environment and install the project with its tested set of packages.
set -euo pipefail

"$PYTHON" - <<'P' || { echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
P

if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "==> Installing python3-venv"
        apt-get update -qq && apt-get install -y -qq python3-venv
    else
        echo "error: this Python has no venv module; run: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar on \
    --constraint constraints.txt --editable '.[dev]' 2> >(grep -v 'is ignored: it is neither' >&2) |
    sed -uE -n '/^(Collecting|Installing|Successfully|ERROR)/{s/^(Collecting [^ ]+).*/    \1/; s/^Installing collected.*/    Installing/; s/^Successfully.*/    Done/; p}'
