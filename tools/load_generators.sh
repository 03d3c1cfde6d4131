#!/usr/bin/env bash
# Install each load generator into an environment of its own below $1.
set -euo pipefail

for name in aiperf guidellm; do
    if [ ! -x "$1/$name/bin/$name" ]; then
        echo "==> Installing $name into $1/$name"
        "$PYTHON" -m venv "$1/$name"
        "$1/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$name" 2> >(grep -v 'is ignored: it is neither' >&2)
    fi
done
