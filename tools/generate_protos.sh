#!/usr/bin/env bash
# Regenerate the stubs beside each .proto. With --check: fail if that would change a committed file.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$PWD/.venv/bin"
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
# OpenTelemetry's messages, which Jaeger's interface names: their package carries the descriptors, not the .proto files.
"$bin/python" - "$out/opentelemetry" <<'PYTHON'
import sys
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
files = [FileDescriptorProto.FromString(m.DESCRIPTOR.serialized_pb) for m in (common_pb2, resource_pb2, trace_pb2)]
with open(sys.argv[1], "wb") as written:
    written.write(FileDescriptorSet(file=files).SerializeToString())
PYTHON
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -I . --descriptor_set_in="$out/opentelemetry" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  protos/wallet/v1/*.proto protos/jaeger/api_v2/*.proto protos/jaeger/storage/v2/*.proto
for package in protos/wallet/v1 protos/jaeger/api_v2 protos/jaeger/storage/v2; do
  if [ "${1:-}" = "--check" ]; then
    for file in "$out/$package"/*; do
      diff -u "$package/$(basename "$file")" "$file" || { echo "stale: run 'make protos'" >&2; exit 1; }
    done
  else
    cp "$out/$package"/* "$package/"
  fi
done
