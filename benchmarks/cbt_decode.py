"""Measure how many changed ranges a second the metadata client takes in: over grpclib, TLS and loopback, whole way.

The service runs in a process of its own and sends messages that were encoded before, so that the client is what is
measured: HTTP/2, decode, checks, and a copy plan's chunk set as the sink. The decoders alone are measured beside it.

    python -m benchmarks.cbt_decode [--tuples 4000000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import trustme
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server

from orchestrator.cbt.client import ALLOCATED, Question
from orchestrator.cbt.codec import decode
from orchestrator.cbt.service import Service, Token
from orchestrator.cbt.stream import Client, Settings, Snapshot, allocated
from orchestrator.extents import ChunkSet, Extents
from orchestrator.wire.snapshotmetadata import GetMetadataAllocatedRequest, GetMetadataAllocatedResponse

FIRST = 1 << 35
STEP = 64 * 1024
CAPACITY = 1 << 40
PER_MESSAGE = 10_000


def encode(first: int, count: int) -> bytes:
    """Return a message of `count` ranges of 64 KiB from `first` on, every offset taking six bytes."""
    offsets = first + np.arange(count, dtype=np.int64) * STEP
    rows = np.empty((count, 13), dtype=np.uint8)
    rows[:, 0:3] = (0x1A, 11, 0x08)
    for at in range(6):
        rows[:, 3 + at] = (offsets >> (7 * at)) & 0x7F | (0x80 if at < 5 else 0)
    rows[:, 9:13] = (0x10, 0x80, 0x80, 0x04)
    head = bytes(GetMetadataAllocatedResponse(volume_capacity_bytes=CAPACITY))
    return b"\x08\x01" + head + rows.tobytes()


class _Raw(CodecBase):  # type: ignore[misc]  # grpclib is not followed by mypy
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return message_type.parse(data)


class _Service:
    def __init__(self, tuples: int, per_message: int) -> None:
        self.messages = [
            encode(FIRST + at * STEP, min(per_message, tuples - at)) for at in range(0, tuples, per_message)
        ]

    def __mapping__(self) -> dict[str, Handler]:
        path = "/snapshotmetadata.SnapshotMetadata/GetMetadataAllocated"
        return {path: Handler(self._serve, Cardinality.UNARY_STREAM, GetMetadataAllocatedRequest, bytes)}

    async def _serve(self, stream: Any) -> None:
        request = await stream.recv_message()
        if request.starting_offset == 0:
            for message in self.messages:
                await stream.send_message(message)


async def _serve(tuples: int, per_message: int, cert: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(cert)
    server = Server([_Service(tuples, per_message)], codec=_Raw())
    await server.start("127.0.0.1", 0, ssl=context)
    assert server._server is not None
    print(server._server.sockets[0].getsockname()[1], flush=True)
    await server.wait_closed()


class _Tokens:
    async def token(self, audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
        return Token("t", datetime.now(UTC) + timedelta(hours=1))


class _Plan:
    """The sink of a real backup: one bit per chunk."""

    def __init__(self) -> None:
        self.chunks = ChunkSet(CAPACITY, 256 * 1024)

    def accept(self, extents: Extents) -> None:
        self.chunks.add(extents)

    def reset(self) -> None:
        self.chunks = ChunkSet(CAPACITY, 256 * 1024)


class _Nothing:
    def accept(self, extents: Extents) -> None:
        pass

    def reset(self) -> None:
        pass


@contextlib.contextmanager
def _service(tuples: int, per_message: int) -> Iterator[Service]:
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        cert = Path(folder, "server.pem")
        cert.touch(0o600)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(cert)
        command = [sys.executable, "-m", "benchmarks.cbt_decode", "--serve", str(cert)]
        command += ["--tuples", str(tuples), "--per-message", str(per_message)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline())
                yield Service("bench", f"127.0.0.1:{port}", authority.cert_pem.bytes(), "bench")
            finally:
                server.kill()


async def _nothing() -> None:
    return None


async def _over_the_wire(service: Service, tuples: int) -> dict[str, Any]:
    async def rediscover() -> Service:
        return service

    settings = Settings(start_jitter_s=0, max_results=0)
    async with Client(service, _Tokens(), recheck=_nothing, rediscover=rediscover, settings=settings) as client:
        began = time.perf_counter()
        received = 0
        question = Question(ALLOCATED, "bench", "snapshot")
        async with client.call(question, offset=0, max_results=0, fresh_token=False) as (call, _):
            async for message in call:
                received += len(message)
        assert call.failure is None, call.failure
        raw_s = time.perf_counter() - began
        rates: dict[str, Any] = {
            "raw_receive_tuples_per_s": round(tuples / raw_s),
            "raw_receive_mb_per_s": round(received / raw_s / 1e6),
        }
        for name, sink in (("stream", _Nothing()), ("stream_into_plan", _Plan())):
            began, worked = time.perf_counter(), time.process_time()
            evidence = await allocated(client, Snapshot("bench", "snapshot"), size_bytes=CAPACITY, sink=sink)
            assert evidence.tuples == tuples
            rates[f"{name}_tuples_per_s"] = round(tuples / (time.perf_counter() - began))
            # The client's own processor time: says the same on a busy machine.
            rates[f"{name}_tuples_per_cpu_s"] = round(tuples / (time.process_time() - worked))
        return rates


def _decoders() -> dict[str, Any]:
    message = encode(FIRST, PER_MESSAGE)
    began, rounds = time.perf_counter(), 100
    for _ in range(rounds):
        decode(message)
    fast = rounds * PER_MESSAGE / (time.perf_counter() - began)
    began = time.perf_counter()
    GetMetadataAllocatedResponse.parse(message)
    slow = PER_MESSAGE / (time.perf_counter() - began)
    return {
        "decode_tuples_per_s": round(fast),
        "betterproto2_decode_tuples_per_s": round(slow),
        "times_faster": round(fast / slow, 1),
    }


def run(args: Any = None) -> dict[str, Any]:
    """Return the rates. `args` may carry `tuples` (default 4,000,000) and `per_message` (default 10,000)."""
    tuples = int(getattr(args, "tuples", None) or 4_000_000)
    per_message = int(getattr(args, "per_message", None) or PER_MESSAGE)
    with _service(tuples, per_message) as service:
        wire = asyncio.run(_over_the_wire(service, tuples))
    return {"tuples": tuples, "per_message": per_message, **wire, **_decoders()}


def main() -> None:
    """Run alone and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuples", type=int)
    parser.add_argument("--per-message", type=int, default=PER_MESSAGE)
    parser.add_argument("--serve", metavar="CERT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(_serve(args.tuples, args.per_message, args.serve))
    else:
        print(json.dumps(run(args), indent=2))


if __name__ == "__main__":
    main()
