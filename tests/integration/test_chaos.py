"""Kills and faults under load, a bounded number of them; `make chaos` does hundreds. And that the harness finds what is wrong."""

import json
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from chaos import database_faults, faults, token_faults
from chaos.__main__ import main
from chaos.checks import Found, check_kept, check_signatures, serial_signed
from chaos.record import Record
from chaos.trials import Outcome, Running, Trial, spread
from chaos.watch import Watch
from chaos.world import Rows, World, made_world
from fakes.disk import Mode
from fakes.home import copy_database
from fakes.ledgers import ORIGIN, log_key
from fakes.process import clean_environment, run_command
from fakes.tree_tiles import MemoryTiles, numbered
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, note_with
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.ledger.tree import leaf_hash, root_hash

TESTS = Path(__file__).parents[1]
SEED = "57"


@dataclass
class Tried:
    """A trial that is over, and the world as it left it."""

    world: World
    record: Record
    watch: Watch
    outcome: Outcome


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    """Kills, a token that fails and a disk that is full, on SQLite and with the shim's log of what was signed."""
    kinds = (
        faults.Kill(),
        faults.KillAfter("finalize"),
        token_faults.SignFails(signed=True),
        token_faults.Gone(),
        database_faults.Disk(Mode.FULL, "disk is full"),
    )
    folder = tmp_path_factory.mktemp("chaos")
    world_of = partial(made_world, database="sqlite", shim=True)
    trial = Trial("bounded", world_of, kinds, rounds=len(kinds), clients=4, since=1)
    record = Record()
    watch = Watch(record)
    with trial.world(folder) as world:
        yield Tried(world, record, watch, Running(trial, world, record, watch, SEED, lambda _: None).run())


def test_nothing_is_lost_by_kills_and_faults(tried: Tried) -> None:
    outcome = tried.outcome
    assert outcome.breaches == []
    assert outcome.clean
    assert [each.injected for each in outcome.tallies] == [1] * 5
    assert all(len(each.recovery) == 1 for each in outcome.tallies)
    assert sum(each.acknowledged for each in outcome.tallies) == len(tried.record.received) >= 5
    assert outcome.checkpoints > 1
    assert outcome.proofs >= 1
    # The log of the shim has every certificate that a client got.
    signed = {serial_signed(message) for _, message in tried.world.signed}
    assert {each.serial for each in tried.record.received} <= signed


@pytest.mark.postgresql
def test_nothing_is_lost_by_what_a_database_server_does() -> None:
    """Through the front door."""
    done = run_command(
        *(sys.executable, "-m", "chaos", "--rounds", "6", "--seed", SEED, "--only", "database server", "--json"),
        env=clean_environment(PYTHONPATH=str(TESTS)),
        timeout=300,
    )
    document = json.loads(done.stdout)
    assert document["clean"]
    assert document["seed"] == SEED
    assert [each["injected"] for each in document["faults"]] == [1] * 6
    for each in document["faults"]:
        assert each["lost"] == each["duplicated"] == each["unrecorded"] == 0
        assert each["recovery_max_s"] is not None
    assert "6 of 6 faults" in done.stderr


class NeverAgain(faults.Stop):
    """A process that stands still for ever."""

    name = "stands still for ever"
    lasts = (0.0, 0.0)

    def lift(self, world: World) -> None:
        pass


class NeverStarted(faults.Kill):
    """A service that nobody starts again."""

    name = "never started again"

    def lift(self, world: World) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (NeverAgain(), "no certificate for 4 s after stands still for ever (round 1)"),
        (NeverStarted(), "the service does not run after never started again (round 1)"),
    ],
)
def test_what_does_not_recover_is_told(capsys: pytest.CaptureFixture[str], fault: faults.Fault, what: str) -> None:
    world = partial(made_world, database="sqlite")
    trial = Trial("hopeless", world, [fault], rounds=1, clients=1, patience=4, since=1)
    assert main(["--seed", SEED], lambda _: [trial]) == 1
    said = capsys.readouterr()
    assert fault.name in said.out
    assert what in said.err
    (kept,) = [
        Path(line.rpartition(" ")[2]) for line in said.err.splitlines() if "home, logs and checkpoints are in" in line
    ]
    assert (kept / "home" / "privyseal.db").exists()
    assert (kept / "home.err").exists()
    shutil.rmtree(kept)


def test_a_name_that_no_trial_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nothing like it"]) == 2
    assert "no trial" in capsys.readouterr().err


# What the checks find in a database that somebody changed.


