"""Canaries: issued by the real authority with its token, linted, and revoked in the transaction that records them."""

import asyncio
import os
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509

from fakes import issuing
from fakes.service import RunningService, StartService
from privyseal_ca.errors import PrivySealError, SignerUnavailableError, StoreError
from privyseal_ca.issuance.authority import Authority
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.issuance.lint import Linter
from privyseal_ca.issuance.template import CertificateRequest, build_template
from privyseal_ca.revocation.canary import Canaries, canary_profile, current_canaries
from privyseal_ca.revocation.published import Canary
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store import canaries as stored
from privyseal_ca.store.certificates import find_certificate, find_revocation, open_intents

DAY = 86400


@pytest.fixture
def service(start_service: StartService) -> RunningService:
    return start_service()


def canaries_of(service: RunningService, **changes: Any) -> Canaries:
    """Canaries beside those that the service itself may keep."""
    context = service.service.context
    parts: dict[str, Any] = {
        "store": context.store,
        "authority": context.authority,
        "issuers": context.authority.issuers.answering,
        "settings": StatusSettings(canary_lifetime=2 * DAY),
        "clock": service.clock,
        "random_bytes": os.urandom,
    }
    return Canaries(**parts | changes)


def the_canary(service: RunningService, canaries: Canaries) -> Canary:
    (canary,) = service.call(_list(canaries))
    return canary


async def _list(canaries: Canaries) -> list[Canary]:
    return list(await canaries.current())


def test_a_canary_is_a_certificate_that_is_revoked_from_its_first_moment(service: RunningService) -> None:
    canaries = canaries_of(service)
    service.call(canaries.renew_due())
    canary = the_canary(service, canaries)
    row = service.read(lambda tx: find_certificate(tx, canary.serial))
    assert row is not None
    certificate = x509.load_der_x509_certificate(row.der)
    extensions = {type(extension.value) for extension in certificate.extensions}
    assert x509.SubjectAlternativeName not in extensions
    assert x509.OCSPNoCheck not in extensions
    assert {x509.CRLDistributionPoints, x509.AuthorityInformationAccess} <= extensions
    assert certificate.subject.rfc4514_string() == "CN=revocation canary"
    (usage,) = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert usage == x509.ExtendedKeyUsageOID.CLIENT_AUTH
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    assert point.full_name[0].value.endswith(f"/{canary.shard}.crl")
    assert row.not_after - canary.issued_at == 2 * DAY - 1

    revocation = service.read(lambda tx: find_revocation(tx, canary.issuer_id, canary.serial))
    assert revocation is not None
    assert (revocation.revoked_at, revocation.reason, revocation.crl_shard) == (canary.revoked_at, None, canary.shard)
    # P3: what the ledger says of the two is one commit.
    kinds = [entry["kind"] for entry in service.ledger() if entry["payload"].get("serial") == canary.serial]
    assert kinds[-2:] == ["certificate.issued", "certificate.revoked"]
    assert revocation.ledger_index == row.ledger_index + 1


def test_there_is_a_new_one_at_half_of_its_life_and_not_before(service: RunningService) -> None:
    canaries = canaries_of(service)
    service.call(canaries.renew_due())
    first = the_canary(service, canaries)
    assert service.call(canaries.renew_due()) == 0
    service.clock.advance(DAY - 2)
    assert service.call(canaries.renew_due()) == 0
    assert the_canary(service, canaries) == first
    service.clock.advance(2)
    assert service.call(canaries.renew_due()) == 1
    second = the_canary(service, canaries)
    assert second.serial != first.serial
    assert second.revoked_at == first.revoked_at + DAY


def test_one_that_expired_is_not_looked_for(service: RunningService) -> None:
    canaries = canaries_of(service)
    service.call(canaries.renew_due())
    service.clock.advance(2 * DAY)
    assert service.call(_list(canaries)) == []
    assert service.call(current_canaries(service.service.context.store, service.clock)) == []


