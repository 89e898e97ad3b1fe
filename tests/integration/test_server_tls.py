"""The server's own certificate: issued here, its key on no disk, replaced while connections go on."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fakes.service import RunningService
from privyseal_ca.errors import SignerUnavailableError
from privyseal_ca.sections import parse_listener
from privyseal_ca.store.certificates import find_certificate


@contextmanager
def connected(service: RunningService, *, verify: bool = True) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(service.roots))
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    host, port = parse_listener(service.settings.server.https)
    with (
        socket.create_connection((host, port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        yield tls


def peer(tls: ssl.SSLSocket) -> x509.Certificate:
    der = tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def ask(tls: ssl.SSLSocket) -> bytes:
    tls.sendall(b"GET /acme/directory HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return tls.recv(65536)


def test_it_comes_from_the_own_issuer_and_is_in_store_and_ledger(service: RunningService) -> None:
    with connected(service) as tls:
        certificate = peer(tls)
    serial = f"{certificate.serial_number:032x}"
    row = service.read(lambda tx: find_certificate(tx, serial))
    assert row is not None
    assert row.requester == "service"
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH in usages
    kinds = [entry["kind"] for entry in service.ledger() if entry["payload"].get("serial") == serial]
    assert kinds == ["certificate.intent", "certificate.issued"]


def test_its_private_key_is_in_no_file_of_the_home(service: RunningService) -> None:
    files = [path for path in service.settings.home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"PRIVATE KEY" in path.read_bytes()]


def test_it_is_replaced_in_the_running_server_before_it_expires(fresh_service: RunningService) -> None:
    service = fresh_service
    with connected(service) as old_connection:
        first = peer(old_connection)
        service.clock.advance(service.settings.server.tls_lifetime / 2)
        assert not service.call(service.service.tls.renew_if_due())
        service.clock.advance(service.settings.server.tls_lifetime / 4)
        assert service.call(service.service.tls.renew_if_due())
        assert b"200 OK" in ask(old_connection)
    # The fake clock is hours ahead of the machine's, by which TLS is verified: only who is served is of interest here.
    with connected(service, verify=False) as new_connection:
        second = peer(new_connection)
        assert b"200 OK" in ask(new_connection)
    assert second.serial_number != first.serial_number
    assert second.public_key() != first.public_key()
    assert second.not_valid_after_utc > first.not_valid_after_utc


def test_a_renewal_that_fails_leaves_the_old_certificate_in_use_and_is_tried_again(
    fresh_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = fresh_service
    service.clock.advance(service.settings.server.tls_lifetime * 3 / 4)
    authority = service.service.context.authority
    issue = authority.issue

    async def away(*_arguments: object, **_options: object) -> None:
        raise SignerUnavailableError("The token is away.")

    monkeypatch.setattr(authority, "issue", away)
    with pytest.raises(SignerUnavailableError):
        service.call(service.service.tls.renew_if_due())
    with connected(service) as tls:
        assert b"200 OK" in ask(tls)
    monkeypatch.setattr(authority, "issue", issue)
    assert service.call(service.service.tls.renew_if_due())
