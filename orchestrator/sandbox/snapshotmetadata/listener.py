"""A gRPC server that can be shut and opened again on its port, and drops its connections when shut."""

from __future__ import annotations

import asyncio
import socket
import ssl
import weakref
from collections.abc import Callable, Collection
from typing import Any

from grpclib.protocol import H2Protocol
from grpclib.server import Server


class DroppingServer(Server):  # type: ignore[misc]  # grpclib has no types
    """A server whose close ends its connections too: grpclib leaves them open until the client goes."""

    def __init__(self, handlers: Collection[Any]) -> None:
        super().__init__(handlers)
        self._made: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        self._made.add(made)
        return made

    def drop(self) -> None:
        """Stop listening and cut every connection."""
        self.close()
        for protocol in list(self._made):
            connection = getattr(protocol, "connection", None)
            transport = getattr(connection, "_transport", None)
            if transport is not None:
                transport.abort()


class Listener:
    """Listens on 127.0.0.1 while `is_open()` says so; `changed` makes it look again."""

    name = "listener"

    def __init__(
        self, handlers: Collection[Any], tls: ssl.SSLContext, is_open: Callable[[], bool], port: int = 0
    ) -> None:
        self._handlers = handlers
        self._tls = tls
        self._is_open = is_open
        self._changed = asyncio.Event()
        self.port = port

    def reserve(self) -> None:
        """Choose the port once, so that it can be published before and is the same after every reopening."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", self.port))
            self.port = probe.getsockname()[1]

    def changed(self) -> None:
        """Look at `is_open` again."""
        self._changed.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        server: DroppingServer | None = None
        try:
            while True:
                self._changed.clear()
                if self._is_open() and server is None:
                    server = DroppingServer(self._handlers)
                    await server.start("127.0.0.1", self.port, ssl=self._tls, reuse_address=True)
                elif not self._is_open() and server is not None:
                    server.drop()
                    await server.wait_closed()
                    server = None
                await self._changed.wait()
        finally:
            if server is not None:
                server.drop()
                await server.wait_closed()
