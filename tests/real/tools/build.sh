#!/bin/sh
# Build the real components that the tests run against, from pinned Go modules. Cached: what is there is not built again.
# What is found under KUBEBUILDER_ASSETS already (envtest's etcd, kube-apiserver, kubectl) is used as it is.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
out="${KUBEBUILDER_ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark/tools/bin}"
mkdir -p "$out"

command -v go >/dev/null || { echo "building the real components needs Go 1.26 or newer; or set KUBEBUILDER_ASSETS" >&2; exit 1; }

build() { # module folder, package, version for the linker ("" for none)
  name="$(basename "$2")"
  [ "$name" = v3 ] && name=etcd
  if [ -x "$out/$name" ]; then
    echo "have $out/$name"
    return
  fi
  echo "building $name"
  flags="-s -w"
  [ -n "$3" ] && flags="$flags -X k8s.io/component-base/version.gitVersion=$3"
  (cd "$here/$1" && CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$out/$name" "$2")
}

build etcd go.etcd.io/etcd/server/v3 ""
build kubernetes k8s.io/kubernetes/cmd/kube-apiserver v1.36.3
build kubernetes k8s.io/kubernetes/cmd/kubectl v1.36.3
build s3 github.com/versity/versitygw/cmd/versitygw ""
build helm helm.sh/helm/v3/cmd/helm ""

# An old client speaks otherwise (it validates by itself, by OpenAPI v2): Debian still ships one.
if [ ! -x "$out/kubectl.1.20" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
  echo "unpacking kubectl.1.20"
  scratch="$(mktemp -d)"
  (cd "$scratch" && apt-get download -qq kubernetes-client && dpkg -x kubernetes-client*.deb . && cp usr/bin/kubectl "$out/kubectl.1.20")
  rm -rf "$scratch"
fi
