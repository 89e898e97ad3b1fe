"""`ledger verify` finds every way in which a CRL can differ from the ledger, the tables and the certificates."""

from collections.abc import AsyncIterator, Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fakes.audited import NOW, Authority, opened_authority, refused
from fakes.issuing import issuer_key
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.issuance.template import IssuerIdentity
from privyseal_ca.ledger.audit import Auditor
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.revocation.crl import CrlAssembly, CrlOutline, Revoked, sign_crl
from privyseal_ca.store.backends import SqliteBackend
from privyseal_ca.store.crls import CrlRow, find_crl, find_part, listed_from
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

HOUR = 3600


@pytest_asyncio.fixture
async def authority(tmp_path: Path) -> AsyncIterator[Authority]:
    """Two certificates in each of two parts, of which one is revoked, an abandoned serial, and CRLs of all that."""
    async with opened_authority(tmp_path / "audit.db") as authority:
        for number in range(4):
            await authority.issue(f"{number}.test", shard=number % 2, ocsp=True)
        await authority.publish()
        await authority.revoke(authority.serials[0])
        await authority.revoke(authority.serials[1], reason=0)
        await authority.abandon()
        await authority.publish()
        yield authority


def entry_of(authority: Authority, scope: str) -> int:
    """The index of the newest entry of a scope."""
    indexes = (authority.index(Kind.CRL_PUBLISHED, number) for number in range(-1, -10, -1))
    return next(index for index in indexes if payload(authority, index)["scope"] == scope)


def payload(authority: Authority, index: int) -> dict[str, Any]:
    found = authority.entry(index)["payload"]
    assert isinstance(found, dict)
    return found


def change(authority: Authority, index: int, **members: object) -> None:
    authority.rewrite(index, lambda entry: entry["payload"].update(members))  # type: ignore[attr-defined]


async def row_of(authority: Authority, scope: str) -> CrlRow:
    row = await authority.store.read(lambda tx: find_crl(tx, authority.id, scope))
    assert row is not None
    return row


async def listed(authority: Authority, row: CrlRow) -> list[Revoked]:
    """What a CRL lists."""
    shard = None if row.scope == "full" else int(row.scope)

    def unit(transaction: Transaction) -> list[Revoked]:
        rows = listed_from(transaction, row.issuer_id, shard, through=row.through, after=(0, ""), count=1000)
        return [(found.serial, found.revoked_at, found.reason) for found in rows]

    return await authority.store.read(unit)


async def forge(
    authority: Authority,
    scope: str = "0",
    *,
    entries: Callable[[list[Revoked]], Iterable[Revoked]] = lambda given: given,
    delta: bool = False,
    **outline: Any,
) -> None:
    """Put another CRL in the place of the current one, with row and entry that fit it."""
    row = await row_of(authority, scope)
    pointers = Pointers("http://ca.example", authority.id)
    identity = IssuerIdentity.from_certificate(authority.ca, name="root", pointers=pointers)
    members: dict[str, Any] = {
        "issuer": identity,
        "number": row.number,
        "this_update": row.this_update,
        "next_update": row.next_update,
        "url": None if scope == "full" else pointers.crl(int(scope)),
        "base": row.base_number if delta else None,
    }
    with CrlAssembly(CrlOutline(**(members | outline))) as assembly:
        assembly.add(entries(await listed(authority, row)))
        signed = assembly.to_be_signed()
        finished = assembly.finish(signed, sign_crl(identity, signed)(authority.key))
        der = b"".join(finished.pieces())
    digest = sha256(der).digest()
    kind = "delta_" if delta else ""
    authority.tamper(
        ("UPDATE crl_part SET der = ? WHERE scope = ? AND number = ? AND delta = ?", (der, scope, row.number, delta)),
        (f"UPDATE crl SET {kind}sha256 = ?, {kind}size = ? WHERE scope = ?", (digest, len(der), scope)),  # noqa: S608
    )
    change(authority, entry_of(authority, scope), **{f"{kind}sha256": digest.hex()})
    if not delta:
        authority.tamper(("UPDATE crl SET entries = ? WHERE scope = ?", (finished.entries, scope)))
        change(authority, entry_of(authority, scope), entries=finished.entries)


