#!/bin/sh
# Build the real components that the tests run against, from pinned Go modules and npm packages. Cached: what is there and
# was built from the same pins is not built again. What is found under KUBEBUILDER_ASSETS and was not built here (envtest's
# etcd, kube-apiserver, kubectl) is used as it is.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
out="${KUBEBUILDER_ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark/tools/bin}"
mkdir -p "$out/.built"

command -v go >/dev/null || { echo "building the real components needs Go 1.26 or newer; or set KUBEBUILDER_ASSETS" >&2; exit 1; }

digest() { cat "$@" | cksum | tr ' ' -; }

fresh() { # name, digest of what it is built from: true if it need not be built
  [ -e "$out/$1" ] || return 1
  [ ! -e "$out/.built/$1" ] || [ "$(cat "$out/.built/$1")" = "$2" ] || return 1
  echo "have $out/$1"
}

build() { # module folder, package, version for the linker ("" for none)
  name="$(basename "$2")"
  [ "$name" = v3 ] && name=etcd
  pins="$(digest "$here/$1/go.mod" "$here/$1/go.sum")"
  fresh "$name" "$pins" && return
  echo "building $name"
  flags="-s -w"
  [ -n "$3" ] && flags="$flags -X k8s.io/component-base/version.gitVersion=$3"
  (cd "$here/$1" && CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$out/$name" "$2")
  echo "$pins" >"$out/.built/$name"
}

azurite() { # npm's packages are kept in a folder of their own beside the programs
  pins="$(digest "$here/azurite/package-lock.json")"
  fresh azurite-blob "$pins" && return
  command -v npm >/dev/null || { echo "the Azure Blob server needs npm and Node.js" >&2; return 1; }
  echo "installing azurite"
  mkdir -p "$out/azurite"
  cp "$here/azurite/package.json" "$here/azurite/package-lock.json" "$here/azurite/.npmrc" "$out/azurite/"
  (cd "$out/azurite" && npm ci --silent)
  ln -sfn azurite/node_modules/.bin/azurite-blob "$out/azurite-blob"
  echo "$pins" >"$out/.built/azurite-blob"
}

if [ "${1:-}" = lock-server ]; then # only on request: it takes long, and only object lock is tried on it
  build minio github.com/minio/minio ""
  exit
fi

azurite & # waits for the network while the compiler works
npm_job=$!

build etcd go.etcd.io/etcd/server/v3 ""
build kubernetes k8s.io/kubernetes/cmd/kube-apiserver v1.36.3
build kubernetes k8s.io/kubernetes/cmd/kube-controller-manager v1.36.3
build kubernetes k8s.io/kubernetes/cmd/kube-scheduler v1.36.3
build kubernetes k8s.io/kubernetes/cmd/kubectl v1.36.3
build snapshots github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller ""
build helm helm.sh/helm/v3/cmd/helm ""
build kubeconform github.com/yannh/kubeconform/cmd/kubeconform ""
build s3 github.com/versity/versitygw/cmd/versitygw ""
build gcs github.com/fsouza/fake-gcs-server ""

# Our own clients in Go. Their sources change, so the compiler's own cache decides.
echo "building the Go clients"
(cd "$here/../../clients" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out/contract-client" ./contract \
  && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out/snapshot-metadata-lister" ./cbt)

# The snapshot kinds' definitions come in a module beside the controller's.
crds="$(cd "$here/snapshots" && go list -m -f '{{.Dir}}' github.com/kubernetes-csi/external-snapshotter/client/v8)"
[ -n "$crds" ] || { (cd "$here/snapshots" && go mod download github.com/kubernetes-csi/external-snapshotter/client/v8)
  crds="$(cd "$here/snapshots" && go list -m -f '{{.Dir}}' github.com/kubernetes-csi/external-snapshotter/client/v8)"; }
mkdir -p "$out/snapshot-crds"
for file in "$crds"/config/crd/*.storage.k8s.io_*.yaml; do
  cp -f "$file" "$out/snapshot-crds/" && chmod 644 "$out/snapshot-crds/$(basename "$file")"
done

# So do the Prometheus operator's.
crds="$(cd "$here/monitoring" && go mod download github.com/prometheus-operator/prometheus-operator && go list -m -f '{{.Dir}}' github.com/prometheus-operator/prometheus-operator)"
mkdir -p "$out/monitoring-crds"
for kind in servicemonitors prometheusrules; do
  cp -f "$crds/example/prometheus-operator-crd/monitoring.coreos.com_$kind.yaml" "$out/monitoring-crds/$kind.yaml"
  chmod 644 "$out/monitoring-crds/$kind.yaml"
done

# An old client speaks otherwise (it validates by itself, by OpenAPI v2): Debian still ships one.
if [ ! -x "$out/kubectl.1.20" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
  echo "unpacking kubectl.1.20"
  scratch="$(mktemp -d)"
  (cd "$scratch" && apt-get download -qq kubernetes-client && dpkg -x kubernetes-client*.deb . && cp usr/bin/kubectl "$out/kubectl.1.20")
  rm -rf "$scratch"
fi

wait "$npm_job"