@dataclass
class Tampered:
    """A copy of the trial's database, and what the checks say of it."""

    path: Path
    record: Record
    watch: Watch
    found: Found = field(default_factory=Found)

    def change(self, statement: str, *values: object) -> None:
        """Change the copy."""
        with closing(sqlite3.connect(self.path)) as connection:
            assert connection.execute(statement, values).rowcount >= 1, statement
            connection.commit()

    def rows(self, query: str) -> list[tuple[object, ...]]:
        return Rows(f"sqlite:///{self.path}").all(query)

    def check(self) -> tuple[int, int, int]:
        """How many are lost, duplicated and unrecorded."""
        check_kept(Rows(f"sqlite:///{self.path}"), self.record, self.watch, self.found)
        return len(self.found.lost), len(self.found.duplicated), len(self.found.unrecorded)


@pytest.fixture
def tampered(tried: Tried, tmp_path: Path) -> Tampered:
    copy_database(Path(tried.world.rows.url.removeprefix("sqlite:///")), tmp_path / "copy.db")
    record = Record(received=[replace(each) for each in tried.record.received])
    return Tampered(tmp_path / "copy.db", record, tried.watch)


def entry_of(tampered: Tampered, kind: str, serial: str) -> tuple[int, bytes]:
    """The index of an entry and the entry."""
    for index, entry in tampered.rows("SELECT idx, entry FROM ledger_entry"):
        assert isinstance(entry, bytes)
        assert isinstance(index, int)
        members = json.loads(entry)
        if members["kind"] == kind and members["payload"].get("serial") == serial:
            return index, entry
    raise AssertionError(kind)


def test_an_untouched_copy_is_right(tampered: Tampered) -> None:
    assert tampered.check() == (0, 0, 0)
    assert tampered.record.breaches == []


def test_a_certificate_that_is_gone_is_lost(tampered: Tampered) -> None:
    tampered.change("DELETE FROM certificate WHERE serial = ?", tampered.record.received[0].serial)
    assert tampered.check()[0] == 1


def test_another_certificate_under_its_serial_is_a_loss(tampered: Tampered) -> None:
    first, second = tampered.record.received[:2]
    tampered.change("UPDATE certificate SET der = ? WHERE serial = ?", second.der, first.serial)
    assert tampered.check()[0] == 1


def test_an_order_with_another_certificate_is_a_loss(tampered: Tampered) -> None:
    first, second = tampered.record.received[:2]
    tampered.change("UPDATE acme_order SET serial = ? WHERE id = ?", second.serial, first.order)
    assert tampered.check()[0] == 1


@pytest.mark.parametrize("kind", ["certificate.intent", "certificate.issued"])
def test_a_certificate_without_its_entry_is_unrecorded(tampered: Tampered, kind: str) -> None:
    index, entry = entry_of(tampered, kind, tampered.record.received[0].serial)
    changed = entry.replace(kind.encode(), b"service.stopped")
    tampered.change("UPDATE ledger_entry SET entry = ? WHERE idx = ?", changed, index)
    assert tampered.check()[2] >= 1
    # And checkpoints that were served said otherwise.
    assert any("is not that of the entries" in each for each in tampered.record.breaches)


def test_an_order_with_two_certificates_is_duplicated(tampered: Tampered) -> None:
    serial, other = tampered.record.received[0].serial, "f" * 32
    ((size,),) = tampered.rows("SELECT size FROM ledger_head")
    assert isinstance(size, int)
    for at, kind in enumerate(("certificate.intent", "certificate.issued")):
        _, entry = entry_of(tampered, kind, serial)
        again = entry.replace(serial.encode(), other.encode())
        tampered.change("INSERT INTO ledger_entry VALUES (?, ?, ?)", size + at, leaf_hash(again), again)
    assert tampered.check() == (0, 1, 0)


def test_two_certificates_in_the_hands_of_a_client_are_duplicated(tampered: Tampered) -> None:
    first, second = tampered.record.received[:2]
    tampered.record.receive(first.order, second.der, second.issuer)
    assert tampered.check()[1] == 1


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE acme_order SET state = 'processing' WHERE id = '{order}'", "hangs in processing"),
        (
            (
                "INSERT INTO intent SELECT serial, issuer_id, spki_sha256, not_after, requester, 'x', NULL "
                "FROM certificate WHERE serial = '{serial}'"
            ),
            "is still open",
        ),
        ("DELETE FROM revocation WHERE serial = '{serial}'", "was acknowledged and is not in store and ledger"),
    ],
)
def test_what_hangs_or_is_taken_back_is_a_breach(tampered: Tampered, statement: str, what: str) -> None:
    revoked = next(each for each in tampered.record.received if each.revoked)
    tampered.change(statement.format(order=revoked.order, serial=revoked.serial))
    tampered.check()
    (breach,) = tampered.record.breaches
    assert what in breach


# What the checks find in the log of the token.


def tbs_of(tried: Tried, at: int) -> bytes:
    return tried.record.received[at].certificate.tbs_certificate_bytes[:96]


