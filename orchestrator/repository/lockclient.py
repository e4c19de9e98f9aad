"""The S3 calls that object lock needs and obstore lacks, through aiobotocore (the extra `s3-lock`).

What must never happen here: an error text of the library passed on, a credential in a message.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
import zlib
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import (
    AccessDenied,
    ObjectMissing,
    StoreMissing,
    StoreOptionUnknown,
    StoreUnavailable,
)
from orchestrator.repository.lock import LockMode, LockUnsupported
from orchestrator.repository.patience import PATIENCE_OPTIONS, Patience

CALL_TIMEOUT_S = 900.0
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_GONE = frozenset({"NoSuchKey", "404", "MethodNotAllowed", "NoSuchObjectLockConfiguration"})
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_OPTIONS = PATIENCE_OPTIONS | {
    "access_key_id",
    "secret_access_key",
    "session_token",
    "role_arn",
    "role_session_name",
    "web_identity_token_file",
    "metadata_endpoint",
    "region",
    "endpoint",
    "allow_http",
    "ca_certificate",
    "virtual_hosted_style_request",
    "server_side_encryption",
    "sse_kms_key_id",
}


class S3LockClient:
    """One bucket and prefix. Connects at the first call; credentials as given, else botocore's own chain."""

    def __init__(self, url: str, options: dict[str, str], *, attempts: int | None = None) -> None:
        """Take an s3:// address and the store's options; `attempts` instead of the option `retries` and one."""
        parts = urlsplit(url)
        self._patience = Patience.of(options)
        self._attempts = attempts or 1 + self._patience.retries
        self._url, self._bucket, self._prefix = url, parts.netloc, unquote(parts.path).strip("/")
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise StoreOptionUnknown(f"Object lock takes no option {', '.join(unknown)}")
        if "role_arn" in options and "web_identity_token_file" not in options:
            raise StoreOptionUnknown("Object lock takes option role_arn together with web_identity_token_file only")
        self._options = {name: value.strip() for name, value in options.items()}
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"S3LockClient({self._url!r})"

    async def put_locked(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> bool:
        """Create an object with a retention, by one conditional PUT; False when the name is taken."""
        try:
            await self._put(key, data, mode, until, IfNoneMatch="*")
        except _Taken:
            return False
        return True

    async def put_over(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> None:
        """Put an object with a retention, whatever is at its name: that becomes an older version."""
        try:
            await self._put(key, data, mode, until)
        except _Taken:
            # Another put of the same name was under way.
            raise StoreUnavailable(self._url, "put_object met another one at the same name") from None

    async def _put(self, key: str, data: Bytes, mode: LockMode, until: datetime, **condition: str) -> None:
        body = bytes(data)
        checksum = base64.b64encode((await asyncio.to_thread(zlib.crc32, body)).to_bytes(4, "big")).decode()
        extra = {"ServerSideEncryption": self._options.get("server_side_encryption")}
        extra["SSEKMSKeyId"] = self._options.get("sse_kms_key_id")
        await self._call(
            "put_object",
            key,
            Body=body,
            ObjectLockMode=mode,
            ObjectLockRetainUntilDate=until,
            ChecksumCRC32=checksum,
            **{name: value for name, value in extra.items() if value},
            **condition,
        )

    async def renew(self, key: str, mode: LockMode, until: datetime) -> None:
        """Extend an object's retention; one that lasts longer already is left as it is."""
        try:
            await self._call("put_object_retention", key, Retention={"Mode": mode, "RetainUntilDate": until})
        except (AccessDenied, LockUnsupported):
            # Stores don't agree in how they refuse a shorter lock, or another mode.
            found = (await self._call("get_object_retention", key))["Retention"]
            if found["RetainUntilDate"] >= until:
                return
            if found["Mode"] == mode:
                raise
            await self._call("put_object_retention", key, Retention={**found, "RetainUntilDate": until})

    async def retained_until(self, key: str) -> datetime | None:
        """Return until when an object is kept, None when it isn't locked."""
        try:
            found = await self._call("get_object_retention", key)
        except ObjectMissing:
            return None
        until: datetime = found["Retention"]["RetainUntilDate"]
        return until

    async def problems(self) -> list[str]:
        """Say what is wrong with the bucket."""
        return [*await self.no_lock(), *await self.no_lifecycle()]

    async def no_lock(self) -> list[str]:
        """Say why nothing can be locked in this bucket; nothing when it can."""
        found = []
        versioning = await self._ask("get_bucket_versioning")
        if versioning.get("Status") != "Enabled":
            found.append("it keeps no versions")
        lock = (await self._ask("get_object_lock_configuration")).get("ObjectLockConfiguration", {})
        if lock.get("ObjectLockEnabled") != "Enabled":
            found.append("object lock is not enabled on it")
        return found

    async def no_lifecycle(self) -> list[str]:
        """Say why space doesn't come back; nothing when it does."""
        rules = (await self._ask("get_bucket_lifecycle_configuration")).get("Rules", [])
        if not any(rule.get("Status") == "Enabled" and "NoncurrentVersionExpiration" in rule for rule in rules):
            return ["no lifecycle rule expires noncurrent versions: space never comes back"]
        return []

    async def close(self) -> None:
        """Let go of connections."""
        await self._stack.aclose()
        self._client = None

    async def _ask(self, name: str) -> dict[str, Any]:
        """Return a bucket's setting, {} when it has none or the store doesn't know it."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer: dict[str, Any] = await getattr(await self._opened(), name)(Bucket=self._bucket)
                return answer
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == "NoSuchBucket":
                raise StoreMissing(self._url) from None
            if status == 403:
                raise AccessDenied(self._url, name) from None
            return {}
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise StoreUnavailable(self._url, f"{name} failed ({type(error).__name__})") from None

    async def _call(self, name: str, key: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        full = f"{self._prefix}/{key}" if self._prefix else key
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                call = getattr(await self._opened(), name)
                answer: dict[str, Any] = await call(Bucket=self._bucket, Key=full, **arguments)
                return answer
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in _TAKEN or status == 412:
                raise _Taken from None
            if code in _GONE:
                raise ObjectMissing(key) from None
            if code == "NoSuchBucket":
                raise StoreMissing(self._url) from None
            if code in ("InvalidRequest", "ObjectLockConfigurationNotFoundError", "NotImplemented"):
                raise LockUnsupported(self._url, f"{name} was refused ({code})") from None
            if code in _SKEWED:
                what = "the clocks of this machine and of the store differ by more than it allows"
                raise StoreUnavailable(self._url, what) from None
            if status == 403:
                raise AccessDenied(self._url, name) from None
            raise StoreUnavailable(self._url, f"{name} failed ({code}, HTTP {status})") from None
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise StoreUnavailable(self._url, f"{name} failed ({type(error).__name__})") from None

    async def _opened(self) -> Any:
        async with self._opening:
            if self._client is None:
                # Half a second of the loop's time otherwise; what is missing is said below.
                with suppress(ImportError):
                    await asyncio.to_thread(import_module, "aiobotocore.session")
                self._client = await self._stack.enter_async_context(self._new())
            return self._client

    def _new(self) -> Any:
        try:
            from aiobotocore.session import get_session
            from botocore.config import Config
        except ImportError:
            raise LockUnsupported(self._url, "the extra is missing (pip install 'tidemark[s3-lock]')") from None
        options, session = self._options, get_session()
        virtual = options.get("virtual_hosted_style_request", "").lower() in ("1", "true", "yes", "on")
        config = Config(
            connect_timeout=self._patience.connect_timeout_s,
            read_timeout=self._patience.request_timeout_s,
            retries={"total_max_attempts": self._attempts, "mode": "adaptive"},
            s3={"addressing_style": "virtual" if virtual else "path", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=16,
        )
        if endpoint := options.get("metadata_endpoint"):
            session.set_config_variable("ec2_metadata_service_endpoint", endpoint)
        if "web_identity_token_file" in options:
            session.get_component("credential_provider").providers.insert(0, self._web_identity(session))
        return session.create_client(
            "s3",
            endpoint_url=options.get("endpoint"),
            region_name=options.get("region", "us-east-1"),
            aws_access_key_id=options.get("access_key_id"),
            aws_secret_access_key=options.get("secret_access_key"),
            aws_session_token=options.get("session_token"),
            verify=self._authority(),
            config=config,
        )

    def _web_identity(self, session: Any) -> Any:
        """Return what changes a workload's token for credentials of a role, as the options name them."""
        from aiobotocore.credentials import AioAssumeRoleWithWebIdentityProvider

        names = ("role_arn", "role_session_name", "web_identity_token_file")
        profile = {name: self._options[name] for name in names if name in self._options}
        region = self._options.get("region", "us-east-1")

        def client(service: str, **arguments: Any) -> Any:
            return session.create_client(service, **{"region_name": region, **arguments})

        return AioAssumeRoleWithWebIdentityProvider(
            load_config=lambda: {"profiles": {"tidemark": profile}},
            client_creator=client,
            profile_name="tidemark",
            disable_env_vars="role_arn" in profile,
        )

    def _authority(self) -> str | None:
        """Return the file of an authority of one's own, None for the system's: the library takes no text."""
        text = self._options.get("ca_certificate", "").replace("\\n", "\n")
        if not text:
            return None
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tidemark-authority-"))
        (file := Path(folder) / "ca.pem").write_text(text)
        return str(file)


class _Taken(Exception):
    """The name is taken."""
