"""Why the web server can't start."""

from __future__ import annotations

from orchestrator.errors import Terminal


class BadAddress(Terminal):
    """The address to listen on can't be read."""

    reason = "BadAddress"
    remedy = "Write HOST:PORT, such as 0.0.0.0:8080, [::]:8080 or 127.0.0.1:0"

    def __init__(self, address: str) -> None:
        """Name the address."""
        super().__init__(f"{address!r} is not an address to listen on")


class AddressTaken(Terminal):
    """Somebody else listens there."""

    reason = "AddressTaken"
    remedy = "Stop what listens there, or choose another --metrics-address"

    def __init__(self, address: str) -> None:
        """Name the address."""
        super().__init__(f"the metrics address {address} is taken by another process")


class AddressRefused(Terminal):
    """This machine does not let us listen there."""

    reason = "AddressRefused"
    remedy = "Choose another --metrics-address: an address of this machine, and a port above 1023"

    def __init__(self, address: str, why: str) -> None:
        """Name the address and the system's words."""
        super().__init__(f"can't listen on the metrics address {address}: {why}")
