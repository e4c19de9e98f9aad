"""S3, Google Cloud Storage and Azure Blob through obstore; memory for tests.

Retries with jitter and per-request timeouts are obstore's; each call has a deadline of ours on top. What must never
happen here: an error text of the library passed on (it may quote a signed URL), an unclear create taken for success.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import re
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import obstore
from obstore import exceptions as failures
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import (
    AccessDenied,
    ObjectConflict,
    ObjectMissing,
    StoreMissing,
    StoreOptionUnknown,
    StoreUnavailable,
)
from orchestrator.repository.store import COALESCE_GAP, ObjectInfo, coalesce

REQUEST_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 900.0
PUT_ATTEMPTS = 3
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist|container does not exist", re.IGNORECASE)
_STATUS = re.compile(r"\b([45]\d\d) (?:Internal|Service|Bad|Gateway|Too|Slow|Request|Conflict)[A-Za-z ]*")
_MEMORY: dict[str, MemoryStore] = {}
T = TypeVar("T")

S3_OPTIONS = frozenset(
    {
        "access_key_id",
        "secret_access_key",
        "session_token",
        "region",
        "endpoint",
        "virtual_hosted_style_request",
        "server_side_encryption",
        "sse_kms_key_id",
        "role_arn",
        "role_session_name",
        "web_identity_token_file",
        "metadata_endpoint",
        "allow_http",
    }
)
GS_OPTIONS = frozenset({"service_account_key", "application_credentials", "base_url", "skip_signature", "allow_http"})
AZ_OPTIONS = frozenset(
    {
        "account_name",
        "account_key",
        "sas_key",
        "client_id",
        "client_secret",
        "tenant_id",
        "endpoint",
        "use_emulator",
        "federated_token_file",
        "authority_host",
        "msi_endpoint",
        "object_id",
        "msi_resource_id",
        "allow_http",
    }
)
_KNOWN = {"s3": S3_OPTIONS, "gs": GS_OPTIONS, "az": AZ_OPTIONS, "memory": frozenset[str]()}
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


def open_cloud_store(scheme: str, bucket: str, prefix: str, options: Mapping[str, str]) -> CloudStore:
    """Open a bucket; StoreOptionUnknown names what isn't understood. Contacts nobody."""
    unknown = sorted(set(options) - _KNOWN[scheme])
    if unknown:
        raise StoreOptionUnknown(f"A store of type {scheme} takes no option {', '.join(unknown)}")
    if not bucket:
        raise StoreOptionUnknown(f"{scheme}:// needs a bucket: {scheme}://bucket/prefix")
    url = f"{scheme}://{bucket}/{prefix}".rstrip("/")
    if scheme == "memory":
        return CloudStore(url, _MEMORY.setdefault(url, MemoryStore()))
    config: dict[str, Any] = {name: value.strip() for name, value in options.items() if name != "allow_http"}
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        "connect_timeout": timedelta(seconds=10),
        "allow_http": _allow_http(options),
    }
    retry: dict[str, Any] = {
        "max_retries": 8,
        "retry_timeout": timedelta(seconds=180),
        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
    }
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    if scheme == "s3":
        config.setdefault("region", "us-east-1")
        config["conditional_put"] = "etag"
    try:
        inner = kind(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)
    except (failures.BaseError, ValueError, TypeError):
        # The library's text may quote the value of a credential.
        raise StoreOptionUnknown(f"The options for {url} don't make a {scheme} store") from None
    return CloudStore(url, inner)


def _allow_http(options: Mapping[str, str]) -> bool:
    """Plain HTTP only on request, or to an endpoint that says http:// itself."""
    word = options.get("allow_http", "").strip().lower()
    if word and word not in _TRUE | _FALSE:
        raise StoreOptionUnknown("Option allow_http is true or false")
    plain = [name for name in ("endpoint", "base_url") if options.get(name, "").strip().lower().startswith("http://")]
    if word in _FALSE and plain:
        # Without this every request would fail as if the store were away.
        raise StoreOptionUnknown(f"Option allow_http is {word}, but option {plain[0]} says http://")
    return word in _TRUE or bool(plain)


