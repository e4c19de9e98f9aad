"""What can go wrong with a repository, each with its reason and what a person can do.

Built from facts (keys, sizes, codes), never from payloads: nothing here ever holds a key or a credential.
"""

from __future__ import annotations

from typing import ClassVar

from orchestrator.errors import Retryable, Terminal


class StoreUnavailable(Retryable):
    """The store didn't answer, or answered with an error that may pass."""

    reason: ClassVar[str] = "StoreUnavailable"
    remedy: ClassVar[str] = "Check that the store is up and reachable from here; it is tried again."

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"Store {url}: {what}")


class StoreFull(Retryable):
    """No space is left where the repository lives."""

    reason: ClassVar[str] = "StoreFull"
    remedy: ClassVar[str] = "Free space or enlarge the store; nothing that was committed is hurt."

    def __init__(self, url: str) -> None:
        super().__init__(f"Store {url} has no space left")


class AccessDenied(Terminal):
    """The credentials are wrong or lack a permission."""

    reason: ClassVar[str] = "AccessDenied"
    remedy: ClassVar[str] = (
        "Check the credentials, and that they may list, read and write this prefix (a directory: its owner and "
        "permissions, and that it isn't mounted read-only)."
    )

    def __init__(self, url: str, verb: str) -> None:
        super().__init__(f"Store {url} refused {verb}")


class StoreMissing(Terminal):
    """The bucket, container or parent directory doesn't exist."""

    reason: ClassVar[str] = "StoreMissing"
    remedy: ClassVar[str] = "Create the bucket or directory, or correct the repository's URL."

    def __init__(self, url: str) -> None:
        super().__init__(f"Store {url} does not exist")


class StoreOptionUnknown(Terminal):
    """The URL or an option isn't one that this build understands."""

    reason: ClassVar[str] = "StoreOptionUnknown"
    remedy: ClassVar[str] = "Correct the URL or the named key of the credentials secret."


class ConditionalPutMissing(Terminal):
    """The store overwrites where it was told to create only: no repository can be safe there."""

    reason: ClassVar[str] = "ConditionalPutMissing"
    remedy: ClassVar[str] = "Use a store that honours If-None-Match on PUT (S3, GCS, Azure, a directory do)."

    def __init__(self, url: str) -> None:
        super().__init__(f"Store {url} overwrote an existing object on a conditional put")


class ObjectMissing(Terminal):
    """An object that was asked for isn't there."""

    reason: ClassVar[str] = "ObjectMissing"
    remedy: ClassVar[str] = "Run `tidemark verify` to see which points need it."

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"Object {key} is missing")


class ObjectConflict(Terminal):
    """A create found other bytes under its name: another writer was first."""

    reason: ClassVar[str] = "ObjectConflict"
    remedy: ClassVar[str] = "Nothing was overwritten; the object that was there first counts."

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"Object {key} is there already with other content")


class RepositoryMissing(Terminal):
    """Nothing at all is at this address."""

    reason: ClassVar[str] = "RepositoryMissing"
    remedy: ClassVar[str] = "Check the URL; a new repository is made by the controller or with `--create`."

    def __init__(self, url: str) -> None:
        super().__init__(f"No repository at {url}")


class NotARepository(Terminal):
    """Something is at this address, but it isn't a Tidemark repository."""

    reason: ClassVar[str] = "NotARepository"
    remedy: ClassVar[str] = "Point to an empty prefix or to an existing repository; nothing was written."

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"{url} is not a Tidemark repository: {what}")


class UnsupportedFormat(Terminal):
    """The object was written by a newer Tidemark."""

    reason: ClassVar[str] = "UnsupportedFormat"
    remedy: ClassVar[str] = "Use a Tidemark release that reads this format version."

    def __init__(self, key: str, what: str) -> None:
        self.key = key
        self.what = f"{what} is not supported by this release"
        super().__init__(f"{key}: {self.what}")


class WrongKey(Terminal):
    """The key given isn't the one that sealed this."""

    reason: ClassVar[str] = "WrongKey"
    remedy: ClassVar[str] = "Give the master key that this repository was created with, or last rewrapped to."

    def __init__(self, what: str) -> None:
        super().__init__(f"The key does not open {what}")


class KeyMalformed(Terminal):
    """What was given as a key isn't one."""

    reason: ClassVar[str] = "KeyMalformed"
    remedy: ClassVar[str] = "A master key is 32 bytes: raw, as 64 hex digits or as base64."


