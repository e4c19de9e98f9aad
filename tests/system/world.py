"""A whole installation for tests: sandbox and controller as processes, and what a person could do to them.

Nothing of the controller is imported or patched: it is started, watched through the API, and killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from orchestrator.api.foreign.core import Job, PersistentVolume, PersistentVolumeClaim, Pod, Secret
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotContent
from orchestrator.api.meta import K8sObject, ObjectMeta
from orchestrator.api.tidemark import Backup, BackupPolicy, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase, BackupSpec
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES
from orchestrator.api.tidemark.restore import RestorePhase
from orchestrator.config import Settings
from orchestrator.demo import install
from orchestrator.demo.programs import Program, free_port
from orchestrator.demo.volumes import locked, sha256_of
from orchestrator.kube.client import Client
from orchestrator.kube.errors import Unavailable
from tests.waiting import LONG

T = TypeVar("T", bound=K8sObject)
SETTINGS = Settings()
OVER = (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED)
RESTORED = (RestorePhase.COMPLETED, RestorePhase.FAILED, RestorePhase.CANCELLED)


class World:
    """One installation."""

    def __init__(self, folder: Path, client: Client, sandbox: Program, key: str) -> None:
        self.folder = folder
        self.client = client
        self.sandbox = sandbox
        self.repository_url = f"file://{folder / 'repository'}"
        self.key_file = folder / "master.key"
        self.key_file.write_text(key)
        self.metrics = ""
        self._controller: Program | None = None
        self._arguments: tuple[str, ...] = ()
        self._minded = False

    # The controller

    async def start_controller(self, *arguments: str, wait: bool = True) -> None:
        """Start it, and wait until it leads."""
        port = free_port()
        self.metrics = f"http://127.0.0.1:{port}"
        command = ["controller", "--kubeconfig", str(self.folder / "kubeconfig")]
        command += ["--metrics-address", f"127.0.0.1:{port}", "--lease-duration", "4", *arguments]
        self._arguments = arguments
        self._minded = True
        self._controller = Program("controller", command, self.folder / "controller.log")

        async def serving() -> bool:
            return not wait or await self.http_ok("/readyz")

        await self._controller.start(serving, LONG)

    async def http_ok(self, path: str) -> bool:
        """Return whether the controller's web server answers 200."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(self.metrics + path) as answer:
                return answer.status == 200
        return False

    async def scrape(self) -> str:
        """Return the metrics."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.metrics}/metrics") as answer:
            return await answer.text()

    def kill_controller(self) -> None:
        """kill -9."""
        assert self._controller is not None
        self._minded = False
        self._controller.kill()

    async def mind_controller(self) -> None:
        """Start it again if it ended by itself, as a kubelet would: one that lost its lease on a busy machine does."""
        if self._minded and self._controller is not None and self._controller.ended:
            await self.start_controller(*self._arguments)

    async def stop_controller(self) -> int | None:
        """SIGTERM; return the exit code."""
        self._minded = False
        return await self._controller.stop() if self._controller is not None else None

    @staticmethod
    def movers(folder: Path) -> list[int]:
        """Return the process ids of movers whose pods live below `folder`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"mover" in words and any(w.startswith(str(folder).encode()) for w in words):
                    found.append(int(entry.name))
        return found

    def kill_movers(self) -> int:
        """kill -9 every mover; return how many there were."""
        pids = self.movers(self.folder)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    # What a person does

    async def claim(
        self, name: str, namespace: str, *, size: int = 8 << 20, mode: str = "Block", **changes: Any
    ) -> Path:
        """Make a claim and return the image behind it."""
        body = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": mode,
                "storageClassName": "sandbox",
                "resources": {"requests": {"storage": str(size)}},
                **changes,
            },
        }
        await self.client.create_raw(PersistentVolumeClaim.RESOURCE, body, PersistentVolumeClaim)
        await self.until(PersistentVolumeClaim, name, namespace, lambda c: c is not None and c.bound)
        return await self.image(name, namespace)

    async def image(self, claim: str, namespace: str) -> Path:
        """Return the image behind a claim."""
        found = await self.client.get(PersistentVolumeClaim, claim, namespace)
        volume = await self.client.get(PersistentVolume, found.spec.volume_name)
        assert volume.spec.csi is not None
        return next(self.folder.rglob(f"volumes/{volume.spec.csi.volume_handle}.img"))

    async def apply(self, kind: type[T], name: str, namespace: str, spec: dict[str, Any]) -> T:
        """Apply an object of ours."""
        where = {"name": name, "namespace": namespace} if namespace else {"name": name}
        body = {"apiVersion": kind.RESOURCE.api_version, "kind": kind.RESOURCE.kind, "metadata": where, "spec": spec}
        return await self.client.apply(kind, body)

    async def backup(self, name: str, namespace: str, **spec: Any) -> None:
        """Create a Backup."""
        import msgspec

        wanted = msgspec.convert(spec, BackupSpec)
        await self.client.create(Backup(metadata=ObjectMeta(name=name, namespace=namespace), spec=wanted))

    async def backup_ended(self, name: str, namespace: str, within_s: float = LONG) -> Backup:
        """Wait for a Backup's end."""
        found = await self.until(
            Backup, name, namespace, lambda b: b is not None and b.status.phase in OVER, within_s=within_s
        )
        assert found is not None
        return found

    async def restore_ended(self, name: str, namespace: str, within_s: float = LONG) -> Restore:
        """Wait for a Restore's end."""
        found = await self.until(
            Restore, name, namespace, lambda r: r is not None and r.status.phase in RESTORED, within_s=within_s
        )
        assert found is not None
        return found

    async def points(self, namespace: str) -> list[RecoveryPoint]:
        """Return the points of a namespace."""
        return (await self.client.list(RecoveryPoint, namespace))[0]

    async def until(
        self,
        kind: type[T],
        name: str,
        namespace: str,
        met: Callable[[T | None], bool],
        *,
        within_s: float = LONG,
    ) -> T | None:
        """Wait until an object is as wanted (None: not there)."""
        last: T | None = None
        try:
            async with asyncio.timeout(within_s):
                while True:
                    with contextlib.suppress(Unavailable):
                        last = await self.client.find(kind, name, namespace)
                        if met(last):
                            return last
                    await self.mind_controller()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            log = (self.folder / "controller.log").read_text()[-3000:]
            raise AssertionError(f"{kind.__name__} {namespace}/{name} is not as wanted: {last}\n{log}") from None

    async def settled(self, namespace: str, *, snapshots: int, within_s: float = LONG) -> None:
        """Wait until nothing transient is left, and `snapshots` physical snapshots stay for the namespace."""
        left: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    left = await self.leftovers(namespace, snapshots)
                    if not left:
                        return
                    await self.mind_controller()
                    await asyncio.sleep(0.3)
        raise AssertionError(f"left behind: {left}")

    async def leftovers(self, namespace: str, snapshots: int) -> list[str]:
        """Return what should not be there."""
        left: list[str] = []
        for kind in (Job, Pod, PersistentVolumeClaim, VolumeSnapshot):
            found, _ = await self.client.list(kind, SETTINGS.namespace)
            left += [f"{kind.__name__} {obj.name}" for obj in found]
        secrets, _ = await self.client.list(Secret, SETTINGS.namespace)
        left += [f"Secret {s.name}" for s in secrets if s.name.startswith("tm-")]
        volumes, _ = await self.client.list(PersistentVolume)
        left += [
            f"PersistentVolume {v.name}"
            for v in volumes
            if v.spec.claim_ref is not None and v.spec.claim_ref.namespace == SETTINGS.namespace
        ]
        contents, _ = await self.client.list(VolumeSnapshotContent)
        mine = [c for c in contents if c.spec.volume_snapshot_ref.namespace == namespace]
        foreign = [c for c in contents if c.spec.volume_snapshot_ref.namespace == SETTINGS.namespace]
        left += [f"re-homed content {c.name}" for c in foreign]
        if len(mine) != snapshots:
            told = [(c.name, c.spec.deletion_policy, c.deleting, c.metadata.annotations) for c in mine]
            left.append(f"{len(mine)} contents of {namespace} instead of {snapshots}: {told}")
        points = await self.points(namespace)
        left += [f"unfinished point {p.name}" for p in points if p.status.phase not in FINAL_PHASES]
        left += [f"finalizer on {p.name}" for p in points if p.metadata.finalizers]
        return left

    async def tidemark(self, *arguments: str) -> tuple[int, str]:
        """Run the command line; return its exit code and what it printed."""
        import sys

        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "orchestrator",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "KUBECONFIG": str(self.folder / "kubeconfig"), "NO_COLOR": "1", "COLUMNS": "200"},
        )
        async with asyncio.timeout(LONG):
            out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def restored_offline(self, point_id: str) -> str:
        """Restore a point without the cluster; return the SHA-256 of the file."""
        target = self.folder / f"offline-{point_id}.img"
        options = ["--repository", self.repository_url, "--key-file", str(self.key_file)]
        code, said = await self.tidemark("restore", *options, "--point", point_id, "--to", str(target))
        assert code == 0, said
        try:
            return await asyncio.to_thread(sha256_of, target)
        finally:
            target.unlink()


