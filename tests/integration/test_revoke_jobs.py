"""Revoking many: jobs, compromised keys and the sweep, on SQLite and PostgreSQL, with rows as issuances leave them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import insert, select

from fakes.issued import ISSUER, issue_row, spki_hash
from fakes.service import FakeClock
from fakes.store_faults import FaultyBackend, open_faulty, raising
from privyseal_ca.errors import AlreadyRevokedError, PolicyError, StoreUnavailableError
from privyseal_ca.ledger.audit_errors import AuditError
from privyseal_ca.ledger.audit_revocations import RevocationAudit
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.revocation.compromise import BATCH, CompromisedKeys
from privyseal_ca.revocation.jobs import cancel_job, run_job, start_job
from privyseal_ca.revocation.revoke import (
    ADMINISTRATOR_REASONS,
    KEY_COMPROMISE,
    MAX_WITH_KEY,
    block_compromised_key,
    revoke_with_key,
)
from privyseal_ca.revocation.selection import Selection, make_selection, preview_selection
from privyseal_ca.store.certificates import (
    CertificateRow,
    RevocationRow,
    block_key,
    blocked_key_reason,
    find_certificate,
    find_revocation,
)
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, add_issuer
from privyseal_ca.store.revoking import JobRow, find_job, list_jobs
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerHead, Revocation
from privyseal_ca.telemetry.metrics import Metrics

_REVOCATIONS = Statement(select(Revocation.__table__))  # type: ignore[attr-defined]
_HEAD = Statement(insert(LedgerHead.__table__))  # type: ignore[attr-defined]


@pytest.fixture
def backend(migrated_url: str) -> FaultyBackend:
    return FaultyBackend(migrated_url)


@pytest_asyncio.fixture
async def store(backend: FaultyBackend) -> AsyncIterator[Store]:
    opened = open_faulty(backend)
    await opened.open()
    await opened.write(_add_issuer)
    yield opened
    await opened.close()


def _add_issuer(transaction: Transaction) -> None:
    add_issuer(transaction, IssuerRow(ISSUER, "issuing-1", "active", "pkcs11:", "ec-p256", "{}", None, 0, 0))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


async def issue(store: Store, clock: FakeClock, *serials: int, **options: Any) -> list[CertificateRow]:
    def unit(transaction: Transaction) -> list[CertificateRow]:
        return [issue_row(transaction, serial, now=clock.now(), **options) for serial in serials]

    return await store.write(unit)


async def ledger(store: Store, kind: str = "") -> list[dict[str, Any]]:
    found = await store.read(lambda tx: [decode_entry(row.entry) for row in entries(tx, count=100_000)])
    return [entry for entry in found if kind in entry["kind"]]


async def revoked(store: Store) -> dict[int, RevocationRow]:
    rows = [RevocationRow(*row) for row in await store.read(lambda tx: tx.all(_REVOCATIONS))]
    return {int(row.serial, 16): row for row in rows}


async def select_(store: Store, **options: Any) -> Selection:
    return await store.read(lambda tx: make_selection(tx, **options))


async def start(store: Store, clock: FakeClock, selection: Selection, *, reason: int = 4, job: str = "j1") -> JobRow:
    total = (await preview_selection(store, selection, now=int(clock.now()))).total
    return await start_job(
        store,
        selection,
        job_id=job,
        reason=reason,
        total=total,
        actor="operator:tests",
        correlation="c0ffee",
        now=clock.now(),
    )


async def revoke_all(store: Store, clock: FakeClock, *, reason: int = 4, job: str = "j1", **options: Any) -> JobRow:
    await start(store, clock, await select_(store, **options), reason=reason, job=job)
    return await run_job(store, clock, job, sleep=no_pause)


# What is selected.


async def test_each_criterion_and_all_of_them(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 1, 2, names=["dns:a.corp.example", "ip:10.0.0.1"])
    await issue(store, clock, 3, requester="account:b", names=["dns:x.B.corp.example"], key="k")
    await issue(store, clock, 4, profile="server", issuer_id="cd" * 20, names=["uri:spiffe://Corp/Web"])
    clock.advance(100)
    middle = int(clock.now())
    await issue(store, clock, 5, requester="account:b", not_before=0)

    async def hits(**options: Any) -> int:
        selection = await select_(store, **options)
        return (await preview_selection(store, selection, now=int(clock.now()))).total

    assert await hits(account="b") == 2
    assert await hits(account="account:b") == 2
    assert await hits(account="c") == 0
    assert await hits(name="a.corp.example") == 2
    assert await hits(name="10.0.0.*") == 2
    assert await hits(name="**.corp.example") == 4
    assert await hits(name="spiffe://corp/*") == 1
    assert await hits(issuer="issuing-1") == 4
    assert await hits(issuer=ISSUER.upper()) == 4
    assert await hits(profile="server") == 1
    assert await hits(key=spki_hash("k")) == 1
    assert await hits(issued_after=middle) == 1
    assert await hits(issued_before=middle) == 4
    assert await hits(issued_after=middle + 1) == 0
    assert await hits(issued_before=0) == 0
    assert await hits(account="b", issued_before=middle, profile="mtls", name="*.b.corp.example") == 1
    assert await hits(account="b", profile="server") == 0


async def test_a_selection_of_nothing_or_of_an_unknown_issuer(store: Store) -> None:
    with pytest.raises(PolicyError, match="Nothing is selected"):
        await select_(store)
    with pytest.raises(PolicyError, match="no issuer"):
        await select_(store, issuer="issuing-2")
    with pytest.raises(PolicyError, match="pattern"):
        await select_(store, name="")


async def test_expired_revoked_and_own_certificates_are_counted_and_left_alone(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 1, 2)
    await issue(store, clock, 3, lifetime=-1)
    await issue(store, clock, 4, 5, requester="service", profile="canary")
    await store.write(lambda tx: _revoke(tx, 2, reason=0, now=clock.now()))
    preview = await preview_selection(store, await select_(store, name="**"), now=int(clock.now()))
    assert (preview.total, preview.expired, preview.revoked, preview.own) == (1, 1, 1, 2)
    job = await revoke_all(store, clock, name="**")
    assert (job.total, job.revoked) == (1, 1)
    assert set(await revoked(store)) == {1, 2}
    job = await revoke_all(store, clock, account="service", job="j2")
    assert (job.total, job.revoked) == (2, 2)
    assert set(await revoked(store)) == {1, 2, 4, 5}


def _revoke(transaction: Transaction, serial: int, *, reason: int, now: float) -> list[RevocationRow]:
    row = find_certificate(transaction, f"{serial:032x}")
    assert row is not None
    return revoke_with_key(
        transaction,
        row,
        reason=reason,
        allowed_reasons=ADMINISTRATOR_REASONS,
        actor="operator:tests",
        correlation="c",
        now=now,
    )


# Jobs.


async def test_a_job_from_its_start_to_its_end(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, *range(1, 451))
    seen: list[int] = []
    job = await start(store, clock, await select_(store, account="a"))
    await run_job(store, clock, job.id, progress=lambda row: seen.append(row.revoked), sleep=no_pause)
    assert seen == [0, 200, 400, 450, 450]
    rows = await revoked(store)
    assert set(rows) == set(range(1, 451))
    assert {(row.reason, row.crl_shard == serial % 4) for serial, row in rows.items()} == {(4, True)}
    recorded = await ledger(store, "revo")
    begin, end = recorded[0], recorded[-1]
    assert begin["kind"] == "revocation.started"
    assert begin["payload"] == {
        "job": "j1",
        "reason": 4,
        "selection": {"account": "a", "first": 0, "end": 900},
        "total": 450,
    }
    assert end["kind"] == "revocation.finished"
    assert end["payload"] == {"job": "j1", "revoked": 450, "skipped": 0, "state": "finished"}
    assert len(recorded) == 452
    assert {(entry["actor"], entry["correlation"]) for entry in recorded} == {("operator:tests", "c0ffee")}
    found = await store.read(lambda tx: entries(tx, first=rows[7].ledger_index, count=1))
    assert decode_entry(next(found).entry)["payload"]["serial"] == f"{7:032x}"
    assert await run_job(store, clock, job.id, sleep=no_pause) == await store.read(lambda tx: find_job(tx, "j1"))
    assert len(await ledger(store, "revo")) == 452


async def test_what_is_issued_after_it_began_is_not_hit(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 10, 20)
    job = await start(store, clock, await select_(store, account="a"))
    await issue(store, clock, 5, 15, 25)
    assert (await run_job(store, clock, job.id, sleep=no_pause)).revoked == 2
    assert set(await revoked(store)) == {10, 20}


async def test_what_others_revoked_or_time_ended_meanwhile_is_skipped(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 1, 3)
    await issue(store, clock, 2, lifetime=100)
    job = await start(store, clock, await select_(store, account="a"))
    await store.write(lambda tx: _revoke(tx, 1, reason=0, now=clock.now()))
    clock.advance(101)
    job = await run_job(store, clock, job.id, sleep=no_pause)
    assert (job.total, job.revoked) == (3, 1)
    assert (await ledger(store, "revocation.finished"))[0]["payload"]["skipped"] == 2


async def test_two_at_the_same_job_do_no_harm(store: Store, migrated_url: str, clock: FakeClock) -> None:
    await issue(store, clock, *range(1, 1201))
    job = await start(store, clock, await select_(store, account="a"))
    other = open_faulty(FaultyBackend(migrated_url))
    await other.open()
    try:
        ends = await asyncio.gather(
            *(run_job(each, clock, job.id, sleep=no_pause) for each in (store, other, store, other))
        )
    finally:
        await other.close()
    assert {end.revoked for end in ends} == {1200}
    assert len(await revoked(store)) == 1200
    assert len(await ledger(store, "certificate.revoked")) == 1200
    assert len(await ledger(store, "revocation.finished")) == 1


async def test_an_interrupted_job_goes_on(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, *range(1, 701))
    job = await start(store, clock, await select_(store, account="a"))

    def interrupt(row: JobRow) -> None:
        if row.revoked:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run_job(store, clock, job.id, progress=interrupt, sleep=no_pause)
    row = await store.read(lambda tx: find_job(tx, "j1"))
    assert row is not None
    assert (row.state, row.position, row.revoked) == ("running", f"{200:032x}", 200)
    assert set(await revoked(store)) == set(range(1, 201))
    assert (await run_job(store, clock, job.id, sleep=no_pause)).revoked == 700
    assert len(await ledger(store, "certificate.revoked")) == 700


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_database_that_fails_now_and_then(
    store: Store, backend: FaultyBackend, clock: FakeClock, when: str
) -> None:
    """The answer to a commit is lost, before or after it is durable: nothing is done twice (P3)."""
    await issue(store, clock, *range(1, 601))
    job = await start(store, clock, await select_(store, account="a"))
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    def fail(row: JobRow) -> None:
        if row.revoked in {200, 400}:
            getattr(backend, when)["COMMIT"] = raising(StoreUnavailableError("The answer was lost."))

    job = await run_job(store, clock, job.id, progress=fail, sleep=sleep)
    assert job.revoked == 600
    assert len(await ledger(store, "certificate.revoked")) == 600
    assert 0.25 in waited


async def test_a_database_that_stays_away_is_not_waited_for_for_ever(
    store: Store, clock: FakeClock, migrated_url: str
) -> None:
    await issue(store, clock, 1)
    job = await start(store, clock, await select_(store, account="a"))
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    closed = open_faulty(FaultyBackend(migrated_url))
    await closed.open()
    await closed.close()
    closed.read = store.read  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError, match="--resume j1"):
        await run_job(closed, clock, job.id, sleep=sleep)
    assert 20 < sum(waited) < 60


async def test_a_cancelled_job_stops_and_cannot_be_resumed(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, *range(1, 501))
    job = await start(store, clock, await select_(store, account="a"))

    class StopError(Exception):
        pass

    def stop(row: JobRow) -> None:
        if row.revoked:
            raise StopError

    with pytest.raises(StopError):
        await run_job(store, clock, job.id, progress=stop, sleep=no_pause)
    said = {"actor": "operator:other", "correlation": "c2", "now": clock.now()}
    assert (await cancel_job(store, job.id, **said)).state == "cancelled"  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="cancelled already"):
        await cancel_job(store, job.id, **said)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="was cancelled"):
        await run_job(store, clock, job.id, sleep=no_pause)
    (end,) = await ledger(store, "revocation.finished")
    assert end["payload"] == {"job": "j1", "revoked": 200, "skipped": 300, "state": "cancelled"}
    assert end["actor"] == "operator:other"
    assert len(await revoked(store)) == 200


async def test_a_job_that_is_cancelled_while_it_runs(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, *range(1, 501))
    job = await start(store, clock, await select_(store, account="a"))

    async def sleep(_: float) -> None:
        if (row := await store.read(lambda tx: find_job(tx, "j1"))) and row.state == "running":
            await cancel_job(store, "j1", actor="operator:other", correlation="c2", now=clock.now())

    end = await run_job(store, clock, job.id, sleep=sleep)
    assert (end.state, end.revoked) == ("cancelled", 200)


async def test_jobs_that_are_not_there(store: Store, clock: FakeClock) -> None:
    with pytest.raises(PolicyError, match="no job"):
        await run_job(store, clock, "nothing", sleep=no_pause)
    with pytest.raises(PolicyError, match="no job"):
        await cancel_job(store, "nothing", actor="operator:x", correlation="c", now=0)


async def test_jobs_are_listed_the_newest_first(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 1)
    for number in range(3):
        await start(store, clock, await select_(store, account="a"), job=f"j{number}")
        clock.advance(1)
    assert [row.id for row in await store.read(lambda tx: list_jobs(tx, count=2))] == ["j2", "j1"]


# Compromised keys.


async def test_a_compromised_key_takes_its_certificates_with_it(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 1, 2, 3, 4, key="k")
    await issue(store, clock, 5, requester="account:b", issuer_id="cd" * 20, key="k")
    await issue(store, clock, 6, lifetime=-1, key="k")
    await issue(store, clock, 7, key="other")
    await store.write(lambda tx: _revoke(tx, 3, reason=4, now=clock.now()))
    rows = await store.write(lambda tx: _revoke(tx, 2, reason=KEY_COMPROMISE, now=clock.now()))
    assert [int(row.serial, 16) for row in rows] == [2, 1, 4, 5]
    assert {serial: row.reason for serial, row in (await revoked(store)).items()} == {1: 1, 2: 1, 3: 4, 4: 1, 5: 1}
    assert await store.read(lambda tx: blocked_key_reason(tx, spki_hash("k"))) == "keyCompromise"
    (blocked,) = await ledger(store, "key.blocked")
    assert blocked["payload"] == {"spki_sha256": spki_hash("k").hex(), "reason": "keyCompromise", "proof": None}
    kinds = [entry["kind"] for entry in await ledger(store)][-5:]
    assert kinds == ["key.blocked"] + ["certificate.revoked"] * 4
    assert {entry["correlation"] for entry in (await ledger(store))[-5:]} == {"c"}


@pytest.mark.parametrize("reason", [0, 3, 4, 5, 9])
async def test_other_reasons_take_nothing_with_them(store: Store, clock: FakeClock, reason: int) -> None:
    await issue(store, clock, 1, 2, key="k")
    assert len(await store.write(lambda tx: _revoke(tx, 1, reason=reason, now=clock.now()))) == 1
    assert set(await revoked(store)) == {1}
    assert await store.read(lambda tx: blocked_key_reason(tx, spki_hash("k"))) is None


async def test_a_revoked_certificate_is_not_revoked_again_and_its_key_not_blocked(
    store: Store, clock: FakeClock
) -> None:
    await issue(store, clock, 1, 2, key="k")
    await store.write(lambda tx: _revoke(tx, 1, reason=4, now=clock.now()))
    before = len(await ledger(store))
    with pytest.raises(AlreadyRevokedError):
        await store.write(lambda tx: _revoke(tx, 1, reason=KEY_COMPROMISE, now=clock.now()))
    assert set(await revoked(store)) == {1}
    assert len(await ledger(store)) == before
    assert await store.read(lambda tx: blocked_key_reason(tx, spki_hash("k"))) is None


async def test_more_than_a_transaction_holds_is_left_to_the_sweep(store: Store, clock: FakeClock) -> None:
    count = MAX_WITH_KEY + BATCH + 50
    await issue(store, clock, *range(1, count + 1), key="k")
    metrics = Metrics()
    sweeper = CompromisedKeys(store, clock, metrics)
    assert await sweeper.sweep() == 0
    rows = await store.write(lambda tx: _revoke(tx, 1, reason=KEY_COMPROMISE, now=clock.now()))
    assert len(rows) == MAX_WITH_KEY + 1
    assert await sweeper.sweep() == count - MAX_WITH_KEY - 1
    assert len(await revoked(store)) == count
    assert await sweeper.sweep() == 0
    assert metrics.registry.get_sample_value("privyseal_certificates_revoked_total") == count - MAX_WITH_KEY - 1
    last = (await ledger(store))[-1]
    assert (last["actor"], last["correlation"]) == ("service", spki_hash("k")[:16].hex())


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_issued_in_a_race_with_the_block_is_found(
    store: Store, clock: FakeClock, restarted: bool
) -> None:
    sweeper = CompromisedKeys(store, clock, Metrics())
    await issue(store, clock, 1, key="k")
    await store.write(lambda tx: _revoke(tx, 1, reason=KEY_COMPROMISE, now=clock.now()))
    assert await sweeper.sweep() == 0
    await issue(store, clock, 2, key="k")
    await issue(store, clock, 3, key="other")
    if restarted:
        sweeper = CompromisedKeys(store, clock, Metrics())
    assert await sweeper.sweep() == 1
    assert set(await revoked(store)) == {1, 2}


async def test_a_quiet_sweep_reads_once_and_writes_nothing(store: Store, clock: FakeClock) -> None:
    await issue(store, clock, 1, key="k")
    await store.write(lambda tx: _revoke(tx, 1, reason=KEY_COMPROMISE, now=clock.now()))
    sweeper = CompromisedKeys(store, clock, Metrics())
    await sweeper.sweep()
    reads: list[Callable[..., Any]] = []
    read = store.read

    async def count(unit: Callable[[Transaction], Any]) -> Any:
        reads.append(unit)
        return await read(unit)

    store.read = count  # type: ignore[method-assign]
    store.write = None  # type: ignore[assignment,method-assign]
    assert await sweeper.sweep() == 0
    assert len(reads) == 1


async def test_a_job_for_compromised_keys_blocks_each_and_leaves_nothing(store: Store, clock: FakeClock) -> None:
    for number in range(1, 4):
        await issue(store, clock, number, key=f"k{number}")
    await issue(store, clock, *range(100, 100 + MAX_WITH_KEY + 20), requester="account:b", key="k2")
    await issue(store, clock, 5000, requester="account:b", key="other")
    job = await revoke_all(store, clock, account="a", reason=KEY_COMPROMISE)
    assert (job.total, job.revoked) == (3, 3 + MAX_WITH_KEY + 20)
    assert 5000 not in await revoked(store)
    assert len(await revoked(store)) == 3 + MAX_WITH_KEY + 20
    assert len(await ledger(store, "key.blocked")) == 3
    assert {row.reason for row in (await revoked(store)).values()} == {1}


async def test_a_proof_is_recorded_even_for_a_key_that_was_blocked_before(store: Store, clock: FakeClock) -> None:
    said = {"actor": "operator:tests", "correlation": "c", "now": clock.now()}
    key = spki_hash("k")
    assert await store.write(lambda tx: block_compromised_key(tx, key, **said))  # type: ignore[arg-type]
    assert not await store.write(lambda tx: block_compromised_key(tx, key, **said))  # type: ignore[arg-type]
    proof = {"algorithm": "ed25519"}
    assert not await store.write(lambda tx: block_compromised_key(tx, key, **said, proof=proof))  # type: ignore[arg-type]
    assert [entry["payload"]["proof"] for entry in await ledger(store, "key.blocked")] == [None, proof]


async def test_revocations_of_two_processes_that_meet_are_one(
    store: Store, migrated_url: str, clock: FakeClock
) -> None:
    await issue(store, clock, *range(1, 41), key="k")
    other = open_faulty(FaultyBackend(migrated_url))
    await other.open()

    async def revoke(each: Store, serial: int) -> int:
        try:
            return len(await each.write(lambda tx: _revoke(tx, serial, reason=KEY_COMPROMISE, now=clock.now())))
        except AlreadyRevokedError:
            return 0

    try:
        counts = await asyncio.gather(*(revoke(each, serial) for serial in range(1, 21) for each in (store, other)))
    finally:
        await other.close()
    assert sorted(counts)[-2:] == [0, 40]
    assert len(await ledger(store, "certificate.revoked")) == 40
    assert await store.read(lambda tx: find_revocation(tx, ISSUER, f"{1:032x}")) is not None


async def test_what_jobs_leave_agrees_with_the_ledger(store: Store, clock: FakeClock) -> None:
    """Finished, cancelled and running jobs and blocked keys, as the check of the ledger reads them."""
    await issue(store, clock, *range(1, 6), key="k")
    await issue(store, clock, *range(6, 9))
    await revoke_all(store, clock, reason=KEY_COMPROMISE, job="done", key=spki_hash("k"))
    for job in ("running", "ended"):
        await start(store, clock, await select_(store, profile="mtls"), job=job)
    await cancel_job(store, "ended", actor="operator:tests", correlation="c", now=clock.now())

    async def check() -> None:
        audit = RevocationAudit({})
        checks = {
            Kind.REVOKED: audit.certificate_revoked,
            Kind.KEY_BLOCKED: audit.key_blocked,
            Kind.REVOCATION_STARTED: audit.job_started,
            Kind.REVOCATION_FINISHED: audit.job_finished,
        }

        def unit(transaction: Transaction) -> None:
            for row in entries(transaction, count=1000):
                members = decode_entry(row.entry)
                if look := checks.get(Kind(members["kind"])):
                    look(transaction, row.index, members)

        await store.read(unit)
        await audit.look_for_unrecorded(store)
        audit.compare()

    await check()
    await store.write(lambda tx: block_key(tx, spki_hash("other"), reason="keyCompromise", now=1))
    with pytest.raises(AuditError, match=f"{spki_hash('other').hex()} is blocked without an entry"):
        await check()
