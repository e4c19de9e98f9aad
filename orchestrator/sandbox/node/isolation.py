"""What a container of a pod may see and do, worked out from its security context; `container` then becomes that.

Pure but for asking where this program is installed. Anything of a security context that is not enforced here is in
docs/sandbox.md, so that nobody takes a test for a proof of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec

import orchestrator
from orchestrator.errors import Terminal
from orchestrator.sandbox.node import container as launcher
from orchestrator.sandbox.node.mounts import TERMINATION_LOG, NotPlayed
from orchestrator.sandbox.objects import Manifest, spec

IMAGE_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/", "LANG": "C.UTF-8"}
"""As in the Dockerfile."""


class NotIsolable(Terminal):
    """This machine or user can't give containers a file system of their own."""

    reason: ClassVar[str] = "NotIsolable"
    remedy: ClassVar[str] = "Run the node as root on Linux, or leave --isolate out."


class Rights(msgspec.Struct, frozen=True):
    """Who a container runs as and what it may do."""

    user: int
    group: int
    groups: tuple[int, ...]
    capabilities: tuple[str, ...]
    no_new_privileges: bool
    read_only_root: bool
    must_not_be_root: bool


class Isolation(msgspec.Struct, frozen=True):
    """How containers are kept apart on this node."""

    root: Path
    """An empty folder of the machine; each container mounts its own file system over it, where nobody else sees it."""
    share: tuple[Path, ...] = ()
    """Folders of the machine that every container sees, as if they were on a network file system."""

    @classmethod
    def make(cls, directory: Path, share: Sequence[Path] = ()) -> Isolation:
        """Return it for a node whose files are in `directory`. Raises NotIsolable."""
        if sys.platform != "linux" or os.geteuid() != 0:
            raise NotIsolable("Containers with a file system of their own need root on Linux")
        root = directory / "root"
        root.mkdir(parents=True, exist_ok=True, mode=0o755)
        return cls(root, tuple(share))

    def command(
        self, pod: Manifest, container: Manifest, volumes: Mapping[str, Path], termination: Path, words: Sequence[str]
    ) -> list[str]:
        """Return the command that becomes the container and then runs `words`."""
        rights = rights_of(pod, container)
        given = {
            "root": str(self.root),
            "folder": container.get("workingDir") or "/",
            "image": image_folders(),
            "mounts": [*mounts_of(container, volumes, termination), *map(_shared, self.share)],
            "command": list(words),
            **msgspec.to_builtins(rights),
        }
        return [sys.executable, "-I", "-S", launcher.__file__, msgspec.json.encode(given).decode()]


def _shared(folder: Path) -> dict[str, Any]:
    return {"real": str(folder), "inside": str(folder), "read_only": False}


def api_server(url: str) -> dict[str, str]:
    """Return the variables by which a pod finds the API server: where this node reaches it, as no service IPs exist."""
    parts = urlsplit(url)
    port = str(parts.port or 443)
    names = ("KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS")
    return {"KUBERNETES_SERVICE_HOST": parts.hostname or "", **dict.fromkeys(names, port)}


def image_folders() -> list[str]:
    """Return the folders of this machine that hold the program, which here stand for the image."""
    package = Path(orchestrator.__file__).resolve().parents[1]
    folders = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    found = {str(folder) for folder in folders if not str(folder).startswith("/usr")}
    if (package / "pyproject.toml").exists():  # a checkout; else the package is inside of sys.prefix
        found |= {str(package / part) for part in ("orchestrator", "policies")}
    return sorted(found)


def mounts_of(container: Manifest, volumes: Mapping[str, Path], termination: Path) -> list[dict[str, Any]]:
    """Return what is mounted where: volumes, devices, the file of the termination message."""
    log = container.get("terminationMessagePath") or TERMINATION_LOG
    found: list[dict[str, Any]] = [{"real": str(termination), "inside": log, "read_only": False, "mode": 0o666}]
    for mount in container.get("volumeMounts") or []:
        real = volumes[mount["name"]]
        real = real / mount["subPath"] if mount.get("subPath") else real
        inside = str(mount["mountPath"]).rstrip("/")
        found.append({"real": str(real), "inside": inside, "read_only": bool(mount.get("readOnly"))})
    return found + [
        {"real": str(volumes[device["name"]]), "inside": device["devicePath"], "read_only": False}
        for device in container.get("volumeDevices") or []
    ]


def rights_of(pod: Manifest, container: Manifest) -> Rights:
    """Return what the security contexts of pod and container say, the container's first. Raises NotPlayed."""
    of_pod: Manifest = spec(pod).get("securityContext") or {}
    own: Manifest = container.get("securityContext") or {}
    both = {**of_pod, **own}
    user = int(both.get("runAsUser") or 0)
    groups = [*(of_pod.get("supplementalGroups") or []), *filter(None, [of_pod.get("fsGroup")])]
    return Rights(
        user=user,
        group=int(both.get("runAsGroup") or 0),
        groups=tuple(groups),
        capabilities=_capabilities(own),
        no_new_privileges=own.get("allowPrivilegeEscalation") is False,
        read_only_root=bool(own.get("readOnlyRootFilesystem")),
        must_not_be_root=bool(both.get("runAsNonRoot")) and user == 0,
    )


def _capabilities(own: Manifest) -> tuple[str, ...]:
    asked: Manifest = own.get("capabilities") or {}
    if own.get("privileged"):
        return tuple(launcher.CAPABILITIES)
    dropped = {name.removeprefix("CAP_") for name in asked.get("drop") or []}
    added = [name.removeprefix("CAP_") for name in asked.get("add") or []]
    unknown = [name for name in added if name not in launcher.CAPABILITIES and name != "ALL"]
    if unknown:
        raise NotPlayed(f"the capability {unknown[0]} is not one that the sandbox's node knows")
    kept = () if "ALL" in dropped else (name for name in launcher.DEFAULT_CAPABILITIES if name not in dropped)
    return tuple(launcher.CAPABILITIES) if "ALL" in added else tuple(dict.fromkeys([*kept, *added]))
