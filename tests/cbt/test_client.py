"""Finding and trusting a service: addresses, certificates, audiences, and what is done when they turn out wrong."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.cbt.channel import BadService, parse_address, tls_context
from orchestrator.cbt.errors import LookupTimedOut, ServiceInvalid, ServiceUnreachable
from orchestrator.cbt.service import Service, Token
from orchestrator.cbt.stream import Settings, Snapshot, allocated
from tests.cbt.server import BLOCK, START, Collected, ScriptedService, World, say, serve, server_context, world

SNAPSHOT = Snapshot("shop", "db-2")


async def ask(here: World) -> list[tuple[int, int]]:
    sink = Collected()
    await allocated(here.client, SNAPSHOT, size_bytes=BLOCK, sink=sink)
    return sink.ranges


@pytest.mark.quick
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("metadata.storage:6443", ("metadata.storage", 6443)),
        ("10.0.0.7:50051", ("10.0.0.7", 50051)),
        ("[fd00::7]:6443", ("fd00::7", 6443)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, expected: tuple[str, int]) -> None:
    assert parse_address(address) == expected


@pytest.mark.quick
@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":6443", "host:0", "host:70000", "https://host:1", "fd00::7:6443", "a b:1", "h:1\n"],
)
def test_anything_else_is_refused(address: str) -> None:
    with pytest.raises(BadService):
        parse_address(address)


@pytest.mark.quick
@pytest.mark.parametrize(
    "pem", [b"", b"hello", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_a_bundle_without_a_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(BadService):
        tls_context(pem)


@pytest.mark.quick
@pytest.mark.parametrize("most", [-1, 190_001])
def test_a_number_of_results_that_hangs_drivers_or_bursts_sidecars_is_refused(most: int) -> None:
    """T38."""
    with pytest.raises(ValueError, match="max_results"):
        Settings(max_results=most)


@pytest.mark.quick
def test_no_repr_shows_a_token() -> None:
    assert "hush" not in repr(Token("hush", START))


@pytest.mark.parametrize(
    "change",
    [
        lambda service: replace(service, audience=""),
        lambda service: replace(service, audience="  "),
        lambda service: replace(service, address="nowhere"),
        lambda service: replace(service, ca_pem=b"not a certificate"),
    ],
    ids=["no audience", "blank audience", "no port", "no CA"],
)
async def test_a_service_that_makes_no_sense_means_a_full_read(change: Callable[[Service], Service]) -> None:
    """T25, T26: without an audience a token would be one for the API server, so none is minted at all."""
    async with world(change=change) as here:
        with pytest.raises(ServiceInvalid) as caught:
            await ask(here)
    assert caught.value.next_rung == "full"
    assert here.service.requests == []
    if not here.client.service.audience.strip():
        assert here.tokens.minted == 0


async def test_a_service_that_moved_is_found_again() -> None:
    """A refused connection: the object is read again before each further try, and names another port now."""
    async with world([say((0, BLOCK))], change=lambda service: replace(service, address="127.0.0.1:1")) as here:
        assert await ask(here) == [(0, BLOCK)]
    assert (here.rediscoveries, here.rechecks) == (1, 1)


async def test_a_service_that_is_down_means_a_full_read() -> None:
    """T27: allocated goes to the same sidecar, so it isn't tried."""
    async with world() as here:
        here.found = replace(here.client.service, address="127.0.0.1:1")
        await here.client.rediscover()
        here.rediscoveries = 0
        with pytest.raises(ServiceUnreachable) as caught:
            await ask(here)
    assert (caught.value.next_rung, here.rediscoveries) == ("full", 10)


async def test_a_name_that_does_not_resolve_is_looked_up_again() -> None:
    wrong = "no-such-host.invalid:6443"
    async with world([say((0, BLOCK))], change=lambda service: replace(service, address=wrong)) as here:
        assert await ask(here) == [(0, BLOCK)]
    assert here.rediscoveries == 1


async def test_a_new_certificate_authority_is_read_from_the_object() -> None:
    """The certificate was rotated under a new CA: verification fails once, the object has the new bundle."""
    old = trustme.CA().cert_pem.bytes()
    async with world([say((0, BLOCK))], change=lambda service: replace(service, ca_pem=old)) as here:
        assert await ask(here) == [(0, BLOCK)]
    assert here.rediscoveries == 1


