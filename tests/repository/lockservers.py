"""Real S3 servers with object lock, one bucket each: `root` owns it, `writer` may read and put, and delete nothing.

versitygw by default; `TIDEMARK_LOCK_SERVER=minio` takes MinIO (`make lock-server`). They differ where it hurts:
versitygw refuses a conditional put where a delete marker stands and knows no lifecycle rules, MinIO allows the one and
knows the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.repository.lockclient import S3LockClient
from tests.repository.emulators import tool
from tests.waiting import LONG

BUCKET = "locked-bucket"
SERVER = os.environ.get("TIDEMARK_LOCK_SERVER", "versitygw")
READ = ["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention"]
WRITE = ["s3:PutObject", "s3:PutObjectRetention"]


def statements(**who: Any) -> list[dict[str, Any]]:
    """Return what a writer may do."""
    objects = {"Effect": "Allow", **who, "Action": [*READ, *WRITE], "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    return [objects, {"Effect": "Allow", **who, "Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{BUCKET}"}]


class LockServer:
    """One server process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.program, self.folder = tool(SERVER), folder
        self.address = self.endpoint.removeprefix("http://")
        self.session: dict[str, str] = {}
        """Options of the writer, where the server gives them for a session only."""

    @property
    def command(self) -> list[str]:
        if SERVER == "minio":
            return [self.program, "server", "--quiet", "--address", self.address, str(self.folder / "data")]
        posix = ["posix", "--versioning-dir", str(self.folder / "versions"), str(self.folder / "data")]
        options = ["--quiet", "--port", self.address, "--iam-dir", str(self.folder / "users")]
        return [self.program, *options, *posix]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for name in ("data", "versions", "users"):
            (self.folder / name).mkdir()
        keys = {"ROOT_ACCESS_KEY": "root", "ROOT_SECRET_KEY": "rootsecret"}
        keys |= {"MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "rootsecret", "MINIO_BROWSER": "off"}
        keys |= {"MINIO_SCANNER_SPEED": "fastest", "MINIO_SCANNER_CYCLE": "1s", "MINIO_UPDATE": "off"}
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(self.command, env={**os.environ, **keys}, stdout=quiet, stderr=quiet)
        try:
            host, port = self.address.split(":")
            end = time.monotonic() + LONG
            while True:
                with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                    break
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)  # a real process: there is nothing to wait on
            if SERVER == "versitygw":
                admin = ["admin", "-a", "root", "-s", "rootsecret", "--er", self.endpoint]
                user = ["create-user", "-a", "writer", "-s", "writersecret", "-r", "user"]
                subprocess.run([self.program, *admin, *user], check=True, capture_output=True, timeout=60)
            yield
        finally:
            server.terminate()
            server.wait(20)

    def options(self, who: str) -> dict[str, str]:
        """Return the store options of `root` or `writer`."""
        keys = {"access_key_id": who, "secret_access_key": f"{who}secret"}
        if who == "writer" and self.session:
            keys = self.session
        return {**keys, "endpoint": self.endpoint, "region": "us-east-1"}

    async def call(self, who: str, name: str, **arguments: Any) -> dict[str, Any]:
        """Make any S3 call as somebody."""
        client = S3LockClient(f"s3://{BUCKET}/", self.options(who))
        try:
            answer: dict[str, Any] = await getattr(await client._opened(), name)(Bucket=BUCKET, **arguments)
            return answer
        finally:
            await client.close()

    async def versions(self, prefix: str) -> list[dict[str, Any]]:
        """Return all versions below a prefix, markers too (`IsMarker`), newest of a name first."""
        found = await self.call("root", "list_object_versions", Prefix=prefix)
        markers = [{**marker, "IsMarker": True} for marker in found.get("DeleteMarkers", [])]
        return [*({**version, "IsMarker": False} for version in found.get("Versions", [])), *markers]

    async def make_bucket(self) -> None:
        """Make the bucket, and the writer."""
        await self.call("root", "create_bucket", ObjectLockEnabledForBucket=True)
        if SERVER == "minio":
            self.session = await self._session(json.dumps({"Version": "2012-10-17", "Statement": statements()}))
            return
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements(Principal=["writer"])})
        await self.call("root", "put_bucket_policy", Policy=policy)

    async def _session(self, policy: str) -> dict[str, str]:
        """Return credentials that a policy binds: MinIO makes users by a protocol of its own, sessions by AWS's."""
        from aiobotocore.session import get_session

        client = get_session().create_client(
            "sts",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="root",
            aws_secret_access_key="rootsecret",
        )
        async with client as sts:
            answer = await sts.assume_role(
                RoleArn="arn:aws:iam::123456789012:role/writer", RoleSessionName="writer", Policy=policy
            )
        given = answer["Credentials"]
        return {
            "access_key_id": given["AccessKeyId"],
            "secret_access_key": given["SecretAccessKey"],
            "session_token": given["SessionToken"],
        }
