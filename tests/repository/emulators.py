"""Azure Blob and Google Cloud Storage on this machine: their emulators, run as real servers, one bucket each."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import aiohttp
import pytest
import yarl
from aiohttp import web

from tests.waiting import LONG

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def tool(name: str) -> str:
    """Return a program of `make real-tools`; skips where there is none."""
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(Path.home() / ".cache/tidemark/tools/bin")]
    found = next((f for folder in folders if folder and (f := shutil.which(name, path=folder))), shutil.which(name))
    if found is None:
        pytest.skip(f"{name} is not here: make real-tools")
    return found


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            end = time.monotonic() + LONG
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < end, "the emulator does not listen"
                time.sleep(0.1)  # a real process: there is nothing to wait on
            yield
        finally:
            server.terminate()
            server.wait(20)


def _send(request: urllib.request.Request) -> None:
    end = time.monotonic() + LONG
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                answer.read()
                return
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def azure(folder: Path, container: str = "bucket") -> Iterator[dict[str, str]]:
    """Run azurite with one container; yield the store options."""
    port = _port()
    command = [tool("azurite-blob"), "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _running(command, folder, port):
        path = f"/{ACCOUNT}/{container}"
        date, version = formatdate(usegmt=True), "2021-08-06"
        kind = "application/octet-stream"
        lines = ["PUT", *[""] * 4, kind, *[""] * 6, f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{ACCOUNT}{path}"]
        text = "\n".join([*lines, "restype:container"])
        signature = hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
        headers = {"x-ms-date": date, "x-ms-version": version, "Content-Type": kind}
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
        url = f"http://127.0.0.1:{port}{path}?restype=container"
        _send(urllib.request.Request(url, data=b"", method="PUT", headers=headers))
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        yield {"account_name": ACCOUNT, "account_key": ACCOUNT_KEY, "endpoint": endpoint}


def azure_sas(options: dict[str, str]) -> str:
    """Return an account signature for blobs, good for an hour: read, add, create, write, list, delete."""
    fields = {
        "sp": "rwdlac", "ss": "b", "srt": "sco", "st": "", "spr": "https,http", "sv": "2020-08-04", "ip": "",
        "se": (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    order = ("sp", "ss", "srt", "st", "se", "ip", "spr", "sv")
    text = "\n".join([options["account_name"], *(fields[name] for name in order), ""])
    key = base64.b64decode(options["account_key"])
    fields["sig"] = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    return urllib.parse.urlencode({name: value for name, value in fields.items() if value})


@contextlib.contextmanager
def gcs(folder: Path, bucket: str = "bucket") -> Iterator[str]:
    """Run fake-gcs-server with one bucket; yield its address."""
    port = _port()
    url = f"http://127.0.0.1:{port}"
    command = [tool("fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
    with _running(command, folder, port):
        body = json.dumps({"name": bucket}).encode()
        headers = {"Content-Type": "application/json"}
        _send(urllib.request.Request(f"{url}/storage/v1/b?project=p", data=body, headers=headers))
        yield url


@contextlib.asynccontextmanager
async def gcs_front(emulator: str, *, deaf: bool = False) -> AsyncIterator[dict[str, str]]:
    """Stand before fake-gcs-server, which knows uploads by the JSON API only; yield the store options.

    A PUT of the XML API becomes an upload of the JSON API with the same precondition, which the emulator checks; all
    else passes as it is. `deaf`: the precondition is dropped, as by a store that never heard of it.
    """
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def put(request: web.Request) -> web.Response:
            query = {"uploadType": "media", "name": request.match_info["name"]}
            condition = request.headers.get("x-goog-if-generation-match")
            if condition is not None and not deaf:
                query["ifGenerationMatch"] = condition
            url = f"{emulator}/upload/storage/v1/b/{request.match_info['bucket']}/o"
            async with session.post(url, params=query, data=await request.read()) as answer:
                if answer.status != 200:
                    return web.Response(status=answer.status, body=await answer.read())
                told = await answer.json()
            return web.Response(headers={"ETag": f'"{told["etag"]}"', "x-goog-generation": told["generation"]})

        async def other(request: web.Request) -> web.Response:
            url = yarl.URL(emulator + request.raw_path, encoded=True)
            headers = {name: value for name, value in request.headers.items() if name != "Host"}
            async with session.request(request.method, url, headers=headers, data=await request.read()) as answer:
                kept = {n: v for n, v in answer.headers.items() if n not in ("Transfer-Encoding", "Content-Length")}
                if request.method == "HEAD":
                    kept["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, headers=kept, body=await answer.read())

        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.router.add_put("/{bucket}/{name:.+}", put)
        app.router.add_route("*", "/{rest:.*}", other)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            port = _port()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            url = f"http://127.0.0.1:{port}"
            key = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": ""}
            key["private_key_id"] = ""
            yield {"service_account_key": json.dumps(key), "allow_http": "true"}
        finally:
            await runner.cleanup()
