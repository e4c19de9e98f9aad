#!/bin/sh
# Generate api/ (messages and stubs in Go) from our own proto/snapshotmetadata, or (--check) tell whether it is stale.
# Usage: sh tests/clients/cbt/generate.sh BIN [--check]      BIN is the bin folder of the virtual environment (protoc)
# Generating needs Go, and does nothing where nothing is stale; checking needs neither Go nor a virtual environment.
set -eu

usage() { echo "usage: sh tests/clients/cbt/generate.sh BIN [--check]" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] || usage
[ $# -eq 1 ] || [ "$2" = "--check" ] || usage

here=$(cd "$(dirname "$0")" && pwd)
protos="$here/../../../proto"
proto=snapshotmetadata/snapshotmetadata.proto

# What the generated files hang on, and the files themselves: an edit by hand is found too.
sums() {
  (cd "$protos" && cksum "$proto")
  (cd "$here" && cksum generate.sh api/*.pb.go)
  sed -n -e 's/^[[:space:]]*\(google.golang.org\/protobuf v[^ ]*\).*/\1/p' \
    -e 's/^[[:space:]]*\(google.golang.org\/grpc\/cmd\/protoc-gen-go-grpc v[^ ]*\).*/\1/p' "$here/../go.mod"
}

if [ -e "$here/api/generated.sum" ] && sums | cmp -s - "$here/api/generated.sum"; then
  exit 0
fi
if [ $# -eq 2 ]; then
  sums | diff -u "$here/api/generated.sum" - >&2 || true
  echo "tests/clients/cbt/api is stale: run 'make gen' and commit the result" >&2
  exit 1
fi

bin=$(cd "$1" 2>/dev/null && pwd) || { echo "$0: no such folder: $1 (run 'make install' first)" >&2; exit 1; }
command -v go >/dev/null || { echo "tests/clients/cbt/api is stale, and generating it needs Go" >&2; exit 1; }
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT INT TERM
(cd "$here/.." && go build -o "$plugins/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc)

module=tidemark.dev/tests/clients/cbt/api
rm -f "$here"/api/*.pb.go
"$bin/python-grpc-tools-protoc" -I "$protos/snapshotmetadata" \
  "--plugin=protoc-gen-go=$plugins/protoc-gen-go" "--plugin=protoc-gen-go-grpc=$plugins/protoc-gen-go-grpc" \
  "--go_out=$here/api" --go_opt=paths=source_relative "--go_opt=Msnapshotmetadata.proto=$module" \
  "--go-grpc_out=$here/api" --go-grpc_opt=paths=source_relative "--go-grpc_opt=Msnapshotmetadata.proto=$module" \
  snapshotmetadata.proto
sums >"$here/api/generated.sum"
