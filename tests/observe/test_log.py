"""No secret passes the log, however it gets into a record."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from orchestrator.observe.log import redact, setup, strike

pytestmark = pytest.mark.quick

JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl-_x"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nabcd\n-----END PRIVATE KEY-----"
AWS_ID = "AKIAIOSFODNN7EXAMPLE"
AWS_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
RUNTIME = 'run"time\\secret-4711'


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    text = io.StringIO()
    setup("debug", json=True, stream=text)
    yield text
    root.handlers[:] = before
    root.setLevel(level)


SECRETS = [
    (f"Authorization: Bearer {JWT}", JWT),
    (f"token {JWT} refused", JWT),
    ("Authorization: Bearer abcdef123456", "abcdef123456"),
    ("authorization='Basic dXNlcjpwYXNz'", "dXNlcjpwYXNz"),
    (PEM, "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"),
    (repr(PEM), "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"),
    (f"id {AWS_ID}", AWS_ID),
    (f"secret_access_key={AWS_SECRET}", AWS_SECRET),
    (f"{{'aws_secret_access_key': '{AWS_SECRET}'}}", AWS_SECRET),
    (json.dumps({"secret_access_key": AWS_SECRET}), AWS_SECRET),
    (json.dumps(json.dumps({"secretAccessKey": AWS_SECRET})), AWS_SECRET),
    ("https://b.blob.core.windows.net/c?sv=1&sig=abc%2Bdef&se=2", "abc%2Bdef"),
    ("https://user:hunter22@example.org/x", "hunter22"),
    ("password: 'two words'", "two words"),
    ("master.key = 0123456789abcdef", "0123456789abcdef"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_a_secret_never_passes_in_a_message_an_argument_an_extra_or_an_exception(
    stream: io.StringIO, text: str, secret: str
) -> None:
    # given
    log = logging.getLogger("test")
    # when it comes every way a secret can come
    log.info("said " + text)
    log.info("said %s", text)
    log.info("said %r", {"answer": text})
    log.info("with extra", extra={"answer": text})
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        log.exception("failed: %s", text)
    # then
    shown = stream.getvalue()
    assert len(shown.splitlines()) == 5
    assert secret not in shown
    assert json.dumps(secret)[1:-1] not in shown
    assert "[redacted]" in shown


@pytest.mark.parametrize("as_json", [True, False])
def test_a_value_registered_at_run_time_never_passes(stream: io.StringIO, as_json: bool) -> None:
    setup("info", json=as_json, stream=stream)
    redact(RUNTIME)
    logging.getLogger("test").info("%s and %r and %s", RUNTIME, RUNTIME, json.dumps(RUNTIME), extra={"x": RUNTIME})
    assert "4711" not in stream.getvalue()


def test_the_name_of_an_extra_field_tells_that_its_value_is_secret(stream: io.StringIO) -> None:
    logging.getLogger("test").info("opened", extra={"secret_access_key": "opensesame"})
    assert "opensesame" not in stream.getvalue()


def test_short_registered_values_blot_out_nothing() -> None:
    redact("a")
    assert strike("a cat") == "a cat"


@pytest.mark.parametrize(
    "text",
    [
        "backup_policy shop/nightly: NamespaceNotAllowed: namespace shop may not write to main",
        "tokenreviews.authentication.k8s.io is forbidden: no rights",
        "the event loop was blocked for 1.20 s",
        "s3://bucket/prefix/packs/00ab answered 503",
        "repository main: credentialsSecret tidemark-s3 not found",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert strike(text) == text


def test_a_line_is_json_with_what_was_given_as_extra(stream: io.StringIO) -> None:
    logging.getLogger("test.room").warning("hello %s", "world", extra={"point": "p-1", "count": 3})
    line = json.loads(stream.getvalue())
    assert {k: line[k] for k in ("level", "logger", "message", "point", "count")} == {
        "level": "warning",
        "logger": "test.room",
        "message": "hello world",
        "point": "p-1",
        "count": 3,
    }
    assert line["time"].endswith("+00:00")


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="use debug, info, warning or error"):
        setup("loud")
