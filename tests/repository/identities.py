"""What instances and workloads of Google and Azure ask for credentials, and as much of the stores as tells who came.

At the wire: the metadata server of GCE and GKE, Azure's instance metadata service, and the token endpoint that changes
a workload's token for one of the store. Every token says where it came from, and stores write down which one they saw.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

WORKLOAD_TOKEN = "token-of-the-workload"


@dataclass
class Cloud:
    """Objects, who came for them, and what the givers of tokens were asked."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    bearers: set[str] = field(default_factory=set)
    asked: list[dict[str, str]] = field(default_factory=list)
    lives_s: int = 3600
    """For how long a token is good."""
    refuses: bool = False
    """Whether no token is given."""

    def _given(self, what: str, seen: dict[str, str]) -> web.Response:
        self.asked.append(seen)
        if self.refuses:
            return web.json_response({"error": "invalid_client", "error_description": "no identity"}, status=400)
        token = f"{what}-{len(self.asked)}"
        life = {"expires_in": self.lives_s}
        return web.json_response({"access_token": token, "token_type": "Bearer", **life})

    async def google(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata-Flavor") != "Google":
            return web.Response(status=403)
        if request.path.endswith("/email"):
            return web.Response(text="backup@project.iam.gserviceaccount.com")
        return self._given("google", dict(request.query))

    async def azure(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata") != "true":
            return web.Response(status=400)
        answer = self._given("azure", dict(request.query))
        if self.refuses:
            return answer
        expires = {"expires_on": "32503680000"}
        token = f"azure-{len(self.asked)}"
        return web.json_response({"access_token": token, "token_type": "Bearer", "resource": "r", **expires})

    async def workload(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if not form.get("client_assertion", "").startswith(WORKLOAD_TOKEN):
            return web.Response(status=401)
        return self._given("workload", {**form, "tenant": request.match_info["tenant"]})

    async def store(self, request: web.Request) -> web.Response:
        bearer = re.fullmatch(r"Bearer (\S+)", request.headers.get("Authorization", ""))
        if bearer is None:
            return web.Response(status=401)
        self.bearers.add(bearer.group(1))
        key, headers = request.path, {"ETag": '"1"', "Last-Modified": "Sun, 22 Nov 2026 12:00:00 GMT"}
        if request.method == "PUT":
            if key in self.objects:
                return web.Response(status=412)
            self.objects[key] = await request.read()
            return web.Response(status=201, headers={**headers, "x-goog-generation": "1"})
        if key not in self.objects:
            return web.Response(status=404)
        return web.Response(body=self.objects[key], headers=headers)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Cloud]:
    """Serve all of it on a free port of the loopback."""
    cloud = Cloud()
    app = web.Application()
    app.router.add_get("/computeMetadata/{rest:.*}", cloud.google)
    app.router.add_get("/metadata/identity/oauth2/token", cloud.azure)
    app.router.add_post("/{tenant}/oauth2/v2.0/token", cloud.workload)
    app.router.add_route("*", "/{rest:.*}", cloud.store)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    cloud.url = f"http://127.0.0.1:{port}"
    try:
        yield cloud
    finally:
        await runner.cleanup()
