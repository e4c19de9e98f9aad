"""What is started for a container, with which environment; and what is not started at all.

Plain: a process of this user, told where its volumes really are. Isolated: a container of its own, where they are at
the paths that it was told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.sandbox.api import Api
from orchestrator.sandbox.node.isolation import IMAGE_ENVIRONMENT, Isolation, api_server, rights_of
from orchestrator.sandbox.node.mounts import Paths, expand
from orchestrator.sandbox.node.probes import not_played
from orchestrator.sandbox.objects import Manifest, name, spec

ENTRYPOINT = ("tidemark",)
"""What an image runs when the pod names no command: there are no images here."""
_BINARIES = str(Path(sys.executable).parent)
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Launch:
    """One start of one container."""

    pod: Manifest
    container: Manifest
    volumes: Mapping[str, Path]
    termination: Path
    home: Path
    given: Mapping[str, str]
    """The environment that the pod asks for, references resolved."""

    def _words(self) -> list[str]:
        return [*(self.container.get("command") or ENTRYPOINT), *(self.container.get("args") or [])]

    def plain(self) -> tuple[list[str], dict[str, str]]:
        """Return command and environment of a process of this user."""
        search = f"{_BINARIES}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        base = {"PATH": search, "HOME": str(self.home), "HOSTNAME": name(self.pod), "LANG": "C.UTF-8"}
        paths = Paths(self.container, self.volumes, self.termination)
        variables = {variable: paths.real(value) for variable, value in self.given.items()}
        # The program itself comes from the image, which here is this machine: only what it is told is rewritten, or a
        # checkout below a mountPath (/tmp, say) would lose its interpreter.
        program, *words = self._words()
        command = [expand(program, variables), *(paths.real(expand(word, variables)) for word in words)]
        return command, {**base, **variables}

    def isolated(self, isolation: Isolation, api: Api) -> tuple[list[str], dict[str, str]]:
        """Return command and environment of a container of its own. Raises NotPlayed."""
        base = {**IMAGE_ENVIRONMENT, "PATH": f"{_BINARIES}:{_SYSTEM}", "HOSTNAME": name(self.pod)}
        variables = {**base, **api_server(api.server), **self.given}
        words = [expand(word, self.given) for word in self._words()]
        return isolation.command(self.pod, self.container, self.volumes, self.termination, words), variables


def refused(pod: Manifest, *, isolated: bool, any_user: bool) -> str | None:
    """Return why a pod is not started here, None if it is. Raises NotPlayed.

    A container with a block device may not run as another user than root, as strict as most container runtimes, unless
    `any_user` may.
    """
    containers = [*(spec(pod).get("initContainers") or []), *spec(pod)["containers"]]
    for container in containers:
        if not_played(container):
            return not_played(container)
        if isolated and rights_of(pod, container).must_not_be_root:
            return f'container "{container["name"]}" has runAsNonRoot and image will run as root'
    of_pod = spec(pod).get("securityContext") or {}
    for container in () if any_user else containers:
        own = {**of_pod, **(container.get("securityContext") or {})}
        user = own.get("runAsUser")
        if container.get("volumeDevices") and (user not in (None, 0) or (user is None and own.get("runAsNonRoot"))):
            who = "a non-root user" if user is None else f"user {user}"
            return (
                f'container "{container["name"]}" would open a block device as {who}: permission denied. '
                "A non-root process can't open volumeDevices on most clusters: set runAsUser: 0"
            )
    return None
