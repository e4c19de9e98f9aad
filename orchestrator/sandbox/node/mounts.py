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
from orchestrator.sandbox.api import Api, NotFound
from orchestrator.sandbox.kinds import CONFIG_MAP, SECRET
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


async def make_volumes(api: Api, pod: Manifest, home: Path, claims: Mapping[str, BlockVolume]) -> dict[str, Path]:
    """Return where each volume of the pod is. Raises NotMountable, NotPlayed. Idempotent."""
    made: dict[str, Path] = {}
    for volume in spec(pod).get("volumes") or []:
        at = home / "volumes" / volume["name"]
        if volume.get("persistentVolumeClaim"):
            found = claims[volume["persistentVolumeClaim"]["claimName"]]
            made[volume["name"]] = found.image if found.mode == "Block" else _image_folder(at, found.image)
            continue
        at.mkdir(parents=True, exist_ok=True, mode=0o700)
        made[volume["name"]] = at
        await _fill(api, pod, volume, at)
    return made


async def _fill(api: Api, pod: Manifest, volume: Manifest, at: Path) -> None:
    if "emptyDir" in volume:
        return
    if volume.get("secret"):
        source = volume["secret"]
        data = await _secret(api, namespace(pod), source["secretName"], optional=source.get("optional", False))
        _write(at, _chosen(data, source.get("items")))
    elif volume.get("configMap"):
        source = volume["configMap"]
        data = await _config_map(api, namespace(pod), source["name"], optional=source.get("optional", False))
        _write(at, _chosen(data, source.get("items")))
    elif "downwardAPI" in volume:
        items = volume["downwardAPI"].get("items") or []
        _write(at, {i["path"]: field(pod, i["fieldRef"]["fieldPath"], "").encode() for i in items if "fieldRef" in i})
    else:
        kind = next((k for k in volume if k != "name"), "unknown")
        raise NotPlayed(f'volume "{volume["name"]}" is of kind {kind}, which the sandbox\'s node does not play')


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


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for relative, content in files.items():
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise NotPlayed(f"the path {relative} leaves its volume")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)


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