class CloudStore:
    """Objects in a bucket."""

    def __init__(self, url: str, inner: Any) -> None:
        """Wrap an obstore store."""
        self.url = url
        self._inner = inner

    async def get(self, key: str) -> bytes:
        """Return a whole object."""

        async def call() -> bytes:
            answer = await obstore.get_async(self._inner, key)
            return bytes(await answer.bytes_async())

        return await self._call("get", call(), key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a piece of an object."""
        return bytes((await self.get_ranges(key, [(start, length)]))[0])

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Return pieces of an object, near ones in one request and not copied."""
        pieces: builtins.list[Bytes] = [b""] * len(ranges)
        for start, length, members in coalesce(ranges, COALESCE_GAP):
            if not length:
                continue
            data = await self._piece(key, start, length)
            for position in members:
                first, size = ranges[position]
                pieces[position] = data[first - start : first - start + size]
        return pieces

    async def _piece(self, key: str, start: int, length: int) -> Bytes:
        """Return one range; an object that ends before it gives b"" (stores answer that with an error)."""
        try:
            request = obstore.get_range_async(self._inner, key, start=start, length=length)
            return memoryview(await self._call("get", request, key))
        except StoreUnavailable:
            found = await self.head(key)
            if found is None or found.size > start:
                raise
            return b""

    async def put_new(self, key: str, data: Bytes) -> None:
        """Create an object by one conditional PUT; anything but a clear answer is settled by reading back."""
        if isinstance(self._inner, MemoryStore):
            # It keeps the caller's memory itself, which is used again for the next pack.
            data = bytes(data)
        for attempt in range(PUT_ATTEMPTS):
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await obstore.put_async(self._inner, key, data, mode="create", use_multipart=False)
                return
            except (failures.PermissionDeniedError, failures.UnauthenticatedError):
                raise AccessDenied(self.url, "put") from None
            except (failures.BaseError, OSError, TimeoutError, ValueError) as error:
                if await self._settled(key, data):
                    return
                if _NO_BUCKET.search(str(error)):
                    raise StoreMissing(self.url) from None
                if attempt == PUT_ATTEMPTS - 1:
                    raise StoreUnavailable(self.url, f"put failed ({_describe(error)})") from None
            # Spread, so that many movers that were told to slow down don't come back in step.
            await asyncio.sleep(random.uniform(0.5, 1) * 2**attempt)  # noqa: S311 - no secret

    async def _settled(self, key: str, data: Bytes) -> bool:
        """Say whether the object is there with these bytes; ObjectConflict when with others."""
        try:
            found = await self.get(key)
        except ObjectMissing:
            return False
        if memoryview(found) != memoryview(data):
            raise ObjectConflict(key)
        return True

    async def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object."""
        try:
            meta = await self._call("head", obstore.head_async(self._inner, key), key)
        except ObjectMissing:
            return None
        return ObjectInfo(key, meta["size"], meta["last_modified"])

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield objects, page by page."""
        pages = obstore.list(self._inner, prefix.rstrip("/") or None, chunk_size=1000).__aiter__()
        while (page := await self._call("list", _next(pages))) is not None:
            for meta in page:
                if meta["path"].startswith(prefix):
                    yield ObjectInfo(meta["path"], meta["size"], meta["last_modified"])

    async def delete(self, key: str) -> None:
        """Delete an object; missing is fine."""
        try:
            await self._call("delete", obstore.delete_async(self._inner, key), key)
        except ObjectMissing:
            return

    async def sweep_leftovers(self, older_than: datetime) -> int:
        """Do nothing: a bucket shows no half-written object."""
        return 0

    async def close(self) -> None:
        """Let go of the connections: the library closes them when the store is gone."""
        self._inner = None

    async def _call(self, verb: str, awaitable: Awaitable[T], key: str | None = None) -> T:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await awaitable
        except FileNotFoundError as error:
            if key is None or _NO_BUCKET.search(str(error)):
                raise StoreMissing(self.url) from None
            raise ObjectMissing(key) from None
        except (failures.PermissionDeniedError, failures.UnauthenticatedError):
            raise AccessDenied(self.url, verb) from None
        except (failures.BaseError, OSError, TimeoutError, ValueError) as error:
            if verb == "delete" and "AccessDenied" in str(error):
                # A deletion is sent as a list of one, and refused inside an answer that is fine.
                raise AccessDenied(self.url, verb) from None
            if _NO_BUCKET.search(str(error)):
                raise StoreMissing(self.url) from None
            raise StoreUnavailable(self.url, f"{verb} failed ({_describe(error)})") from None


async def _next(pages: Any) -> Any:
    try:
        return await pages.__anext__()
    except StopAsyncIteration:
        return None


def _describe(error: BaseException) -> str:
    """Name an error by class and HTTP status: its text may hold a signed URL."""
    found = _STATUS.search(str(error))
    name = type(error).__name__
    return f"{name}, HTTP {found.group(1)}" if found else name
