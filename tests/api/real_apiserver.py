"""A real etcd and kube-apiserver on loopback, for as long as a test module needs them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.waiting import LONG

DEFAULT_ASSETS = Path.home() / ".cache/tidemark/tools/bin"
TOKEN = "admin-token"


def find_tool(name: str) -> Path | None:
    """Return a real tool from KUBEBUILDER_ASSETS, the tools' cache or PATH."""
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(DEFAULT_ASSETS)]
    found = shutil.which(name, path=os.pathsep.join(f for f in folders if f)) or shutil.which(name)
    return Path(found) if found else None


@dataclass(frozen=True)
class RealServer:
    """Talks JSON to the API server as its administrator."""

    url: str
    certificate: Path

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any]:
        """Return status and decoded answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path,
            data=data,
            method=method,
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type, "Accept": "application/json"},
        )
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return answer.status, _decode(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decode(error.read())


def _decode(raw: bytes) -> Any:
    """Return JSON as data; the health checks answer in plain text."""
    return json.loads(raw) if raw.startswith(b"{") else raw.decode()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _key_files(folder: Path) -> tuple[Path, Path]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "sa.key", folder / "sa.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        child = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(10)


def _wait_ready(server: RealServer, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()[-3000:]
        if server.certificate.exists():
            with contextlib.suppress(OSError):
                if server.call("GET", "/readyz")[0] == 200:
                    return
        time.sleep(0.2)  # a real process: there is nothing to await
    raise AssertionError("kube-apiserver did not become ready: " + log.read_text()[-3000:])


@contextlib.contextmanager
def real_apiserver(etcd: Path, apiserver: Path, folder: Path) -> Iterator[RealServer]:
    """Run etcd and kube-apiserver in `folder`; both end with the block."""
    client_port, peer_port, port = free_port(), free_port(), free_port()
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    private, public = _key_files(folder)
    tokens = folder / "tokens.csv"
    tokens.write_text(f"{TOKEN},admin,admin,system:masters\n")
    store = [str(etcd), f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync", f"--listen-client-urls={client}"]
    store += [
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
    ]
    store += [f"--initial-cluster=default={peer}"]
    serve = [str(apiserver), f"--etcd-servers={client}", "--bind-address=127.0.0.1", f"--secure-port={port}"]
    serve += [f"--cert-dir={folder / 'certs'}", "--service-account-issuer=https://kubernetes.default.svc"]
    serve += [f"--service-account-key-file={public}", f"--service-account-signing-key-file={private}"]
    serve += ["--authorization-mode=RBAC", f"--token-auth-file={tokens}", "--service-cluster-ip-range=10.0.0.0/24"]
    serve += ["--disable-admission-plugins=ServiceAccount"]
    log = folder / "apiserver.log"
    server = RealServer(f"https://127.0.0.1:{port}", folder / "certs" / "apiserver.crt")
    with _process(store, folder / "etcd.log"), _process(serve, log) as child:
        _wait_ready(server, child, log)
        yield server
