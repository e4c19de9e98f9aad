"""Make a pod's volumes on disk, and rewrite the paths a container was told to where they really are.

Secrets and config maps become files of mode 0600 under the pod's own directory and go with the pod. A block volume is
its image file. A Filesystem volume can't be mounted without privileges: its mount path becomes a directory that holds
the image as `volume.img`. Kinds of volumes that are not played here are refused, by name.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from orchestrator.errors import Retryable, Terminal
from orchestrator.sandbox.api import Api, ApiError, NotFound
from orchestrator.sandbox.kinds import CONFIG_MAP, SECRET
from orchestrator.sandbox.node.projected import project
from orchestrator.sandbox.objects import Manifest, annotations_of, labels, meta, name, namespace, spec, status, uid

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_FIELD_OF_MAP = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")
TERMINATION_LOG = "/dev/termination-log"


class NotMountable(Retryable):
    """A volume can't be made now."""

    reason: ClassVar[str] = "FailedMount"


class NotPlayed(Terminal):
    """The pod wants something that this node does not play."""

    reason: ClassVar[str] = "NotPlayed"


class BlockVolume(msgspec.Struct, frozen=True):
    """A claim's volume as this node sees it."""

    image: Path
    mode: str


class Volumes(msgspec.Struct):
    """Where the volumes of a pod are, and which must be filled anew in how many seconds."""

    at: dict[str, Path] = {}
    renew_s: dict[str, float] = {}


async def make_volumes(
    api: Api, pod: Manifest, home: Path, claims: Mapping[str, BlockVolume], *, readable: bool = False
) -> Volumes:
    """Return where each volume of the pod is. Raises NotMountable, NotPlayed. Idempotent.

    `readable`: with the modes that a kubelet gives, for programs that run as another user; else for this user only.
    """
    made: dict[str, Path] = {}
    renew: dict[str, float] = {}
    for volume in spec(pod).get("volumes") or []:
        at = home / "volumes" / volume["name"]
        if volume.get("persistentVolumeClaim"):
            found = claims[volume["persistentVolumeClaim"]["claimName"]]
            made[volume["name"]] = found.image if found.mode == "Block" else _image_folder(at, found.image)
            continue
        at.mkdir(parents=True, exist_ok=True, mode=0o700)
        made[volume["name"]] = at
        again_s = await fill(api, pod, volume, at, readable=readable)
        if again_s is not None:
            renew[volume["name"]] = again_s
    return Volumes(made, renew)


async def fill(api: Api, pod: Manifest, volume: Manifest, at: Path, *, readable: bool) -> float | None:
    """Write a volume's files; return in how many seconds to do it again (None: never). Raises as `make_volumes`."""
    if "emptyDir" in volume:
        if readable:
            at.chmod(0o777)
        return None
    kind = next((k for k in volume if k != "name"), "unknown")
    source = volume[kind] or {}
    again_s: float | None = None
    if kind == "projected":
        try:
            files, again_s = await project(api, pod, source.get("sources") or [], lambda k, s: _read(api, pod, k, s))
        except ApiError as err:
            raise NotMountable(str(err)) from err
    elif kind in {"secret", "configMap", "downwardAPI"}:
        files = await _read(api, pod, kind, source)
    else:
        raise NotPlayed(f'volume "{volume["name"]}" is of kind {kind}, which the sandbox\'s node does not play')
    _write(at, files, mode=int(source.get("defaultMode", 0o644)) if readable else 0o600)
    if readable:
        for folder in (at, *(found for found in at.rglob("*") if found.is_dir())):
            folder.chmod(0o755)
    return again_s


async def _read(api: Api, pod: Manifest, kind: str, source: Manifest) -> dict[str, bytes]:
    """Return the files of a secret, a config map (whole or chosen) or of downward fields."""
    items = source.get("items")
    if kind == "downwardAPI":
        return {i["path"]: field(pod, i["fieldRef"]["fieldPath"], "").encode() for i in items or [] if "fieldRef" in i}
    read = _secret if kind == "secret" else _config_map
    at = source.get("secretName") or source["name"]
    return _chosen(await read(api, namespace(pod), at, optional=source.get("optional", False)), items)


def _image_folder(at: Path, image: Path) -> Path:
    at.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = at / "volume.img"
    if not link.is_symlink():
        link.symlink_to(image)
    return at


async def _secret(api: Api, in_namespace: str, at: str, *, optional: bool) -> dict[str, bytes]:
    try:
        held = (await api.get(SECRET, at, in_namespace)).get("data") or {}
    except NotFound as err:
        if optional:
            return {}
        raise NotMountable(f'secret "{at}" not found') from err
    return {entry: base64.b64decode(value) for entry, value in held.items()}


