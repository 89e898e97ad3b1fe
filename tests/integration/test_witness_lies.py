"""What a witness can do to a ledger, and what it cannot: times, keys, delays, refreshed cosignatures, and quorums (P6 to P8)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from fakes.checkpoints import ORIGIN, WatchedKey, grow, published
from fakes.dns import LOOPBACK, free_port
from fakes.service import FakeClock
from fakes.softhsm import SoftToken
from fakes.witnessed import Signer, Turned, cosigned, peer_of, put_back, until
from fakes.witnesses import Handler, Witnessing, answering, witnessing
from privyseal_ca.clock import CLOCK_STEP
from privyseal_ca.errors import LedgerBehindError, SignerUnavailableError, SplitViewError, WitnessError
from privyseal_ca.ledger.checkpoints import Checkpointer, latest_checkpoint
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier
from privyseal_ca.sections import WitnessSettings
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.witness.peer import Peer
from privyseal_ca.witness.protocol import SIZE_TYPE

pytest_plugins = ("fakes.witness_fixtures",)

_DEADLINE = 20.0


async def at_once() -> None:
    """Keep nobody waiting."""


def relaying(
    served: Witnessing, post: Callable[[], Awaitable[None]] = at_once, get: Callable[[], Awaitable[None]] = at_once
) -> Handler:
    """What ``served`` answers, once ``post`` or ``get`` lets it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            await get()
            note = served.state.published(request.path.split("/")[1])
            return web.Response(status=200 if note else 404, body=note or b"")
        await post()
        answer = await served.witness.submit(await request.read())
        return web.Response(status=answer.status, text=answer.text, content_type=SIZE_TYPE)

    return handler


def at(served: Witnessing, url: str) -> WitnessSettings:
    """The same witness, somewhere else."""
    return served.settings.model_copy(update={"url": url})


async def note_of(store: Store) -> bytes:
    row = await store.read(latest_checkpoint)
    assert row is not None
    return row.note


async def answered(signing: Checkpointer) -> None:
    """Wait until the witness has answered."""
    deadline = time.monotonic() + _DEADLINE
    while peer_of(signing).busy:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# Who counts.


async def test_one_witness_is_not_two(signer: Signer, served: Witnessing, key: WatchedKey) -> None:
    public_key = served.witness.verifier.key
    for name in ("w2.example", "witness.example/w1"):
        twice = WitnessSettings(vkey=CosignatureVerifier.for_key(name, public_key).vkey(), url=served.url)
        with pytest.raises(WitnessError, match="same name or key"):
            signer(served.settings, twice, quorum=2)
    own_name = WitnessSettings(vkey=CosignatureVerifier.for_key(ORIGIN, public_key).vkey(), url=served.url)
    own_key = WitnessSettings(vkey=CosignatureVerifier.for_key("w", key.public_key).vkey(), url=served.url)
    for settings in (own_name, own_key):
        with pytest.raises(WitnessError, match="the ledger's"):
            signer(settings)


async def test_a_cosignature_from_the_future(store: Store, signer: Signer, served: Witnessing) -> None:
    """It would never be replaced, and have every monitor cry; what is a clock's usual deviation is none."""
    metrics, clock = Metrics(), FakeClock(served.clock.now())
    signing = signer(served.settings, metrics=metrics, quorum=1, clock=clock)
    await grow(store, 1)
    served.clock.advance(CLOCK_STEP + 10)
    assert await signing.sign_due()
    assert not await cosigned(store, served.settings)
    assert "in the future" in peer_of(signing).problem
    assert metrics.registry.get_sample_value("privyseal_checkpoint_quorum") == 0
    clock.advance(20)
    await grow(store, 1)
    peer_of(signing).retry_at = 0
    await until(lambda: cosigned(store, served.settings), signing)
    # A clock that is behind makes a cosignature that is true of another time.
    served.clock.advance(-1_000_000)
    await grow(store, 1)
    assert await signing.sign_due()
    assert await cosigned(store, served.settings)


async def test_what_cannot_be_asked_for_whatever_reason_is_left_alone(signer: Signer, served: Witnessing) -> None:
    signing = signer(served.settings)
    cosigner, checkpoint = signing._cosigner, Checkpoint(ORIGIN, 0, bytes(32))
    assert cosigner is not None

    async def broken(_: int) -> list[bytes]:
        raise RuntimeError("a fault of this program")

    checkpoint = Checkpoint(ORIGIN, 1, bytes(32))
    note = f"{checkpoint.text()}\n\u2014 {ORIGIN} AAAAAAAA\n".encode()
    await cosigner.cosign(note, checkpoint, broken)
    assert "the log says why" in peer_of(signing).problem
    assert peer_of(signing).retry_at > time.monotonic()


