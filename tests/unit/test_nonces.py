"""Nonces: accepted once, by whoever shares the key, for as long as they live."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.service import FakeClock
from privyseal_acme.protocol.encoding import decode, encode
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.store import nonces as nonces_module
from privyseal_acme.store.nonces import Nonces, create_nonce_table, swept_until
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store, Unit

T = TypeVar("T")

KEY = bytes(range(32))
LIFETIME = 600


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_800_000_000)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    backend = backend_for(f"sqlite:///{tmp_path / 'nonces.db'}", durable=False, timeout=5)
    store = Store(backend, queue=1000, group_commit=False)
    await store.open()
    await store.write(create_nonce_table)
    yield store
    await store.close()


def make(store: Store, clock: FakeClock, key: bytes = KEY) -> Nonces:
    return Nonces(store=store, key=key, lifetime=LIFETIME, clock=clock, random_bytes=os.urandom)


async def refusal(nonces: Nonces, text: str | None) -> str:
    """The type of the problem, or nothing."""
    try:
        await nonces.redeem(text)
    except Problem as problem:
        return problem.type
    return ""


async def test_once(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    nonce = nonces.mint()
    assert [await refusal(nonces, nonce) for _ in range(3)] == ["", "badNonce", "badNonce"]


async def test_once_among_many(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    minted = [nonces.mint() for _ in range(20)]
    assert len(set(minted)) == 20
    found = await asyncio.gather(*(refusal(nonces, nonce) for nonce in minted * 5))
    assert found.count("") == 20
    assert found.count("badNonce") == 80


async def test_processes_that_share_a_key_share_their_nonces(store: Store, clock: FakeClock) -> None:
    first, second, stranger = make(store, clock), make(store, clock), make(store, clock, bytes(32))
    nonce = first.mint()
    assert await refusal(stranger, nonce) == "badNonce"
    assert await refusal(second, nonce) == ""
    assert await refusal(first, nonce) == "badNonce"


async def test_its_time(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    early, late = nonces.mint(), nonces.mint()
    clock.advance(LIFETIME - 1)
    assert await refusal(nonces, early) == ""
    clock.advance(1)
    assert await refusal(nonces, late) == "badNonce"


async def test_the_sweep_forgets_only_what_time_has_ended(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    old = nonces.mint()
    await nonces.redeem(old)
    clock.advance(LIFETIME // 2)
    new = nonces.mint()
    await nonces.redeem(new)
    assert await nonces.sweep() == 0
    clock.advance(LIFETIME // 2 + 1)
    assert await nonces.sweep() == 1
    assert await refusal(nonces, old) == "badNonce"
    assert await refusal(nonces, new) == "badNonce"
    assert await nonces.sweep() == 0


async def test_a_clock_that_steps_back_brings_nothing_back(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    used, unused = nonces.mint(), nonces.mint()
    await nonces.redeem(used)
    clock.advance(10 * LIFETIME)
    assert await nonces.sweep() == 1
    clock.advance(-10 * LIFETIME)
    again = Nonces(
        store=store,
        key=KEY,
        lifetime=LIFETIME,
        clock=clock,
        random_bytes=os.urandom,
        swept=await store.read(swept_until),
    )
    for each in (nonces, again):
        assert [await refusal(each, nonce) for nonce in (used, unused)] == ["badNonce", "badNonce"]
        # And those who come now are served.
        fresh = each.mint()
        assert [await refusal(each, fresh) for _ in range(2)] == ["", "badNonce"]
        assert await each.sweep() == 0
    clock.advance(20 * LIFETIME)
    assert await again.sweep() == 2
    assert await store.read(swept_until) == int(clock.now()) - LIFETIME


async def test_the_table_is_swept_although_a_clock_was_once_far_ahead(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    clock.advance(1000 * LIFETIME)
    await nonces.sweep()
    clock.advance(-1000 * LIFETIME)
    await nonces.sweep()
    forgotten = 0
    for _ in range(5):
        used, unused = nonces.mint(), nonces.mint()
        await nonces.redeem(used)
        assert await refusal(nonces, used) == "badNonce"
        clock.advance(LIFETIME)
        forgotten += await nonces.sweep()
        assert [await refusal(nonces, nonce) for nonce in (used, unused)] == ["badNonce", "badNonce"]
    assert forgotten == 5


async def test_every_bit_counts(store: Store, clock: FakeClock) -> None:
    nonces = make(store, clock)
    octets = decode(nonces.mint())
    for position in range(len(octets) * 8):
        changed = bytearray(octets)
        changed[position // 8] ^= 1 << position % 8
        assert await refusal(nonces, encode(bytes(changed))) == "badNonce"
    assert await refusal(nonces, encode(octets)) == ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.none() | st.text(max_size=50) | st.binary(max_size=40).map(encode))
async def test_any_text(store: Store, clock: FakeClock, text: str | None) -> None:
    assert await refusal(make(store, clock), text) in {"malformed", "badNonce"}


@pytest.mark.parametrize("text", ["=", "AA==", "a b", "\u00e9", "A"])
async def test_bad_encoding_is_malformed(store: Store, clock: FakeClock, text: str) -> None:
    assert await refusal(make(store, clock), text) == "malformed"


async def test_none_is_a_bad_nonce(store: Store, clock: FakeClock) -> None:
    assert await refusal(make(store, clock), None) == "badNonce"


class _Units(Store):
    """Counts its units of work, and may fail at one of them."""

    count, fails_at = 0, 0

    async def write(self, unit: Unit[T]) -> T:
        self.count += 1
        if self.count == self.fails_at:
            raise StoreUnavailableError("The disk failed.")
        return await super().write(unit)


@pytest_asyncio.fixture
async def units(tmp_path: Path) -> AsyncIterator[_Units]:
    backend = backend_for(f"sqlite:///{tmp_path / 'nonces.db'}", durable=False, timeout=5)
    store = _Units(backend, queue=1000, group_commit=False)
    await store.open()
    await store.write(create_nonce_table)
    yield store
    await store.close()


async def use(nonces: Nonces, count: int) -> list[str]:
    minted = [nonces.mint() for _ in range(count)]
    for nonce in minted:
        await nonces.redeem(nonce)
    return minted


@pytest.mark.parametrize(("count", "batches"), [(0, 1), (2, 1), (3, 2), (4, 2), (9, 4), (10, 4)])
async def test_a_sweep_goes_in_small_steps(
    units: _Units, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, count: int, batches: int
) -> None:
    monkeypatch.setattr(nonces_module, "_BATCH", 3)
    nonces = make(units, clock)
    await use(nonces, count)
    clock.advance(LIFETIME)
    kept = await use(nonces, 2)
    clock.advance(1)
    units.count = 0
    assert await nonces.sweep() == count
    assert units.count == 1 + batches
    assert [await refusal(nonces, nonce) for nonce in kept] == ["badNonce", "badNonce"]
    assert await units.read(swept_until) == int(clock.now()) - LIFETIME


async def test_a_sweep_that_fails_half_way_brings_nothing_back(
    units: _Units, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for a process that begins after the clock was set back; and the next sweep goes on."""
    monkeypatch.setattr(nonces_module, "_BATCH", 3)
    nonces = make(units, clock)
    used = await use(nonces, 10)
    clock.advance(LIFETIME + 1)
    units.count, units.fails_at = 0, 3
    with pytest.raises(StoreUnavailableError):
        await nonces.sweep()
    swept = await units.read(swept_until)
    assert swept == int(clock.now()) - LIFETIME
    clock.advance(-LIFETIME)
    again = Nonces(store=units, key=KEY, lifetime=LIFETIME, clock=clock, random_bytes=os.urandom, swept=swept)
    for each in (nonces, again):
        assert [await refusal(each, nonce) for nonce in used] == ["badNonce"] * 10
    clock.advance(LIFETIME + 1)
    assert await again.sweep() == 7