async def test_good_crls_pass(authority: Authority) -> None:
    report = await authority.audit()
    assert (report.crls, report.revoked, report.abandoned) == (3, 2, 1)


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519"])
async def test_crls_of_every_kind_of_key(tmp_path: Path, kind: str) -> None:
    async with opened_authority(tmp_path / "audit.db", issuer_key(kind)) as authority:
        for number in range(3):
            await authority.revoke(await authority.issue(f"{number}.test", shard=0))
        await authority.publish(delta_crls=True)
        assert (await authority.audit()).crls == 3


async def test_crls_that_were_replaced_while_the_check_ran_are_checked(authority: Authority) -> None:
    reads = 0

    class Busy(Store):
        """Revokes and publishes while the check reads."""

        async def read(self, unit):  # type: ignore[no-untyped-def]
            nonlocal reads
            reads += 1
            if reads in {4, 6, 9, 12, 15}:
                await authority.revoke(await authority.issue("meanwhile.test", shard=reads % 2))
                await authority.publish()
            return await authority.store.read(unit)

    busy = Busy(SqliteBackend(authority.path, durable=False, timeout=5), queue=1)
    report = await Auditor(busy, issued_entry=issued_entry).run()
    assert reads > 15
    assert report.crls == 3
    assert report.revoked > 4


async def test_what_has_expired_may_be_listed_or_not(authority: Authority) -> None:
    authority.clock.advance(30 * HOUR)
    await authority.issue("later.test", shard=0)
    assert await authority.publish() == 3
    assert (await row_of(authority, "full")).entries == 3
    assert (await authority.audit()).crls == 3
    authority.clock.advance(30 * HOUR)
    assert await authority.publish() == 3
    assert (await row_of(authority, "full")).entries == 0
    assert (await authority.audit()).crls == 3


# Entries.


@pytest.mark.parametrize("number", [1, 0, -1])
async def test_a_number_that_does_not_grow_is_found(authority: Authority, number: int) -> None:
    index = entry_of(authority, "0")
    change(authority, index, number=number)
    assert await refused(authority, "does not follow") == index


@pytest.mark.parametrize("through", [10**6, 0])
async def test_revocations_from_elsewhere_are_found(authority: Authority, through: int) -> None:
    index = entry_of(authority, "0")
    change(authority, index, through=through)
    assert await refused(authority, "does not fit its place") == index


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"scope": "01"}, "cannot be"),
        ({"scope": "../x"}, "cannot be"),
        ({"next_update": 0}, "ends before it begins"),
        ({"base": 1}, "without a base"),
        ({"delta_sha256": "00"}, "without a base"),
        ({"number": None}, "malformed"),
        ({"scope": 7}, "malformed"),
    ],
)
async def test_entries_that_cannot_be_are_found(authority: Authority, members: dict[str, object], match: str) -> None:
    index = entry_of(authority, "0")
    change(authority, index, **members)
    assert await refused(authority, match) == index


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("this_update", 1),
        ("next_update", 2**40),
        ("entries", 7),
        ("through", 3),
        ("sha256", b"\0" * 32),
        ("size", 10),
        ("delta_sha256", b"\0" * 32),
    ],
)
async def test_a_row_that_differs_is_found(authority: Authority, column: str, value: object) -> None:
    authority.tamper((f"UPDATE crl SET {column} = ? WHERE scope = '1'", (value,)))  # noqa: S608
    if column == "delta_sha256":
        assert (await authority.audit()).crls == 3  # of no meaning without a delta CRL
    else:
        await refused(authority, "scope 1")


@pytest.mark.parametrize("member", ["this_update", "next_update", "entries", "sha256", "through"])
async def test_an_entry_that_differs_from_the_row_is_found(authority: Authority, member: str) -> None:
    index = entry_of(authority, "1")
    before = payload(authority, index)[member]
    change(authority, index, **{member: "00" * 32 if member == "sha256" else before - 1})
    assert await refused(authority, f"scope 1, in {member}") == index


async def test_a_crl_that_was_put_back_is_found(authority: Authority) -> None:
    before = await row_of(authority, "0")
    await authority.revoke(authority.serials[2])
    await authority.publish()
    now = await row_of(authority, "0")
    assert now.number == before.number + 1
    authority.tamper(
        (
            "UPDATE crl SET number = ?, entries = ?, through = ?, size = ?, sha256 = ? WHERE scope = '0'",
            (before.number, before.entries, before.through, before.size, before.sha256),
        )
    )
    assert await refused(authority, f"the number {before.number} is kept") == entry_of(authority, "0")