async def test_a_bundle_with_the_old_and_the_new_authority_is_trusted() -> None:
    old = trustme.CA().cert_pem.bytes()
    async with world([say((0, BLOCK))], change=lambda s: replace(s, ca_pem=old + s.ca_pem)) as here:
        assert await ask(here) == [(0, BLOCK)]
    assert here.rediscoveries == 0


async def test_a_stranger_is_never_spoken_to() -> None:
    """A wrong CA that stays wrong: no request, no token on the wire."""
    other = trustme.CA().cert_pem.bytes()
    async with world([say((0, BLOCK))], change=lambda service: replace(service, ca_pem=other)) as here:
        here.found = here.client.service
        with pytest.raises(ServiceUnreachable) as caught:
            await ask(here)
    assert here.service.requests == []
    assert caught.value.next_rung == "full"
    assert "certificate" in caught.value.code


async def test_a_certificate_for_another_name_is_refused() -> None:
    async with world() as here:
        other = ScriptedService([[say((0, BLOCK))]])
        async with serve(other, server_context(here.authority, "metadata.storage")):
            here.found = replace(here.client.service, address=f"127.0.0.1:{other.port}")
            await here.client.rediscover()
            with pytest.raises(ServiceUnreachable):
                await ask(here)
        assert other.requests == []


async def test_a_plain_text_service_is_refused() -> None:
    async with world() as here:
        other = ScriptedService([[say((0, BLOCK))]])
        async with serve(other, None):
            here.found = replace(here.client.service, address=f"127.0.0.1:{other.port}")
            await here.client.rediscover()
            with pytest.raises(ServiceUnreachable):
                await ask(here)
        assert other.requests == []


async def test_tls_1_1_is_refused() -> None:
    assert tls_context(trustme.CA().cert_pem.bytes()).minimum_version == ssl.TLSVersion.TLSv1_2


def _plain_authority() -> tuple[bytes, ssl.SSLContext]:
    """Make a CA without key usage, as the sidecar's documented recipe does, and a server certificate of it."""
    now = datetime.datetime.now(datetime.UTC)
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    ca = (
        builder(name, key.public_key())
        .add_extension(x509.BasicConstraints(True, None), False)
        .sign(key, hashes.SHA256())
    )
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    leaf = builder(x509.Name([]), leaf_key.public_key()).add_extension(san, True).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    trustme.LeafCert(private, leaf.public_bytes(pem), []).configure_cert(context)
    return ca.public_bytes(pem), context


async def test_an_authority_without_key_usage_is_trusted_also_where_python_is_strict() -> None:
    """T46: Python 3.13 sets the strict flag in default contexts, and with it this authority is refused."""
    pem, context = _plain_authority()
    strict = ssl.create_default_context(cadata=pem.decode())
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    other = ScriptedService([[say((0, BLOCK))]])
    async with world() as here, serve(other, context):
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", other.port, ssl=strict)
        here.found = replace(here.client.service, address=f"127.0.0.1:{other.port}", ca_pem=pem)
        await here.client.rediscover()
        assert await ask(here) == [(0, BLOCK)]
    assert not tls_context(pem).verify_flags & ssl.VERIFY_X509_STRICT


async def test_a_cluster_that_does_not_answer_is_no_reason_to_read_everything() -> None:
    """A token that doesn't come says nothing about the rung: the step is retried, not given up."""
    settings = Settings(lookup_timeout_s=0.05)
    async with world(settings=settings) as here:

        async def never(audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
            await asyncio.Event().wait()
            raise AssertionError

        here.tokens.token = never  # type: ignore[method-assign]
        with pytest.raises(LookupTimedOut):
            await ask(here)


async def test_one_connection_serves_many_calls() -> None:
    async with world(*[[say((0, BLOCK))]] * 3) as here:
        for _ in range(3):
            assert await ask(here) == [(0, BLOCK)]
        assert len(here.client._lines) == 1
    assert here.client._lines == {}