async def test_one_that_is_late_now_and_then_is_waited_for_ever_less(served: Witnessing) -> None:
    peer, waited = Peer(served.settings), 0
    for _ in range(500):
        # Late whenever a checkpoint waits for it, and in time when none does.
        if peer.prompt:
            waited += 1
            peer.late()
        else:
            peer.in_time()
    assert waited < 16
    for _ in range(64):
        peer.in_time()
    assert peer.prompt


# Freshness.


async def test_a_ledger_in_which_nothing_changes_is_cosigned_again(
    store: Store, signer: Signer, served: Witnessing, key: WatchedKey
) -> None:
    turned, metrics = Turned(), Metrics()
    clock = FakeClock(served.clock.now())
    signing = signer(served.settings, metrics=metrics, monotonic=turned, quorum=1, clock=clock)
    await grow(store, 7)
    assert await signing.sign_due()
    first, began = await note_of(store), served.clock.now()

    def wait(seconds: int) -> None:
        turned.now += seconds
        served.clock.advance(seconds)
        clock.advance(seconds)

    async def rounds() -> bytes:
        for _ in range(2):
            assert not await signing.sign_due()
            await answered(signing)
        assert not await signing.sign_due()
        return await note_of(store)

    wait(599)
    assert await rounds() == first
    wait(2)
    later = await rounds()
    verifiers = [served.witness.verifier]
    assert cosignatures(later, verifiers) == {served.witness.verifier.name: began + 601}
    assert later.splitlines()[:-1] == first.splitlines()[:-1], "text and the ledger's own signature are what they were"
    assert metrics.registry.get_sample_value("privyseal_checkpoint_cosignatures") == 1
    assert len(key.signed) == 1
    assert (await published(store, signing)).size == 7
    # A witness whose clock was put back takes nothing back, and one that is gone neither.
    served.clock.advance(-400)
    turned.now += 601
    assert await rounds() == later
    served.state.remove(ORIGIN)
    turned.now += 601
    assert await rounds() == later
    assert "does not know this log" in peer_of(signing).problem
    assert metrics.registry.get_sample_value("privyseal_checkpoint_quorum") == 1


# What it has seen, before anything is sent to it.


async def test_the_first_look_waits_longer_than_a_checkpoint(
    store: Store, signer: Signer, served: Witnessing, key: WatchedKey
) -> None:
    await grow(store, 50)
    await signer(served.settings).sign_due()
    await put_back(store, 30)
    await grow(store, 25, salt="fork")
    before = len(key.signed)

    async def slow() -> None:
        await asyncio.sleep(0.4)

    async with answering(relaying(served, get=slow)) as url:
        signing = signer(at(served, url), witness_timeout=0.05)
        with pytest.raises(SplitViewError):
            await signing.sign_due()
    assert len(key.signed) == before, "the token was not asked"
    assert served.state.conflicts(ORIGIN) == []


async def test_the_first_look_ends(store: Store, signer: Signer, served: Witnessing) -> None:
    release = asyncio.Event()

    async def never() -> None:
        await release.wait()

    async with answering(relaying(served, get=never, post=never)) as url:
        signing = signer(at(served, url), witness_timeout=0.05)
        await grow(store, 5)
        began = time.monotonic()
        assert await signing.sign_due()
        assert time.monotonic() - began < 5
        assert not peer_of(signing).looked
        release.set()


@pytest.mark.parametrize("grown", [2, 20, 25])
async def test_one_that_was_away_is_looked_at_before_it_is_sent_anything(
    store: Store, soft_token: SoftToken, signer: Signer, key: WatchedKey, tmp_path: Path, grown: int
) -> None:
    """A database that was put back while its witness is down: found as soon as the witness is up, and never a second ledger."""
    port, posted = free_port(), 0
    witness_key = await soft_token.signing_key("ed25519", "away")

    async def count() -> None:
        nonlocal posted
        posted += 1

    async with witnessing(tmp_path, witness_key, port=port) as served:
        served.state.add(NoteVerifier.for_key(ORIGIN, key.public_key).vkey())
        await grow(store, 50)
        assert await signer(served.settings).sign_due()
        settings = served.settings
    await put_back(store, 30)
    await grow(store, grown, salt="fork")
    signing = signer(settings)
    assert await signing.sign_due(), "a witness that is down stops nobody"
    async with witnessing(tmp_path, witness_key) as served, answering(relaying(served, post=count)) as url:
        peer_of(signing).settings = at(served, url)
        peer_of(signing).retry_at = 0
        with pytest.raises(LedgerBehindError if grown < 20 else SplitViewError):
            await until(lambda: cosigned(store, settings), signing)
        await answered(signing)
        assert (posted, served.state.conflicts(ORIGIN)) == (0, [])
        assert signing.refused


