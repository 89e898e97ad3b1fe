"""A witness behind real HTTP with a key in a real token: what it cosigns, and what it never does (C2SP tlog-witness)."""

import asyncio
import base64
import json
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientResponse, ClientSession
from cryptography.hazmat.primitives.asymmetric import ed25519

from fakes.checkpoints import ORIGIN, WatchedKey
from fakes.softhsm import SoftToken
from fakes.witnesses import TestLog, Witnessing, witnessing
from privyseal_ca.clock import CLOCK_STEP
from privyseal_ca.errors import SignerUnavailableError, WitnessError
from privyseal_ca.ledger.cosignatures import answered_lines, cosignatures
from privyseal_ca.ledger.note import Checkpoint, encode_base64, open_note
from privyseal_ca.witness import files
from privyseal_ca.witness.monitoring import ask_witness, log_id, newest_at_witnesses
from privyseal_ca.witness.protocol import MAX_SUBMISSION, Submission
from privyseal_ca.witness.state import MAX_EVIDENCE, WitnessState
from privyseal_ca.witness.witness import Witness

LOG = TestLog()


class WatchedWitnessKey(WatchedKey):
    """A witness's key that remembers the checkpoints that it signed."""

    async def run(self, work):  # type: ignore[no-untyped-def]
        self.before()
        self.signed.append(Checkpoint.parse(work.args[0].decode().split("\n", 2)[2]))
        return await self._key.run(work)


@pytest_asyncio.fixture
async def key(soft_token: SoftToken) -> WatchedWitnessKey:
    return WatchedWitnessKey(await soft_token.signing_key("ed25519"))


@pytest_asyncio.fixture
async def served(tmp_path: Path, key: WatchedWitnessKey) -> AsyncIterator[Witnessing]:
    async with witnessing(tmp_path, key) as witness:
        witness.state.add(LOG.verifier.vkey())
        yield witness


@pytest_asyncio.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def post(session: ClientSession, served: Witnessing, body: bytes) -> tuple[int, bytes, ClientResponse]:
    async with session.post(f"{served.url}/add-checkpoint", data=body) as answer:
        return answer.status, await answer.read(), answer


async def status(session: ClientSession, served: Witnessing, body: bytes) -> int:
    return (await post(session, served, body))[0]


async def test_cosigned_by_the_words_of_the_specification(session: ClientSession, served: Witnessing) -> None:
    code, body, answer = await post(session, served, LOG.submission(0, 7))
    assert (code, answer.headers["Cache-Control"]) == (200, "no-store")
    verifier = served.witness.verifier
    assert answered_lines(body, LOG.note(7), [verifier])[verifier.name][0] == served.clock.now()
    # By hand, from the words of tlog-cosignature.
    dash, name, encoded = body.decode().removesuffix("\n").split(" ")
    data = base64.b64decode(encoded)
    assert (dash, name, data[:4]) == ("\u2014", verifier.name, verifier.key_id)
    seconds = int.from_bytes(data[4:12])
    verifier.key.verify(data[12:], f"cosignature/v1\ntime {seconds}\n{LOG.checkpoint(7).text()}".encode())