async def _config_map(api: Api, in_namespace: str, at: str, *, optional: bool) -> dict[str, bytes]:
    try:
        held = await api.get(CONFIG_MAP, at, in_namespace)
    except NotFound as err:
        if optional:
            return {}
        raise NotMountable(f'configmap "{at}" not found') from err
    binary = {entry: base64.b64decode(value) for entry, value in (held.get("binaryData") or {}).items()}
    return {entry: value.encode() for entry, value in (held.get("data") or {}).items()} | binary


def _chosen(data: dict[str, bytes], items: list[Manifest] | None) -> dict[str, bytes]:
    if not items:
        return data
    missing = [item["key"] for item in items if item["key"] not in data]
    if missing:
        raise NotMountable(f"references non-existent key: {missing[0]}")
    return {item["path"]: data[item["key"]] for item in items}


def _write(folder: Path, files: dict[str, bytes], *, mode: int) -> None:
    for relative, content in files.items():
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise NotPlayed(f"the path {relative} leaves its volume")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made beside and moved: a program never reads half of a token that is renewed.
        half = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        half.chmod(mode)
        half.replace(path)


async def environment(api: Api, pod: Manifest, container: Manifest, node_address: str) -> dict[str, str]:
    """Return a container's environment, references resolved. Raises NotMountable."""
    made: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        made |= {prefix + entry: value.decode() for entry, value in (await _source(api, pod, source)).items()}
    for variable in container.get("env") or []:
        value = variable.get("value", "")
        origin = variable.get("valueFrom")
        if origin:
            value = await _value(api, pod, origin, node_address)
        made[variable["name"]] = expand(value, made)
    return made


async def _source(api: Api, pod: Manifest, source: Manifest) -> dict[str, bytes]:
    ref = source.get("secretRef") or source.get("configMapRef") or {}
    read = _secret if source.get("secretRef") else _config_map
    return await read(api, namespace(pod), ref["name"], optional=ref.get("optional", False))


async def _value(api: Api, pod: Manifest, origin: Manifest, node_address: str) -> str:
    if origin.get("fieldRef"):
        return field(pod, origin["fieldRef"]["fieldPath"], node_address)
    for kind, read in (("secretKeyRef", _secret), ("configMapKeyRef", _config_map)):
        ref = origin.get(kind)
        if ref:
            data = await read(api, namespace(pod), ref["name"], optional=ref.get("optional", False))
            if ref["key"] in data:
                return data[ref["key"]].decode()
            if ref.get("optional"):
                return ""
            raise NotMountable(f"couldn't find key {ref['key']} in {kind[:-6]} {namespace(pod)}/{ref['name']}")
    return ""


def field(pod: Manifest, path: str, node_address: str) -> str:
    """Return a downward-API field of a pod, "" if it is not there."""
    of_map = _FIELD_OF_MAP.match(path)
    if of_map:
        return (labels(pod) if of_map.group(1) == "labels" else annotations_of(pod)).get(of_map.group(2), "")
    known = {
        "metadata.name": name(pod),
        "metadata.namespace": namespace(pod),
        "metadata.uid": uid(pod),
        "spec.nodeName": spec(pod).get("nodeName", ""),
        "spec.serviceAccountName": spec(pod).get("serviceAccountName", ""),
        "status.podIP": status(pod).get("podIP", node_address),
        "status.hostIP": node_address,
    }
    return str(known.get(path, meta(pod).get(path.removeprefix("metadata."), "")))


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does: unknown names stay, `$$` is one dollar."""

    def replace(match: re.Match[str]) -> str:
        if match.group(1) == "$":
            return "$"
        return variables.get(match.group(2), match.group(0))

    return _REFERENCE.sub(replace, text)


class Paths:
    """Container paths and where they really are."""

    def __init__(self, container: Manifest, volumes: Mapping[str, Path], termination: Path) -> None:
        known = {container.get("terminationMessagePath") or TERMINATION_LOG: str(termination)}
        for mount in container.get("volumeMounts") or []:
            real = volumes[mount["name"]]
            known[mount["mountPath"].rstrip("/")] = str(real / mount["subPath"] if mount.get("subPath") else real)
        for device in container.get("volumeDevices") or []:
            known[device["devicePath"]] = str(volumes[device["name"]])
        self._known = sorted(known.items(), key=lambda pair: -len(pair[0]))

    def real(self, text: str) -> str:
        """Return `text` with a leading container path replaced; also behind the `=` of a long option."""
        option, equals, value = text.partition("=")
        if equals and option.startswith("-"):
            return f"{option}={self.real(value)}"
        for inside, outside in self._known:
            if text == inside or text.startswith(f"{inside}/"):
                return outside + text[len(inside) :]
        return text