def test_the_last_one_ends_with_its_issuer(service: RunningService) -> None:
    canaries = canaries_of(service)
    (issuer,) = service.service.context.authority.issuers
    service.clock.advance(issuer.identity.not_after - service.clock.now() - 3600)
    assert service.call(canaries.renew_due()) == 1
    service.clock.advance(3000)
    assert service.call(canaries.renew_due()) == 0


def test_no_canary_stays_unrevoked_when_the_database_refuses(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("no")

    monkeypatch.setattr("privyseal_ca.revocation.canary.set_canary", refuse)
    before = {entry["payload"].get("serial") for entry in service.ledger()}
    canaries = canaries_of(service)
    with pytest.raises(StoreError):
        service.call(_renewed_from_nothing(service, canaries))
    new = [entry for entry in service.ledger() if entry["payload"].get("serial") not in before]
    # The intent, and its end: the certificate was undone together with the fact.
    assert [entry["kind"] for entry in new] == ["certificate.intent", "certificate.abandoned"]
    serial = new[0]["payload"]["serial"]
    assert service.read(lambda tx: find_certificate(tx, serial)) is None
    assert service.read(open_intents) == []


async def _renewed_from_nothing(service: RunningService, canaries: Canaries) -> int:
    await asyncio.sleep(0)
    service.clock.advance(2 * DAY)
    return await canaries.renew_due()


class _OtherToken:
    """A key whose token is away."""

    def __init__(self, issuer: Issuer) -> None:
        self.uri = issuer.key.uri
        self.public_key = issuer.key.public_key
        self.available = False

    async def run(self, _: Callable[..., Any]) -> Any:
        raise SignerUnavailableError("away")


def test_an_issuer_whose_token_is_away_does_not_stop_the_others(service: RunningService) -> None:
    (issuer,) = service.service.context.authority.issuers
    absent = Issuer(issuer.id, issuer.identity, _OtherToken(issuer), issuer.chains)
    canaries = canaries_of(service, issuers=(absent, issuer))
    service.clock.advance(2 * DAY)
    with pytest.raises(PrivySealError):
        service.call(canaries.renew_due())
    assert the_canary(service, canaries).revoked_at == service.clock.now()


def test_an_issuer_that_is_not_active_issues_none(service: RunningService) -> None:
    (issuer,) = service.service.context.authority.issuers
    retired = Issuer("ab" * 20, issuer.identity, issuer.key, issuer.chains)
    assert service.call(canaries_of(service, issuers=(retired,)).renew_due()) == 0


def test_rows_come_back_as_they_were(service: RunningService) -> None:
    rows = [stored.CanaryRow(f"{number:02x}" * 20, "0" * 32, number or None, 1, 2, 3) for number in (254, 255)]
    service.write(lambda tx: [stored.set_canary(tx, row) for row in (rows[1], rows[0], rows[1])])
    assert [row for row in service.read(stored.canaries) if row in rows] == rows


@pytest.mark.parametrize("kind", ["ec-p256", "rsa"])
def test_the_full_linter_accepts_it(kind: str) -> None:
    public_key = issuing.key("ec-p256").public_key()
    spki = issuing.spki(public_key)
    request = CertificateRequest(
        profile=canary_profile(2 * DAY),
        names=(),
        public_key=public_key,
        spki_der=spki,
        spki_sha256=sha256(spki).digest(),
        key_type="ec-p256",
        common_name="revocation canary",
    )
    issuer = issuing.issuer(kind)
    linted = Linter().lint(build_template(request, issuer, serial=77, now=issuing.NOW), issuer)
    assert linted.template.crl_shard is not None


def test_the_authority_is_what_issues(service: RunningService) -> None:
    assert isinstance(service.service.context.authority, Authority)
    context = service.service.context
    canaries = canaries_of(service)
    service.clock.advance(2 * DAY)
    before = context.metrics.issued.labels("canary")._value.get()
    service.call(canaries.renew_due())
    assert context.metrics.issued.labels("canary")._value.get() == before + 1
