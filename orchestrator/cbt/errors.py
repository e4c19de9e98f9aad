"""Why a rung of the ladder (delta, allocated, full read) was given up, each error naming the rung that comes next.

Every class is built from facts and holds no token: what a server said is cleaned and cut first (`clean`). The caller
catches `RungFailed`, records `reason` and the sentence, and goes on at `next_rung`; only `SnapshotGone` ends the point.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from orchestrator.errors import STRUCK, Retryable, Terminal, without_tokens

Rung = Literal["allocated", "full", "restart", "fail"]
"""What follows a failed rung. `restart` never leaves this room: it means once more from offset 0."""

SERVER_TEXT_LIMIT = 240
"""Characters kept of what a server said."""


def clean(text: str | None, *secrets: str) -> str:
    """Return what a server said without secrets, without control characters, at most SERVER_TEXT_LIMIT long."""
    said = text or ""
    for secret in secrets:
        if secret:
            said = said.replace(secret, STRUCK)
    said = without_tokens(said)
    said = "".join(c if c.isprintable() else " " for c in said).strip()
    return said if len(said) <= SERVER_TEXT_LIMIT else said[: SERVER_TEXT_LIMIT - 1] + "…"


class SnapshotGone(Terminal):
    """The snapshot was deleted while its metadata was being read. Raised by the caller's `Recheck`."""

    reason: ClassVar[str] = "SnapshotGone"
    remedy: ClassVar[str] = "The next scheduled run takes a new snapshot."
    next_rung: ClassVar[Rung] = "fail"


class LookupTimedOut(Retryable):
    """The cluster didn't answer in time; that says nothing about the rung, so the step is repeated."""

    reason: ClassVar[str] = "LookupTimedOut"

    def __init__(self, what: str, driver: str) -> None:
        """Name what was looked up, and for which driver."""
        super().__init__(f"no answer in time for {what} of {driver}")


class RungFailed(Terminal):
    """One way of learning what to read has failed; a dearer one is left."""

    reason: ClassVar[str] = "MetadataFailed"
    remedy: ClassVar[str] = "The backup goes on and reads more; look at the driver's snapshot metadata service."

    def __init__(self, driver: str, method: str, next_rung: Rung, said: str = "", *, code: str = "") -> None:
        """Take the facts; `said` must be clean already, `code` is the gRPC status or kind of failure."""
        self.driver = driver
        self.method = method
        self.next_rung: Rung = next_rung
        self.code = code
        self.said = said
        super().__init__(self._text())

    def _text(self) -> str:
        told = ": ".join(part for part in (self.code, self.said) if part)
        return f"{self.method} of {self.driver} failed" + (f": {told}" if told else "")


class ContractViolation(RungFailed):
    """The server broke a rule of the protocol, so nothing that it said about this snapshot can be believed."""

    reason: ClassVar[str] = "MetadataContractViolation"
    remedy: ClassVar[str] = (
        "Report this to the vendor of the storage driver; backups of its volumes read more till then."
    )

    def __init__(
        self, driver: str, rule: str, check: str, detail: str, *, method: str = "", next_rung: Rung = "full"
    ) -> None:
        """Name the rule: its id as in docs/cbt.md (X1 to X8, R4, R7, wire), `check` in words, and what was seen."""
        self.id = rule
        self.check = check
        self.detail = detail
        super().__init__(driver, method, next_rung, detail, code=rule)

    def _text(self) -> str:
        return f"{self.driver} broke rule {self.id} ({self.check}): {self.detail}"

    def at(self, driver: str, method: str, next_rung: Rung) -> ContractViolation:
        """Return the same violation with the place where it was seen."""
        return ContractViolation(driver, self.id, self.check, self.detail, method=method, next_rung=next_rung)


class Unsupported(RungFailed):
    """The driver doesn't serve this method. Remember it per (driver, method) for an hour instead of asking again."""

    reason: ClassVar[str] = "CBTUnsupported"
    remedy: ClassVar[str] = "Nothing is wrong; this driver can't tell, so more is read."


class CBTAuthFailed(RungFailed):
    """The service doesn't accept our token, not even a new one for the audience that it names now."""

    reason: ClassVar[str] = "CBTAuthFailed"
    remedy: ClassVar[str] = (
        "Compare the audience of the driver's SnapshotMetadataService with its sidecar's --audience."
    )


class CBTForbidden(RungFailed):
    """Our account isn't allowed to read this snapshot's metadata."""

    reason: ClassVar[str] = "CBTForbidden"
    remedy: ClassVar[str] = "Grant the verb in the whole namespace; a rule limited by resourceNames isn't enough."

    def __init__(self, driver: str, method: str, next_rung: Rung, said: str = "", *, namespace: str) -> None:
        """Take the namespace in which the verb is missing."""
        self.namespace = namespace
        self.verb = "get volumesnapshots.snapshot.storage.k8s.io"
        super().__init__(driver, method, next_rung, said, code="PERMISSION_DENIED")

    def _text(self) -> str:
        told = f": {self.said}" if self.said else ""
        return f"{self.driver}: the service account may not {self.verb} in namespace {self.namespace}{told}"


class BaseNotFound(RungFailed):
    """The storage system doesn't know the base, or the source of the snapshot, any more."""

    reason: ClassVar[str] = "MetadataNotFound"
    remedy: ClassVar[str] = (
        "A new chain starts with this point; keep the newest snapshot of a volume till its successor."
    )


class NotTracked(RungFailed):
    """Changed block tracking is off, or its records are unusable, in the storage system."""

    reason: ClassVar[str] = "ChangeTrackingOff"
    remedy: ClassVar[str] = "Turn changed block tracking on for this volume in the storage system."


class RequestRefused(RungFailed):
    """The driver calls the request invalid: another volume's base, a missing secret, a snapshot of another driver."""

    reason: ClassVar[str] = "MetadataRequestRefused"
    remedy: ClassVar[str] = "Look at the driver's log; a snapshot class without its secret is a usual cause."


class OutOfRange(RungFailed):
    """The driver says that a starting offset lies outside the volume, where it can't."""

    reason: ClassVar[str] = "MetadataOutOfRange"


class Exhausted(RungFailed):
    """Retries without any progress are used up."""

    reason: ClassVar[str] = "MetadataUnavailable"


class ServiceUnreachable(RungFailed):
    """The service could not be reached at all, so the other method can't be either."""

    reason: ClassVar[str] = "MetadataServiceUnreachable"
    remedy: ClassVar[str] = (
        "Check that the driver's sidecar runs and that its SnapshotMetadataService names it rightly."
    )


class ServiceInvalid(ServiceUnreachable):
    """The SnapshotMetadataService object can't be used: its address, audience or CA bundle makes no sense."""

    reason: ClassVar[str] = "MetadataServiceInvalid"
    remedy: ClassVar[str] = "Correct the driver's SnapshotMetadataService object."
