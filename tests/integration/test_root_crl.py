"""The root's CRL: signed in ceremonies, taken from a root elsewhere, and checked before it is served (RFC 5280 section 5)."""

import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.home import MakeSettings, never_started
from fakes.service import FakeClock
from privyseal_ca.ceremony import root_crl
from privyseal_ca.ceremony.certificates import own_identifier, pem, root_template
from privyseal_ca.ceremony.certify import append_certified
from privyseal_ca.ceremony.crl_import import import_crl, read_crl
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.ceremony.issuers import IssuerMaker, Root
from privyseal_ca.ceremony.root_crl import renew_root_crl, root_crl_is_due
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.cli.home import opened_hsm
from privyseal_ca.cli.roots import root_pin
from privyseal_ca.doctor import Doctor, Finding, Level
from privyseal_ca.errors import ConfigurationError, StoreConflictError
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.issuance.template import new_serial
from privyseal_ca.ledger.audit import Auditor, AuditReport
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.certificates import RevocationRow, add_revocation
from privyseal_ca.store.crls import CrlRow, find_crl, find_part, replace_crl, reserve_crls, unpublished
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import add_chain, all_issuers, chains
from privyseal_ca.store.ocsp import ResponderRow, add_responder, certify_responder
from privyseal_ca.store.statement import Transaction

DAY = 86400


@dataclass
class Ceremony:
    """The root of the run's authority, opened, with a database and a clock of the test's own."""

    store: Store
    root: Root
    clock: FakeClock
    transcript: Transcript
    settings: Any

    async def current(self, issuer_id: str = "") -> tuple[CrlRow, x509.CertificateRevocationList]:
        issuer_id = issuer_id or self.root.id

        def unit(transaction: Transaction) -> tuple[CrlRow | None, bytes]:
            row = find_crl(transaction, issuer_id, "full")
            assert row is not None
            pieces = (
                find_part(transaction, issuer_id, "full", row.number, delta=False, position=position)
                for position in itertools.count()
            )
            return row, b"".join(itertools.takewhile(lambda piece: piece is not None, pieces))  # type: ignore[arg-type]

        row, der = await self.store.read(unit)
        assert row is not None
        assert row.size == len(der)
        return row, x509.load_der_x509_crl(der)

    async def audit(self) -> AuditReport:
        return await Auditor(self.store, issued_entry=issued_entry).run()

    async def findings(self, what: str) -> list[Finding]:
        examined = Doctor(self.settings, clock=self.clock, environ={}).examine()
        return [finding async for finding in examined if finding.what.startswith(what)]


@asynccontextmanager
async def opened(settings: Any) -> AsyncIterator[Ceremony]:
    store = make_store(backend_for(settings.database_url, durable=False, timeout=5), settings)
    await store.open()
    clock = FakeClock()
    transcript = Transcript(store, clock=clock, actor="operator:tests", correlation="tests")
    row = next(row for row in await store.read(all_issuers) if row.state == "root")
    token = KeyUri.parse(row.key_uri).token or ""
    async with opened_hsm(settings, root_token=token, root_pin_file=root_pin(settings.home, None)) as hsm:
        root = await IssuerMaker(hsm, transcript, os.urandom).existing_root()
        assert root is not None
        yield Ceremony(store, root, clock, transcript, settings)
    await store.close()


@pytest_asyncio.fixture
async def ceremony(make_settings: MakeSettings) -> AsyncIterator[Ceremony]:
    async with opened(never_started(make_settings())) as ceremony:
        yield ceremony


async def test_init_leaves_an_empty_crl_of_the_root(ceremony: Ceremony) -> None:
    row, crl = await ceremony.current()
    assert (row.number, row.entries, len(crl)) == (1, 0, 0)
    assert crl.is_signature_valid(ceremony.root.certificate.public_key())  # type: ignore[arg-type]
    assert crl.issuer == ceremony.root.certificate.subject
    assert crl.next_update_utc == crl.last_update_utc + timedelta(days=396)
    assert [type(extension.value) for extension in crl.extensions] == [x509.AuthorityKeyIdentifier, x509.CRLNumber]
    assert crl.extensions[0].value.key_identifier == bytes.fromhex(ceremony.root.id)
    # RFC 5280 section 5.1.2.6: no list when nothing is revoked, so the extensions follow nextUpdate at once.
    assert not await root_crl_is_due(ceremony.transcript, ceremony.root)
    assert (await ceremony.audit()).crls == 1


