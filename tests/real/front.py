"""Stand between Pods and the API server as a load balancer does, and drop every connection when told (SIGUSR1).

`python -m tests.real.front LISTEN_PORT SERVER_PORT`. Bytes are relayed as they are: TLS ends at the server.
"""

from __future__ import annotations

import asyncio
import signal
import sys

_STEP = 1 << 16
_open: set[asyncio.StreamWriter] = set()


async def _relay(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while part := await source.read(_STEP):
        sink.write(part)
        await sink.drain()


async def _serve(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    both = [writer]
    _open.add(writer)
    try:
        back, out = await asyncio.open_connection("127.0.0.1", port)
        both.append(out)
        _open.add(out)
        ways = [asyncio.create_task(_relay(reader, out)), asyncio.create_task(_relay(back, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    except OSError:
        pass  # the server is away: the client sees its connection go, as behind any load balancer
    finally:
        for end in both:
            _open.discard(end)
            end.close()


def _drop() -> None:
    for end in list(_open):
        end.transport.abort()


async def main() -> None:
    """Relay until killed."""
    listen, port = int(sys.argv[1]), int(sys.argv[2])
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _drop)
    server = await asyncio.start_server(lambda r, w: _serve(port, r, w), "127.0.0.1", listen)
    print("front is ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
