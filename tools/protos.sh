#!/bin/sh
# Generate the Python code of proto/; with --check, fail when the committed code differs from what the .proto files give.
set -eu
cd "$(dirname "$0")/.."
out=proto
if [ "${1:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -m grpc_tools.protoc -I proto \
    --python_out="$out" --mypy_out=quiet:"$out" --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" \
    proto/vedette/wire/v1/*.proto proto/vedette/wire/oip/*.proto
if [ "$out" != proto ]; then
    for made in "$out"/vedette/wire/*/*; do
        cmp -s "$made" "proto/${made#"$out"/}" || {
            echo "$(basename "$made") is not what its .proto gives: run make protos and commit the result" >&2
            exit 1
        }
    done
fi
