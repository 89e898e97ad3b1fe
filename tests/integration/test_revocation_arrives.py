"""A revocation, from whoever revokes to whoever asks: real service, real token, over HTTP (promises P4, P7, P9)."""

from collections.abc import Callable
from functools import partial
from threading import Event
from time import monotonic
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.acme_client import AcmeClient, Issued, JwsKey
from fakes.outages import FailingToken
from fakes.service import NewClient, RunningService, StartService, serving
from fakes.status_client import ask, ask_serial, crl_url, eventually, fetch_crl, get, ocsp_url
from privyseal_acme import service as composition
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.revocation.revoke import ADMINISTRATOR_REASONS, revoke_certificate
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.certificates import IntentRow, find_certificate, open_intent
from privyseal_ca.store.statement import Transaction

_GOOD, _REVOKED, _UNKNOWN = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
#: Revocations are looked for at once, and nothing else happens meanwhile.
_FAST: dict[str, Any] = {"interval": 0.05, "watch_interval": 3600}


@pytest.fixture
def service(start_service: StartService) -> RunningService:
    return start_service(status=_FAST)


@pytest.fixture
def client(service: RunningService, new_client: NewClient) -> AcmeClient:
    return new_client(service)


def pair(issued: Issued) -> tuple[x509.Certificate, x509.Certificate]:
    """A certificate and its issuer's."""
    return issued.chain[0], issued.chain[1]


def listed(url: str, certificate: x509.Certificate) -> bool:
    return fetch_crl(url).get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def full_url(service: RunningService, issuer: x509.Certificate) -> str:
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    return f"{service.status}/crl/{key_id}.crl"


def revoke_behind_its_back(service: RunningService, certificate: x509.Certificate) -> None:
    """As another process does."""

    def unit(transaction: Transaction) -> None:
        row = find_certificate(transaction, f"{certificate.serial_number:032x}")
        assert row is not None
        revoke_certificate(
            transaction,
            row,
            reason=4,
            allowed_reasons=ADMINISTRATOR_REASONS,
            actor="operator:tests",
            correlation="tests",
            now=service.clock.now(),
        )

    service.write(unit)


def test_from_good_to_revoked(service: RunningService, client: AcmeClient) -> None:
    leaf, issuer = pair(client.issue("a.test"))
    other, _ = pair(client.issue("b.test"))
    assert ask(leaf, issuer).certificate_status is _GOOD
    assert not listed(crl_url(leaf), leaf)
    before = {url: number_of(fetch_crl(url)) for url in (crl_url(leaf), full_url(service, issuer))}

    assert client.revoke(leaf.public_bytes(Encoding.DER), reason=4).status == 200

    eventually(lambda: ask(leaf, issuer).certificate_status is _REVOKED)
    answer = ask(leaf, issuer, algorithm=hashes.SHA256())
    assert answer.certificate_status is _REVOKED
    assert answer.revocation_reason is x509.ReasonFlags.superseded
    assert answer.revocation_time_utc is not None
    assert answer.revocation_time_utc.timestamp() == int(service.clock.now())
    for url, number in before.items():
        eventually(lambda url=url: listed(url, leaf))
        crl = fetch_crl(url)
        assert number_of(crl) > number
        assert crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        entry = crl.get_revoked_certificate_by_serial_number(leaf.serial_number)
        assert entry is not None
        assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.superseded
    assert ask(other, issuer).certificate_status is _GOOD


def test_many_are_everywhere_within_five_seconds_by_few_crls(
    start_service: StartService, new_client: NewClient
) -> None:
    """With the interval that is the default."""
    service = start_service(status={"interval": StatusSettings().interval})
    client = new_client(service)
    leaves = []
    for number in range(12):
        leaf, issuer = pair(client.issue(f"{number}.many.test"))
        leaves.append(leaf)
    full = full_url(service, issuer)
    before, begun = number_of(fetch_crl(full)), monotonic()
    for leaf in leaves:
        assert client.revoke(leaf.public_bytes(Encoding.DER)).status == 200
    revoked = monotonic()
    for leaf in leaves:
        left = revoked + 5 - monotonic()
        eventually(lambda leaf=leaf: ask(leaf, issuer).certificate_status is _REVOKED, seconds=left)
        for url in (crl_url(leaf), full):
            left = revoked + 5 - monotonic()
            eventually(lambda leaf=leaf, url=url: listed(url, leaf), seconds=left)
    took = monotonic() - begun
    assert number_of(fetch_crl(full)) - before <= 1 + took / service.settings.status.interval


