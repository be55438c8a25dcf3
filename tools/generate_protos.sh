#!/usr/bin/env bash
# Regenerate the stubs beside each .proto. With --check: fail if that would change a committed file.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$PWD/.venv/bin"
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -I . \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" protos/wallet/v1/*.proto
if [ "${1:-}" = "--check" ]; then
  for file in "$out"/protos/wallet/v1/*; do
    diff -u "protos/wallet/v1/$(basename "$file")" "$file" || { echo "stale: run 'make protos'" >&2; exit 1; }
  done
else
  cp "$out"/protos/wallet/v1/* protos/wallet/v1/
fi
