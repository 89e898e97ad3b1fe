"""Clocks that step: no certificate outside policy, no CRL number that falls, no checkpoint refused.

The service's clock is turned while it runs. Relying parties have the right time, which is a day after the authority was made:
the service may be wrong in both directions.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.acme_client import AcmeClient, make_csr
from fakes.service import FakeClock, RunningService, StartService, serving, txt_setter
from fakes.status_client import ask, crl_url, eventually, fetch_crl, get, issuer_of
from privyseal_ca.config import Settings
from privyseal_ca.ledger.checkpoints import latest_checkpoint
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.proofs import consistency_proof, verify_consistency
from privyseal_ca.ledger.tile_store import StoredTiles

_HOUR, _DAY, _YEAR = 3600, 86400, 365 * 86400
Connect = Callable[[RunningService], AcmeClient]

_STATUS = {"interval": 0.1, "ocsp_delay": 0}


class Observer:
    """Somebody outside, who remembers what was published."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        #: The newest number of each CRL.
        self.numbers: dict[str, int] = {}
        self.checkpoints: list[Checkpoint] = []

    def look(self, certificate: x509.Certificate) -> None:
        """What is published now continues what was before."""
        url = crl_url(certificate)
        number = fetch_crl(url).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert number >= self.numbers.get(url, 0)
        self.numbers[url] = number
        verifier = NoteVerifier.parse(get(f"{self.service.status}/ledger/vkey")[0].decode().strip())
        checkpoint = Checkpoint.parse(open_note(get(f"{self.service.status}/ledger/checkpoint")[0], [verifier])[0])
        for before in self.checkpoints:
            proof = self.service.read(
                lambda tx, old=before.size: consistency_proof(StoredTiles(tx), old, checkpoint.size)  # type: ignore[misc]
            )
            verify_consistency(before.size, checkpoint.size, proof, before.root, checkpoint.root)
        self.checkpoints.append(checkpoint)

    def covered(self) -> bool:
        """Whether the newest checkpoint covers everything."""
        latest = self.service.read(latest_checkpoint)
        return latest is not None and latest.size == len(self.service.ledger())


def check_within_policy(certificate: x509.Certificate, service: RunningService) -> None:
    """It is valid at the service's time, for no longer than the profile says, and within its issuer's validity."""
    profile = service.service.context.profiles["mtls"]
    now = service.clock.now()
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    assert begin <= now <= end
    assert end - now <= profile.max_lifetime
    assert now - begin <= profile.backdate + 1
    issuer = next(iter(service.service.context.authority.issuers)).identity
    assert issuer.not_before <= begin < end <= issuer.not_after


@pytest.fixture
def observed(start_service: StartService) -> Observer:
    return Observer(start_service(status=_STATUS, parts={"clock": FakeClock(time.time() + _DAY)}))


@pytest.mark.parametrize(
    "steps",
    [
        (_HOUR, -_HOUR),
        (-_HOUR / 2, _HOUR / 2),
        (5 * _DAY, -5 * _DAY, _DAY),
        (0.5, -1, 0.5, -290, 310),
        (40 * _DAY, -39 * _DAY, -_DAY + 60),
    ],
    ids=str,
)
def test_steps(observed: Observer, connect: Connect, steps: tuple[float, ...]) -> None:
    service = observed.service
    client = connect(service)
    # The newest notBefore of a CA's certificate bounds how far back anything can be.
    first = client.issue("before.clock.test").certificate
    observed.look(first)
    issuer = issuer_of(first)
    issued = [first]
    for number, step in enumerate(steps):
        service.clock.advance(step)
        client.nonce = None  # they live for an hour
        outside = not issuer.not_valid_before_utc.timestamp() <= service.clock.now()
        if not outside:
            certificate = client.issue(f"step-{number}.clock.test").certificate
            check_within_policy(certificate, service)
            issued.append(certificate)
            assert client.revoke(certificate.public_bytes(Encoding.DER)).status == 200
            serial = certificate.serial_number
            eventually(lambda: serial in {each.serial_number for each in fetch_crl(crl_url(certificate))})  # noqa: B023
            observed.look(certificate)
        eventually(observed.covered)
    # Back at about the right time everything that relying parties need is right for them.
    off = sum(steps)
    service.clock.advance(-off)
    now = service.clock.now()

    def current() -> bool:
        crls = [fetch_crl(crl_url(each)) for each in issued]
        return all(crl.last_update_utc.timestamp() <= now + 300 < crl.next_update_utc.timestamp() for crl in crls)

    eventually(current)
    for certificate in issued[1:]:
        answer = ask(certificate, issuer)
        assert answer.certificate_status is ocsp.OCSPCertStatus.REVOKED
    good = ask(first, issuer)
    assert good.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert good.this_update_utc.timestamp() <= now + 300
    observed.look(first)


