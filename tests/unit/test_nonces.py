"""Nonces: accepted once, by whoever shares the key, for as long as they live."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.service import FakeClock
from privyseal_acme.protocol.encoding import decode, encode
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.store.nonces import Nonces, create_nonce_table, swept_until
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store

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
