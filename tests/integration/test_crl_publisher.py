"""CRLs from revocation to reader: real token, real databases, a clock that is turned (P3, P7, P12; RFC 5280 section 5)."""

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pkcs11
import pytest
import pytest_asyncio
import structlog
from cryptography import x509
from sqlalchemy import func, select

from fakes.crls import BASE_URL, Desk, issuer_of, pointing
from fakes.issuing import NOW
from fakes.service import FakeClock
from fakes.softhsm import SoftToken, make_hsm
from fakes.store_faults import FaultyBackend, open_faulty
from fakes.token_faults import Faults, ManualClock
from privyseal_ca.errors import StatusUnavailableError, StoreUnavailableError
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pkcs11 import KeyAlgorithm
from privyseal_ca.revocation import crl_build
from privyseal_ca.revocation.crl import PIECE
from privyseal_ca.revocation.publisher import CrlPublisher
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.crls import CrlRow, Part, add_part, all_crls
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Statement
from privyseal_ca.store.tables import CrlPart
from privyseal_ca.telemetry.metrics import Metrics

_part = CrlPart.__table__  # type: ignore[attr-defined]
_PARTS = Statement(select(_part.c.scope, _part.c.number, func.count()).group_by(_part.c.scope, _part.c.number))
DAY = 86400


@pytest.fixture
def backend(migrated_url: str) -> FaultyBackend:
    return FaultyBackend(migrated_url)


@pytest_asyncio.fixture
async def store(backend: FaultyBackend) -> AsyncIterator[Store]:
    store = open_faulty(backend)
    await store.open()
    yield store
    backend.before.clear()
    backend.after.clear()
    await store.close()


@pytest_asyncio.fixture
async def desk(store: Store, soft_token: SoftToken) -> Desk:
    return Desk(store, [issuer_of(await soft_token.signing_key())])


async def parts(store: Store) -> set[tuple[str, int]]:
    return {(str(scope), int(number)) for scope, number, _ in await store.read(lambda tx: tx.all(_PARTS))}


async def test_every_scope_is_published_once_and_then_when_something_is_revoked(desk: Desk) -> None:
    assert await desk.publish() == 3
    assert await desk.publish() == 0
    assert [await desk.serials(shard) for shard in (None, 0, 1)] == [set(), set(), set()]
    await desk.revoke(1, 2, shard=0)
    await desk.revoke(3, shard=1)
    await desk.revoke(4, shard=None)
    assert await desk.publish() == 3
    assert [await desk.serials(shard) for shard in (None, 0, 1)] == [{1, 2, 3, 4}, {1, 2}, {3}]
    await desk.revoke(5, shard=1)
    assert await desk.publish(full=False) == 1
    assert await desk.publish(shards=False) == 1
    assert [await desk.number(shard) for shard in (None, 0, 1)] == [3, 2, 3]


async def test_what_the_ledger_says_is_what_is_served(desk: Desk) -> None:
    await desk.revoke(1)
    await desk.publish()
    published = {entry["scope"]: entry for entry in await desk.entries()}
    assert published.keys() == {"full", "0", "1"}
    der = await desk.der(0)
    assert published["0"] == {
        "issuer": desk.issuers[0].id,
        "scope": "0",
        "number": 1,
        "this_update": int(NOW),
        "next_update": int(NOW) + desk.settings.crl_lifetime,
        "entries": 1,
        "through": 1,
        "sha256": hashlib.sha256(der).hexdigest(),
        "delta_sha256": None,
        "base": None,
    }
    crl = desk.crls.find(desk.issuers[0].id, 0, delta=False)
    assert crl is not None
    assert (crl.size, crl.sha256) == (len(der), hashlib.sha256(der).digest())
    assert len(list(desk.crls.published())) == 3


