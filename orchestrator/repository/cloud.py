"""S3, Google Cloud Storage and Azure Blob through obstore; memory for tests.

Per-request timeouts are obstore's; tries and waits are ours (`patience`), each call has a deadline on top. What must
never happen here: an error text of the library passed on (it may quote a signed URL), an unclear create taken for
success, a proxy's page taken for an object or for the end of a listing.
"""

from __future__ import annotations

import asyncio
import builtins
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import obstore
from obstore import exceptions as failures
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from orchestrator.errors import TidemarkError
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import (
    AccessDenied,
    ObjectConflict,
    ObjectMissing,
    StoreMissing,
    StoreOptionUnknown,
    StoreUnavailable,
)
from orchestrator.repository.patience import (
    FAILURES,
    PATIENCE_OPTIONS,
    Mangled,
    Pace,
    Patience,
    Tries,
    Verdict,
    judge,
    status_of,
)
from orchestrator.repository.store import COALESCE_GAP, ObjectInfo, check_size, coalesce

CALL_TIMEOUT_S = 900.0
"""One call with all its tries."""
PAGE_NAMES = 1000
_S3_ETAG = re.compile(r'"?[0-9a-fA-F]{32}(?:-\d+)?"?')
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
COMMON_OPTIONS = PATIENCE_OPTIONS | {"ca_certificate"}
_KNOWN = {
    "s3": S3_OPTIONS | COMMON_OPTIONS,
    "gs": GS_OPTIONS | COMMON_OPTIONS,
    "az": AZ_OPTIONS | COMMON_OPTIONS,
    "memory": frozenset[str](),
}
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
        return CloudStore(url, _MEMORY.setdefault(url, MemoryStore()), Patience(retries=0))
    patience = Patience.of(options)
    ours = COMMON_OPTIONS | {"allow_http"}
    config: dict[str, Any] = {name: value.strip() for name, value in options.items() if name not in ours}
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=patience.request_timeout_s),
        "connect_timeout": timedelta(seconds=patience.connect_timeout_s),
        "allow_http": _allow_http(options),
    }
    if authority := options.get("ca_certificate", "").strip():
        # In a file of `name=value` lines the line ends of a PEM are written as \n.
        client["root_certificate"] = authority.replace("\\n", "\n")
    # Not the library's: its first wait is the same for all, it knows no pause, and it retries neither what was cut in
    # the middle nor a proxy's page.
    retry: dict[str, Any] = {"max_retries": 0}
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    if scheme == "s3":
        config.setdefault("region", "us-east-1")
        config["conditional_put"] = "etag"
    try:
        inner = kind(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)
    except (failures.BaseError, ValueError, TypeError):
        # The library's text may quote the value of a credential.
        raise StoreOptionUnknown(f"The options for {url} don't make a {scheme} store") from None
    return CloudStore(url, inner, patience)


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

    def __init__(self, url: str, inner: Any, patience: Patience) -> None:
        """Wrap an obstore store."""
        self.url = url
        self._inner = inner
        self._patience = patience
        self._pace = Pace()
        self._is_s3 = url.startswith("s3:")
        self._in_memory = isinstance(inner, MemoryStore)
        self._strict = self._in_memory or url.startswith("az:")
        """Whether nothing but a listing is taken for one: the library demands of Azure's what it needn't of S3's."""
        self._witness: tuple[str, int] | None = None
        """Name and size of the first object that was read: what only the bucket can show."""

    async def get(self, key: str) -> bytes:
        """Return a whole object."""
        return await self._get(key, Tries(self._patience))

    async def _get(self, key: str, tries: Tries) -> bytes:
        async def call() -> bytes:
            answer = await obstore.get_async(self._inner, key)
            check_size(key, answer.meta["size"])
            data = bytes(await answer.bytes_async())
            kind = str(answer.attributes.get("Content-Type", ""))
            if ("html" in kind or "xml" in kind) and data.lstrip()[:1] == b"<":
                raise Mangled  # no object of ours begins so: somebody else answered
            self._witness = self._witness or (key, len(data))
            return data

        return await self._call("get", call, key, tries)

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

        async def call() -> Bytes:
            data = memoryview(await obstore.get_range_async(self._inner, key, start=start, length=length))
            if len(data) < length and (await obstore.head_async(self._inner, key))["size"] > start + len(data):
                raise Mangled  # short, and not because the object ends there
            return data

        try:
            return await self._call("get", call, key)
        except StoreUnavailable:
            found = await self.head(key)
            if found is None or found.size > start:
                raise
            return b""

    async def put_new(self, key: str, data: Bytes) -> None:
        """Create an object by a conditional PUT; anything but a clear answer is settled by reading back."""
        if self._in_memory:
            # It keeps the caller's memory itself, which is used again for the next pack.
            data = bytes(data)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._put_new(key, data, Tries(self._patience))
        except TimeoutError as error:
            raise StoreUnavailable(self.url, f"put failed ({describe(error)})") from None

    async def _put_new(self, key: str, data: Bytes, tries: Tries) -> None:
        while True:
            began = await self._pace.turn()
            try:
                told = await obstore.put_async(self._inner, key, data, mode="create", use_multipart=False)
            except FAILURES as error:
                verdict = judge(error, xml=self._is_s3)
                failure = self._failure("put", error, verdict, key)
                if verdict is Verdict.DENIED:
                    raise failure from None
                if verdict is Verdict.SLOW:
                    self._pace.refused(began)
                # After a 5xx the condition itself tells, with the next try; a broken connection may have been the
                # answer to an object that is there already, and reading is cheaper than sending all of it again.
                elif (status_of(str(error)) or 0) < 500 and await self._settled(key, data, tries):
                    return
                elif verdict in (Verdict.NO_BUCKET, Verdict.FINAL):
                    raise failure from None
            else:
                self._pace.answered(began)
                if not self._is_s3 or _S3_ETAG.fullmatch(told.get("e_tag") or ""):
                    return
                # Not S3's way to say it: perhaps a proxy's page, and nothing stored.
                if await self._settled(key, data, tries):
                    return
                verdict, failure = Verdict.PASSING, StoreUnavailable(self.url, "put was answered and not done")
            if not await tries.again(slow=verdict is Verdict.SLOW):
                if await self._settled(key, data, tries):
                    return
                raise failure from None

    async def _settled(self, key: str, data: Bytes, tries: Tries) -> bool:
        """Say whether the object is there with these bytes; ObjectConflict when with others."""
        try:
            found = await self._get(key, tries)
        except ObjectMissing:
            return False
        if memoryview(found) != memoryview(data):
            raise ObjectConflict(key)
        return True

    async def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object."""

        async def call() -> Any:
            meta = await obstore.head_async(self._inner, key)
            if not meta["last_modified"].timestamp():
                raise Mangled  # an answer without a date is no bucket's
            return meta

        try:
            meta = await self._call("head", call, key)
        except ObjectMissing:
            return None
        return ObjectInfo(key, meta["size"], meta["last_modified"])

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield objects, page by page; cut off, it goes on after the last name.

        The library takes any XML or HTML without names in it for the end, such as a proxy's page. So the end is asked
        for twice, and between the two the bucket shows an object that it showed before: half a listing would make
        living data look dead, and an empty one a repository sound.
        """
        after: str | None = None
        floor: str | None = None
        confirmed = self._strict
        pages: Any = None

        async def call() -> Any:
            nonlocal pages, floor
            if pages is None:
                under, floor = prefix.rstrip("/") or None, after
                pages = obstore.list(self._inner, under, offset=after, chunk_size=PAGE_NAMES).__aiter__()
            try:
                return await _next(pages)
            except BaseException:
                pages = None  # it is over after an error: the next try opens it again, after the last name
                raise

        while True:
            page = await self._call("list", call)
            # A server that ignores where to begin tells everything once more.
            fresh = [meta for meta in page or () if floor is None or meta["path"] > floor]
            if page is None:
                if confirmed:
                    return
                await self._show_witness()
                confirmed, pages = True, None
            elif fresh:
                confirmed = self._strict
            for meta in fresh:
                after = max(after or "", meta["path"])
                if meta["path"].startswith(prefix):
                    yield ObjectInfo(meta["path"], meta["size"], meta["last_modified"])

    async def _show_witness(self) -> None:
        """Have the bucket itself answer, within patience; StoreUnavailable when it is somebody else."""
        if self._witness is None:
            return
        key, size = self._witness

        async def call() -> None:
            if (await obstore.head_async(self._inner, key))["size"] != size:
                raise Mangled

        try:
            await self._call("head", call, key)
        except ObjectMissing:
            self._witness = None  # deleted since

    async def delete(self, key: str) -> None:
        """Delete an object; missing is fine."""

        async def call() -> None:
            await obstore.delete_async(self._inner, key)

        try:
            await self._call("delete", call, key)
        except ObjectMissing:
            return

    async def sweep_leftovers(self, older_than: datetime) -> int:
        """Do nothing: a bucket shows no half-written object."""
        return 0

    async def close(self) -> None:
        """Let go of the connections: the library closes them when the store is gone."""
        self._inner = None

    async def _call(
        self, verb: str, make: Callable[[], Awaitable[T]], key: str | None = None, tries: Tries | None = None
    ) -> T:
        """Send a request that may be repeated, as often as patience lasts."""
        tries = tries or Tries(self._patience)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                while True:
                    began = await self._pace.turn()
                    try:
                        answer = await make()
                    except FAILURES as error:
                        verdict = judge(error, xml=self._is_s3)
                        failure = self._failure(verb, error, verdict, key)
                        if verdict is Verdict.SLOW:
                            self._pace.refused(began)
                        elif verdict is not Verdict.PASSING:
                            raise failure from None
                        if not await tries.again(slow=verdict is Verdict.SLOW):
                            raise failure from None
                    else:
                        self._pace.answered(began)
                        return answer
        except TimeoutError as error:
            raise StoreUnavailable(self.url, f"{verb} failed ({describe(error)})") from None

    def _failure(self, verb: str, error: BaseException, verdict: Verdict, key: str | None) -> TidemarkError:
        match verdict:
            case Verdict.MISSING if key is not None:
                return ObjectMissing(key)
            case Verdict.MISSING | Verdict.NO_BUCKET:
                return StoreMissing(self.url)
            case Verdict.DENIED:
                return AccessDenied(self.url, verb)
            case _:
                return StoreUnavailable(self.url, f"{verb} failed ({describe(error)})")


async def _next(pages: Any) -> Any:
    try:
        return await pages.__anext__()
    except StopAsyncIteration:
        return None


CAUSES = {
    "ConnectionRefused": "connection refused",
    "dns error": "the host's name isn't known",
    "invalid peer certificate": "its certificate isn't trusted",
}
"""What the library's text says somewhere in its depths, and what it means."""


def describe(error: BaseException) -> str:
    """Name an error by its cause or class, and HTTP status: its own text may hold a signed URL."""
    text = str(error)
    status = status_of(text)
    name = "an answer that can't be true" if isinstance(error, Mangled) else type(error).__name__
    if status:
        return f"{name}, HTTP {status}"
    return next((cause for words, cause in CAUSES.items() if words in text), name)
