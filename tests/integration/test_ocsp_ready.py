"""Responses that are made before anybody asks, and what becomes of them when token or database go away."""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress

import pytest
import pytest_asyncio
from sqlalchemy.dialects import sqlite as sqlite_dialect

from fakes.home import MakeSettings
from fakes.ocsp_desk import BOTH, OcspDesk, add_issuer, ocsp_desk, settings_on
from fakes.outages import FailingStore, FailingToken
from privyseal_ca.config import Settings
from privyseal_ca.errors import SignerUnavailableError, StoreUnavailableError
from privyseal_ca.revocation.ocsp_ready import _batches
from privyseal_ca.revocation.published import OcspAnswer, OcspStatus
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.ocsp import _CONTRADICTED

DELAY = 60


@pytest.fixture(params=BOTH)
def settings(request: pytest.FixtureRequest, make_settings: MakeSettings) -> Settings:
    return settings_on(request, make_settings)


@pytest_asyncio.fixture
async def desk(settings: Settings) -> AsyncIterator[OcspDesk]:
    async with ocsp_desk(settings) as desk:
        await desk.ready.prepare_due()
        yield desk


async def prepare(desk: OcspDesk) -> int:
    """What the service does until there is nothing more to do; how many responses were signed."""
    before = desk.signed("ready") + desk.signed("revoked")
    for _ in range(100):
        if not await desk.ready.prepare_due():
            return desk.signed("ready") + desk.signed("revoked") - before
    raise AssertionError("it never rests")


async def comes_back(desk: OcspDesk) -> None:
    """Ask for the token, as the service does now and then, until it is there."""
    for _ in range(500):
        with suppress(SignerUnavailableError):
            await desk.hsm.probe()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the token stays away")


async def test_new_certificates_get_their_responses_when_they_are_old_enough(desk: OcspDesk) -> None:
    rows = [await desk.issue() for _ in range(3)]
    assert await prepare(desk) == 0
    desk.clock.advance(DELAY - 1)
    assert await prepare(desk) == 0
    late = await desk.issue()
    desk.clock.advance(2)
    assert await prepare(desk) == 6
    assert await desk.kept(late.serial) is None
    assert await prepare(desk) == 0
    for row in rows:
        for hash_name in ("sha1", "sha256"):
            assert await desk.status(row.serial, hash_name=hash_name) == "good"
    assert desk.signed("request") == 0
    desk.clock.advance(DELAY)
    assert await prepare(desk) == 2


async def test_only_the_hashes_that_are_wanted_are_made(make_settings: MakeSettings) -> None:
    async with ocsp_desk(make_settings(status={"ocsp_hashes": ("sha256",), "ocsp_delay": 0})) as desk:
        row = await desk.issue()
        assert await prepare(desk) == 1
        assert await desk.kept(row.serial, "sha1") is None
        assert await desk.status(row.serial, hash_name="sha1") == "good"
        assert desk.signed("request") == 1


async def test_what_was_asked_for_earlier_is_not_made_twice(desk: OcspDesk) -> None:
    row = await desk.issue()
    assert await desk.status(row.serial) == "good"
    await prepare(desk)
    desk.clock.advance(DELAY)
    assert await prepare(desk) == 1


async def test_certificates_that_name_no_responder_are_passed_over(desk: OcspDesk) -> None:
    """Those of the responders are among them."""
    await desk.responders.renew_due()
    responder = desk.responders.find(desk.issuer.id)
    assert responder is not None
    desk.clock.advance(DELAY)
    assert await prepare(desk) == 0
    assert await desk.kept(f"{responder.certificate.serial_number:032x}") is None


async def test_a_revocation_replaces_what_is_kept_at_once(desk: OcspDesk) -> None:
    rows = [await desk.issue() for _ in range(3)]
    await prepare(desk)
    desk.clock.advance(DELAY)
    await prepare(desk)
    await desk.revoke(rows[1])
    assert await prepare(desk) == 2
    assert desk.signed("revoked") == 2
    assert desk.forgotten == [rows[1].serial]
    for hash_name in ("sha1", "sha256"):
        kept = await desk.kept(rows[1].serial, hash_name)
        assert kept is not None
        assert kept.revoked
        assert await desk.status(rows[1].serial, hash_name=hash_name) == "revoked"
    assert [await desk.status(row.serial) for row in rows] == ["good", "revoked", "good"]
    assert await prepare(desk) == 0


