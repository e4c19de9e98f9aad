"""Pod logs come from the node that runs the pod, over HTTP, as from a kubelet.

The contract with a node: its Node object publishes an `InternalIP` address and
`status.daemonEndpoints.kubeletEndpoint.Port`; there it answers `GET /containerLogs/{namespace}/{pod}/{container}` with
the query of the `pods/log` request (container, tailLines, follow, limitBytes, ...), plain HTTP on loopback. The request
carries `Authorization: Bearer TOKEN`, where TOKEN is the key `token` of the Secret `sandbox-node-<node name>` in
`kube-system`, which the node makes. The token is in no annotation and no log.
"""

from __future__ import annotations

import asyncio
import base64

import aiohttp
from aiohttp import web

from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.status import ApiError, bad_request
from orchestrator.sandbox.apiserver.store import Store

_QUERY = ("tailLines", "follow", "limitBytes", "timestamps", "sinceSeconds", "sinceTime", "previous", "stream")


class NodeProxy:
    """Forward log requests to nodes; `run` owns the client session."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=5, sock_read=None))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def logs(self, request: web.BaseRequest, call: Call, pod: Obj) -> web.StreamResponse:
        """Stream a container's log to the client."""
        container = self._container(call, pod)
        node = pod["spec"].get("nodeName")
        if not node:
            return web.Response(status=204)
        base, token = self._node(node)
        url = f"{base}/containerLogs/{call.namespace}/{call.name}/{container}"
        query = {k: call.info.query[k] for k in _QUERY if k in call.info.query}
        assert self._session is not None
        try:
            async with self._session.get(url, params=query, headers={"Authorization": f"Bearer {token}"}) as answer:
                return await self._relay(request, answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            message = f'Get "{url}": {type(error).__name__}'
            raise ApiError(500, "InternalError", f"Internal error occurred: {message}") from error

    @staticmethod
    async def _relay(request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        if answer.status != 200:
            text = (await asyncio.wait_for(answer.text(), 10)).strip()
            reason = {400: "BadRequest", 404: "NotFound"}.get(answer.status, "InternalError")
            raise ApiError(answer.status, reason, text or f"the node answered {answer.status}")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for part in answer.content.iter_any():
            await response.write(part)
        await response.write_eof()
        return response

    @staticmethod
    def _container(call: Call, pod: Obj) -> str:
        spec = pod["spec"]
        names = [c["name"] for c in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]]
        wanted = call.info.query.get("container", "")
        if not wanted:
            if len(names) > 1:
                listed = " ".join(c["name"] for c in spec["containers"])
                message = f"a container name must be specified for pod {call.name}, choose one of: [{listed}]"
                raise bad_request(message)
            return str(names[0])
        if wanted not in names:
            raise bad_request(f"container {wanted} is not valid for pod {call.name}")
        return wanted

    def _node(self, name: str) -> tuple[str, str]:
        node = self._store.get("nodes", "", name) or {}
        status = node.get("status") or {}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
        address = next((a["address"] for a in status.get("addresses") or [] if a["type"] == "InternalIP"), None)
        secret = self._store.get("secrets", "kube-system", f"sandbox-node-{name}") or {}
        token = base64.b64decode((secret.get("data") or {}).get("token", "")).decode()
        if not port or not address:
            raise ApiError(
                500,
                "InternalError",
                f"Internal error occurred: no preferred addresses found; known addresses: [] of node {name}",
            )
        return f"http://{address}:{port}", token