async def test_a_crl_without_an_entry_is_found(authority: Authority) -> None:
    authority.rewrite(entry_of(authority, "0"), lambda entry: entry.update(kind=str(Kind.SERVICE_STARTED)))
    await refused(authority, "scope 0, has no crl.published entry")


async def test_a_crl_that_is_gone_is_found(authority: Authority) -> None:
    authority.tamper(("DELETE FROM crl WHERE scope = '0'", ()))
    assert await refused(authority, "is not kept") == entry_of(authority, "0")


async def test_a_piece_that_is_gone_is_found(authority: Authority) -> None:
    authority.tamper(("DELETE FROM crl_part WHERE scope = '0' AND number = 2", ()))
    await refused(authority, "A piece of the CRL 2 .* scope 0, is missing")


# Contents.


async def test_flipped_octets_are_found(authority: Authority) -> None:
    row = await row_of(authority, "0")
    for position in range(0, row.size, 37):
        flip = (
            "UPDATE crl_part SET der = CAST(substr(der, 1, ?) || ? || substr(der, ?) AS BLOB) "
            "WHERE scope = '0' AND number = 2"
        )
        (der,) = await authority.store.read(lambda tx: _pieces(tx, row))
        octet = bytes([der[position] ^ 0x55])
        authority.tamper((flip, (position, octet, position + 2)))
        await refused(authority, "CRL 2 of issuer .* scope 0")
        authority.tamper(("UPDATE crl_part SET der = ? WHERE scope = '0' AND number = 2", (der,)))
    assert (await authority.audit()).crls == 3


def _pieces(transaction: Transaction, row: CrlRow) -> list[bytes]:
    piece = find_part(transaction, row.issuer_id, row.scope, row.number, delta=False, position=0)
    return [piece or b""]


async def test_crls_that_change_places_are_found(authority: Authority) -> None:
    authority.tamper(
        ("UPDATE crl_part SET scope = 'x' WHERE scope = '0'", ()),
        ("UPDATE crl_part SET scope = '0' WHERE scope = '1'", ()),
        ("UPDATE crl_part SET scope = '1' WHERE scope = 'x'", ()),
    )
    await refused(authority, "scope [01],")


async def test_a_missing_serial_is_named(authority: Authority) -> None:
    await forge(authority, "full", entries=lambda given: given[1:])
    missing = (await listed(authority, await row_of(authority, "full")))[0][0]
    await refused(authority, f"does not list the serial {missing}")


async def test_an_empty_crl_is_found(authority: Authority) -> None:
    await forge(authority, entries=lambda _: [])
    await refused(authority, f"does not list the serial {authority.serials[0]}")


async def test_a_serial_that_is_listed_twice_is_found(authority: Authority) -> None:
    await forge(authority, entries=lambda given: [*given, given[0]])
    await refused(authority, "lists a serial twice")


async def test_a_serial_twice_in_place_of_another_is_found(authority: Authority) -> None:
    await forge(authority, "full", entries=lambda given: [given[0], given[0], given[1]])
    await refused(authority, "does not list the serial")


@pytest.mark.parametrize("other", ["not revoked", "other part", "unknown"])
async def test_a_serial_that_does_not_belong_is_named(authority: Authority, other: str) -> None:
    serial = {"not revoked": authority.serials[2], "other part": authority.serials[1], "unknown": "0" * 31 + "7"}[other]
    await forge(authority, entries=lambda given: [*given, (serial, int(NOW), 4)])
    await refused(authority, f"lists the serial {serial}, which does not belong")


@pytest.mark.parametrize("changed", [(1, 4), (int(NOW), 1), (int(NOW), None)])
async def test_another_time_or_reason_is_found(authority: Authority, changed: tuple[int, int | None]) -> None:
    await forge(authority, entries=lambda given: [(given[0][0], *changed)])
    await refused(authority, f"lists the serial {authority.serials[0]} with another time or reason")