@pytest.mark.parametrize("algorithm", ["rsa-2048", "ec-p384", "ed25519"])
async def test_keys_of_other_kinds(
    store: Store, soft_token: SoftToken, algorithm: KeyAlgorithm, tmp_path: Path
) -> None:
    desk = Desk(store, [issuer_of(await soft_token.signing_key(algorithm))])
    await desk.revoke(*range(1, 40))
    assert await desk.publish() == 3
    assert await desk.serials() == set(range(1, 40))
    (tmp_path / "ca.pem").write_text(desk.issuers[0].chains[0])
    assert "verify OK" in await asyncio.to_thread(checked, await desk.der(0), tmp_path / "ca.pem")


def checked(der: bytes, anchor: Path) -> str:
    command = ["openssl", "crl", "-inform", "DER", "-noout", "-CAfile", str(anchor)]
    return subprocess.run(command, input=der, capture_output=True, check=True, timeout=30).stderr.decode()


async def test_what_a_killed_service_left_is_skipped_and_removed(desk: Desk) -> None:
    await desk.publish()
    key = desk.issuers[0].id, "0"
    for position in range(20):
        part = Part(*key, 2, 0, position, b"unfinished")
        await desk.store.write(lambda tx, part=part: add_part(tx, part))  # type: ignore[misc]
    assert await desk.publish() == 0
    assert await desk.number(0) == 1
    await desk.revoke(1)
    desk.restart()
    await desk.publish()
    assert await desk.number(0) == 3
    assert await desk.serials(0) == {1}
    assert {number for scope, number in await parts(desk.store) if scope == "0"} == {1, 3}


async def test_numbers_grow_across_restarts_and_nothing_is_made_twice(desk: Desk) -> None:
    await desk.publish()
    for serial in range(1, 4):
        desk.restart()
        assert await desk.publish() == 0
        await desk.revoke(serial)
        desk.restart()
        assert await desk.publish() == 2
        assert await desk.number(0) == await desk.number() == serial + 1
    assert await desk.serials(0) == {1, 2, 3}
    assert desk.metrics.registry.get_sample_value("privyseal_crl_number", {"issuer": "issuing-1", "scope": "0"}) == 4
    assert desk.metrics.registry.get_sample_value("privyseal_crl_entries", {"issuer": "issuing-1", "scope": "0"}) == 3
    assert desk.metrics.registry.get_sample_value("privyseal_crls_published_total") == 9


async def test_an_entry_leaves_only_after_it_was_on_a_crl_from_after_its_end(desk: Desk) -> None:
    await desk.publish()
    await desk.revoke(1, ends=100)
    await desk.publish()
    desk.clock.advance(100)  # notAfter is inclusive: the certificate ends with this second
    await desk.revoke(2, ends=DAY)
    await desk.publish()
    assert await desk.serials() == await desk.serials(0) == {1, 2}
    desk.clock.advance(1)
    await desk.revoke(3, ends=DAY)
    await desk.publish()
    assert await desk.serials() == {1, 2, 3}  # the first CRL from after its end
    await desk.revoke(4, ends=DAY)
    await desk.publish()
    assert await desk.serials() == await desk.serials(0) == {2, 3, 4}


async def test_what_is_revoked_after_its_end_is_listed_once(desk: Desk) -> None:
    await desk.publish()
    desk.clock.advance(DAY)
    await desk.publish()
    await desk.revoke(1, ends=-2 * DAY, shard=1)
    await desk.publish()
    assert await desk.serials(1) == await desk.serials() == {1}
    await desk.revoke(2, shard=1)
    await desk.publish()
    assert await desk.serials(1) == await desk.serials() == {2}


async def test_the_first_crl_lists_everything(desk: Desk) -> None:
    await desk.revoke(1, ends=-DAY)
    await desk.revoke(2)
    await desk.publish()
    assert await desk.serials() == await desk.serials(0) == {1, 2}