def test_what_acme_revokes_is_not_good_a_moment_later(start_service: StartService, new_client: NewClient) -> None:
    # Nothing looks for revocations by itself here.
    client = new_client(start_service())
    leaf, issuer = pair(client.issue("a.test"))
    assert ask(leaf, issuer).certificate_status is _GOOD
    assert client.revoke(leaf.public_bytes(Encoding.DER)).status == 200
    assert ask(leaf, issuer).certificate_status is _REVOKED


def test_the_part_that_a_certificate_names_is_that_part(client: AcmeClient) -> None:
    leaf, _ = pair(client.issue("a.test"))
    (named,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    scope = fetch_crl(crl_url(leaf)).extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert scope.critical
    assert scope.value.full_name == named.full_name
    assert scope.value.only_contains_user_certs
    assert not scope.value.indirect_crl


@pytest.mark.parametrize("way", ["account", "another account with the names", "certificate key"])
def test_all_ways_of_acme_lead_there(
    service: RunningService, client: AcmeClient, new_client: NewClient, way: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf, issuer = pair(client.issue("a.test", key=key))
    der = leaf.public_bytes(Encoding.DER)
    if way == "certificate key":
        answer = new_client(service, registered=False).revoke(der, key=JwsKey(private=key))
    elif way == "account":
        answer = client.revoke(der)
    else:
        stranger = new_client(service)
        stranger.ready_order("a.test")
        answer = stranger.revoke(der)
    assert answer.status == 200
    eventually(lambda: ask(leaf, issuer).certificate_status is _REVOKED)
    eventually(lambda: listed(crl_url(leaf), leaf))
    assert ask(leaf, issuer).revocation_reason is None


def test_an_abandoned_serial_is_revoked_and_an_unheard_of_one_unknown(
    service: RunningService, client: AcmeClient
) -> None:
    leaf, issuer = pair(client.issue("a.test"))
    authority = service.service.context.authority
    active = next(iter(authority.issuers))
    row = IntentRow(
        serial=f"{77:032x}",
        issuer_id=active.id,
        tbs_sha256=bytes(32),
        not_after=int(service.clock.now()) + 60,
        requester="service",
        correlation="tests",
        crl_shard=5,
    )
    service.write(lambda tx: open_intent(tx, row))
    assert ask_serial(77, issuer, ocsp_url(leaf)).certificate_status is _UNKNOWN
    assert service.call(authority.close_intents()) == 1
    eventually(lambda: ask_serial(77, issuer, ocsp_url(leaf)).certificate_status is _REVOKED)
    part = active.identity.pointers.crl(5)
    eventually(lambda: fetch_crl(part).get_revoked_certificate_by_serial_number(77) is not None)
    assert ask_serial(78, issuer, ocsp_url(leaf)).certificate_status is _UNKNOWN


def test_a_token_that_takes_its_time_keeps_no_revocation_from_being_known(
    start_service: StartService, new_client: NewClient
) -> None:
    token = FailingToken()
    service = start_service(parts=token.parts, status=_FAST)
    client = new_client(service)
    first, issuer = pair(client.issue("first.test"))
    then, _ = pair(client.issue("then.test"))
    assert ask(first, issuer).certificate_status is _GOOD
    assert ask(then, issuer).certificate_status is _GOOD
    forgotten: list[str] = []
    service.service.publication.ocsp.on_change(forgotten.extend)
    goes_on = Event()
    signing = Event()
    token.faults.hook("sign", lambda: (signing.set(), goes_on.wait(20)))
    try:
        revoke_behind_its_back(service, first)
        assert signing.wait(5)
        # What is to say so is being signed and signed; meanwhile nobody is told that the other is good.
        revoke_behind_its_back(service, then)
        eventually(lambda: f"{then.serial_number:032x}" in forgotten)
        assert not goes_on.is_set()
    finally:
        goes_on.set()
    eventually(lambda: ask(then, issuer).certificate_status is _REVOKED)


def test_while_the_token_is_away_answers_go_on_and_none_is_a_lie(
    start_service: StartService, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "_PROBE_SECONDS", 0.1)
    token = FailingToken()
    service = start_service(parts=token.parts, hsm={"retry_after": 0.05}, status=_FAST)
    client = new_client(service)
    kept, issuer = pair(client.issue("kept.test"))
    leaf, _ = pair(client.issue("gone.test"))
    for certificate in (kept, leaf):
        assert ask(certificate, issuer).certificate_status is _GOOD
    number = number_of(fetch_crl(crl_url(leaf)))
    token.take_away()
    assert client.revoke(leaf.public_bytes(Encoding.DER)).status == 200

    eventually(lambda: ask(leaf, issuer).response_status is ocsp.OCSPResponseStatus.TRY_LATER)
    assert ask(kept, issuer).certificate_status is _GOOD
    assert ask(kept, issuer, nonce=bytes(16)).response_status in {
        ocsp.OCSPResponseStatus.TRY_LATER,
        ocsp.OCSPResponseStatus.SUCCESSFUL,
    }
    assert number_of(fetch_crl(crl_url(leaf))) == number

    token.bring_back()
    eventually(lambda: ask(leaf, issuer).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL, seconds=20)
    assert ask(leaf, issuer).certificate_status is _REVOKED
    eventually(lambda: listed(crl_url(leaf), leaf), seconds=20)


def test_a_restart_goes_on_where_it_was(
    make_settings: Callable[..., Any], http01: Any, dns_server: Any, new_client: NewClient
) -> None:
    settings = make_settings(status=_FAST, validation={"resolvers": (dns_server.address,), "http_port": http01.port})
    with serving(settings) as service:
        client = new_client(service)
        kept, issuer = pair(client.issue("kept.test"))
        leaf, _ = pair(client.issue("gone.test"))
        assert client.revoke(leaf.public_bytes(Encoding.DER)).status == 200
        eventually(lambda: ask(leaf, issuer).certificate_status is _REVOKED)
        eventually(lambda: listed(crl_url(leaf), leaf))
        answers = [ask(leaf, issuer).signature, ask(kept, issuer).signature]
        part = get(crl_url(leaf))[0]
        responder = ask(kept, issuer).certificates
        now = service.clock.now()
    with serving(settings) as again:
        assert again.clock.now() >= now
        assert [ask(leaf, issuer).signature, ask(kept, issuer).signature] == answers
        assert get(crl_url(leaf))[0] == part
        assert ask(kept, issuer).certificates == responder


def test_another_public_url_leaves_certificates_with_the_lists_that_they_name(
    make_settings: Callable[..., Any], http01: Any, dns_server: Any, new_client: NewClient
) -> None:
    validation = {"resolvers": (dns_server.address,), "http_port": http01.port}
    now = make_settings(status=_FAST, validation=validation)
    port = now.server.http.rpartition(":")[2]
    server = now.server.model_copy(update={"http_url": f"http://localhost:{port}"})
    with serving(now.model_copy(update={"server": server})) as service:
        old, _ = pair(new_client(service).issue("old.test"))
        assert crl_url(old).startswith(f"http://localhost:{port}/crl/")
    with serving(now) as service:
        client = new_client(service)
        new, issuer = pair(client.issue("new.test"))
        assert crl_url(new).startswith(f"http://127.0.0.1:{port}/crl/")
        for leaf in (old, new):
            service.write(partial(_revoke, serial=serial_text(leaf.serial_number), now=service.clock.now()))
            eventually(lambda leaf=leaf: listed(crl_url(leaf), leaf))
            (named,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
            scope = fetch_crl(crl_url(leaf)).extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
            assert scope.full_name == named.full_name
            eventually(lambda leaf=leaf: ask(leaf, issuer).certificate_status is _REVOKED)


def _revoke(transaction: Transaction, serial: str, now: float) -> None:
    row = find_certificate(transaction, serial)
    assert row is not None
    revoke_certificate(
        transaction,
        row,
        reason=None,
        allowed_reasons=ADMINISTRATOR_REASONS,
        actor="operator:tests",
        correlation="tests",
        now=now,
    )


def number_of(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