async def test_one_that_cannot_answer_yet_is_looked_at_again(store: Store, signer: Signer, served: Witnessing) -> None:
    """While its token or disk is away it says nothing about what it has."""
    ready = False

    async def unready() -> None:
        if not ready:
            raise web.HTTPServiceUnavailable

    async with answering(relaying(served, get=unready, post=unready)) as url:
        signing = signer(at(served, url))
        await grow(store, 5)
        assert await signing.sign_due()
        assert not peer_of(signing).looked
        ready = True
        peer_of(signing).retry_at = 0
        await until(lambda: cosigned(store, served.settings), signing)
        assert peer_of(signing).looked


async def test_one_that_shows_nothing_to_anybody_is_asked_all_the_same(
    store: Store, signer: Signer, served: Witnessing
) -> None:
    """Reading what a witness has is no part of every witness."""

    async def unknown() -> None:
        raise web.HTTPMethodNotAllowed("GET", ["POST"])

    gone = f"http://{LOOPBACK}:{free_port()}"
    async with answering(relaying(served, get=unknown)) as url:
        for settings in (at(served, url), at(served, url).model_copy(update={"monitoring_url": gone})):
            signing = signer(settings)
            await grow(store, 5)
            assert await signing.sign_due()
            assert await cosigned(store, served.settings)


# Quorum.


@pytest.fixture
def required() -> dict[str, object]:
    return {"quorum": 1, "quorum_required": True, "quorum_patience": 60}


async def test_a_restart_is_no_new_patience(
    store: Store, signer: Signer, served: Witnessing, required: dict[str, object]
) -> None:
    turned, clock = Turned(), FakeClock()
    gone = at(served, f"http://{LOOPBACK}:{free_port()}")
    signing = signer(gone, monotonic=turned, clock=clock, **required)
    await grow(store, 1)
    assert await signing.sign_due()
    for _ in range(10):
        turned.now += 3
        clock.advance(3)
        await signing.sign_due()
    assert signing.refused == ""
    clock.advance(20)
    turned = Turned()
    turned.now = 5.0
    again = signer(gone, monotonic=turned, clock=clock, **required)
    await again.sign_due()
    assert again.refused == "", "30 seconds, and 20 between"
    turned.now += 11
    assert "0 of the 1 witnesses" in again.refused
    await again.close()
    third = signer(served.settings, monotonic=Turned(), clock=clock, **required)
    clock.advance(100)
    await until(lambda: cosigned(store, served.settings), third)
    await third.sign_due()
    assert third.refused == ""
    # What is over is over for the next one too.
    clock.advance(1000)
    fourth = signer(gone, monotonic=Turned(), clock=clock, **required)
    await fourth.sign_due()
    assert fourth.refused == ""


async def test_a_quorum_that_nobody_could_judge_is_missing(
    signer: Signer, served: Witnessing, required: dict[str, object]
) -> None:
    """Before the first checkpoint, which may never come."""
    turned = Turned()
    signing = signer(served.settings, monotonic=turned, **required)
    assert signing.refused == ""
    turned.now += 61
    assert "0 of the 1 witnesses" in signing.refused


async def test_without_checkpoints_there_is_no_quorum(
    store: Store, signer: Signer, served: Witnessing, key: WatchedKey, required: dict[str, object]
) -> None:
    """The key of the ledger is away and those of the issuers are not: what is issued is cosigned by nobody."""
    turned = Turned()
    signing = signer(served.settings, monotonic=turned, **required)
    await grow(store, 1)
    assert await signing.sign_due()

    def away() -> None:
        raise SignerUnavailableError("The token is away.")

    key.before = away
    await grow(store, 1)
    for _ in range(2):
        with pytest.raises(SignerUnavailableError):
            await signing.sign_due()
        assert signing.refused == ""
        turned.now += 31
    assert "have cosigned the ledger's newest entries" in signing.refused
    key.before = lambda: None
    assert await signing.sign_due()
    assert signing.refused == ""


async def test_one_that_takes_its_time_is_a_quorum_under_load(
    store: Store, signer: Signer, served: Witnessing, required: dict[str, object]
) -> None:
    """Its cosignatures are always over the checkpoint before the newest; nothing is older than that without one."""
    turned, gate = Turned(), asyncio.Event()

    async def slow() -> None:
        await gate.wait()

    async with answering(relaying(served, post=slow)) as url:
        signing = signer(at(served, url), monotonic=turned, witness_timeout=0.02, **required)
        for _ in range(8):
            gate.clear()
            await grow(store, 1)
            assert await signing.sign_due()
            assert not await cosigned(store, served.settings)
            gate.set()
            await answered(signing)
            turned.now += 40
            assert signing.refused == ""
        # When it stops, that is found out all the same.
        gate.clear()
        for _ in range(3):
            await grow(store, 1)
            assert await signing.sign_due()
            turned.now += 40
        assert "0 of the 1 witnesses" in signing.refused
        gate.set()