async def test_pages_and_windows_lose_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl_build, "_PAGE", 7)
    monkeypatch.setattr(crl_build, "_WINDOW", 5)
    await desk.publish()
    expected = set(range(1, 71))
    for first in range(1, 71, 10):
        # Many with the same notAfter, and some that have ended.
        await desk.revoke(*range(first, first + 10), ends=DAY if first % 20 == 1 else -DAY)
    desk.clock.advance(1)
    await desk.publish()
    assert await desk.serials() == await desk.serials(0) == expected


async def test_age(desk: Desk) -> None:
    await desk.publish()
    desk.clock.advance(desk.settings.crl_refresh - 1)
    assert await desk.publish() == 0
    desk.clock.advance(1)
    assert await desk.publish() == 3
    crl = await desk.crl(1)
    assert crl.last_update_utc.timestamp() == desk.clock.now()
    assert crl.next_update_utc is not None
    assert crl.next_update_utc.timestamp() == desk.clock.now() + desk.settings.crl_lifetime


async def test_a_clock_that_steps_back(desk: Desk) -> None:
    await desk.publish()
    begun = desk.clock.now()
    desk.clock.advance(-60)
    await desk.revoke(1)
    assert await desk.publish() == 2
    crl = await desk.crl(0)
    assert crl.last_update_utc.timestamp() == begun  # never before the CRL before it
    assert await desk.number(0) == 2


async def test_a_clock_that_was_years_ahead_unrevokes_nothing(store: Store, soft_token: SoftToken) -> None:
    desk = Desk(store, [issuer_of(await soft_token.signing_key(), end=NOW + 10 * 365 * DAY)])
    await desk.revoke(1)
    desk.clock.advance(5 * 365 * DAY)
    assert await desk.publish() == 3
    # Whoever has this CRL cannot use it before its time: it is replaced at once, and lists what has not ended.
    desk.clock.advance(-5 * 365 * DAY)
    assert await desk.publish() == 3
    desk.restart()
    await desk.revoke(2)
    await desk.publish()
    assert await desk.serials() == await desk.serials(0) == {1, 2}
    assert (await desk.crl()).last_update_utc.timestamp() == desk.clock.now()


