"""Bytes of lists and watches to Structs, one object at a time, so that a bad one harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, cast

import msgspec

from orchestrator.api.meta import K8sObject, ObjectMeta
from orchestrator.kube import errors
from orchestrator.kube.errors import Target

T = TypeVar("T", bound=K8sObject)

LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of one watch event; etcd stores at most 1.5 MiB an object."""

EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


class WatchEvent(NamedTuple, Generic[T]):
    """One change. A BOOKMARK carries only the resourceVersion that has been reached."""

    type: EventType
    object: T | None
    """None only for a BOOKMARK."""
    resource_version: str


class BadItem(NamedTuple):
    """An object that does not fit our slice of its kind, with what could be read of it."""

    type: str
    metadata: ObjectMeta
    error: errors.Undecodable


class Listing(NamedTuple, Generic[T]):
    """A list, or one page of it."""

    items: list[T]
    bad: list[BadItem]
    resource_version: str
    continue_: str


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    continue_: str = msgspec.field(default="", name="continue")


class _RawList(msgspec.Struct):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[msgspec.Raw] | None = None


class _TypedList(msgspec.Struct, Generic[T]):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[T] | None = None


class _RawEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _SlimMeta(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")


class _Slim(msgspec.Struct):
    metadata: _SlimMeta = msgspec.field(default_factory=_SlimMeta)


_LIST = msgspec.json.Decoder(_RawList)
_EVENT = msgspec.json.Decoder(_RawEvent)
_SLIM = msgspec.json.Decoder(_Slim)


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _list_decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_TypedList[kind])  # type: ignore[valid-type]


def decode_object(kind: type[T], body: bytes | msgspec.Raw, target: Target) -> T:
    """Return the object; raises Undecodable with the path of what does not fit, Unavailable when it is no JSON."""
    try:
        return cast(T, _decoder(kind).decode(body))
    except msgspec.ValidationError as error:
        words = "it does not fit" if target.secret else errors.redacted(str(error), 200)
        raise errors.Undecodable(target, words) from None
    except msgspec.MsgspecError:
        raise errors.Unavailable(target, "the answer is not JSON") from None


def decode_listing(kind: type[T], body: bytes, target: Target) -> Listing[T]:
    """Return one page; objects that don't fit are set apart. Raises Unavailable when it is no list at all."""
    try:
        # In one go: half the time. Only when something doesn't fit each object is looked at by itself.
        whole = _list_decoder(kind).decode(body)
        return Listing(whole.items or [], [], whole.metadata.resource_version, whole.metadata.continue_)
    except msgspec.MsgspecError:
        pass
    try:
        raw = _LIST.decode(body)
    except msgspec.MsgspecError as error:
        raise errors.Unavailable(target, "the answer is not a list") from error
    page: Listing[T] = Listing([], [], raw.metadata.resource_version, raw.metadata.continue_)
    for item in raw.items or []:
        try:
            page.items.append(decode_object(kind, item, target))
        except errors.Undecodable as error:
            page.bad.append(_bad("ADDED", item, target, error))
    return page


class ByteStream(Protocol):
    """What is read of a response's content."""

    async def readany(self) -> bytes:
        """Return what has arrived; b"" at the end."""


async def lines(stream: ByteStream, idle_s: float, target: Target) -> AsyncIterator[bytes]:
    """Yield whole lines; raises TimeoutError after `idle_s` of silence. A half line at the end is dropped."""
    pieces: list[bytes] = []
    size = 0
    while True:
        async with asyncio.timeout(idle_s):
            block = await stream.readany()
        if not block:
            return
        *whole, rest = block.split(b"\n")
        if whole:
            yield b"".join((*pieces, whole[0]))
            for line in whole[1:]:
                yield line
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
        if size > LINE_LIMIT:
            raise errors.Unavailable(target, "one watch event is too large")


async def watch_events(
    kind: type[T], stream: ByteStream, target: Target, idle_s: float
) -> AsyncIterator[WatchEvent[T] | BadItem]:
    """Yield the events of a watch; raises Gone or another error for an ERROR event, Unavailable for garbage."""
    async for line in lines(stream, idle_s, target):
        if not line.strip():
            continue
        try:
            event = _EVENT.decode(line)
        except msgspec.MsgspecError as error:
            raise errors.Unavailable(target, "the watch sent garbage") from error
        if event.type == "ERROR":
            status = errors.decode_status(bytes(event.object))
            raise errors.from_status(target, status.code, status)
        yield _event(kind, event, target)


def _event(kind: type[T], event: _RawEvent, target: Target) -> WatchEvent[T] | BadItem:
    if event.type == "BOOKMARK":
        try:
            version = _SLIM.decode(event.object).metadata.resource_version
        except msgspec.MsgspecError as error:
            raise errors.Unavailable(target, "the watch sent a garbled bookmark") from error
        return WatchEvent("BOOKMARK", None, version)
    if event.type not in {"ADDED", "MODIFIED", "DELETED"}:
        raise errors.Unavailable(target, "the watch sent an unknown event type")
    try:
        obj = decode_object(kind, event.object, target)
    except errors.Undecodable as error:
        bad = _bad(event.type, event.object, target, error)
        if not bad.metadata.name:
            # Nobody can say what changed: only a new list can.
            raise errors.Gone(target, "the watch sent an object without a name") from error
        return bad
    return WatchEvent(cast(EventType, event.type), obj, obj.metadata.resource_version)


def _bad(type_: str, raw: msgspec.Raw, target: Target, error: errors.Undecodable) -> BadItem:
    try:
        slim = _SLIM.decode(raw).metadata
    except msgspec.MsgspecError:
        slim = _SlimMeta()
    named = Target(target.verb, target.resource, slim.namespace, slim.name)
    meta = ObjectMeta(name=slim.name, namespace=slim.namespace, uid=slim.uid, resource_version=slim.resource_version)
    return BadItem(type_, meta, errors.Undecodable(named, str(error).partition(": ")[2]))
