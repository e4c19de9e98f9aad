"""Named faults and settings of the sandbox, switched while it runs.

They live in the ConfigMap `sandbox-faults` of kube-system, so that kubectl shows and sets them as well as
`tidemark sandbox fault`; each part watches it and asks at the moment of acting. A name that is absent, or whose value
is "off", is off. Nothing here acts: the code that a fault breaks asks for it by name.
"""

from __future__ import annotations

import math

import msgspec

from orchestrator.errors import Terminal
from orchestrator.sandbox.api import Api
from orchestrator.sandbox.kinds import CONFIG_MAP
from orchestrator.sandbox.objects import Manifest
from orchestrator.sandbox.roles import Mirror

NAMESPACE = "kube-system"
CONFIG_NAME = "sandbox-faults"


class UnknownFault(Terminal):
    """No fault of that name."""

    reason = "UnknownFault"
    remedy = "`tidemark sandbox fault --list` shows them all."


class BadFaultValue(Terminal):
    """A value that the fault can't have."""

    reason = "BadFaultValue"
    remedy = "Give a number above 0, or switch it off with --off."


class Fault(msgspec.Struct, frozen=True):
    """A thing that can go wrong, or a setting."""

    name: str
    says: str
    default: str = "on"
    """The value when switched on without one."""


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("cbt-down", "The SnapshotMetadata service refuses connections."),
        Fault("cbt-unimplemented", "Both calls answer UNIMPLEMENTED, as a driver with the feature off."),
        Fault("cbt-delta-unimplemented", "GetMetadataDelta answers UNIMPLEMENTED; allocated works."),
        Fault("cbt-unavailable", "Both calls answer UNAVAILABLE."),
        Fault("cbt-internal", "Both calls answer INTERNAL."),
        Fault("cbt-cut-midstream", "Each stream's connection is cut after some ranges; a resumed one gets further."),
        Fault("cbt-truncated-ok", "A stream ends OK after half of its ranges."),
        Fault("cbt-paging", "One message per call, then OK although more remains, as a paging driver."),
        Fault("cbt-out-of-order", "Two neighbouring ranges change places."),
        Fault("cbt-overlap", "One range reaches into the next."),
        Fault("cbt-type-unknown", "The block metadata type is 0 (UNKNOWN)."),
        Fault("cbt-capacity-flip", "The capacity changes within a stream."),
        Fault("cbt-slow", "Seconds between the messages of a stream.", "0.5"),
        Fault("cbt-bad-token", "Every token is answered with UNAUTHENTICATED."),
        Fault("cbt-forbidden", "Every caller is answered with PERMISSION_DENIED."),
        Fault("cbt-base-not-found", "GetMetadataDelta answers NOT_FOUND, as if the base were gone."),
        Fault("cbt-precondition", "GetMetadataDelta answers FAILED_PRECONDITION, as if tracking were off."),
        Fault("snapshot-slow", "Seconds that every snapshot takes until it is ready.", "5"),
        Fault("snapshot-error", "Taking a snapshot fails; it is tried again."),
        Fault("snapshot-never-ready", "Snapshots are cut and never become ready."),
        Fault("snapshot-no-list", "The driver lacks LIST_SNAPSHOTS: a static content's creationTime is the import's."),
        Fault("clone-slow", "Seconds that a volume from a snapshot takes.", "5"),
        Fault("clone-pending", "A volume from a snapshot stays Pending."),
        Fault("clone-error", "A volume from a snapshot fails to be made; it is tried again."),
        Fault("attach-limit", "Volumes that one node can attach.", "1"),
        Fault("attach-slow", "Seconds that an attachment takes.", "2"),
        Fault("mover-kill", "Seconds after which the next container that has a block device is killed, once.", "0.2"),
        Fault("node-slow-start", "Seconds that every container takes to start.", "3"),
        Fault("allow-non-root", "Setting: containers with block devices may run as another user than 0."),
        Fault("cbt-block-size", "Setting: granularity of CBT in bytes, a multiple of 512.", "65536"),
        Fault("cbt-block-type", "Setting: FIXED_LENGTH or VARIABLE_LENGTH ranges.", "VARIABLE_LENGTH"),
    )
}


class Faults:
    """What is switched on now, as one part sees it."""

    def __init__(self, config_maps: Mirror | None = None) -> None:
        self._mirror = config_maps
        self.forced: dict[str, str] = {}
        """Values set in this process, above those of the ConfigMap."""

    def text(self, fault: str) -> str | None:
        """Return the value of a fault, or None if it is off. An unknown name is a bug of the caller: KeyError."""
        known = FAULTS[fault]
        value = self.forced.get(fault) or self.written(fault)
        if value is None or value.lower() in {"", "off", "false"}:
            return None
        return known.default if value.lower() in {"on", "true"} else value

    def written(self, fault: str) -> str | None:
        """Return what the ConfigMap says of a fault, as far as this part has seen it."""
        held: Manifest = (self._mirror.get(NAMESPACE, CONFIG_NAME) if self._mirror is not None else None) or {}
        value: str | None = (held.get("data") or {}).get(fault)
        return value

    def on(self, fault: str) -> bool:
        """Return whether a fault is on."""
        return self.text(fault) is not None

    def number(self, fault: str, off: float = 0.0) -> float:
        """Return the value of a fault as a number; `off` if it is off; its default if it is not a number."""
        text = self.text(fault)
        if text is None:
            return off
        try:
            return float(text)
        except ValueError:
            return float(FAULTS[fault].default)


def _number(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


async def switch(api: Api, fault: str, value: str | None) -> None:
    """Switch a fault on (to `value`) or off (None) in the cluster. Raises UnknownFault, BadFaultValue, ApiError."""
    if fault not in FAULTS:
        raise UnknownFault(f"There is no fault {fault!r}")
    # Without this, a slip of the pen would be taken for the default, and 0 for off.
    if value not in {None, "on", "off"} and _number(FAULTS[fault].default) and not _number(str(value)):
        raise BadFaultValue(f"{value!r} is no value of {fault}")
    await api.ensure(
        CONFIG_MAP, {"metadata": {"name": CONFIG_NAME, "namespace": NAMESPACE}, "data": {fault: value or "off"}}
    )


async def switched_on(api: Api) -> dict[str, str]:
    """Return what is switched on in the cluster now. Raises ApiError."""
    held, _ = await api.list(CONFIG_MAP, NAMESPACE)
    data: dict[str, str] = next(
        ((item.get("data") or {}) for item in held if item["metadata"]["name"] == CONFIG_NAME), {}
    )
    return {fault: value for fault, value in data.items() if fault in FAULTS and value != "off"}
