"""`ledger verify` finds jobs, blocked keys and owners of certificates that are not what the ledger says."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fakes.audited import NOW, Authority, opened_authority, refused
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.revocation.jobs import cancel_job, run_job, start_job
from privyseal_ca.revocation.revoke import record_revocation
from privyseal_ca.revocation.selection import make_selection
from privyseal_ca.store.certificates import block_key, find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction


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


@pytest.mark.parametrize(("column", "value"), [("requester", "service"), ("requester", "account:b"), ("profile", "x")])
async def test_a_certificate_that_became_somebody_elses_is_found(
    authority: Authority, column: str, value: object
) -> None:
    """By requester and profile certificates are selected to be revoked: one of `service` would be spared."""
    authority.tamper((f"UPDATE certificate SET {column} = ? WHERE serial = ?", (value, authority.serials[2])))  # noqa: S608
    assert await refused(authority, "requester or profile") == authority.index(Kind.ISSUED, 2)


# Jobs and blocked keys.


async def start_one(authority: Authority, job: str = "j1") -> None:
    selection = await authority.store.read(lambda tx: make_selection(tx, profile="mtls"))
    await start_job(
        authority.store, selection, job_id=job, reason=4, total=2, actor="operator:tests", correlation="c", now=NOW
    )


async def test_jobs_in_every_state_pass(authority: Authority) -> None:
    for job in ("a", "b", "c"):
        await start_one(authority, job)
    await cancel_job(authority.store, "b", actor="operator:other", correlation="d", now=NOW)
    await authority.audit()
    await run_job(authority.store, authority.clock, "c")
    assert (await authority.audit()).revoked == 3


async def test_a_job_that_ends_while_it_is_checked_passes(authority: Authority) -> None:
    await start_one(authority)
    auditor = Auditor(authority.store, issued_entry=issued_entry)
    look = auditor._revocations.look_for_unrecorded

    async def look_then_end(store: Store) -> None:
        await start_one(authority, "j2")
        await look(store)
        for job in ("j1", "j2"):
            await cancel_job(store, job, actor="a", correlation="c", now=NOW)

    auditor._revocations.look_for_unrecorded = look_then_end  # type: ignore[method-assign]
    await auditor.run()


@pytest.mark.parametrize(
    ("column", "value"),
    [("selection", '{"profile":"other","first":0,"end":9}'), ("reason", 1), ("total", 1), ("actor", "x")],
)
async def test_a_job_that_differs_is_found(authority: Authority, column: str, value: object) -> None:
    await start_one(authority)
    authority.tamper((f"UPDATE revocation_job SET {column} = ?", (value,)))  # noqa: S608
    assert await refused(authority, "whose row differs") == authority.index(Kind.REVOCATION_STARTED)


async def test_a_job_that_was_removed_is_found(authority: Authority) -> None:
    await start_one(authority)
    authority.tamper(("DELETE FROM revocation_job", ()))
    assert await refused(authority, "not kept") == authority.index(Kind.REVOCATION_STARTED)


async def test_a_job_without_an_entry_is_found(authority: Authority) -> None:
    await start_one(authority)
    columns = "created, actor, correlation, reason, selection, state, position, total, revoked"
    authority.tamper((f"INSERT INTO revocation_job SELECT 'j2', {columns} FROM revocation_job", ()))  # noqa: S608
    await refused(authority, "j2 has no revocation.started")


async def test_a_job_that_was_ended_quietly_is_found(authority: Authority) -> None:
    await start_one(authority)
    authority.tamper(("UPDATE revocation_job SET state = 'finished'", ()))
    await refused(authority, "j1 is finished without an entry")


async def test_a_job_that_was_opened_again_is_found(authority: Authority) -> None:
    await start_one(authority)
    await run_job(authority.store, authority.clock, "j1")
    authority.tamper(("UPDATE revocation_job SET state = 'running'", ()))
    assert await refused(authority, "says something else") == authority.index(Kind.REVOCATION_FINISHED)


async def test_a_blocked_key_without_an_entry_is_found(authority: Authority) -> None:
    await authority.revoke(authority.serials[0], reason=1)
    await authority.audit()
    authority.tamper(("INSERT INTO blocked_key VALUES (?, 'keyCompromise', 1)", (b"\x07" * 32,)))
    await refused(authority, f"{'07' * 32} is blocked without an entry")


async def test_a_compromised_key_without_an_entry_of_its_own_passes(authority: Authority) -> None:
    """So it was before there was `key.blocked`."""

    def unit(transaction: Transaction) -> None:
        row = find_certificate(transaction, authority.serials[0])
        assert row is not None
        block_key(transaction, row.spki_sha256, reason="keyCompromise", now=int(NOW))
        record_revocation(transaction, row, reason=1, actor="a", correlation="c", now=NOW)

    await authority.store.write(unit)
    await authority.audit()


async def test_an_abandoned_serial_that_is_to_leave_the_list_early_is_found(authority: Authority) -> None:
    authority.rewrite(authority.index(Kind.ABANDONED), lambda entry: entry["payload"].update(not_after=int(NOW)))  # type: ignore[attr-defined]
    await authority.audit()
    authority.tamper(("UPDATE revocation SET not_after = 1 WHERE serial <> ?", (authority.serials[1],)))
    assert await refused(authority, "differ from it") == authority.index(Kind.ABANDONED)