def write(image: Path, offset: int, data: bytes) -> None:
    """Write into an image as a locked transaction."""
    with locked(image) as descriptor:
        os.pwrite(descriptor, data, offset)


def digest(image: Path) -> str:
    """Return an image's SHA-256."""
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.asynccontextmanager
async def world(folder: Path, *, sandbox_arguments: Sequence[str] = ()) -> AsyncIterator[World]:
    """Start a sandbox, install Tidemark and a repository `vault`; the controller is the test's to start."""
    folder.mkdir(parents=True, exist_ok=True)
    sandbox = Program("sandbox", ["sandbox", "--dir", str(folder), *sandbox_arguments], folder / "sandbox.log")

    async def ready() -> bool:
        return b"is ready" in (folder / "sandbox.log").read_bytes()

    await sandbox.start(ready, LONG)
    try:
        async with await Client.connect(kubeconfig=str(folder / "kubeconfig"), field_manager="test") as client:
            await install.definitions(client)
            await install.controller_home(client, SETTINGS)
            key = await install.repository(client, SETTINGS, "vault", f"file://{folder / 'repository'}")
            found = World(folder, client, sandbox, key)
            try:
                yield found
            finally:
                await found.stop_controller()
    finally:
        await sandbox.stop()


__all__ = ["SETTINGS", "BackupPolicy", "World", "digest", "world", "write"]