class KeysOutdated(Retryable):
    """The namespace got a new data key since this program was given its keys."""

    reason: ClassVar[str] = "KeysOutdated"
    remedy: ClassVar[str] = "It is tried again with the newest keys; if this stays, run `tidemark verify`."

    def __init__(self, key: str, epoch: int) -> None:
        self.key = key
        super().__init__(f"Object {key} was sealed with data key {epoch}, which is newer than those known here")


class NamespaceMissing(Terminal):
    """The repository holds nothing of this namespace."""

    reason: ClassVar[str] = "NamespaceMissing"
    remedy: ClassVar[str] = "List the repository's namespaces; a namespace made again has a new uid and needs a grant."

    def __init__(self, name: str, uid: str) -> None:
        super().__init__(f"The repository holds nothing of namespace {name} (uid {uid})")


class Damaged(Terminal):
    """An object doesn't hold what was written: altered, truncated, swapped or misplaced."""

    reason: ClassVar[str] = "Damaged"
    remedy: ClassVar[str] = (
        "Run `tidemark verify --full`: it names the points that are hurt; the next backup heals what it can."
    )

    def __init__(self, key: str, what: str) -> None:
        self.key = key
        self.what = what
        super().__init__(f"Object {key} is damaged: {what}")


class NotAsKept(Damaged):
    """A manifest opens or not, but it isn't the one whose digest was kept outside the repository."""

    remedy: ClassVar[str] = (
        "Look whether the digest is of this very point (64 hex digits). If it is, the repository was turned back or "
        "altered: compare it with a copy elsewhere."
    )


class KeysDamaged(Damaged):
    """An object without which a namespace, or everything, stays closed is gone or altered."""

    remedy: ClassVar[str] = (
        "Put this object back from a copy or an older version of the bucket: nothing opens without it. If Tidemark "
        "never wrote it, take it away."
    )


class ManifestMissing(Terminal):
    """The recovery point isn't in the repository (any more)."""

    reason: ClassVar[str] = "ManifestMissing"
    remedy: ClassVar[str] = "It was pruned, or never completed; list the points that are there."

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"No recovery point at {key}")


class PointCancelled(Terminal):
    """This point was ended before it was committed, or removed after; it can't come back."""

    reason: ClassVar[str] = "PointCancelled"
    remedy: ClassVar[str] = "Choose another recovery point, or make a new one."

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"Recovery point {key} was removed, or ended before it was committed")


class BaseGone(Terminal):
    """A point that the intent builds on was removed before the intent could protect it."""

    reason: ClassVar[str] = "BaseGone"
    remedy: ClassVar[str] = "Choose another base; the next attempt does so by itself."

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"Base point {key} is gone")


class ShardsMissing(Retryable):
    """Not every shard of the point is finished yet."""

    reason: ClassVar[str] = "ShardsMissing"
    remedy: ClassVar[str] = "The movers of the missing shards must finish first."

    def __init__(self, intent_id: str, missing: tuple[int, ...]) -> None:
        self.missing = missing
        super().__init__(f"Intent {intent_id} lacks shards {', '.join(map(str, missing))}")


class SweepBlocked(Terminal):
    """Something that says what is alive can't be read, so nothing may be deleted."""

    reason: ClassVar[str] = "SweepBlocked"
    remedy: ClassVar[str] = (
        "Run `tidemark verify`, then prune the points it names; an unfinished backup ends by itself after 7 days, or "
        "by `tidemark maintenance --end-intent ID` once none of its movers runs. Sweeping goes on after that."
    )

    def __init__(self, key: str, what: str) -> None:
        self.key = key
        super().__init__(f"Nothing was deleted: {key} can't be read ({what})")


class SweepOvertaken(Retryable):
    """Again and again others deleted what this run had seen alive: it was stopped for long, or several run at once."""

    reason: ClassVar[str] = "SweepOvertaken"
    remedy: ClassVar[str] = "Nothing is wrong and nothing was deleted; the next run looks anew."

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"Nothing was deleted: {key} and others went while it was looked at")


class StoreUnsuitable(Terminal):
    """The store lacks something without which no repository can be safe there."""

    reason: ClassVar[str] = "StoreUnsuitable"
    remedy: ClassVar[str] = "Use a file system with hard links (ext4, XFS, NFS), or object storage."

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"Store {url}: {what}")
