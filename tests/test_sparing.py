"""What is kept out of a short process is kept out of its imports only: everything works, and nothing stays behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sparing import without

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[1]
LEFT_OUT = {"ssl", "typing_extensions", "platform", "gettext", "locale", "ntpath", "ipaddress", "textwrap", "tokenize"}
LEFT_OUT |= {"inspect", "ast", "dis", "traceback", "linecache", "msgspec.inspect", "msgspec.toml"}
if sys.version_info >= (3, 12):
    LEFT_OUT -= {"linecache", "ipaddress"}  # later Pythons come to them in other ways
PROOF = """
import sys
from orchestrator.sparing import asyncio_without_tls, lean_argparse, lean_msgspec
lean_argparse()
lean_msgspec()
asyncio_without_tls()
early = LEFT_OUT & set(sys.modules)
import argparse, msgspec
import asyncio, copy, datetime, io, pathlib, pickle, platform, ssl, traceback, typing, typing_extensions, uuid

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
assert msgspec.inspect.type_info(int) == msgspec.inspect.IntType()
assert msgspec.json.schema(Kept)["$defs"]["Kept"]["properties"]["name"] == {"type": "string", "minLength": 1}
assert str(pathlib.PureWindowsPath("c:/a") / "b") == "c:\\\\a\\\\b"
assert argparse.ArgumentParser("x").format_help().endswith("show this help message and exit\\n")
assert asyncio.iscoroutinefunction(asyncio.sleep)
assert datetime.datetime.strptime("2026-03-01", "%Y-%m-%d").date() == kept.at.date()

async def talk():
    asyncio.get_running_loop().set_debug(True)
    made_here = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_debug(False)
    assert "base_events.py:" in repr(made_here)
    told = io.StringIO()
    asyncio.current_task().print_stack(file=told)
    assert "in talk" in told.getvalue()
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
    script = f"LEFT_OUT = {LEFT_OUT}\n{PROOF}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
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


def test_a_module_that_waits_is_imported_when_it_is_asked_and_nothing_stands_under_its_name() -> None:
    # given a library that imports one module for later, one for its own import, and one of which it wants an answer
    script = (
        "import sys; from orchestrator.sparing import later\n"
        "with later('colorsys', 'bisect'), later('fractions', gcd=lambda: 'ours'):\n"
        "    import colorsys, fractions; from bisect import insort\n"
        "print(*(name in sys.modules for name in ('colorsys', 'fractions', 'bisect')), fractions.gcd())\n"
        "print(colorsys.ONE_THIRD, fractions.Fraction(1, 2), hasattr(colorsys, 'nothing'))\n"
        "print(sys.modules['colorsys'] is colorsys, type(sys.modules['colorsys']) is type(sys))\n"
        "import decimal; one = decimal\n"
        "with later('decimal'):\n    import decimal\nprint(decimal is one)"
    )
    # when it was imported: then only what it needed is there, and the others when they are asked
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "False False True ours",
        "0.3333333333333333 1/2 False",
        "False True",
        "True",
    ]
