"""Tokens for the CBT services: one audience each, never one that the API server accepts."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestrator.kube.client import Client
from orchestrator.kube.errors import Forbidden, TokenRefused
from orchestrator.kube.tokens import AccountTokens, Token, audiences_of
from tests.kube.fakes import FakeApi, Fault, write_kubeconfig

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
PATH = "/api/v1/namespaces/tidemark-system/serviceaccounts/tidemark-controller/token"


class TestClock:
    __test__ = False

    def __init__(self) -> None:
        self.instant = START

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()


class Issuer:
    """Answers TokenRequests as an API server whose own audience is `https://api.example`."""

    def __init__(self, api: FakeApi, clock: TestClock) -> None:
        self.clock = clock
        self.specs: list[dict[str, Any]] = []
        api.faults.append(Fault("POST", PATH, 10**6, self.issue))

    async def issue(self, request: web.Request) -> web.Response:
        spec = (await request.json())["spec"]
        self.specs.append(spec)
        expires = self.clock.now() + timedelta(seconds=spec["expirationSeconds"])
        audiences = spec["audiences"] or ["https://api.example"]
        answer = {
            "spec": {**spec, "audiences": audiences},
            "status": {"token": f"value-{len(self.specs)}", "expirationTimestamp": expires.isoformat()},
        }
        return web.json_response(answer, status=201)


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def issuer(api: FakeApi, clock: TestClock) -> Issuer:
    return Issuer(api, clock)


def source(client: Client, clock: TestClock, **environ: str) -> AccountTokens:
    return AccountTokens(
        client, clock, service_account="tidemark-controller", namespace="tidemark-system", environ=environ
    )


def jwt(aud: Any) -> str:
    parts = ({"alg": "RS256"}, {"aud": aud, "sub": "x"})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join((*encoded, "c2ln"))


async def test_a_token_is_kept_per_audience_and_renewed_in_time(
    client: Client, clock: TestClock, issuer: Issuer
) -> None:
    tokens = source(client, clock)
    first = await tokens.token("cbt-a")

    assert await tokens.token("cbt-a") == first
    assert (await tokens.token("cbt-b")).value != first.value
    clock.instant += timedelta(minutes=59)
    assert (await tokens.token("cbt-a", min_ttl_s=30)) == first
    second = await tokens.token("cbt-a")
    assert second.value != first.value
    assert second.expires_at == clock.now() + timedelta(hours=1)
    assert (await tokens.token("cbt-a", fresh=True)).value != second.value


@pytest.mark.parametrize("audience", ["", "  ", "https://api.example", "https://kubernetes.default.svc", "api"])
async def test_an_audience_that_would_open_the_api_server_is_refused(
    client: Client, clock: TestClock, issuer: Issuer, audience: str
) -> None:
    with pytest.raises(TokenRefused):
        await source(client, clock).token(audience)

    assert all(spec["audiences"] == [] for spec in issuer.specs), "no token for it was ever asked for"


async def test_the_servers_own_url_is_no_audience(client: Client, clock: TestClock, issuer: Issuer) -> None:
    with pytest.raises(TokenRefused):
        await source(client, clock).token(client.host)


async def test_our_own_tokens_claims_say_which_audiences_to_refuse(
    api: FakeApi, clock: TestClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = jwt(["https://mine.example"])
    monkeypatch.setattr("tests.kube.fakes.TOKEN", own)
    issuer = Issuer(api, clock)
    async with await Client.connect(kubeconfig=str(write_kubeconfig(tmp_path, api.url, own))) as client:
        with pytest.raises(TokenRefused):
            await source(client, clock).token("https://mine.example")
        await source(client, clock).token("cbt")

    assert [spec["audiences"] for spec in issuer.specs] == [["cbt"]]


async def test_when_the_audiences_cannot_be_found_out_no_token_is_minted(
    api: FakeApi, client: Client, clock: TestClock
) -> None:
    api.fail("POST", PATH, 403, "Forbidden", times=9)

    with pytest.raises(Forbidden):
        await source(client, clock).token("cbt")


async def test_a_token_is_bound_to_the_controllers_pod(client: Client, clock: TestClock, issuer: Issuer) -> None:
    await source(client, clock, POD_NAME="tidemark-0", POD_UID="u-1").token("cbt")

    assert issuer.specs[-1]["boundObjectRef"] == {"apiVersion": "v1", "kind": "Pod", "name": "tidemark-0", "uid": "u-1"}


@pytest.mark.quick
def test_a_token_shows_its_value_nowhere() -> None:
    assert "secret" not in f"{Token('secret', START)!r} {Token('secret', START)}"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("token", "found"),
    [
        (jwt("one"), {"one"}),
        (jwt(["one", "two"]), {"one", "two"}),
        ("opaque", set()),
        ("a.b.c", set()),
        ("", set()),
        ("!!.??.::", set()),
    ],
)
def test_audiences_are_read_from_a_jwt_and_from_nothing_else(token: str, found: set[str]) -> None:
    assert audiences_of(token) == found