async def test_what_others_revoked_is_looked_at_once(settings: Settings) -> None:
    name = await asyncio.to_thread(add_issuer, settings)
    async with ocsp_desk(settings) as desk:
        other = next(each for each in desk.authority.issuers if each.identity.name == name)
        await desk.revoke(await desk.issue(issuer=other))
        row = await desk.revoke(await desk.issue(issuer=other))
        await prepare(desk)
        for issuer in (desk.issuer, other):
            fact = f"ocsp-revoked:{issuer.id}"
            assert await desk.store.read(lambda tx, fact=fact: find_fact(tx, fact)) == str(row.ledger_index)


async def test_a_look_for_revocations_reads_no_more_than_it_gives(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with ocsp_desk(settings):
        pass
    sql, parameters = _CONTRADICTED.prepare(sqlite_dialect.dialect(paramstyle="named"), {"after": 1, "count": 1})
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert "ix_revocation_ledger" in plan[0]
    assert not any("TEMP B-TREE" in step for step in plan)


async def test_a_revocation_before_the_first_response(desk: OcspDesk) -> None:
    row = await desk.issue()
    await prepare(desk)
    await desk.revoke(row)
    # At once: who cannot sign would have nothing to say of it.
    assert await prepare(desk) == 2
    for hash_name in ("sha1", "sha256"):
        kept = await desk.kept(row.serial, hash_name)
        assert kept is not None
        assert kept.revoked
    desk.clock.advance(DELAY)
    assert await prepare(desk) == 0


async def test_a_revocation_that_a_restart_came_upon_is_not_lost(settings: Settings) -> None:
    async with ocsp_desk(settings) as desk:
        row = await desk.issue()
        assert await desk.status(row.serial) == "good"
        await desk.revoke(row)
    async with ocsp_desk(settings, clock=desk.clock) as again:
        assert await prepare(again) == 2
        assert await again.status_only().answer(again.query(row.serial)) == await again.ask(row.serial)
        assert await again.status(row.serial) == "revoked"
        assert again.signed("request") == 0


async def test_many_revocations_are_replaced_in_rounds(make_settings: MakeSettings) -> None:
    async with ocsp_desk(make_settings(status={"ocsp_delay": 0})) as desk:
        rows = [await desk.issue() for _ in range(300)]
        assert await prepare(desk) == 600
        for row in rows:
            await desk.revoke(row)
        assert await desk.ready.prepare_due() == 1
        await prepare(desk)
        assert desk.signed("revoked") == 600
        for row in rows:
            for hash_name in ("sha1", "sha256"):
                kept = await desk.kept(row.serial, hash_name)
                assert kept is not None
                assert kept.revoked
        assert set(desk.forgotten) == {row.serial for row in rows}


async def test_responses_are_made_anew_at_half_of_their_life_while_the_certificate_lives(desk: OcspDesk) -> None:
    row, other = await desk.issue(), await desk.issue()
    await prepare(desk)
    desk.clock.advance(DELAY)
    await desk.revoke(other)
    assert await prepare(desk) == 4
    before = await desk.kept(row.serial)
    assert before is not None
    half = desk.settings.status.ocsp_lifetime // 2
    desk.clock.advance(half - 1)
    assert await prepare(desk) == 0
    desk.clock.advance(1)
    assert desk.metrics.registry.get_sample_value("privyseal_ocsp_responses_due") == 0
    assert await prepare(desk) == 4
    after = await desk.kept(row.serial)
    assert after is not None
    assert after.this_update == before.this_update + half
    assert await desk.status(other.serial) == "revoked"
    # The certificate has come to its end, and so has what is kept for it.
    desk.clock.advance(row.not_after - desk.clock.now() + 1 + half)
    await desk.responders.renew_due()
    assert await prepare(desk) == 0
    assert await desk.kept(row.serial) is None
    assert await desk.kept(other.serial) is None


async def test_what_nobody_can_renew_is_forgotten_in_the_end(desk: OcspDesk) -> None:
    row = await desk.issue()
    assert await desk.status(row.serial) == "good"
    desk.responders._issuers.clear()
    desk.clock.advance(32 * 86400)
    await prepare(desk)
    assert await desk.kept(row.serial) is None


async def test_a_revocation_between_signing_and_keeping(desk: OcspDesk) -> None:
    row = await desk.issue()
    await prepare(desk)
    desk.clock.advance(DELAY)
    keep = desk.ready._maker.keep
    revoked = False

    async def revoke_then_keep(*arguments: object) -> object:
        nonlocal revoked
        if not revoked:
            revoked = True
            await desk.revoke(row)
        return await keep(*arguments)  # type: ignore[arg-type]

    desk.ready._maker.keep = revoke_then_keep  # type: ignore[method-assign,assignment]
    await prepare(desk)
    for hash_name in ("sha1", "sha256"):
        kept = await desk.kept(row.serial, hash_name)
        assert kept is not None
        assert kept.revoked


async def test_the_token_is_away(make_settings: MakeSettings) -> None:
    token = FailingToken()
    settings = make_settings(status={"ocsp_delay": 0}, hsm={"retry_after": 0.01})
    async with ocsp_desk(settings, **token.parts) as desk:
        ready, revoked, new = [await desk.issue() for _ in range(3)]
        assert await desk.status(ready.serial) == "good"
        assert await desk.status(revoked.serial) == "good"
        token.take_away()
        assert await desk.status(ready.serial) == "good"
        await desk.revoke(revoked)
        assert await desk.ask(revoked.serial) is OcspStatus.TRY_LATER
        assert await desk.ask(new.serial) is OcspStatus.TRY_LATER
        assert await desk.ask(secrets.randbits(100)) is OcspStatus.TRY_LATER
        # A nonce may be left out; being answered may not.
        answer = await desk.ask(ready.serial, nonce=secrets.token_bytes(32))
        assert isinstance(answer, OcspAnswer)
        assert await prepare(desk) == 0
        token.bring_back()
        await comes_back(desk)
        assert await prepare(desk) == 5
        assert [await desk.status(row.serial) for row in (ready, revoked, new)] == ["good", "revoked", "good"]


async def test_a_responder_certificate_cannot_be_issued(make_settings: MakeSettings) -> None:
    token = FailingToken()
    settings = make_settings(hsm={"retry_after": 0.01})
    async with ocsp_desk(settings, **token.parts) as desk:
        desk.clock.advance(desk.settings.status.responder_lifetime * 0.6)
        token.take_away()
        assert await desk.responders.renew_due() == 0
        token.bring_back()
        await comes_back(desk)
        row = await desk.issue()
        assert await desk.status(row.serial) == "good"
        assert await desk.responders.renew_due() == 1


async def test_the_writer_is_away(make_settings: MakeSettings) -> None:
    database = FailingStore()
    async with ocsp_desk(make_settings(status={"ocsp_delay": 0}), **database.parts) as desk:
        known, revoked, kept = [await desk.issue() for _ in range(3)]
        await desk.revoke(revoked)
        assert await desk.status(kept.serial) == "good"

        def refuse() -> None:
            raise sqlite3.OperationalError("database or disk is full")

        database.backend.before["COMMIT"] = refuse
        for _ in range(2):
            assert await desk.status(known.serial) == "good"
            assert await desk.status(revoked.serial) == "revoked"
            assert await desk.status(kept.serial) == "good"
        answer = await desk.ask(known.serial)
        assert isinstance(answer, OcspAnswer)
        assert answer.fresh_until - answer.this_update == 60
        with pytest.raises(StoreUnavailableError):
            await desk.ready.prepare_due()
        database.backend.before.clear()
        assert await prepare(desk) == 5
        assert (await desk.kept(known.serial)) is not None


async def test_the_database_is_away(desk: OcspDesk) -> None:
    row = await desk.issue()
    assert await desk.status(row.serial) == "good"

    async def refuse(_: object) -> object:
        raise StoreUnavailableError("The database is away.")

    read = desk.store.read
    desk.store.read = refuse  # type: ignore[method-assign,assignment]
    assert await desk.ask(row.serial) is OcspStatus.TRY_LATER
    await desk.ocsp.follow()
    desk.store.read = read  # type: ignore[method-assign]
    await desk.revoke(row)
    await desk.ocsp.follow()
    assert desk.forgotten == [row.serial]


async def test_a_defect_is_an_internal_error(desk: OcspDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_down(*_: object) -> object:
        raise RuntimeError("a defect")

    monkeypatch.setattr(desk.store, "read", break_down)
    assert await desk.ask(1) is OcspStatus.INTERNAL_ERROR


def test_a_watermark_never_passes_what_is_in_a_later_piece() -> None:
    found = [(index // 2, f"piece {index}") for index in range(301)]
    done: set[str] = set()
    for piece, through in _batches(found):
        done |= {name for _, name in piece}
        assert {name for index, name in found if index <= through} <= done
    assert done == {name for _, name in found}
    assert list(_batches([])) == []
