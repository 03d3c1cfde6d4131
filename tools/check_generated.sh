#!/usr/bin/env bash
# Regenerate into a temporary folder and compare with what is committed.
set -euo pipefail

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
mapfile -t protos < <(find proto -name '*.proto')
"$VENV/bin/python" -m grpc_tools.protoc -I proto \
    --python_out="$fresh" --pyi_out="$fresh" --grpc_python_out="$fresh" "${protos[@]}"

status=0
while read -r file; do
    if ! cmp -s "$fresh/$file" "$file"; then
        echo "error: $file is not what proto/ generates; run: make proto" >&2
        status=1
    fi
done < <(cd "$fresh" && find . -name '*_pb2*' -printf '%P\n')

"$VENV/bin/python" -m cluster.cli.options_table docs/configuration.md --check || status=1
exit $status
