"""A real cluster on loopback: etcd, kube-apiserver, controller-manager, scheduler and snapshot-controller.

Only what needs hardware is the sandbox's: the storage's CSI side, the SnapshotMetadata service and the nodes that run
Pods as processes. Each of those is a program of its own with a service account of its own. Nothing here knows Tidemark;
how it is installed is the business of the tests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import yaml

from orchestrator.demo.programs import free_port
from orchestrator.kube.client import Client
from tests.real.certificates import Authority, key_pem, new_key, public_pem
from tests.real.servers import Server, answers, compact, tool
from tests.waiting import LONG

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
PARTS_NAMESPACE = "sandbox-system"
ISSUER = "https://kubernetes.default.svc.cluster.local"
SERVICE_ADDRESS = "10.96.0.1"
_PARTS = ("storage", "snapshot-metadata", "node")
_MODULES = {"storage": "storage", "snapshot-metadata": "snapshotmetadata", "node": "node"}
_WITHOUT = {
    "storage": ["--without", "pv-controller,protection,snapshot-controller"],
    "snapshot-metadata": [],
    "node": ["--without", "scheduler,job-controller,attach-detach"],
}


class RealCluster:
    """What tests see of it: credentials, a client, tools, and ways to harm it."""

    def __init__(self, folder: Path, zones: Sequence[str]) -> None:
        self.folder = folder
        self.zones = tuple(zones)
        self.data = folder / "data"
        self.shared = folder / "shared"
        """A folder that Pods see too, at this path; they see no other one of this machine."""
        self.kubeconfig = folder / "kubeconfig"
        self.ca = folder / "pki" / "ca.crt"
        self.audit_log = folder / "audit.log"
        self.client: Client
        self._port, self._etcd_port, self._front_port = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self.front_url = f"https://127.0.0.1:{self._front_port}"
        """Where Pods and their node reach the API server: behind something that can drop connections."""
        self._authority = Authority("real-cluster-ca")
        self._servers: dict[str, Server] = {}
        self._written: dict[str, Path] = {}

    # Credentials

    def kubeconfig_as(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig with a client certificate of that user in those groups."""
        name = _file_name("-".join([user, *groups]))
        if name not in self._written:
            certificate, key = self._authority.person(user, groups)
            credential = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
            self._written[name] = self._kubeconfig(self.folder / "credentials" / name, credential)
        return self._written[name]

    def kubeconfig_of(self, namespace: str, account: str, *, front: bool = False) -> Path:
        """Return a kubeconfig with a fresh token of a ServiceAccount, good for a day; with `front` by way of that."""
        asked = ["create", "token", account, "--namespace", namespace, "--duration", "24h"]
        token = self.kubectl(*asked).stdout.strip()
        path = self.folder / "credentials" / _file_name(f"sa-{namespace}-{account}")
        return self._kubeconfig(path, {"token": token}, self.front_url if front else self.url)

    def _kubeconfig(self, path: Path, credential: dict[str, str], server: str = "") -> Path:
        cluster = {"server": server or self.url, "certificate-authority-data": _base64(self.ca.read_bytes())}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "real",
            "clusters": [{"name": "real", "cluster": cluster}],
            "users": [{"name": "user", "user": credential}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "user"}}],
        }
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content))
        return path

    # Tools

    def kubectl(
        self, *args: str, stdin: str = "", as_: Path | None = None, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or with the kubeconfig `as_`; with `ok` it must succeed."""
        return self._run([str(tool("kubectl")), *args], stdin, as_ or self.kubeconfig, ok)

    def helm(self, *args: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run helm as the administrator; with `ok` it must succeed."""
        return self._run([str(tool("helm")), *args], "", self.kubeconfig, ok)

    def _run(self, command: list[str], stdin: str, config: Path, ok: bool) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECONFIG": str(config)}
        done = subprocess.run(
            command, input=stdin, env=env, cwd=CHECKOUT, capture_output=True, text=True, timeout=LONG, check=False
        )
        assert not ok or done.returncode == 0, f"{command[1:]}: {done.stdout}{done.stderr}"
        return done

    def define(self, folder: Path) -> None:
        """Apply a folder of CustomResourceDefinitions and wait until the server serves and describes their kinds."""
        self.kubectl("apply", "--server-side", "-f", str(folder))
        self.kubectl("wait", "--for=condition=Established", "-f", str(folder), f"--timeout={LONG:.0f}s")
        definitions = json.loads(self.kubectl("get", "-o", "json", "-f", str(folder)).stdout)
        until = time.monotonic() + LONG
        for found in definitions.get("items", [definitions]):
            spec = found["spec"]
            for version in (each["name"] for each in spec["versions"] if each["served"]):
                # What describes a kind comes a moment after what serves it, on a busy machine several.
                while not self._describes(spec["group"], version, spec["names"]["kind"]):
                    assert time.monotonic() < until, f"no schema of {spec['names']['kind']} within {LONG:.0f} s"
                    time.sleep(0.2)

    def _describes(self, group: str, version: str, kind: str) -> bool:
        said = self.kubectl("get", "--raw", f"/openapi/v3/apis/{group}/{version}", ok=False).stdout
        schemas = json.loads(said)["components"]["schemas"].values() if said else []
        names = [at for schema in schemas for at in schema.get("x-kubernetes-group-version-kind", [])]
        return {"group": group, "version": version, "kind": kind} in names

    # Harm

    async def restart_apiserver(self, *, down_s: float = 0.0) -> None:
        """Kill the API server with SIGKILL and start it again on the same etcd and port."""
        server = self._servers["kube-apiserver"]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(down_s)
        server.start()
        await self._apiserver_ready()

    async def compact_etcd(self) -> int:
        """Drop etcd's whole history; return the revision."""
        return await asyncio.to_thread(compact, self._etcd_port)

    def drop_connections(self) -> None:
        """Cut every connection of Pods and their node to the API server: watches end, requests go unanswered."""
        os.kill(self._servers["front"].pid, signal.SIGUSR1)

    async def restart_part(self, name: str) -> None:
        """Kill one of the sandbox's programs (storage, snapshot-metadata, node) and start it again."""
        server = self._servers[name]
        await asyncio.to_thread(server.kill)
        await self._start_part(server)

    def logs(self, name: str, size: int = 3000) -> str:
        """Return the end of a program's log."""
        return self._servers[name].tail(size)

    # Life

    async def start(self) -> None:
        """Start everything, in the order in which one needs the other."""
        self._write_pki()
        self.shared.mkdir()
        self._start_server("etcd", self._etcd())
        self._start_server("kube-apiserver", self._apiserver())
        self._kubeconfig(self.kubeconfig, self._admin())
        await self._apiserver_ready()
        self.client = await Client.connect(kubeconfig=str(self.kubeconfig), field_manager="test")
        await self._start_part(self._front())
        self._start_server("kube-controller-manager", self._controller_manager())
        self._start_server("kube-scheduler", self._scheduler())
        await asyncio.to_thread(self._install)
        parts = [self._part(name) for name in _PARTS]
        self._start_server("snapshot-controller", self._snapshot_controller())
        for part in parts:
            await self._start_part(part)

    async def stop(self) -> None:
        """End everything: clients of a server before it."""
        if hasattr(self, "client"):
            await self.client.close()
        for server in reversed(self._servers.values()):
            await asyncio.to_thread(server.stop)

    def check(self) -> None:
        """Fail if a program has ended by itself."""
        for server in self._servers.values():
            server.check()

    def _start_server(self, name: str, command: Sequence[str]) -> Server:
        server = self._servers[name] = Server(name, command, self.folder)
        server.start()
        return server

    async def _start_part(self, server: Server) -> None:
        before = server.log.stat().st_size if server.log.exists() else 0
        server.start()
        await server.until(lambda: b"is ready" in server.log.read_bytes()[before:])

    def _admin(self) -> dict[str, str]:
        certificate, key = self._authority.person("admin", ["system:masters"])
        return {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}

    async def _apiserver_ready(self) -> None:
        context = ssl.create_default_context(cafile=str(self.ca))
        certificate, key = self._authority.person("readiness", ["system:masters"])
        pem = self.folder / "pki" / "readiness.pem"
        pem.write_bytes(certificate + key)
        context.load_cert_chain(pem)
        await self._servers["kube-apiserver"].until(lambda: answers(self.url, "/readyz", context))

    def _write_pki(self) -> None:
        pki = self.folder / "pki"
        pki.mkdir(parents=True, mode=0o700)
        signing = new_key()
        certificate, key = self._authority.server()
        kubelet_client, kubelet_key = self._authority.person("kube-apiserver-kubelet-client", ["system:masters"])
        for name, content in {
            "ca.crt": self._authority.pem,
            "apiserver.crt": certificate,
            "apiserver.key": key,
            "kubelet-client.crt": kubelet_client,
            "kubelet-client.key": kubelet_key,
            "sa.key": key_pem(signing),
            "sa.pub": public_pem(signing),
        }.items():
            (pki / name).touch(mode=0o600)
            (pki / name).write_bytes(content)

    def _etcd(self) -> list[str]:
        url, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{free_port()}"
        return [
            str(tool("etcd")), f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync",
            f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        ]  # fmt: skip

    def _apiserver(self) -> list[str]:
        pki = self.folder / "pki"
        return [
            str(tool("kube-apiserver")), f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1", f"--secure-port={self._port}", f"--client-ca-file={self.ca}",
            f"--tls-cert-file={pki / 'apiserver.crt'}", f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}", "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={ISSUER}", f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}", "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.96.0.0/16", f"--audit-policy-file={HERE / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}", "--audit-log-mode=blocking",
        ]  # fmt: skip

    def _controller_manager(self) -> list[str]:
        pki = self.folder / "pki"
        config = self.kubeconfig_as("system:kube-controller-manager")
        return [
            str(tool("kube-controller-manager")), f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0",
            f"--service-account-private-key-file={pki / 'sa.key'}", f"--root-ca-file={self.ca}",
            "--use-service-account-credentials=true", "--kube-api-qps=200", "--kube-api-burst=300",
        ]  # fmt: skip

    def _scheduler(self) -> list[str]:
        config = self.kubeconfig_as("system:kube-scheduler")
        return [
            str(tool("kube-scheduler")), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}", "--leader-elect=false", "--secure-port=0",
        ]  # fmt: skip

    def _snapshot_controller(self) -> list[str]:
        config = self.kubeconfig_of("kube-system", "snapshot-controller")
        return [str(tool("snapshot-controller")), f"--kubeconfig={config}", "--leader-election=false"]

    def _front(self) -> Server:
        command = [sys.executable, "-m", "tests.real.front", str(self._front_port), str(self._port)]
        server = self._servers["front"] = Server("front", command, self.folder, {"PYTHONPATH": str(CHECKOUT)})
        return server

    def _part(self, name: str) -> Server:
        config = self.kubeconfig_of(PARTS_NAMESPACE, name, front=name == "node")
        module = f"orchestrator.sandbox.{_MODULES[name]}"
        command = [sys.executable, "-m", module, "--kubeconfig", str(config), "--dir", str(self.data), *_WITHOUT[name]]
        if name == "node":
            command += ["--zones", ",".join(f"zone-{zone}" for zone in self.zones)]
            command += ["--kubelet-client-ca", str(self.ca), "--isolate", "--share", str(self.shared)]
        # Not the checkout's own KUBECONFIG: a part must get along with what it is given.
        env = {"PYTHONPATH": str(CHECKOUT), "KUBECONFIG": "/nonexistent"}
        server = self._servers[name] = Server(name, command, self.folder, env)
        return server

    # What a cluster's administrator installs

    def _install(self) -> None:
        self.define(tool("snapshot-controller").parent / "snapshot-crds")
        self.kubectl("apply", "-f", str(HERE / "snapshot-controller-rbac.yaml"))
        self.kubectl("create", "namespace", PARTS_NAMESPACE)
        for name in _PARTS:
            role = f"sandbox-{name}"
            self.kubectl("apply", "-f", str(CHECKOUT / "orchestrator" / "sandbox" / _MODULES[name] / "rbac.yaml"))
            self.kubectl("create", "serviceaccount", name, "--namespace", PARTS_NAMESPACE)
            account = f"{PARTS_NAMESPACE}:{name}"
            self.kubectl("create", "clusterrolebinding", role, f"--clusterrole={role}", f"--serviceaccount={account}")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text) + ".kubeconfig"


@contextlib.asynccontextmanager
async def real_cluster(folder: Path, *, zones: Sequence[str] = ("a",)) -> AsyncIterator[RealCluster]:
    """Run a real cluster in `folder`, with one node for each of the zones."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = RealCluster(folder, zones)
    try:
        await cluster.start()
        yield cluster
        cluster.check()
    finally:
        await cluster.stop()