def test_a_clock_beyond_the_issuers_validity(observed: Observer, connect: Connect) -> None:
    """Nothing is issued by it, and whoever asks is told; when the clock is right again everything goes on."""
    service = observed.service
    client = connect(service)
    first = client.issue("valid.clock.test").certificate
    observed.look(first)
    waiting, key = client.ready_order("waits.clock.test"), ec.generate_private_key(ec.SECP256R1())
    count = sum(entry["kind"] == "certificate.issued" for entry in service.ledger())
    for step in (-20 * _YEAR, 45 * _YEAR):
        service.clock.advance(step)
        client.nonce = None
        answer = client.post(
            client.directory["newOrder"], {"identifiers": [{"type": "dns", "value": "outside.clock.test"}]}
        )
        assert answer.refusal == (503, "serverInternal")
        assert "clock" in answer.body.decode()
        if step < 0:
            # An order that was ready waits, as it does for a token.
            answer = client.finalize(waiting, make_csr(["waits.clock.test"], key))
            assert (answer.status, answer.json["status"]) == (200, "processing")
    assert sum(entry["kind"] == "certificate.issued" for entry in service.ledger()) == count
    service.clock.advance(-25 * _YEAR)
    client.nonce = None
    assert client.poll(waiting.headers["Location"], ("processing",)).json["status"] == "valid"
    certificate = client.issue("again.clock.test").certificate
    check_within_policy(certificate, service)
    now = service.clock.now()
    eventually(lambda: fetch_crl(crl_url(first)).last_update_utc.timestamp() <= now + 300)
    eventually(observed.covered)
    observed.look(certificate)


@pytest.fixture
def settings(make_settings: Callable[..., Settings], dns_server: Any, http01: Any) -> Settings:
    surroundings = {"resolvers": (dns_server.address,), "http_port": http01.port}
    return make_settings(validation=surroundings, status=_STATUS)


@pytest.fixture
def connect(http01: Any, dns_server: Any) -> Iterator[Connect]:
    made: list[AcmeClient] = []

    def make(service: RunningService) -> AcmeClient:
        client = AcmeClient(service.directory, service.roots, http01=http01, set_txt=txt_setter(dns_server))
        client.at_any_time = True
        client.register()
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.mark.parametrize("skew", [600, -600, 7200, -1800])
def test_services_one_after_the_other_whose_clocks_differ(settings: Settings, connect: Connect, skew: float) -> None:
    """As when one machine takes over from another: what the first published is continued, and replaced where it is ahead."""
    right = FakeClock(time.time() + _DAY)
    with serving(settings, clock=FakeClock(right.now() + skew)) as first:
        seen = Observer(first)
        certificate = connect(first).issue("first.clock.test").certificate
        check_within_policy(certificate, first)
        eventually(seen.covered)
        seen.look(certificate)
    with serving(settings, clock=right) as second:
        seen.service = second
        client = connect(second)
        later = client.issue("second.clock.test").certificate
        check_within_policy(later, second)
        assert client.revoke(later.public_bytes(Encoding.DER)).status == 200
        serial = later.serial_number
        eventually(lambda: serial in {each.serial_number for each in fetch_crl(crl_url(later))})
        eventually(lambda: fetch_crl(crl_url(certificate)).last_update_utc.timestamp() <= right.now() + 300)
        eventually(seen.covered)
        seen.look(later)
        seen.look(certificate)
