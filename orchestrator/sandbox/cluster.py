"""The whole cluster in one process: API server, storage, snapshot metadata, nodes, under one TaskGroup.

Its parts meet only over HTTPS, with a kubeconfig of their own each; this module only starts them. A directory is one
cluster:
started again on it, it finds its objects, volumes and snapshots. Two on one directory are refused.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from orchestrator.errors import Terminal
from orchestrator.sandbox.api import Api
from orchestrator.sandbox.apiserver.server import ApiServer
from orchestrator.sandbox.faults import Faults, switch, switched_on
from orchestrator.sandbox.node.server import Nodes
from orchestrator.sandbox.reach import kill_pod, volume_path
from orchestrator.sandbox.snapshotmetadata.server import MetadataServer
from orchestrator.sandbox.storage.server import Storage

_READY_S = 60.0
_SWITCHED_S = 10.0


class DirectoryInUse(Terminal):
    """Another sandbox runs on the directory."""

    reason: ClassVar[str] = "DirectoryInUse"
    remedy: ClassVar[str] = "Stop it first, or give another --dir."


class Sandbox:
    """A cluster: `async with Sandbox(directory) as sandbox: sandbox.kubeconfig`."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        port: int = 0,
        crd_manifests: Sequence[Mapping[str, object]] = (),
        block_bytes: int = 65536,
        fixed: bool = False,
        job_retry_s: float = 1.0,
    ) -> None:
        self.directory = directory.resolve()
        self.kubeconfig = self.directory / "kubeconfig"
        self.ready = asyncio.Event()
        self._nodes = nodes
        self._port = port
        self._crd_manifests = crd_manifests
        self._block_bytes = block_bytes
        self._fixed = fixed
        self._job_retry_s = job_retry_s
        self._running: asyncio.Task[None] | None = None
        self._switches: list[Faults] = []

    async def run(self) -> None:
        """Run the cluster until cancelled; `ready` is set when pods and volumes can be made. Raises DirectoryInUse."""
        await asyncio.to_thread(self.directory.mkdir, parents=True, exist_ok=True)
        lock = self._lock()
        try:
            server = ApiServer(self.directory / "apiserver", port=self._port, crd_manifests=tuple(self._crd_manifests))
            async with asyncio.TaskGroup() as tasks:
                up = asyncio.Event()
                serving = tasks.create_task(server.run(up), name="apiserver")
                await up.wait()
                try:
                    await self._run_parts(server)
                finally:
                    serving.cancel()
        finally:
            os.close(lock)

    async def _run_parts(self, server: ApiServer) -> None:
        """Run storage, metadata and nodes; they end before the API server does, so that they can say goodbye."""
        self._write_private(self.kubeconfig, server.kubeconfig())
        data = self.directory / "data"
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            for user, make in self._parts(data):
                path = self.directory / "parts" / f"{user}.kubeconfig"
                self._write_private(path, server.kubeconfig(f"sandbox-{user}", ["system:masters"]))
                api = await stack.enter_async_context(Api.from_file(path, agent=f"sandbox-{user}"))
                part = make(api)
                self._switches.append(part.faults)
                tasks.create_task(part.run(), name=part.name)
                await part.ready.wait()
            self.ready.set()

    def _parts(self, data: Path) -> list[tuple[str, Callable[[Api], Storage | MetadataServer | Nodes]]]:
        return [
            ("storage", lambda api: Storage(api, data)),
            (
                "snapshot-metadata",
                lambda api: MetadataServer(api, data, block_bytes=self._block_bytes, fixed=self._fixed),
            ),
            ("node", lambda api: Nodes(api, data, count=self._nodes, job_retry_s=self._job_retry_s)),
        ]

    def _lock(self) -> int:
        handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            os.close(handle)
            raise DirectoryInUse(f"Another sandbox runs on {self.directory}") from err
        return handle

    @staticmethod
    def _write_private(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        part.replace(path)

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="sandbox")
        waiting = asyncio.create_task(self.ready.wait())
        try:
            await asyncio.wait({self._running, waiting}, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self.ready.is_set():
            await self._end()
            raise TimeoutError(f"the sandbox was not ready in {_READY_S:.0f} s")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait({self._running})
        if not self._running.cancelled() and (failed := self._running.exception()) is not None:
            raise failed

    # What tests and the demo do with it; each opens a client of its own.

    async def volume_path(self, claim: str, namespace: str) -> Path:
        """Return the file behind a claim. Raises NoSuchVolume."""
        async with Api.from_file(self.kubeconfig) as api:
            return await volume_path(api, claim, namespace)

    async def fault(self, name: str, value: str | None = "on") -> None:
        """Switch a fault on (to a value) or off (None); return when every part knows. Raises UnknownFault."""
        async with Api.from_file(self.kubeconfig) as api:
            await switch(api, name, value)
        async with asyncio.timeout(_SWITCHED_S):
            while any(switches.written(name) != (value or "off") for switches in self._switches):
                await asyncio.sleep(0.005)

    async def kill(self, pod: str, namespace: str) -> list[str]:
        """Kill a pod's processes at once (SIGKILL); return the names of the containers that were hit."""
        async with Api.from_file(self.kubeconfig) as api:
            return await kill_pod(api, self.directory, pod, namespace)

    async def faults(self) -> dict[str, str]:
        """Return the faults that are on."""
        async with Api.from_file(self.kubeconfig) as api:
            return await switched_on(api)
