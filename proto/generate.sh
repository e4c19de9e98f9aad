#!/bin/sh
# Generate orchestrator/wire/_generated from the .proto files here, or (--check) tell whether what is checked in is stale.
# Usage: sh proto/generate.sh BIN [--check]      BIN is the bin folder of the virtual environment, for example .venv/bin
set -eu

usage() { echo "usage: sh proto/generate.sh BIN [--check]" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] || usage
[ $# -eq 1 ] || [ "$2" = "--check" ] || usage
mode="${2:-write}"

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" 2>/dev/null && pwd) || { echo "proto/generate.sh: no such folder: $1 (run 'make install' first)" >&2; exit 1; }
target="$here/../orchestrator/wire/_generated"

for tool in python-grpc-tools-protoc protoc-gen-python_betterproto2; do
  [ -x "$bin/$tool" ] || { echo "proto/generate.sh: $bin/$tool is missing (run 'make install' first)" >&2; exit 1; }
done

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT INT TERM

# The list is sorted by byte value, so that the output does not hang on the locale or the file system.
cd "$here"
protos=$(find . -name '*.proto' | sed 's|^\./||' | LC_ALL=C sort)
# shellcheck disable=SC2086  # our own names, without blanks
if ! PATH="$bin:$PATH" "$bin/python-grpc-tools-protoc" -I . \
  "--plugin=protoc-gen-python_betterproto2=$bin/protoc-gen-python_betterproto2" \
  "--python_betterproto2_out=$fresh" \
  --python_betterproto2_opt=client_generation=async,server_generation=async \
  $protos 2>"$fresh/.log"; then
  cat "$fresh/.log" >&2
  exit 1
fi
rm -f "$fresh/.log"

if [ "$mode" = "--check" ]; then
  if ! diff -r -u -x __pycache__ "$target" "$fresh" >&2; then
    echo "orchestrator/wire/_generated is stale: run 'make gen' and commit the result" >&2
    exit 1
  fi
else
  rm -rf "$target"
  mkdir -p "$target"
  cp -R "$fresh/." "$target/"
fi
