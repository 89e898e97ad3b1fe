"""A revocation, from whoever revokes to whoever asks: real service, real token, over HTTP (promises P4, P7, P9)."""

from collections.abc import Callable
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
from privyseal_ca.store.certificates import IntentRow, open_intent

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


def number_of(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
