"""What is kept out of a short process is kept out of its imports only: everything works, and nothing stays behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sparing import without

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[1]
PROOF = """
import sys
from orchestrator.sparing import asyncio_without_tls, lean_msgspec
lean_msgspec()
asyncio_without_tls()
early = {"ssl", "typing_extensions", "platform"} & set(sys.modules)
import asyncio, copy, datetime, pickle, platform, ssl, typing, typing_extensions, uuid
import msgspec

class Kept(msgspec.Struct):
    at: datetime.datetime
    delta: datetime.timedelta
    id: uuid.UUID
    name: typing.Annotated[str, msgspec.Meta(min_length=1)]

class Loose(typing.TypedDict, total=False):
    name: typing.Required[str]
    more: int

kept = Kept(datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC), datetime.timedelta(1), uuid.UUID(int=7), "x")
assert msgspec.json.decode(msgspec.json.encode(kept), type=Kept) == kept
assert msgspec.json.decode(b'{"name": "x"}', type=Loose) == {"name": "x"}
assert pickle.loads(pickle.dumps(kept.at)) == copy.deepcopy(kept.at) == kept.at
assert datetime.datetime.strptime("2026-03-01", "%Y-%m-%d").date() == kept.at.date()

async def talk():
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    try:  # never in the clear where TLS was asked for
        await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=ssl.create_default_context())
    except RuntimeError:
        return "refused"
    finally:
        server.close()

print(early, asyncio.run(talk()), platform.python_version()[:2], ssl.OPENSSL_VERSION[:7], uuid.uuid4().version)
"""


def test_a_process_without_them_works_and_has_the_whole_of_each_when_it_asks() -> None:
    done = subprocess.run([sys.executable, "-c", PROOF], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == ["set()", "refused", "3.", "OpenSSL", "4"]


def test_what_is_loaded_stays_and_what_is_kept_out_may_come_later() -> None:
    with without("json"), without("antigravity"):
        import json

        assert json.dumps([]) == "[]"
        with pytest.raises(ImportError):
            import antigravity  # noqa: F401
    assert "antigravity" not in sys.modules


def test_what_a_mover_needs_for_a_bucket_brings_nothing_else_along() -> None:
    script = (
        "import sys; from orchestrator.sparing import asyncio_without_tls, lean_msgspec; lean_msgspec()\n"
        "asyncio_without_tls(); import orchestrator.mover.main, orchestrator.mover.backup\n"
        "import orchestrator.repository.cloud\n"
        "print({'ssl', 'typing_extensions', 'platform', 'dataclasses', 'hashlib', 'shutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