async def test_its_end_is_not_beyond_the_roots(ceremony: Ceremony) -> None:
    end = ceremony.root.certificate.not_valid_after_utc.timestamp()
    ceremony.clock.advance(end - ceremony.clock.now() - DAY)
    row = await renew_root_crl(ceremony.transcript, ceremony.root)
    assert row.next_update == int(end)
    ceremony.clock.advance(2 * DAY)
    with pytest.raises(ConfigurationError, match="expired"):
        await renew_root_crl(ceremony.transcript, ceremony.root)


@pytest.mark.parametrize(("step", "kept"), [(-60, True), (-3600, False)])
async def test_a_clock_that_was_put_back(ceremony: Ceremony, step: float, kept: bool) -> None:
    ceremony.clock.advance(10 * DAY)
    before = await renew_root_crl(ceremony.transcript, ceremony.root)
    ceremony.clock.advance(step)
    after = await renew_root_crl(ceremony.transcript, ceremony.root)
    assert (after.number, after.this_update == before.this_update) == (before.number + 1, kept)


async def test_two_at_once_publish_one_and_the_other_says_so(
    ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = root_crl.publish

    async def slower(*arguments: Any, **options: Any) -> CrlRow:
        monkeypatch.setattr(root_crl, "publish", sign)
        await renew_root_crl(ceremony.transcript, ceremony.root)
        return await sign(*arguments, **options)

    monkeypatch.setattr(root_crl, "publish", slower)
    with pytest.raises(StoreConflictError):
        await renew_root_crl(ceremony.transcript, ceremony.root)
    assert (await ceremony.current())[0].number == 2
    assert (await ceremony.audit()).crls == 1


async def test_what_an_interrupted_ceremony_left_is_listed_until_it_has_expired(ceremony: Ceremony) -> None:
    """As an abandoned intent of the root leaves it, whose certificate nobody has seen."""
    now = int(ceremony.clock.now())
    row = RevocationRow(ceremony.root.id, "0" * 30 + "4d", now, 5, now + 20 * DAY, None, 5)

    def unit(transaction: Transaction) -> None:
        add_revocation(transaction, row._replace(ledger_index=10**6 - 1))

    await ceremony.store.write(unit)
    assert not await root_crl_is_due(ceremony.transcript, ceremony.root)  # its entry is beyond the ledger's end
    await ceremony.store.write(lambda tx: add_revocation(tx, row._replace(serial="0" * 30 + "4e")))
    for days, listed in ((0, [0x4E]), (21, [0x4E]), (1, [])):
        ceremony.clock.advance(days * DAY)
        await renew_root_crl(ceremony.transcript, ceremony.root)
        _, crl = await ceremony.current()
        assert [entry.serial_number for entry in crl] == listed
        for entry in crl:
            reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
            assert reason is x509.ReasonFlags.cessation_of_operation


# The CRL of a root elsewhere.


class Elsewhere:
    """A root whose key is not in this authority, which has certified its issuer too."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Elsewhere")])
        template = root_template(
            self.key.public_key(),
            name,
            serial=new_serial(lambda count: b"\x42" * count),
            now=datetime.now(UTC).timestamp(),
        )
        self.certificate = template.sign(self.key)
        self.id = own_identifier(self.key.public_key()).digest.hex()

    def crl(
        self,
        number: int | None = 1,
        *serials: int,
        begin: float = -60,
        end: float | None = DAY,
        key: ec.EllipticCurvePrivateKey | None = None,
        extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    ) -> x509.CertificateRevocationList:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now + timedelta(seconds=begin))
        builder = builder.next_update(now + timedelta(seconds=begin + DAY if end is None else end))
        if number is not None:
            builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(key or self.key, hashes.SHA384())


@pytest_asyncio.fixture
async def elsewhere(ceremony: Ceremony) -> Elsewhere:
    """A second chain for the issuer, as `issuer import --alternate` adds it."""
    root = Elsewhere()
    (issuer,) = [row for row in await ceremony.store.read(all_issuers) if row.state == "active"]
    (own,) = await ceremony.store.read(lambda tx: chains(tx, issuer.id))
    public_key = x509.load_pem_x509_certificates(own.encode())[0].public_key()
    template = root_template(public_key, root.certificate.subject, serial=77, now=ceremony.clock.now())
    identifier = x509.SubjectKeyIdentifier(bytes.fromhex(issuer.id))
    cross = (
        x509.CertificateBuilder()
        .issuer_name(root.certificate.subject)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Cross")]))
        .public_key(public_key)
        .serial_number(template.serial)
        .not_valid_before(root.certificate.not_valid_before_utc)
        .not_valid_after(root.certificate.not_valid_after_utc)
        .add_extension(identifier, critical=False)
        .sign(root.key, hashes.SHA384())
    )

    def unit(transaction: Transaction) -> None:
        append_certified(ceremony.transcript, transaction, cross, root.id, imported=True)
        add_chain(transaction, issuer.id, pem(cross, root.certificate))

    await ceremony.store.write(unit)
    return root


async def test_it_is_taken_and_told_of(ceremony: Ceremony, elsewhere: Elsewhere) -> None:
    imported = await import_crl(ceremony.transcript, elsewhere.crl(41, 5))
    assert (imported.row.number, imported.row.entries, imported.revoked) == (41, 1, ())
    row, crl = await ceremony.current(elsewhere.id)
    assert (row.number, [entry.serial_number for entry in crl]) == (41, [5])
    again = await import_crl(ceremony.transcript, elsewhere.crl(42, 77))
    assert [issuer.name for issuer in again.revoked] == ["issuing-1"]
    assert (await ceremony.audit()).crls == 2


async def test_a_large_one_is_kept_in_pieces(ceremony: Ceremony, elsewhere: Elsewhere) -> None:
    imported = await import_crl(ceremony.transcript, elsewhere.crl(1, *range(10**12, 10**12 + 12_000)))
    assert imported.row.size > 256 * 1024
    assert len((await ceremony.current(elsewhere.id))[1]) == 12_000
    assert (await ceremony.audit()).crls == 2


def _idp(**changes: Any) -> tuple[x509.ExtensionType, bool]:
    members = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**(members | changes)), True


BAD: dict[str, tuple[Callable[[Elsewhere], x509.CertificateRevocationList], str]] = {
    "other key": (lambda it: it.crl(key=ec.generate_private_key(ec.SECP384R1())), "has signed it"),
    "other CA": (lambda _: Elsewhere().crl(), "has signed it"),
    "no number": (lambda it: it.crl(None), "no crlNumber"),
    "number too large": (lambda it: it.crl(2**53), "no crlNumber"),
    "zero": (lambda it: it.crl(0), "no crlNumber"),
    "future": (lambda it: it.crl(begin=3600, end=DAY), "future"),
    "past": (lambda it: it.crl(begin=-3600, end=-60), "has passed"),
    "delta": (lambda it: it.crl(extensions=((x509.DeltaCRLIndicator(1), True),)), "delta"),
    "users": (lambda it: it.crl(extensions=(_idp(only_contains_user_certs=True),)), "covers only a part"),
    "indirect": (lambda it: it.crl(extensions=(_idp(indirect_crl=True),)), "covers only a part"),
    "url": (
        lambda it: it.crl(extensions=(_idp(full_name=[x509.UniformResourceIdentifier("http://a.test/c")]),)),
        "covers only a part",
    ),
    "critical": (
        lambda it: it.crl(
            extensions=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True),)
        ),
        "critical extension 1.2.3",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_not_a_current_complete_crl_is_refused(
    ceremony: Ceremony, elsewhere: Elsewhere, name: str
) -> None:
    make, why = BAD[name]
    with pytest.raises(ConfigurationError, match=why):
        await import_crl(ceremony.transcript, make(elsewhere))
    assert await ceremony.store.read(lambda tx: find_crl(tx, elsewhere.id, "full")) is None


async def test_one_for_cas_only_is_fine(ceremony: Ceremony, elsewhere: Elsewhere) -> None:
    crl = elsewhere.crl(extensions=(_idp(only_contains_ca_certs=True),))
    assert (await import_crl(ceremony.transcript, crl)).row.number == 1
    assert (await ceremony.audit()).crls == 2


async def test_an_older_one_is_refused(ceremony: Ceremony, elsewhere: Elsewhere) -> None:
    await import_crl(ceremony.transcript, elsewhere.crl(7))
    for number in (7, 6):
        with pytest.raises(ConfigurationError, match="not above 7"):
            await import_crl(ceremony.transcript, elsewhere.crl(number))
    with pytest.raises(ConfigurationError, match="older than the one before"):
        await import_crl(ceremony.transcript, elsewhere.crl(8, begin=-3600))


async def test_the_own_roots_crl_is_not_imported(ceremony: Ceremony) -> None:
    _, crl = await ceremony.current()
    with pytest.raises(ConfigurationError, match="key elsewhere"):
        await import_crl(ceremony.transcript, crl)


def test_files_that_hold_no_crl(tmp_path: Path) -> None:
    path = tmp_path / "crl"
    crl = Elsewhere().crl()
    for form in (Encoding.PEM, Encoding.DER):
        path.write_bytes(crl.public_bytes(form))
        assert read_crl(path) == crl
    for content in (b"", b"x" * 100, b"-----BEGIN X509 CRL-----\n", bytes((10 << 20) + 1)):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="no CRL"):
            read_crl(path)
    with pytest.raises(ConfigurationError, match="no CRL"):
        read_crl(tmp_path)


# Doctor.


async def test_doctor_says_when_the_roots_crl_is_needed(ceremony: Ceremony, elsewhere: Elsewhere) -> None:
    own, other = await ceremony.findings("crl root"), await ceremony.findings(f"crl {elsewhere.id}")
    assert [finding.level for finding in (*own, *other)] == [Level.OK, Level.WARN]
    assert "crl import" in other[0].hint
    ceremony.clock.advance(340 * DAY)
    (soon,) = await ceremony.findings("crl root")
    assert (soon.level, soon.hint) == (Level.WARN, "Run `privyseal crl root`.")
    ceremony.clock.advance(100 * DAY)
    (ended,) = await ceremony.findings("crl root")
    assert ended.level is Level.FAIL


async def test_doctor_says_that_the_ca_above_revoked_an_issuer(ceremony: Ceremony, elsewhere: Elsewhere) -> None:
    await import_crl(ceremony.transcript, elsewhere.crl(41, 5))
    assert await ceremony.findings("crl above issuing-1") == []
    await import_crl(ceremony.transcript, elsewhere.crl(42, 5, 77))
    (found,) = await ceremony.findings("crl above issuing-1")
    assert found.level is Level.FAIL
    assert "issuer retire issuing-1" in found.hint


async def test_doctor_says_what_the_service_has_not_made(ceremony: Ceremony) -> None:
    (crl,) = await ceremony.findings("crl issuing-1")
    (responder,) = await ceremony.findings("ocsp issuing-1")
    # Nothing is wrong as long as no service runs.
    assert (crl.level, responder.level) == (Level.OK, Level.OK)
    assert "service" in crl.hint
    assert "service" in responder.hint


async def test_doctor_sees_what_is_no_longer_renewed(ceremony: Ceremony) -> None:
    (issuer,) = [row for row in await ceremony.store.read(all_issuers) if row.state == "active"]
    now = int(ceremony.clock.now())
    row = unpublished(issuer.id, "full")._replace(number=1, this_update=now, next_update=now + 3 * DAY)

    def unit(transaction: Transaction) -> None:
        reserve_crls(transaction, [(issuer.id, "full")])
        replace_crl(transaction, row, old_number=0)
        add_responder(transaction, issuer.id, "pkcs11:object=o")
        certify_responder(transaction, ResponderRow(issuer.id, "pkcs11:object=o", b"der", now + 7 * DAY))

    await ceremony.store.write(unit)
    levels = []
    for days in (0, 1, 2, 3, 1):
        ceremony.clock.advance(days * DAY)
        found = [*await ceremony.findings("crl issuing-1"), *await ceremony.findings("ocsp issuing-1")]
        levels.append([finding.level for finding in found])
    assert levels == [
        [Level.OK, Level.OK],
        [Level.WARN, Level.OK],
        [Level.FAIL, Level.OK],
        [Level.FAIL, Level.WARN],
        [Level.FAIL, Level.FAIL],
    ]
