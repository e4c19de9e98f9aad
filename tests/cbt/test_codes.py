"""The table of what to do about each failure, row by row."""

from __future__ import annotations

import pytest

from orchestrator.cbt.codes import ALLOCATED, DELTA, Code, Failure, Kind, Verdict, backoff_s, judge
from orchestrator.cbt.errors import Rung, clean

pytestmark = pytest.mark.quick

TRANSIENT = ["CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "UNAVAILABLE", "DATA_LOSS"]
# code, retries, next rung of a delta, next rung of allocated
ROWS: list[tuple[str, int, Rung, Rung]] = [
    *((code, 10, "allocated", "full") for code in TRANSIENT),
    ("INTERNAL", 3, "allocated", "full"),
    ("RESOURCE_EXHAUSTED", 10, "allocated", "full"),
    ("UNAUTHENTICATED", 1, "allocated", "full"),
    ("PERMISSION_DENIED", 0, "allocated", "full"),
    ("INVALID_ARGUMENT", 0, "allocated", "full"),
    ("NOT_FOUND", 0, "allocated", "full"),
    ("FAILED_PRECONDITION", 0, "allocated", "full"),
    ("OUT_OF_RANGE", 0, "full", "full"),
    ("UNIMPLEMENTED", 0, "allocated", "full"),
    ("ALREADY_EXISTS", 0, "allocated", "full"),
    ("OK", 0, "allocated", "full"),
]


def status(code: str) -> Failure:
    return Failure(Kind.STATUS, "", Code[code])


@pytest.mark.parametrize(("code", "retries", "delta", "allocated"), ROWS, ids=[row[0] for row in ROWS])
def test_every_code_has_its_retries_and_its_next_rung(code: str, retries: int, delta: Rung, allocated: Rung) -> None:
    for method, then in ((DELTA, delta), (ALLOCATED, allocated)):
        verdict = judge(status(code), method)
        assert (verdict.retries, verdict.then) == (retries, then)


def test_the_table_has_every_code() -> None:
    assert {row[0] for row in ROWS} == {code.name for code in Code}


@pytest.mark.parametrize("code", [*TRANSIENT, "INTERNAL", "RESOURCE_EXHAUSTED"])
def test_before_a_retry_the_snapshot_is_looked_at_again(code: str) -> None:
    assert judge(status(code), DELTA).recheck


def test_only_an_exhausted_resource_makes_the_messages_smaller() -> None:
    assert [code.name for code in Code if judge(status(code.name), DELTA).shrink] == ["RESOURCE_EXHAUSTED"]


def test_a_rejected_token_means_a_new_look_at_the_service_and_a_new_token_at_once() -> None:
    verdict = judge(status("UNAUTHENTICATED"), DELTA)
    assert verdict == Verdict(1, "allocated", rediscover=True, fresh_token=True, wait=False)


def test_an_unknown_snapshot_is_looked_up_only_when_no_base_can_be_meant() -> None:
    assert judge(status("NOT_FOUND"), ALLOCATED).recheck
    assert not judge(status("NOT_FOUND"), DELTA).recheck


def test_out_of_range_in_the_middle_means_once_more_from_the_start() -> None:
    assert judge(status("OUT_OF_RANGE"), DELTA, offset=4096).then == "restart"
    assert judge(status("OUT_OF_RANGE"), ALLOCATED, offset=4096).then == "restart"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.BROKEN, Verdict(10, "allocated", recheck=True)),
        (Kind.IDLE, Verdict(10, "allocated", recheck=True)),
        (Kind.UNREACHABLE, Verdict(10, "full", recheck=True, rediscover=True)),
        (Kind.UNTRUSTED, Verdict(1, "full", recheck=True, rediscover=True)),
        (Kind.OVERSIZE, Verdict(0, "allocated")),
        (Kind.GARBLED, Verdict(0, "allocated")),
    ],
)
def test_a_failure_without_a_code_has_its_row(kind: Kind, expected: Verdict) -> None:
    assert judge(Failure(kind), DELTA) == expected


def test_the_wait_doubles_to_half_a_minute_and_is_jittered_downwards() -> None:
    assert [backoff_s(n, 0.0) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff_s(1000, 0.999) >= 15
    assert backoff_s(3, 0.5) == 3


def test_what_a_server_says_is_cut_and_cleaned_of_tokens() -> None:
    jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0abc.c2lnbmF0dXJl"
    said = clean(f"token s3cret\n{jwt} is bad\x1b[31m", "s3cret")
    assert "s3cret" not in said
    assert jwt not in said
    assert said.isprintable()
    assert len(clean("x" * 5000)) == 240
    assert clean(None) == ""


@pytest.mark.parametrize(
    "part", ["", "Bearer ", "bearer%20", "token=", "x_", '{"authorization":"Bearer ', "https://h/?access_token="]
)
def test_no_token_passes_whole_cut_or_in_company(part: str) -> None:
    jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0abc.c2lnbmF0dXJl"
    for told in (jwt, jwt.rpartition(".")[0], jwt[:30], jwt[:12], jwt.upper() if "earer" in part else jwt):
        said = clean(f"refused: {part}{told}, sorry")
        assert told not in said
        assert not any(piece in said for piece in told.split(".") if piece)
        assert said.endswith(", sorry")


def test_names_with_dots_are_not_taken_for_tokens() -> None:
    words = "account may not get volumesnapshots.snapshot.storage.k8s.io at snapshot-metadata.hostpath-system.svc:6443"
    assert clean(words) == words