async def test_what_is_served_of_it(session: ClientSession, served: Witnessing) -> None:
    url = f"{served.url}/{log_id(ORIGIN)}/checkpoint"
    async with session.get(url) as answer:
        assert answer.status == 404
    await post(session, served, LOG.submission(0, 7))
    await post(session, served, LOG.submission(7, 9))
    async with session.get(url) as answer:
        note, tag = await answer.read(), answer.headers["ETag"]
        assert (answer.status, answer.content_type) == (200, "text/plain")
    text, signed = open_note(note, [LOG.verifier])
    assert Checkpoint.parse(text) == LOG.checkpoint(9)
    assert signed == [LOG.verifier]
    assert cosignatures(note, [served.witness.verifier]) == {served.witness.verifier.name: served.clock.now()}
    async with session.get(url, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304
    assert await newest_at_witnesses([served.settings], ORIGIN, LOG.verifier, session) == [
        (served.witness.verifier.name, LOG.checkpoint(9))
    ]
    async with session.get(f"{served.url}/vkey") as answer:
        assert await answer.text() == served.settings.vkey + "\n"
    async with session.get(f"{served.url}/metrics") as answer:
        assert 'privyseal_witness_answers_total{code="200"} 2.0' in await answer.text()
    async with session.get(f"{served.url}/healthz") as answer:
        assert answer.status == 200


async def test_asked_again_it_says_the_same_of_a_later_moment(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    first = await post(session, served, LOG.submission(0, 7))
    again = await post(session, served, LOG.submission(7, 7))
    assert again[:2] == first[:2]
    assert len(key.signed) == 1, "the same second needs no second signature"
    served.clock.advance(60)
    later = await post(session, served, LOG.submission(7, 7))
    name = served.witness.verifier.name
    assert answered_lines(later[1], LOG.note(7), [served.witness.verifier])[name][0] == served.clock.now()


async def test_the_size_that_it_has(session: ClientSession, served: Witnessing, key: WatchedWitnessKey) -> None:
    await post(session, served, LOG.submission(0, 9))
    for old, new in ((0, 9), (0, 12), (3, 5), (5, 12), (0, 0), (11, 12)):
        code, body, answer = await post(session, served, LOG.submission(old, new))
        assert (code, body, answer.headers["Content-Type"]) == (409, b"9\n", "text/x.tlog.size")
    assert len(key.signed) == 1
    assert await status(session, served, LOG.submission(9, 12)) == 200


def _empty_with_root() -> bytes:
    text = f"{ORIGIN}\n0\n{encode_base64(b'x' * 32)}\n"
    return Submission(0, (), LOG.sign(text)).body()


def _other_key() -> bytes:
    return TestLog().submission(0, 5)


def _altered() -> bytes:
    return LOG.submission(0, 5).replace(f"{ORIGIN}\n5\n".encode(), f"{ORIGIN}\n6\n".encode())


HOSTILE: dict[str, tuple[int, bytes]] = {
    "nothing": (400, b""),
    "a lone line": (400, b"old 0\n"),
    "no checkpoint": (400, b"old 0\n\n"),
    "no old size": (400, b"\n" + LOG.note(5)),
    "the old size in another form": (400, LOG.submission(0, 5).replace(b"old 0", b"old 00")),
    "a negative size": (400, LOG.submission(0, 5).replace(b"old 0", b"old -1")),
    "an old size beyond every tree": (400, LOG.submission(0, 5).replace(b"old 0", b"old " + b"9" * 40)),
    "an old size that is larger": (400, LOG.submission(0, 5).replace(b"old 0", b"old 6")),
    "a hash that is none": (400, LOG.submission(0, 5).replace(b"old 0\n", b"old 0\nAAAA\n")),
    "a hash in another form": (400, LOG.submission(0, 5).replace(b"old 0\n", b"old 0\n" + b"A" * 44 + b"\n")),
    "more hashes than a proof has": (400, Submission(0, (b"h" * 32,) * 64, LOG.note(5)).body()),
    "carriage returns": (400, LOG.submission(0, 5).replace(b"\n", b"\r\n")),
    "no UTF-8": (400, b"old 0\n\n" + b"\xff" + LOG.note(5)),
    "more signatures than a note has": (400, LOG.submission(0, 5) + LOG.note(5).split(b"\n\n")[1] * 100),
    "too long": (413, LOG.submission(0, 5) + b"x" * MAX_SUBMISSION),
    "an unknown log": (404, TestLog("other.example/log").submission(0, 5)),
    "another key": (403, _other_key()),
    "another size than was signed": (403, _altered()),
    "signed twice": (403, LOG.submission(0, 5) + LOG.note(5).split(b"\n\n")[1]),
    "no signature": (403, LOG.submission(0, 5).replace(LOG.verifier.name.encode() + b" ", b"somebody.else ")),
    "signed, and no checkpoint": (400, Submission(0, (), LOG.sign(f"{ORIGIN}\nmany\n")).body()),
    "a root of nothing": (422, _empty_with_root()),
    "a proof from nothing": (422, Submission(0, (b"h" * 32,), LOG.note(5)).body()),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_submissions(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey, case: str
) -> None:
    code, body = HOSTILE[case]
    assert await status(session, served, body) == code
    assert key.signed == []
    assert served.state.newest(ORIGIN) is None
    assert served.state.conflicts(ORIGIN) == []
    assert await status(session, served, LOG.submission(0, 5)) == 200, "and it goes on"


async def test_other_paths_and_methods(session: ClientSession, served: Witnessing) -> None:
    for path, code in {
        "/add-checkpoint": 405,
        "/": 404,
        f"/{'A' * 64}/checkpoint": 404,
        "/../keys/checkpoint": 404,
    }.items():
        async with session.get(f"{served.url}{path}") as answer:
            assert answer.status == code


async def test_a_split_view_is_refused_and_kept(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    other = LOG.forked(4)
    await post(session, served, LOG.submission(0, 9))
    for _ in range(2):
        assert await status(session, served, other.submission(9, 9)) == 422
    assert await status(session, served, other.submission(9, 12)) == 422
    assert [checkpoint.root for checkpoint in key.signed] == [LOG.checkpoint(9).root]
    proven, unproven = served.state.conflicts(ORIGIN)
    assert (proven.proven, proven.size, proven.root) == (True, 9, other.checkpoint(9).root.hex())
    assert (unproven.proven, unproven.size) == (False, 12)
    evidence = json.loads(proven.file.read_text())
    notes = [evidence["cosigned"].encode(), evidence["submitted"].encode()]
    found = [Checkpoint.parse(open_note(note, [LOG.verifier])[0]) for note in notes]
    assert found == [LOG.checkpoint(9), other.checkpoint(9)], "both are signed by the log itself"
    async with session.get(f"{served.url}/metrics") as answer:
        assert 'privyseal_witness_conflicts{kind="proven"} 1.0' in await answer.text()
    assert await status(session, served, LOG.submission(9, 12)) == 200, "the log that it knows goes on"


async def test_what_is_kept_of_contradictions_is_bounded(session: ClientSession, served: Witnessing) -> None:
    other = LOG.forked(0)
    await post(session, served, LOG.submission(0, 5))
    for size in range(6, 10 + MAX_EVIDENCE):
        assert await status(session, served, other.submission(5, size)) == 422
    assert len(served.state.conflicts(ORIGIN)) == MAX_EVIDENCE


async def test_made_up_proofs_leave_room_for_what_is_proven(session: ClientSession, served: Witnessing) -> None:
    """A log that wants its split view unrecorded fills the place first, or shows the same checkpoint at another moment."""
    other = LOG.forked(0)
    await post(session, served, LOG.submission(0, 5))
    for size in range(6, 10 + MAX_EVIDENCE):
        assert await status(session, served, other.submission(5, size)) == 422
    assert await status(session, served, LOG.submission(5, 8)) == 200
    assert await status(session, served, other.submission(8, 8)) == 422
    proven = [conflict for conflict in served.state.conflicts(ORIGIN) if conflict.proven]
    assert [(conflict.size, conflict.root) for conflict in proven] == [(8, other.checkpoint(8).root.hex())]
    evidence = json.loads(proven[0].file.read_text())
    assert Checkpoint.parse(open_note(evidence["cosigned"].encode(), [LOG.verifier])[0]) == LOG.checkpoint(8)
    assert await status(session, served, other.submission(8, 8)) == 422
    assert len(served.state.conflicts(ORIGIN)) == MAX_EVIDENCE, "it took the place of the same, unproven"
    assert await status(session, served, LOG.submission(8, 200)) == 200
    assert await status(session, served, other.submission(200, 200)) == 422
    assert len(served.state.conflicts(ORIGIN)) == MAX_EVIDENCE + 1


async def test_two_ledgers_at_once_never_get_two_roots_of_one_size(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    """Whoever comes first wins, whatever races; nothing that was cosigned goes back."""
    other, chance = LOG.forked(2), random.Random(7)  # noqa: S311

    async def push(log: TestLog) -> None:
        old = 0
        for _ in range(12):
            new = old + chance.randrange(0, 4)
            code, body, _ = await post(session, served, log.submission(old, new))
            if code == 409:
                old = min(int(body), 299)
            elif code == 200:
                old = new

    await asyncio.gather(*(push(log) for log in (LOG, other, LOG, other)))
    assert len(key.signed) > 3
    assert [checkpoint.size for checkpoint in key.signed] == sorted(checkpoint.size for checkpoint in key.signed)
    assert len({checkpoint.size for checkpoint in key.signed}) == len({(c.size, c.root) for c in key.signed})
    beyond = [checkpoint for checkpoint in key.signed if checkpoint.size > 2]
    assert all(c == LOG.checkpoint(c.size) for c in beyond) or all(c == other.checkpoint(c.size) for c in beyond)


async def test_one_checks_after_the_other_has_remembered(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of the specification: what is checked against is not what another request is about to replace."""
    entered, release, real = [threading.Event(), threading.Event()], threading.Event(), served.state.agree

    def slow(origin: str, note: bytes) -> None:
        entered[entered[0].is_set()].set()
        assert release.wait(10)
        real(origin, note)

    monkeypatch.setattr(served.state, "agree", slow)
    first = asyncio.create_task(post(session, served, LOG.submission(0, 9)))
    assert await asyncio.to_thread(entered[0].wait, 10)
    second = asyncio.create_task(post(session, served, LOG.forked(2).submission(0, 7)))
    assert not await asyncio.to_thread(entered[1].wait, 0.3), "two were let in"
    release.set()
    assert (await first)[0] == 200
    assert (await second)[:2] == (409, b"9\n")
    assert key.signed == [LOG.checkpoint(9)]


async def test_nothing_is_signed_that_could_not_be_written(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    blocked = served.home / "logs" / f".{log_id(ORIGIN)}.newest.draft"
    blocked.mkdir()
    assert await status(session, served, LOG.submission(0, 5)) == 503
    assert key.signed == []
    blocked.rmdir()
    assert await status(session, served, LOG.submission(0, 5)) == 200


async def test_what_may_not_be_durable_is_made_so_before_it_is_signed(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was renamed and not synced is there for whoever reads it, and gone after a power cut."""
    real, synced = files.sync_folder, 0

    def failing(_: Path) -> None:
        raise OSError(5, "Input/output error")

    def counting(folder: Path) -> None:
        nonlocal synced
        assert key.signed == []
        synced += 1
        real(folder)

    monkeypatch.setattr(files, "sync_folder", failing)
    assert await status(session, served, LOG.submission(0, 5)) == 503
    assert served.state.newest(ORIGIN) == LOG.checkpoint(5), "as far as one can see"
    assert key.signed == []
    monkeypatch.setattr(files, "sync_folder", counting)
    before, published = synced, served.state.publish
    monkeypatch.setattr(served.state, "publish", lambda *args: (key.signed.clear(), published(*args)))
    assert await status(session, served, LOG.submission(5, 5)) == 200
    assert synced == before + 2, "the agreement and what is shown"
    served.clock.advance(1)
    key.signed.clear()
    assert await status(session, served, LOG.submission(5, 5)) == 200
    assert synced == before + 3, "and once is enough"
    # The next process knows only what it reads: the one before may have been killed between the two.
    again = Witness(served.state, key, served.witness.verifier.name, served.clock)
    key.signed.clear()
    assert (await again.submit(LOG.submission(5, 5))).status == 200
    assert synced == before + 5


async def test_a_token_that_is_away(session: ClientSession, served: Witnessing, key: WatchedWitnessKey) -> None:
    def away() -> None:
        raise SignerUnavailableError("The token is away.")

    key.before = away
    assert await status(session, served, LOG.submission(0, 5)) == 503
    assert served.state.newest(ORIGIN) == LOG.checkpoint(5), "agreed to, and bound by it"
    assert await status(session, served, LOG.forked(2).submission(5, 5)) == 422
    key.before = lambda: None
    assert await status(session, served, LOG.submission(5, 5)) == 200


@pytest.mark.parametrize(
    "submission", [LOG.submission(0, 3), LOG.forked(2).submission(5, 5), LOG.forked(2).submission(5, 9)]
)
async def test_what_was_agreed_to_is_shown_to_whoever_is_refused_for_it(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey, submission: bytes
) -> None:
    """Only what is shown proves to a ledger that its database was put back; the token or the process had failed by then."""

    def away() -> None:
        raise SignerUnavailableError("The token is away.")

    await post(session, served, LOG.submission(0, 2))
    key.before = away
    assert await status(session, served, LOG.submission(2, 5)) == 503
    assert await status(session, served, submission) in {409, 422}
    key.before = lambda: None
    shown = await ask_witness(served.settings, ORIGIN, LOG.verifier, session)
    assert shown.checkpoint == LOG.checkpoint(2)
    # Also when a process was killed between: the next one does not know more than what is in the files.
    restarted = Witness(served.state, key, served.witness.verifier.name, served.clock)
    assert (await restarted.submit(submission)).status in {409, 422}
    shown = await ask_witness(served.settings, ORIGIN, LOG.verifier, session)
    assert (shown.checkpoint, shown.problem) == (LOG.checkpoint(5), "")
    count = len(key.signed)
    await restarted.submit(submission)
    assert len(key.signed) == count


async def test_nothing_is_signed_for_a_key_that_is_trusted_no_more(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    def away() -> None:
        raise SignerUnavailableError("The token is away.")

    renewed = TestLog(key=ed25519.Ed25519PrivateKey.generate())
    key.before = away
    assert await status(session, served, LOG.submission(0, 5)) == 503
    key.before = lambda: None
    key.signed.clear()
    served.state.remove(ORIGIN)
    served.state.add(renewed.verifier.vkey())
    assert await status(session, served, renewed.submission(0, 7)) == 409
    assert key.signed == []
    assert served.state.newest(ORIGIN) == LOG.checkpoint(5), "and it is bound by it"
    assert await status(session, served, renewed.submission(5, 7)) == 200


async def test_a_clock_that_is_put_back_dates_nothing_before_a_smaller_tree(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    """A cosignature says that at its time nothing larger was seen (tlog-cosignature)."""
    name, verifier, began = served.witness.verifier.name, served.witness.verifier, served.clock.now()
    await post(session, served, LOG.submission(0, 5))
    served.clock.advance(-20)
    later = await post(session, served, LOG.submission(5, 9))
    assert answered_lines(later[1], LOG.note(9), [verifier])[name][0] == began
    again = Witness(served.state, key, name, served.clock)
    answer = await again.submit(LOG.submission(9, 10))
    assert answered_lines(answer.text.encode(), LOG.note(10), [verifier])[name][0] == began
    # One that was far ahead for a while is not the time for ever.
    served.clock.advance(-CLOCK_STEP)
    answer = await again.submit(LOG.submission(10, 11))
    assert answered_lines(answer.text.encode(), LOG.note(11), [verifier])[name][0] == served.clock.now()


async def test_state_that_is_damaged_cosigns_nothing(
    session: ClientSession, served: Witnessing, key: WatchedWitnessKey
) -> None:
    await post(session, served, LOG.submission(0, 5))
    path = served.home / "logs" / f"{log_id(ORIGIN)}.newest"
    for content in (b"", b"something else\n", path.read_bytes()[:-40], b"x" * (2 << 20)):
        path.write_bytes(content)
        assert await status(session, served, LOG.submission(5, 6)) == 503
    path.unlink()
    assert await status(session, served, LOG.submission(0, 6)) == 503, "it knows that it has cosigned before"
    assert len(key.signed) == 1


async def test_a_log_that_is_removed_comes_back_where_it_was(session: ClientSession, served: Witnessing) -> None:
    await post(session, served, LOG.submission(0, 9))
    served.state.remove(ORIGIN)
    assert await status(session, served, LOG.submission(9, 10)) == 404
    with pytest.raises(WitnessError, match=ORIGIN):
        served.state.remove(ORIGIN)
    served.state.add(LOG.verifier.vkey())
    assert await status(session, served, LOG.forked(3).submission(9, 9)) == 422
    assert (await post(session, served, LOG.submission(0, 10)))[:2] == (409, b"9\n")


async def test_a_log_that_changes_its_key(session: ClientSession, served: Witnessing) -> None:
    renewed = TestLog(key=ed25519.Ed25519PrivateKey.generate())
    await post(session, served, LOG.submission(0, 9))
    assert await status(session, served, renewed.submission(9, 10)) == 403
    served.state.add(renewed.verifier.vkey())
    assert await status(session, served, renewed.submission(9, 10)) == 200


async def test_one_process_serves_a_home(served: Witnessing) -> None:
    other = served.home.with_name(f"{served.home.name}-other")
    other.symlink_to(served.home)
    for home in (served.home, other):
        with pytest.raises(WitnessError, match="Another process"), WitnessState(home).serving():
            pass


async def test_one_command_changes_the_logs_at_a_time(served: Witnessing) -> None:
    """Two that add a key to one log must not lose one of them."""
    other = WitnessState(served.home)
    with other._changing():
        for change in (lambda: served.state.add(TestLog().verifier.vkey()), lambda: served.state.remove(ORIGIN)):
            with pytest.raises(WitnessError, match="Another command"):
                change()
    assert served.state.keys(ORIGIN) == [LOG.verifier]
    served.state.add(TestLog().verifier.vkey())
    assert len(served.state.keys(ORIGIN)) == 2


async def test_what_others_show_instead_of_a_checkpoint(session: ClientSession, served: Witnessing) -> None:
    await post(session, served, LOG.submission(0, 9))
    path = served.home / "logs" / f"{log_id(ORIGIN)}.checkpoint"
    note = path.read_bytes()
    other = TestLog()
    cases = {
        b"nonsense": (None, "no checkpoint of this log"),
        other.note(9): (None, "no checkpoint of this log"),
        LOG.sign("other.example/log\n5\n" + encode_base64(bytes(32)) + "\n"): (None, "another log"),
        LOG.note(9): (LOG.checkpoint(9), "without its cosignature"),
        note[:-12] + b"AAAAAAAAAA=\n": (LOG.checkpoint(9), "wrong cosignature"),
    }
    for content, (checkpoint, problem) in cases.items():
        path.write_bytes(content)
        found = await ask_witness(served.settings, ORIGIN, LOG.verifier, session)
        assert found.checkpoint == checkpoint
        assert problem in found.problem
        assert found.problem
    gone = served.settings.model_copy(update={"url": "http://127.0.0.1:1"})
    found = await ask_witness(gone, ORIGIN, LOG.verifier, session)
    assert (found.checkpoint, "cannot be reached" in found.problem) == (None, True)
    assert await newest_at_witnesses([gone], ORIGIN, LOG.verifier, session) == []
