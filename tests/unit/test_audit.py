"""`ledger verify` finds every way in which ledger, tables and certificates can disagree, and names the place."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.audited import NOW, Authority, opened_authority, refused
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor, AuditReport, Expected
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.ledger.tree import leaf_hash, root_hash
from privyseal_ca.store.backends import SqliteBackend
from privyseal_ca.store.certificates import (
    IntentRow,
    RevocationRow,
    add_revocation,
    open_intent,
)
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import add_chain
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Transaction

COPY_CERTIFICATE = """
INSERT INTO certificate
SELECT ?, issuer_id, profile, requester, names, not_before, not_after, spki_sha256, {}, der, crl_shard, ocsp
FROM certificate WHERE serial = ?
"""


@pytest_asyncio.fixture
async def authority(tmp_path: Path) -> AsyncIterator[Authority]:
    """Three certificates, of which the second is revoked, and an abandoned serial."""
    async with opened_authority(tmp_path / "audit.db") as authority:
        await authority.issue("a.test")
        await authority.issue("b.test")
        await authority.revoke(authority.serials[1])
        await authority.abandon()
        await authority.issue("c.test")
        yield authority


async def test_a_good_ledger_passes(authority: Authority) -> None:
    report = await authority.audit()
    with closing(sqlite3.connect(authority.path)) as connection:
        leaves = [row[0] for row in connection.execute("SELECT leaf_hash FROM ledger_entry ORDER BY idx")]
    assert report == AuditReport(
        size=len(leaves),
        root=root_hash(leaves),
        certificates=3,
        ca_certificates=1,
        revoked=1,
        abandoned=1,
        in_flight=0,
        crls=0,
        keys=1,
    )


async def test_an_issuance_in_flight_is_no_mistake(authority: Authority) -> None:
    certificate = authority.certificate(99, "d.test")
    await authority.store.write(lambda tx: authority.intend(tx, certificate))
    assert (await authority.audit()).in_flight == 1


async def test_pages_join(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await authority.audit()
    monkeypatch.setattr("privyseal_ca.ledger.audit._PAGE", 2)
    assert await authority.audit() == whole


async def test_progress_is_told(authority: Authority) -> None:
    told: list[tuple[int, int]] = []
    auditor = Auditor(authority.store, issued_entry=issued_entry, progress=lambda done, of: told.append((done, of)))
    report = await auditor.run()
    assert told == [(report.size, report.size)]


async def test_entries_that_arrive_meanwhile_are_checked_too(authority: Authority) -> None:
    before = await authority.audit()

    class Busy(Store):
        """Issues and revokes while the check reads."""

        reads = 0

        async def read(self, unit):  # type: ignore[no-untyped-def]
            Busy.reads += 1
            if Busy.reads in {2, 4, 5}:
                await authority.revoke(await authority.issue("meanwhile.test"))
            return await authority.store.read(unit)

    busy = Busy(SqliteBackend(authority.path, durable=False, timeout=5), queue=1)
    report = await Auditor(busy, issued_entry=issued_entry).run()
    assert report.size >= before.size + 6
    assert report.revoked >= 3


async def test_an_earlier_root_is_recognised(authority: Authority) -> None:
    report = await authority.audit()
    await authority.issue("later.test")
    later = await authority.audit(Expected(report.size, report.root))
    assert later.size == report.size + 2


async def test_a_rewritten_beginning_is_found_by_an_earlier_root(authority: Authority) -> None:
    report = await authority.audit()
    authority.rewrite(authority.index(Kind.REVOKED), lambda members: members.update(actor="operator:else"))
    assert (await authority.audit()).size == report.size  # consistent in itself
    await refused(authority, "not those of the earlier check", Expected(report.size, report.root))


async def test_a_shorter_ledger_is_found_by_an_earlier_size(authority: Authority) -> None:
    report = await authority.audit()
    await refused(authority, "fewer than", Expected(report.size + 1, report.root))


async def test_an_empty_ledger_has_the_empty_root(tmp_path: Path) -> None:
    migrate(f"sqlite:///{tmp_path / 'empty.db'}")
    store = Store(SqliteBackend(tmp_path / "empty.db", durable=False, timeout=5), queue=100)
    await store.open()
    report = await Auditor(store, issued_entry=issued_entry).run()
    await store.close()
    assert (report.size, report.root) == (0, sha256().digest())


# Entries.


async def test_a_changed_entry_is_named(authority: Authority) -> None:
    index = authority.index(Kind.ISSUED, 1)
    authority.tamper(("UPDATE ledger_entry SET entry = replace(entry, 'b.test', 'x.test') WHERE idx = ?", (index,)))
    assert await refused(authority, "leaf hash") == index


async def test_a_removed_entry_is_named(authority: Authority) -> None:
    index = authority.index(Kind.REVOKED)
    authority.tamper(("DELETE FROM ledger_entry WHERE idx = ?", (index,)))
    assert await refused(authority, "is missing") == index


async def test_a_removed_last_entry_is_found(authority: Authority) -> None:
    size = (await authority.audit()).size
    authority.tamper(("DELETE FROM ledger_entry WHERE idx = ?", (size - 1,)))
    assert await refused(authority, "is missing") == size - 1


async def test_a_head_that_was_set_back_is_found(authority: Authority) -> None:
    authority.tamper(("UPDATE ledger_head SET size = size - 1", ()))
    await refused(authority, "head says")


async def test_swapped_entries_are_found(authority: Authority) -> None:
    first = authority.index(Kind.ISSUED, 0)
    authority.tamper(
        ("UPDATE ledger_entry SET idx = -1 WHERE idx = ?", (first,)),
        ("UPDATE ledger_entry SET idx = ? WHERE idx = ?", (first, first + 2)),
        ("UPDATE ledger_entry SET idx = ? WHERE idx = -1", (first + 2,)),
    )
    assert await refused(authority, "no intent before") == first


async def test_an_entry_that_is_not_canonical_is_found(authority: Authority) -> None:
    entry = json.dumps(authority.entry(0)).encode()
    authority.tamper(("UPDATE ledger_entry SET entry = ?, leaf_hash = ? WHERE idx = 0", (entry, leaf_hash(entry))))
    assert await refused(authority, "canonical") == 0


async def test_an_unknown_kind_is_found(authority: Authority) -> None:
    authority.rewrite(0, lambda members: members.update(kind="certificate.invented"))
    assert await refused(authority, "does not know") == 0


async def test_a_forged_payload_without_members_is_found(authority: Authority) -> None:
    index = authority.index(Kind.REVOKED)
    authority.rewrite(index, lambda members: members.update(payload={}))
    assert await refused(authority, "lacks a member") == index


async def test_a_forged_issued_entry_is_found(authority: Authority) -> None:
    index = authority.index(Kind.ISSUED, 1)
    authority.rewrite(index, lambda members: members["payload"].update(names=["dns:x.test"]))  # type: ignore[attr-defined]
    assert await refused(authority, "does not follow from the certificate") == index


async def test_a_missing_intent_is_found(authority: Authority) -> None:
    index = authority.index(Kind.INTENT, 1)
    authority.rewrite(index, lambda members: members.update(kind=str(Kind.SERVICE_STARTED)))
    assert await refused(authority, "no intent before") == index + 1


async def test_an_intent_for_something_else_is_found(authority: Authority) -> None:
    index = authority.index(Kind.INTENT, 1)
    authority.rewrite(index, lambda members: members["payload"].update(tbs_sha256="00" * 32))  # type: ignore[attr-defined]
    assert await refused(authority, "not what its intent says") == index + 1


async def test_an_intent_that_nothing_followed_is_found(authority: Authority) -> None:
    certificate = authority.certificate(99, "d.test")
    await authority.store.write(lambda tx: authority.intend(tx, certificate))
    authority.tamper(("DELETE FROM intent", ()))
    await refused(authority, "neither fulfilled nor abandoned")


async def test_an_intent_row_without_an_entry_is_found(authority: Authority) -> None:
    row = IntentRow("0" * 32, authority.id, b"", 0, "account:a", "c", None)
    await authority.store.write(lambda tx: open_intent(tx, row))
    await refused(authority, "in flight without an intent")


@pytest.mark.parametrize("kind", [Kind.ISSUED, Kind.ABANDONED, Kind.ISSUER_CERTIFIED])
async def test_a_serial_that_is_used_twice_is_found(authority: Authority, kind: Kind) -> None:
    used = authority.entry(authority.index(kind))["payload"]["serial"]  # type: ignore[index]
    await authority.store.write(
        lambda tx: authority.record(tx, Kind.INTENT, {"issuer": authority.id, "serial": used, "tbs_sha256": "00" * 32})
    )
    assert await refused(authority, "was used before") is not None


# Certificates.


async def test_a_missing_certificate_is_found(authority: Authority) -> None:
    authority.tamper(("DELETE FROM certificate WHERE serial = ?", (authority.serials[0],)))
    assert await refused(authority, "no row in the certificates table") == authority.index(Kind.ISSUED, 0)


async def test_a_certificate_without_an_entry_is_found(authority: Authority) -> None:
    authority.tamper(
        (
            COPY_CERTIFICATE.format("ledger_index"),
            ("f" * 32, authority.serials[0]),
        )
    )
    await refused(authority, "f{32} has no certificate.issued entry")


async def test_an_exchanged_certificate_is_found(authority: Authority) -> None:
    authority.tamper(
        (
            "UPDATE certificate SET der = (SELECT der FROM certificate WHERE serial = ?) WHERE serial = ?",
            (authority.serials[0], authority.serials[2]),
        )
    )
    assert await refused(authority, "does not follow from the certificate") == authority.index(Kind.ISSUED, 2)


async def test_bytes_that_are_no_certificate_are_found(authority: Authority) -> None:
    authority.tamper(("UPDATE certificate SET der = x'3000' WHERE serial = ?", (authority.serials[2],)))
    assert await refused(authority, "cannot be parsed") == authority.index(Kind.ISSUED, 2)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("issuer_id", "00"),
        ("names", '["dns:x.test"]'),
        ("not_before", 0),
        ("not_after", 2**40),
        ("spki_sha256", b"\0" * 32),
        ("ledger_index", 1000),
    ],
)
async def test_a_column_that_differs_is_found(authority: Authority, column: str, value: object) -> None:
    authority.tamper((f"UPDATE certificate SET {column} = ? WHERE serial = ?", (value, authority.serials[2])))  # noqa: S608
    assert await refused(authority, "row") == authority.index(Kind.ISSUED, 2)


async def test_a_certificate_of_another_key_is_found(authority: Authority) -> None:
    other = Authority(authority.store, authority.path)
    certificate = other.certificate(77, "e.test")
    identifier = bytes.fromhex(authority.id)

    def unit(transaction: Transaction) -> None:
        forged = x509.load_der_x509_certificate(
            certificate.public_bytes(Encoding.DER).replace(bytes.fromhex(other.id), identifier)
        )
        authority.intend(transaction, forged)
        authority.finish(transaction, forged, "e.test")

    await authority.store.write(unit)
    assert await refused(authority, "issuer did not sign") == authority.index(Kind.ISSUED, 3)


# Revocations.


async def test_a_lifted_revocation_is_found(authority: Authority) -> None:
    authority.tamper(("DELETE FROM revocation WHERE serial = ?", (authority.serials[1],)))
    assert await refused(authority, "not on the revocation list") == authority.index(Kind.REVOKED)


async def test_an_abandoned_serial_that_left_the_list_is_found(authority: Authority) -> None:
    authority.tamper(("DELETE FROM revocation WHERE serial <> ?", (authority.serials[1],)))
    assert await refused(authority, "not on the revocation list") == authority.index(Kind.ABANDONED)


async def test_a_revocation_without_an_entry_is_found(authority: Authority) -> None:
    row = RevocationRow(authority.id, authority.serials[0], int(NOW), None, int(NOW), None, 0)
    await authority.store.write(lambda tx: add_revocation(tx, row))
    await refused(authority, "without an entry")


@pytest.mark.parametrize(
    ("column", "value"),
    [("reason", 1), ("reason", None), ("not_after", 1), ("revoked_at", 1)],
)
async def test_a_revocation_that_differs_is_found(authority: Authority, column: str, value: object) -> None:
    authority.tamper((f"UPDATE revocation SET {column} = ? WHERE serial = ?", (value, authority.serials[1])))  # noqa: S608
    assert await refused(authority, "differ from it") == authority.index(Kind.REVOKED)


async def test_a_second_revocation_is_found(authority: Authority) -> None:
    payload = authority.entry(authority.index(Kind.REVOKED))["payload"]

    def unit(transaction: Transaction) -> None:
        append(
            transaction,
            encode_entry(Kind.REVOKED, time=NOW + 0.25, actor="a", correlation="c", payload=payload),  # type: ignore[arg-type]
        )

    await authority.store.write(unit)
    assert await refused(authority, "revoked before") == authority.index(Kind.REVOKED, 1)


async def test_a_revocation_before_the_certificate_is_found(authority: Authority) -> None:
    index = authority.index(Kind.REVOKED)
    authority.rewrite(index, lambda members: members["payload"].update(serial=authority.serials[2]))  # type: ignore[attr-defined]
    assert await refused(authority, "had not been issued") == index


async def test_an_abandoned_serial_with_a_certificate_is_found(authority: Authority) -> None:
    abandoned = authority.entry(authority.index(Kind.ABANDONED))["payload"]["serial"]  # type: ignore[index]
    authority.tamper(
        (
            COPY_CERTIFICATE.format(1000),
            (abandoned, authority.serials[0]),
        )
    )
    assert await refused(authority, "certificate all the same") == authority.index(Kind.ABANDONED)


# CAs.


async def test_a_chain_without_an_entry_is_found(authority: Authority) -> None:
    pem = authority.certificate(2, None).public_bytes(Encoding.PEM).decode()
    await authority.store.write(lambda tx: add_chain(tx, authority.id, pem))
    await refused(authority, "has no issuer.certified entry")


async def test_an_exchanged_ca_certificate_is_found(authority: Authority) -> None:
    pem = authority.certificate(2, None).public_bytes(Encoding.PEM).decode()
    authority.tamper(("UPDATE issuer_chain SET pem = ?", (pem,)))
    assert await refused(authority, "that no issuer has") == authority.index(Kind.ISSUER_CERTIFIED)


async def test_a_chain_that_does_not_verify_is_found(authority: Authority) -> None:
    other = Authority(authority.store, authority.path)
    pem = authority.certificate(2, None).public_bytes(Encoding.PEM).decode()
    stranger = other.certificate(3, None).public_bytes(Encoding.PEM).decode()
    await authority.store.write(lambda tx: add_chain(tx, authority.id, pem + stranger))
    await refused(authority, "does not verify")


async def test_an_own_certificate_that_claims_to_be_imported_is_found(authority: Authority) -> None:
    index = authority.index(Kind.ISSUER_CERTIFIED)
    authority.rewrite(index, lambda members: members["payload"].update(imported=True))  # type: ignore[attr-defined]
    assert await refused(authority, "own root signed it") == index
