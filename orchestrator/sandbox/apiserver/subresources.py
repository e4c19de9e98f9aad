"""Subresources that are more than a part of their object: scale, logs, tokens, binding, eviction, finalize."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from orchestrator.sandbox.apiserver import bodies, reading
from orchestrator.sandbox.apiserver.bodies import Accept
from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.nodeproxy import NodeProxy
from orchestrator.sandbox.apiserver.objects import Obj, clone, metadata, name_of
from orchestrator.sandbox.apiserver.patch import json_patch, merge_patch
from orchestrator.sandbox.apiserver.registry import Registry
from orchestrator.sandbox.apiserver.reviews import Reviews
from orchestrator.sandbox.apiserver.status import (
    ApiError,
    conflict,
    invalid,
    invalid_value,
    method_not_allowed,
    unsupported_media,
)
from orchestrator.sandbox.apiserver.store import Store
from orchestrator.sandbox.apiserver.writing import Writer


class Subresources:
    """Answer requests on subresources."""

    def __init__(self, store: Store, registry: Registry, writer: Writer, reviews: Reviews, nodes: NodeProxy) -> None:
        self._store, self._registry, self._writer = store, registry, writer
        self._reviews, self._nodes = reviews, nodes

    async def handle(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        match call.info.subresource, call.info.verb:
            case "log", "get":
                return await self._nodes.logs(request, call, reading.fetch(self._store, call))
            case "exec", _:
                raise ApiError(
                    501, "NotImplemented", "the sandbox's nodes run no commands in containers: exec is not offered"
                )
            case "token", "create":
                body = await self._body(request, call)
                return bodies.answer(self._reviews.token_request(call, body), accept, 201)
            case "binding", "create":
                return await self._bind(await self._body(request, call), call, accept)
            case "eviction", "create":
                return await self._evict(await self._body(request, call), call, accept)
            case "finalize", "update":
                return await self._finalize(await self._body(request, call), call, accept)
            case "scale", "get":
                return bodies.answer(self._scale(call, reading.fetch(self._store, call)), accept)
            case "scale", ("update" | "patch"):
                return await self._rescale(request, call, accept)
            case _:
                raise method_not_allowed()

    async def _body(self, request: web.BaseRequest, call: Call) -> Obj:
        return bodies.as_object(bodies.parse(await bodies.read(request), call.content_type, binary=True))

    def _success(self, accept: Accept) -> web.Response:
        body: Obj = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return bodies.answer(body, accept, 201)

    async def _bind(self, body: Obj, call: Call, accept: Accept) -> web.Response:
        pod = reading.fetch(self._store, call)
        if pod["spec"].get("nodeName"):
            why = f'pod {call.name} is already assigned to node "{pod["spec"]["nodeName"]}"'
            raise conflict("pods/binding", "", call.name, why)
        new = clone(pod)
        new["spec"]["nodeName"] = str((body.get("target") or {}).get("name") or "")
        conditions = new.setdefault("status", {}).setdefault("conditions", [])
        if not any(c.get("type") == "PodScheduled" for c in conditions):
            stamp = new["metadata"]["creationTimestamp"]
            conditions.append(
                {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": stamp}
            )
        self._store.put("pods", new)
        await self._store.flushed()
        return self._success(accept)

    async def _evict(self, body: Obj, call: Call, accept: Accept) -> web.Response:
        self._writer.delete(call, body.get("deleteOptions") or {})
        await self._store.flushed()
        return self._success(accept)

    async def _finalize(self, body: Obj, call: Call, accept: Accept) -> web.Response:
        namespace = self._writer.finalize_namespace(call, (body.get("spec") or {}).get("finalizers") or [])
        await self._store.flushed()
        return bodies.answer(namespace, accept)

    # scale

    def _paths(self, call: Call) -> tuple[list[str], list[str], list[str]]:
        scale = call.kind.scale or {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": "",
        }
        keys = ("specReplicasPath", "statusReplicasPath", "labelSelectorPath")
        spec, status, selector = (str(scale.get(k) or "").strip(".").split(".") for k in keys)
        return spec, status, selector

    def _scale(self, call: Call, obj: Obj) -> Obj:
        spec, status, selector = self._paths(call)
        meta = obj["metadata"]
        shown = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp") if k in meta}
        state: Obj = {"replicas": int(_at(obj, status) or 0)}
        labels = (
            _at(obj, selector)
            if selector != [""]
            else ((obj.get("spec") or {}).get("selector") or {}).get("matchLabels")
        )
        if labels:
            state["selector"] = (
                labels if isinstance(labels, str) else ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            )
        return {
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": shown,
            "spec": {"replicas": int(_at(obj, spec) or 0)}, "status": state,
        }  # fmt: skip

    async def _rescale(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.Response:
        obj = reading.fetch(self._store, call)
        body = await bodies.read(request)
        if call.info.verb == "update":
            scale = bodies.as_object(bodies.parse(body, call.content_type, binary=True))
        elif call.content_type == "application/json-patch+json":
            scale = json_patch(self._scale(call, obj), bodies.parse_json(body))
        elif "merge-patch" in call.content_type:
            scale = merge_patch(self._scale(call, obj), bodies.parse_json(body))
        else:
            raise unsupported_media(("application/json-patch+json", "application/merge-patch+json"))
        wanted = metadata(scale).get("resourceVersion")
        if wanted and wanted != obj["metadata"]["resourceVersion"]:
            raise conflict(call.kind.plural, call.kind.group, name_of(obj))
        replicas = (scale.get("spec") or {}).get("replicas", 0)
        if replicas < 0:
            cause = invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
            raise invalid("Scale", "autoscaling", call.name, [cause])
        new: Obj = clone(obj)
        _set(new, self._paths(call)[0], replicas)
        stored = self._writer.replace(call, new, obj)
        await self._store.flushed()
        return bodies.answer(self._scale(call, stored), accept)


def _at(obj: Obj, path: list[str]) -> Any:
    found: Any = obj
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _set(obj: Obj, path: list[str], value: object) -> None:
    for step in path[:-1]:
        obj = obj.setdefault(step, {})
    obj[path[-1]] = value
