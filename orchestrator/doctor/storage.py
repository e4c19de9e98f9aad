"""The storage: can every driver in use be snapshotted without a choice left open, and does it tell what changed."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from orchestrator.api.foreign.core import PersistentVolumeClaim, StorageClass
from orchestrator.api.foreign.snapshot import VolumeSnapshotClass
from orchestrator.cbt.channel import BadService, parse_address, tls_context
from orchestrator.cbt.service import Service
from orchestrator.decisions.recovery_point import choose_class
from orchestrator.doctor.finding import Finding, Place, bad, ok, warn
from orchestrator.volumes.discovery import NoMetadataService, find_service

CONNECT_S = 5.0
EXPIRES_SOON = timedelta(days=14)
_IN_CLUSTER = (".svc", ".cluster.local")
_WRONG_NAME = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


async def drivers(place: Place) -> AsyncIterator[Finding]:
    """Can every storage class in use be snapshotted, and does its driver tell what changed?"""
    classes, _ = await place.client.list(StorageClass)
    claims, _ = await place.client.list(PersistentVolumeClaim)
    used = {c.spec.storage_class_name for c in claims}
    provisioners = sorted({c.provisioner for c in classes if c.name in used})
    if not provisioners:
        yield ok("drivers", "no claim uses a storage class yet")
        return
    snapshot_classes, _ = await place.client.list(VolumeSnapshotClass)
    for driver in provisioners:
        chosen = choose_class(snapshot_classes, driver, None)
        if not isinstance(chosen, str):
            remedy = "Make one VolumeSnapshotClass the driver's only default, or name one in each policy's options."
            if not any(c.driver == driver for c in snapshot_classes):
                remedy = "Make one, if the driver can snapshot; its volumes can't be backed up until then."
            yield warn("drivers", f"{driver}: {chosen.message}", remedy)
            if not any(c.driver == driver for c in snapshot_classes):
                continue
        try:
            service = await find_service(place.client, driver)
        except NoMetadataService as error:
            yield warn("drivers", f"{error}: its volumes are read whole", "Install the driver's metadata sidecar.")
            continue
        async for finding in metadata_service(place, service):
            yield finding


async def metadata_service(place: Place, service: Service) -> AsyncIterator[Finding]:
    """Can a driver's CBT service be trusted and reached from here? Sends no token."""
    what = f"{service.driver}: CBT service {service.address}"
    try:
        host, port = parse_address(service.address)
        context = tls_context(service.ca_pem)
    except BadService as error:
        yield bad("drivers", f"{what}: {error}", f"Correct SnapshotMetadataService {service.driver}.")
        return
    if not service.audience:
        yield bad("drivers", f"{what} names no audience", f"Correct SnapshotMetadataService {service.driver}.")
        return
    for finding in _authorities(what, service, place.now):
        yield finding
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        yield _untrusted(what, host, error)
    except socket.gaierror as error:
        yield _unresolved(place, what, host, error)
    except (OSError, TimeoutError) as error:
        words = str(error) or f"no answer within {CONNECT_S:.0f} s"
        yield warn("drivers", f"{what} can't be reached from here: {words}", _from_inside(place))
    else:
        try:
            yield _reached(what, service.driver, writer, place.now)
        finally:
            writer.close()


def _reached(what: str, driver: str, writer: asyncio.StreamWriter, now: datetime) -> Finding:
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate: dict[str, Any] = tls.getpeercert() or {}
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    if tls.selected_alpn_protocol() != "h2":
        return bad("drivers", f"{what} does not speak HTTP/2", "The address is not the metadata sidecar's gRPC port.")
    if ends - now < EXPIRES_SOON:
        return warn("drivers", f"{what}: its certificate ends {ends:%Y-%m-%d}", "Renew it before deltas stop.")
    return ok("drivers", f"{driver} can be snapshotted and tells what changed")


def _untrusted(what: str, host: str, error: ssl.SSLCertVerificationError) -> Finding:
    if error.verify_code in _WRONG_NAME:
        kind = "IP" if _is_address(host) else "DNS"
        return bad(
            "drivers",
            f"{what}: its certificate is not for {host}: volumes are read whole",
            f"Issue the certificate with the subject alternative name {kind}:{host} (a common name does not count), "
            "or set spec.address to a name that it has.",
        )
    return bad(
        "drivers",
        f"{what}: its certificate is not trusted ({error.verify_message}): volumes are read whole",
        "Put the CA that signed it into spec.caCert of the SnapshotMetadataService.",
    )


def _authorities(what: str, service: Service, now: datetime) -> list[Finding]:
    """Judge the CA bundle's end, which no connection from here is needed for."""
    found = []
    for authority in x509.load_pem_x509_certificates(service.ca_pem):
        ends = authority.not_valid_after_utc
        if ends < now:
            found.append(bad("drivers", f"{what}: a CA in caCert ended {ends:%Y-%m-%d}", "Renew the CA."))
        elif ends - now < EXPIRES_SOON:
            found.append(warn("drivers", f"{what}: a CA in caCert ends {ends:%Y-%m-%d}", "Renew the CA."))
    return found


def _unresolved(place: Place, what: str, host: str, error: socket.gaierror) -> Finding:
    if host.endswith(_IN_CLUSTER) or "." not in host:
        return warn("drivers", f"{what}: could not look: {host} is a name inside the cluster", _from_inside(place))
    return warn("drivers", f"{what}: {host} has no address ({error.strerror})", _from_inside(place))


def _from_inside(place: Place) -> str:
    pod = f"kubectl exec -n {place.settings.namespace} deploy/tidemark-controller -- tidemark doctor"
    return f"Look from inside the cluster: {pod}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
