"""The two servers that the contract is run on: the sandbox's, and a real kube-apiserver with its controllers.

Both are real processes, spoken to over HTTPS. Binaries of the real one come from the folder in KUBEBUILDER_ASSETS.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from tests.real.servers import compact
from tests.waiting import LONG, SHORT

Obj = dict[str, Any]
ADMIN_TOKEN = "contract-admin-token"
ASSETS = Path(os.environ.get("KUBEBUILDER_ASSETS") or Path.home() / ".cache" / "tidemark" / "tools" / "bin")
"""The folder that `make real-tools` fills."""


@dataclass
class Answer:
    """One response, decoded."""

    status: int
    headers: dict[str, str]
    body: Any
    warnings: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else str(self.body)

    def ok(self) -> Any:
        assert 200 <= self.status < 300, (self.status, self.body)
        return self.body


class Cluster:
    """A client of one API server; synchronous, so that tests read as a list of steps."""

    def __init__(self, kubeconfig: Path, kind: str) -> None:
        self.kubeconfig, self.kind = kubeconfig, kind
        self.compact: Callable[[], object] = lambda: None
        """Make the server forget the history of its storage; nothing where it does so by itself."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.url = cluster["server"]
        self.token = config["users"][0]["user"].get("token", "")
        self.context = ssl.create_default_context(
            cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
        )
        self._kept: http.client.HTTPSConnection | None = None

    def _connection(self, timeout: float = SHORT) -> http.client.HTTPSConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        return http.client.HTTPSConnection(parts.hostname, parts.port, context=self.context, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        token: str | None = None,
        media: str = "application/json",
        user: str = "",
        groups: tuple[str, ...] = (),
        **query: Any,
    ) -> Answer:
        """Send one request; query parameters by keyword."""
        sent = {"Accept": "application/json", "User-Agent": "contract/1.0", **(headers or {})}
        found = self.token if token is None else token
        if found:
            sent["Authorization"] = f"Bearer {found}"
        if user:
            sent["Impersonate-User"] = user
        if query:
            path += "?" + urlencode(query)
        payload = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if payload is not None:
            sent["Content-Type"] = media
        response, raw = self._send(method, path, sent, groups, payload)
        decoded = json.loads(raw) if raw[:1] in {b"{", b"["} else raw.decode()
        warnings = response.headers.get_all("Warning") or []
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, decoded, warnings)

    def _send(
        self, method: str, path: str, headers: dict[str, str], groups: tuple[str, ...], payload: bytes | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send over the kept connection; once more over a new one if the server has closed it meanwhile."""
        for attempt in (1, 2):
            connection = self._kept = self._kept or self._connection()
            try:
                connection.putrequest(method, path, skip_accept_encoding=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                for group in groups:
                    connection.putheader("Impersonate-Group", group)
                connection.putheader("Content-Length", str(len(payload or b"")))
                connection.endheaders(payload)
                response = connection.getresponse()
                return response, response.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                self._kept = None
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def get(self, path: str, **more: Any) -> Answer:
        return self.request("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        return self.request("POST", path, body, **more)

    def put(self, path: str, body: Any, **more: Any) -> Answer:
        return self.request("PUT", path, body, **more)

    def patch(self, path: str, body: Any, kind: str = "merge", **more: Any) -> Answer:
        media = {
            "merge": "application/merge-patch+json", "json": "application/json-patch+json",
            "strategic": "application/strategic-merge-patch+json", "apply": "application/apply-patch+yaml",
        }[kind]  # fmt: skip
        return self.request("PATCH", path, body, media=media, **more)

    def apply(self, path: str, body: Any, manager: str, *, force: bool = False, **more: Any) -> Answer:
        return self.patch(path, body, "apply", fieldManager=manager, force=str(force).lower(), **more)

    def delete(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.request("DELETE", path, body, **more)

    @contextlib.contextmanager
    def watch(
        self, path: str, *, headers: dict[str, str] | None = None, timeout: float = SHORT, **query: Any
    ) -> Iterator[Iterator[Obj]]:
        """Open a watch; iterate its events (each read waits at most `timeout`)."""
        connection = self._connection(timeout)
        sent = {"Accept": "application/json", "Authorization": f"Bearer {self.token}", **(headers or {})}
        connection.request("GET", path + "?" + urlencode({"watch": "true", **query}), headers=sent)
        response = connection.getresponse()
        if response.status != 200:
            body = response.read()
            connection.close()
            raise AssertionError((response.status, body))
        try:
            yield (json.loads(line) for line in iter(response.readline, b""))
        finally:
            connection.close()

    def eventually(self, check: Any, timeout: float = LONG) -> Any:
        """Ask again until the answer is true; what another process does has no signal to wait for."""
        end = time.monotonic() + timeout
        while True:
            found = check()
            if found:
                return found
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.05)

    def namespace(self) -> str:
        """Make a namespace with a fresh name, with its default account."""
        name = f"t-{uuid.uuid4().hex[:8]}"
        self.post("/api/v1/namespaces", {"metadata": {"name": name}}).ok()
        self.eventually(lambda: self.get(f"/api/v1/namespaces/{name}/serviceaccounts/default").status == 200)
        return name

    def kubectl(
        self, *arguments: str, stdin: str = "", ok: bool = True, timeout: float = LONG
    ) -> subprocess.CompletedProcess[str]:
        binary = find_kubectl()
        assert binary is not None
        env = {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [binary, *arguments], input=stdin, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not ok or done.returncode == 0, done.stderr
        return done


def find_kubectl() -> str | None:
    """Return the kubectl to use: the one beside the real server's binaries, else the one on PATH."""
    if (ASSETS / "kubectl").exists():
        return str(ASSETS / "kubectl")
    return shutil.which("kubectl")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(arguments, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(url: str, token: str, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    context = ssl._create_unverified_context()
    end = time.monotonic() + timeout
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        try:
            connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=10)
            connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {token}"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)


@contextlib.contextmanager
def sandbox(directory: Path) -> Iterator[Cluster]:
    """Run the sandbox's API server in a process of its own."""
    log = directory / "apiserver.log"
    arguments = [sys.executable, "-m", "orchestrator.sandbox.apiserver", "--dir", str(directory)]
    with _process(arguments, log) as process:
        end = time.monotonic() + LONG
        while b"serving at" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        found = Cluster(directory / "kubeconfig", "sandbox")
        yield found
        found.close()


@contextlib.contextmanager
def real(directory: Path, assets: Path) -> Iterator[Cluster]:
    """Run etcd, kube-apiserver and, if it is there, kube-controller-manager."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    etcd_port, peer_port, port = _free_port(), _free_port(), _free_port()
    key = rsa.generate_private_key(65537, 2048)
    (directory / "sa.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (directory / "sa.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (directory / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    etcd = [
        str(assets / "etcd"), "--data-dir", str(directory / "etcd"), "--unsafe-no-fsync",
        "--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url,
        "--listen-peer-urls", f"http://127.0.0.1:{peer_port}",
    ]  # fmt: skip
    api = [
        str(assets / "kube-apiserver"),
        "--etcd-servers",
        etcd_url,
        "--bind-address=127.0.0.1",
        "--secure-port",
        str(port),
        "--cert-dir",
        str(directory / "certs"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--service-account-key-file",
        str(directory / "sa.pub"),
        "--service-account-signing-key-file",
        str(directory / "sa.key"),
        "--authorization-mode=RBAC",
        "--token-auth-file",
        str(directory / "tokens.csv"),
        "--service-cluster-ip-range=10.96.0.0/16",
        "--watch-cache=true",
    ]
    url = f"https://127.0.0.1:{port}"
    with _process(etcd, directory / "etcd.log"), _process(api, directory / "api.log") as process:
        _ready(url, ADMIN_TOKEN, process, directory / "api.log", LONG)
        ca = (directory / "certs" / "apiserver.crt").read_bytes()
        config = directory / "kubeconfig"
        cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca).decode()}
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "admin"}}],
                }
            )
        )
        manager = [
            str(assets / "kube-controller-manager"),
            "--kubeconfig",
            str(config),
            "--leader-elect=false",
            "--service-account-private-key-file",
            str(directory / "sa.key"),
            "--root-ca-file",
            str(directory / "certs/apiserver.crt"),
            "--controllers=garbagecollector,namespace,serviceaccount,root-ca-cert-publisher,clusterrole-aggregation",
            "--secure-port=0",
        ]
        with _process(manager, directory / "manager.log"):
            found = Cluster(config, "real")
            found.compact = lambda: compact(etcd_port)
            yield found
            found.close()