def test_a_signature_without_an_intent_is_unrecorded(tried: Tried) -> None:
    tbs = tbs_of(tried, 0)
    serial = bytes.fromhex(tried.record.received[0].serial)
    stray = tbs.replace(serial, b"\x01" + serial[1:])
    found, record = Found(), Record()
    check_signatures([(3, stray), (3, tbs)], tried.world.rows, record, found)
    assert [turn for turn, _ in found.unrecorded] == [3]
    assert record.breaches == []


def test_a_certificate_that_was_signed_twice_is_a_breach(tried: Tried) -> None:
    found, record = Found(), Record()
    check_signatures([(1, tbs_of(tried, 0)), (2, tbs_of(tried, 0))], tried.world.rows, record, found)
    assert found.unrecorded == []
    (breach,) = record.breaches
    assert "was signed 2 times" in breach


# What somebody outside finds.

VERIFIER = NoteVerifier.for_key(ORIGIN, log_key().public_key())


def note(size: int, root: bytes, *, key: str = "log") -> bytes:
    text = Checkpoint(ORIGIN, size, root).text()
    private = log_key(key)
    return note_with(text, NoteVerifier.for_key(ORIGIN, private.public_key()), private.sign(text.encode()))


@pytest.fixture
def watch() -> Watch:
    watching = Watch(Record())
    watching.vkey = VERIFIER.vkey()
    return watching


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (note(4, bytes(32)), "was served after"),
        (note(5, bytes(31) + b"x"), "different roots"),
        (note(6, bytes(32), key="other"), "does not open"),
    ],
)
def test_checkpoints_that_contradict_each_other(watch: Watch, second: bytes, what: str) -> None:
    watch.checkpoint(note(5, bytes(32)))
    assert watch._record.breaches == []
    watch.checkpoint(second)
    (breach,) = watch._record.breaches
    assert what in breach


@dataclass
class Served:
    """The tiles of some entries where a world would have them."""

    tiles: MemoryTiles

    def get_if_there(self, path: str) -> bytes | None:
        return self.tiles.data(TilePath.parse(path.removeprefix("ledger/")))


class Missing(Served):
    def get_if_there(self, path: str) -> bytes | None:
        raise HTTPError(path, 404, "no", None, None)  # type: ignore[arg-type]


class Away(Served):
    def get_if_there(self, path: str) -> bytes | None:
        return None


def prove(watch: Watch, before: list[bytes], now: list[bytes], served: Callable[[MemoryTiles], Served]) -> list[str]:
    for entries in (before, now):
        found = Checkpoint(ORIGIN, len(entries), root_hash(map(leaf_hash, entries)))
        watch.prove(served(MemoryTiles(entries)), found)  # type: ignore[arg-type]
    return watch._record.breaches


def test_a_fork_is_found_by_tiles(watch: Watch) -> None:
    forked = [b"another", *numbered(299)]
    (breach,) = prove(watch, numbered(20), forked, Served)
    assert "does not continue" in breach
    assert watch.proofs == 0


def test_tiles_that_are_missing(watch: Watch) -> None:
    (breach,) = prove(watch, numbered(20), numbered(300), Missing)
    assert "tiles are missing" in breach


def test_a_ledger_that_grows_is_shown_when_its_tiles_are_back(watch: Watch) -> None:
    assert prove(watch, numbered(20), numbered(300), Away) == []
    assert watch.proofs == 0
    assert prove(watch, numbered(300), numbered(310), Served) == []
    assert watch.proofs == 2


def crl(number: int, *serials: int) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")]))
        .last_update(now)
        .next_update(now + timedelta(hours=1))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.DER)


def test_crls_that_only_grow(watch: Watch) -> None:
    watch.crl("a", crl(1, 10))
    watch.crl("b", crl(1))
    watch.crl("a", crl(1, 10))
    watch.crl("a", crl(3, 10, 11))
    assert watch._record.breaches == []
    assert watch.listed("a") == {10, 11}
    assert watch.listed("c") == set()


@pytest.mark.parametrize(
    ("second", "what"),
    [((1, 10), "fell from number 2 to 1"), ((2, 10, 11), "have the number 2"), ((3, 11), "misses what 2 listed")],
)
def test_crls_that_take_something_back(watch: Watch, second: tuple[int, ...], what: str) -> None:
    watch.crl("a", crl(2, 10))
    watch.crl("a", crl(*second))
    (breach,) = watch._record.breaches
    assert what in breach


def test_a_seed_gives_the_same_faults() -> None:
    kinds: list[faults.Fault] = [faults.Kill(), faults.KillAfter("finalize"), faults.Stop()]

    def names(seed: str) -> list[str]:
        return [each.name for each in spread(kinds, 12, random.Random(seed))]  # noqa: S311

    assert names("a") == names("a") != names("b")
    assert {names("a").count(each.name) for each in kinds} == {4}
