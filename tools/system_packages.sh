#!/usr/bin/env bash
# What tests start and pip cannot bring: redis-server.
set -euo pipefail

command -v redis-server >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> Installing redis-server"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq redis-server >/dev/null && exit 0
fi
echo "warning: redis-server is missing, its tests are skipped; run: sudo apt-get install redis-server" >&2