@pytest.mark.parametrize(
    ("outline", "match"),
    [
        ({"number": 9}, "another crlNumber"),
        ({"this_update": int(NOW) - 1}, "other times"),
        ({"next_update": int(NOW) + 1}, "other times"),
        ({"url": None}, "not that of its part"),
        ({"url": "http://ca.example/crl/else/0.crl"}, "not that of its part"),
        ({"base": 1}, "relative to another"),
    ],
)
async def test_what_a_crl_says_besides_its_list(authority: Authority, outline: dict[str, Any], match: str) -> None:
    await forge(authority, **outline)
    await refused(authority, match)


async def test_a_full_crl_that_is_restricted_is_found(authority: Authority) -> None:
    await forge(authority, "full", url="http://ca.example/x.crl")
    await refused(authority, "although it covers everything")


async def test_a_signature_that_is_not_the_issuers_is_found(authority: Authority) -> None:
    row = await row_of(authority, "0")
    (der,) = await authority.store.read(lambda tx: _pieces(tx, row))
    # The last octets are those of the signature.
    forged = der[:-1] + bytes([der[-1] ^ 1])
    digest = sha256(forged).digest()
    authority.tamper(
        ("UPDATE crl_part SET der = ? WHERE scope = '0' AND number = 2", (forged,)),
        ("UPDATE crl SET sha256 = ? WHERE scope = '0'", (digest,)),
    )
    change(authority, entry_of(authority, "0"), sha256=digest.hex())
    await refused(authority, "is not signed by its issuer")


@pytest.mark.parametrize("length", [0, 1, 3, 60, -1])
async def test_a_cut_crl_is_found(authority: Authority, length: int) -> None:
    row = await row_of(authority, "0")
    (der,) = await authority.store.read(lambda tx: _pieces(tx, row))
    cut = der[:length]
    authority.tamper(
        ("UPDATE crl_part SET der = ? WHERE scope = '0' AND number = 2", (cut,)),
        ("UPDATE crl SET sha256 = ?, size = ? WHERE scope = '0'", (sha256(cut).digest(), len(cut))),
    )
    change(authority, entry_of(authority, "0"), sha256=sha256(cut).hexdigest())
    await refused(authority, "scope 0")


# Delta CRLs.


async def test_a_delta_crl_is_checked_like_the_others(authority: Authority) -> None:
    await authority.publish(delta_crls=True)
    await authority.revoke(authority.serials[2])
    await authority.publish(delta_crls=True)
    assert (await authority.audit()).crls == 3
    row = await row_of(authority, "0")
    assert row.delta_size
    authority.tamper(("UPDATE crl SET base_number = base_number + 1 WHERE scope = '0'", ()))
    await refused(authority, "The delta CRL .* relative to another CRL")
    authority.tamper(("UPDATE crl SET base_number = base_number - 1 WHERE scope = '0'", ()))
    await forge(authority, delta=True, entries=lambda _: [])
    await refused(authority, f"The delta CRL .* does not list the serial {authority.serials[2]}")
    await forge(authority, delta=True)
    await refused(authority, f"The delta CRL .* lists the serial {authority.serials[0]}, which does not belong")


# What rows say of where revocation is told.


@pytest.mark.parametrize(("column", "value"), [("crl_shard", 1), ("crl_shard", None), ("ocsp", 0)])
async def test_a_certificate_row_that_says_otherwise_is_found(
    authority: Authority, column: str, value: int | None
) -> None:
    authority.tamper((f"UPDATE certificate SET {column} = ? WHERE serial = ?", (value, authority.serials[2])))  # noqa: S608
    assert await refused(authority, "columns are not those") == authority.index(Kind.ISSUED, 2)


@pytest.mark.parametrize("shard", [1, None])
async def test_a_revocation_on_another_part_is_found(authority: Authority, shard: int | None) -> None:
    authority.tamper(("UPDATE revocation SET crl_shard = ? WHERE serial = ?", (shard, authority.serials[0])))
    assert await refused(authority, "another part of the CRL") == authority.index(Kind.REVOKED, 0)


@pytest.mark.parametrize("kind", [Kind.REVOKED, Kind.ABANDONED])
async def test_a_revocation_that_names_another_entry_is_found(authority: Authority, kind: Kind) -> None:
    index = authority.index(kind)
    authority.tamper(("UPDATE revocation SET ledger_index = 1 WHERE ledger_index = ?", (index,)))
    assert await refused(authority, "names another entry") == index