async def test_the_issuers_end_and_usage(
    store: Store, soft_token: SoftToken, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [await soft_token.signing_key(label=f"key-{number}") for number in range(3)]
    issuers = [
        issuer_of(keys[0], "one", crl_sign=False),
        issuer_of(keys[1], "two", end=NOW + 10),
        issuer_of(keys[2], "three"),
    ]
    desk = Desk(store, issuers)
    assert await desk.publish() == 6
    desk.clock.advance(desk.settings.crl_refresh)
    assert await desk.publish() == 3
    assert desk.crls.find(issuers[0].id, None, delta=False) is None
    assert await desk.number(of=1) == 1
    assert await desk.number(of=2) == 2


async def test_issuers_are_kept_apart(store: Store, soft_token: SoftToken) -> None:
    issuers = [issuer_of(await soft_token.signing_key(label=name), name) for name in ("one", "two")]
    desk = Desk(store, issuers)
    await desk.revoke(1, 2)
    await desk.revoke(3, of=1)
    assert await desk.publish() == 6
    assert await desk.serials() == {1, 2}
    assert await desk.serials(0, of=1) == {3}
    await desk.revoke(4, of=1)
    assert await desk.publish() == 2
    assert await desk.number() == 1


async def test_fewer_parts_than_before(desk: Desk) -> None:
    desk.restart(crl_shards=4)
    await desk.publisher.reserve()
    desk.restart(crl_shards=2)
    assert await desk.publish() == 5  # those that certificates may name, though none was ever published
    await desk.revoke(9, shard=3)
    await desk.revoke(10, shard=7)  # a part of which there is no row at all
    assert await desk.publish() == 3
    assert await desk.serials(3) == {9}
    assert await desk.serials(7) == {10}
    desk.clock.advance(desk.settings.crl_refresh)
    assert await desk.publish() == 6


async def test_another_base_url(desk: Desk) -> None:
    await desk.publish()
    parts = [await desk.der(shard) for shard in (0, 1)]
    issuer = desk.issuers[0]
    pointers = replace(issuer.identity.pointers, base_url="http://pki.example", first_shard=2, former=((0, BASE_URL),))
    desk.issuers = [replace(issuer, identity=replace(issuer.identity, pointers=pointers))]
    desk.restart()
    # The parts that certificates name already stay as they are named, and new certificates have new ones.
    assert await desk.publish() == 2
    assert [await desk.der(shard) for shard in (0, 1)] == parts
    for shard in (2, 3):
        assert b"http://pki.example/crl/" in await desk.der(shard)
    await desk.revoke(1, shard=1)
    assert await desk.publish() == 2
    assert BASE_URL.encode() in await desk.der(1)
    assert await desk.serials(1) == {1}
    assert await desk.publish() == 0


async def test_reserving_publishes_nothing(desk: Desk) -> None:
    await desk.publisher.reserve()
    await desk.publisher.reserve()
    await desk.crls.refresh()
    assert list(desk.crls.published()) == []
    assert len(await desk.store.read(all_crls)) == 3
    assert await desk.publish() == 3


async def test_two_publishers_on_one_database(desk: Desk) -> None:
    other = Desk(desk.store, desk.issuers, clock=desk.clock)
    for serial in range(1, 6):
        await desk.revoke(serial)
        counts = await asyncio.gather(desk.publish(), other.publish())
        assert sum(counts) >= 2
        await desk.crls.refresh()
        assert await desk.serials() == await desk.serials(0) == set(range(1, serial + 1))
    numbers = [entry["number"] for entry in await desk.entries() if entry["scope"] == "0"]
    assert numbers == sorted(set(numbers))
    assert len(await parts(desk.store)) <= 6


async def test_two_publishers_of_long_crls(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl_build, "_TOGETHER", 0)
    other = Desk(desk.store, desk.issuers, clock=desk.clock)
    for serial in range(1, 4):
        await desk.revoke(*range(serial * 10_000, serial * 10_000 + 6000))
        await asyncio.gather(desk.publish(), other.publish())
        await desk.crls.refresh()
        for shard in (None, 0):
            assert len(await desk.serials(shard)) == serial * 6000
    # Whoever comes second at the start may publish a second one; nothing else is left behind.
    numbers = {number for scope, number in await parts(desk.store) if scope == "1"}
    assert await desk.number(1) == max(numbers) <= 2


@pytest.mark.parametrize("together", [0, 4 * PIECE])
async def test_a_database_that_fails_at_any_commit_leaves_the_old_crl(
    desk: Desk, backend: FaultyBackend, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(crl_build, "_TOGETHER", together)
    await desk.publish()
    await desk.revoke(*range(1, 12_001))  # two pieces
    for after in (False, True):
        for failing in range(1, 5):
            before = await desk.der(0)
            number = await desk.number(0)
            left = [failing]

            def fail(left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise backend.errors("the disk is full")

            hooks = backend.after if after else backend.before
            hooks["COMMIT"] = fail
            await desk.publish(full=False)
            hooks.clear()
            await desk.crls.refresh()
            served = await desk.der(0)
            assert served == before or await desk.number(0) > number
            await desk.revoke(100_000 + failing + 10 * after)
            await desk.publish(full=False)
            assert len(await desk.serials(0)) > 12_000
    await desk.publish()
    await desk.revoke(200_000)
    await desk.publish()
    kept = {number for scope, number in await parts(desk.store) if scope == "0"}
    assert max(kept) == await desk.number(0)
    assert len(kept) == 2  # the current one, and the one before for those who are reading it


async def test_a_reader_of_the_crl_before(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privyseal_ca.revocation.stored_crls._SHORT", 0)
    await desk.revoke(*range(1, 12_001))
    await desk.publish()
    crl = desk.crls.find(desk.issuers[0].id, None, delta=False)
    assert crl is not None
    reading = desk.crls.read(crl)
    first = await anext(reading)
    await desk.revoke(20_000)
    await desk.publish()
    der = first + b"".join([piece async for piece in reading])
    assert hashlib.sha256(der).digest() == crl.sha256
    await desk.revoke(20_001)
    await desk.publish()
    with pytest.raises(StatusUnavailableError, match="replaced"):
        await anext(desk.crls.read(crl))


async def test_short_crls_are_served_while_the_database_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.revoke(1)
    await desk.publish()

    async def away(_: Callable[..., object]) -> object:
        raise StoreUnavailableError("The database is away.")

    monkeypatch.setattr(desk.store, "read", away)
    await desk.crls.refresh()
    assert not desk.crls.available
    assert await desk.serials(0) == {1}
    assert await desk.publisher.publish_due() == 0
    monkeypatch.undo()
    await desk.crls.refresh()
    assert desk.crls.available


async def test_what_is_kept_in_memory_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.publish()
    size = len(await desk.der(0))
    monkeypatch.setattr("privyseal_ca.revocation.stored_crls._KEPT", size + 10)
    desk.restart()
    await desk.crls.refresh()
    assert desk.crls._octets <= size + 10
    assert len(desk.crls._kept) == 1
    for shard in (None, 0, 1):
        assert await desk.serials(shard) == set()


async def test_a_long_crl_is_away_with_the_database(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privyseal_ca.revocation.stored_crls._SHORT", 0)
    await desk.publish()
    crl = desk.crls.find(desk.issuers[0].id, None, delta=False)
    assert crl is not None

    async def away(_: Callable[..., object]) -> object:
        raise StoreUnavailableError("The database is away.")

    monkeypatch.setattr(desk.store, "read", away)
    with pytest.raises(StatusUnavailableError):
        await anext(desk.crls.read(crl))


class SlowClock(FakeClock):
    """Whoever asks for the time waits two seconds of ``seconds`` for it."""

    seconds = ManualClock()

    def now(self) -> float:
        self.seconds.now += 2
        return super().now()


async def test_a_crl_that_takes_long_is_followed_by_a_rest(store: Store, soft_token: SoftToken) -> None:
    settings = StatusSettings(crl_shards=1)
    issuers, clock = [pointing(issuer_of(await soft_token.signing_key()), settings)], SlowClock(NOW)
    publisher = CrlPublisher(
        store=store,
        issuers=issuers,
        settings=settings,
        clock=clock,
        metrics=Metrics(),
        monotonic=clock.seconds,
    )
    desk = Desk(store, issuers)
    assert await publisher.publish_due(full=False) == 1
    await desk.revoke(1)
    assert await publisher.publish_due(full=False) == 0
    clock.seconds.now += 10
    assert await publisher.publish_due(full=False) == 1


async def test_what_is_wrong_is_logged_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patched:
        patched.setattr(crl_build, "sign_crl", lambda *_: lambda _: b"no signature")
        for _ in range(3):
            assert await desk.publish() == 0
    assert [(log["event"], log["log_level"]) for log in logs] == [("a CRL was not published", "warning")] * 2
    with structlog.testing.capture_logs() as logs:
        assert await desk.publish() == 3
    assert [log["event"] for log in logs] == ["CRLs are published again"] * 2


async def test_one_scope_that_fails_does_not_stop_the_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = crl_build.CrlBuilder.publish

    async def failing(self: crl_build.CrlBuilder, scope: crl_build.Scope) -> CrlRow:
        if scope.shard == 0:
            raise OSError("no space for temporary files")
        return await real(self, scope)

    monkeypatch.setattr(crl_build.CrlBuilder, "publish", failing)
    assert await desk.publish() == 2
    assert await desk.publish() == 0
    monkeypatch.undo()
    assert await desk.publish() == 1


@pytest.mark.parametrize("after", [False, True])
async def test_the_token_away_and_back(migrated_url: str, soft_token: SoftToken, after: bool) -> None:
    attestation = await soft_token.hsm.generate_signing_key(soft_token.uri, "away", "ec-p256", key_id=b"1")
    faults, clock = Faults(), ManualClock()
    modules = Modules(load=faults.load, monotonic=clock)
    hsm = make_hsm(modules=modules)
    store = open_faulty(FaultyBackend(migrated_url))
    await store.open()
    try:
        desk = Desk(store, [issuer_of(await hsm.open_signing_key(attestation.uri))])
        await desk.publish()
        await desk.revoke(1)
        faults.fail("sign", pkcs11.exceptions.DeviceError(), after=after)
        await desk.publish()
        assert await desk.serials() == set()
        clock.now += 60
        assert await desk.publish() >= 1
        clock.now += 60
        await desk.publish()
        assert await desk.serials() == await desk.serials(0) == {1}
        # A signature may be out under the number of the one that failed: it is not used again.
        assert {await desk.number(), await desk.number(0)} <= {2, 3}
    finally:
        await store.close()
        await hsm.close()


async def test_deltas(store: Store, soft_token: SoftToken) -> None:
    desk = Desk(store, [issuer_of(await soft_token.signing_key())])
    await desk.revoke(1)
    await desk.publish()
    assert desk.crls.find(desk.issuers[0].id, 0, delta=True) is None
    desk.restart(delta_crls=True)
    assert await desk.publish() == 2  # the parts; the full CRL has none
    assert desk.crls.find(desk.issuers[0].id, None, delta=True) is None
    assert await desk.serials(0, delta=True) == set()
    await desk.revoke(2)
    await desk.publish()
    complete, delta = await desk.crl(0), await desk.crl(0, delta=True)
    assert await desk.serials(0) == {1, 2}
    assert await desk.serials(0, delta=True) == {2}
    assert (complete.last_update_utc, complete.next_update_utc) == (delta.last_update_utc, delta.next_update_utc)
    numbers = [each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for each in (complete, delta)]
    assert numbers == [3, 3]
    assert delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number == 2
    entry = (await desk.entries())[-1]
    newest = [each for each in await desk.entries() if each["scope"] == "0"][-1]
    assert newest["base"] == 2
    assert newest["delta_sha256"] == hashlib.sha256(await desk.der(0, delta=True)).hexdigest()
    assert entry["scope"] == "full"
    assert entry["base"] is None
    desk.restart(delta_crls=False)
    assert await desk.publish() == 2
    assert desk.crls.find(desk.issuers[0].id, 0, delta=True) is None


async def test_every_valid_crl_is_at_least_the_base_of_the_delta(store: Store, soft_token: SoftToken) -> None:
    desk = Desk(
        store,
        [issuer_of(await soft_token.signing_key())],
        clock=FakeClock(NOW),
        settings=StatusSettings(crl_shards=1, delta_crls=True, crl_lifetime=36_000, crl_refresh=18_000),
    )
    complete: list[tuple[int, int, set[int]]] = []
    bases = []
    for step in range(1, 40):
        await desk.revoke(step, ends=365 * DAY)
        await desk.publish(full=False)
        crl, delta = await desk.crl(0), await desk.crl(0, delta=True)
        assert crl.next_update_utc is not None
        complete.append((await desk.number(0), int(crl.next_update_utc.timestamp()), await desk.serials(0)))
        base = delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number
        bases.append(base)
        for number, next_update, listed in complete:
            if next_update >= desk.clock.now():
                assert base <= number
                assert listed | await desk.serials(0, delta=True) == set(range(1, step + 1))
        desk.clock.advance(3000)
    assert bases == sorted(bases)
    assert bases[-1] > 10  # and the delta does not grow for ever
