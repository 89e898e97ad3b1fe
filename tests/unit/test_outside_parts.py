"""The parts of a look from outside, each alone: edge, tiles, facts, CRLs, PEM, sources with their bounds."""

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from fakes.outside_logs import (
    BEGIN,
    ISSUER,
    Server,
    SignedLog,
    abandoned,
    answers,
    crl,
    digest,
    entry,
    intent,
    issued,
    life,
    revoked,
    serial_of,
    served,
    silent,
)
from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError
from privyseal_ca.ledger.crl_reader import MalformedCrlError
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash
from privyseal_ca.outside import replay as replay_module
from privyseal_ca.outside.crls import CrlCheck, NewerCrlError
from privyseal_ca.outside.edge import TreeEdge
from privyseal_ca.outside.facts import Fact
from privyseal_ca.outside.findings import Code, FindingError
from privyseal_ca.outside.pem import crls_in_bundle
from privyseal_ca.outside.replay import Replay
from privyseal_ca.outside.signed import LogKeys
from privyseal_ca.outside.source import HttpLedger, LedgerBounds
from privyseal_ca.outside.tiles import CheckedTiles
from privyseal_ca.revocation.crl_bundle import pem_of
from privyseal_ca.web.fetching import new_session

# The edge of a tree.


def test_the_edge_has_the_root_of_the_tree_at_every_size() -> None:
    edge, tree = TreeEdge(), TreeHasher()
    assert edge.root() == tree.root()
    watched = {1, 2, 255, 256, 257, 511, 512, 65535, 65536, 65537, 65792, 65793}
    for number in range(66_000):
        leaf = leaf_hash(b"%d" % number)
        edge.append(leaf)
        tree.append(leaf)
        if edge.size in watched or not number % 4999:
            assert edge.root() == tree.root(), edge.size
            again = TreeEdge.parse(edge.document())
            assert (again.root(), again.size, again.partial_tiles()) == (edge.root(), edge.size, edge.partial_tiles())


def test_an_edge_that_is_none() -> None:
    edge = TreeEdge()
    for number in range(300):
        edge.append(leaf_hash(b"%d" % number))
    right = edge.document()
    wrongs: tuple[Any, ...] = (
        {},
        None,
        [],
        {**right, "size": 299},
        {**right, "size": -1},
        {**right, "size": "300"},
        {**right, "size": True},
        {**right, "size": 2**63},
        {**right, "levels": right["levels"][:1]},
        {**right, "levels": ["!", *right["levels"][1:]]},
        {**right, "levels": [1, 2]},
        {**right, "levels": right["levels"] * 5},
    )
    for wrong in wrongs:
        with pytest.raises(LedgerError, match="edge of the tree"):
            TreeEdge.parse(wrong)
    with pytest.raises(LedgerError, match="Only the right edge"):
        edge.hashes(0, 0, 256)


# Tiles.


class Memory:
    """A log in memory, as a source."""

    receipts = False

    def __init__(self, log: SignedLog) -> None:
        self.log = log
        self.changed: dict[str, bytes | None] = {}

    async def vkey(self) -> str:
        return self.log.vkey

    async def checkpoint(self) -> bytes:
        return self.log.note()

    async def tile(self, path: TilePath) -> bytes | None:
        return self.changed[path.path()] if path.path() in self.changed else self.log.tiles.data(path)

    async def receipt(self, _: str) -> None:
        return None


@given(st.integers(1, 700), st.integers(1, 700))
def test_the_root_at_an_earlier_size(one: int, other: int) -> None:
    small, large = sorted((one, other))
    entries = [b"%d" % number for number in range(large)]
    log = SignedLog(entries)

    async def work() -> bytes:
        seen = await checked(Memory(log))
        return await seen.root_at(small)

    tree = TreeHasher()
    for each in entries[:small]:
        tree.append(leaf_hash(each))
    assert asyncio.run(work()) == tree.root()


async def checked(memory: Memory) -> CheckedTiles:
    seen = LogKeys(memory.log.verifier).open(await memory.checkpoint(), "here")
    tiles = CheckedTiles(memory, seen.checkpoint)
    await tiles.open()
    return tiles


async def test_tiles_of_three_levels_are_compared_from_above() -> None:
    log = SignedLog([b"%d" % number for number in range(256 * 256 + 600)])
    memory = Memory(log)
    tiles = await checked(memory)
    for index in (0, 100, 255, 256, 258):
        assert await tiles.tile(0, index) == log.tiles.levels[0][index * 256 : (index + 1) * 256]
    right = log.tiles.data(TilePath(1, 0))
    memory.changed["tile/1/000"] = right[:64] + bytes(32) + right[96:]
    with pytest.raises(FindingError, match="tile/1/000, the hashes of the entries 0 to 65535") as caught:
        await (await checked(memory)).tile(0, 7)
    assert caught.value.finding.index == 0
    memory.changed = {"tile/0/200": None}
    with pytest.raises(FindingError, match="missing") as caught:
        await (await checked(memory)).tile(0, 200)
    assert caught.value.finding.index == 51200


# Facts and what they leave.


def replayed(*entries: bytes) -> Replay:
    found = Replay(time.time)
    for index, each in enumerate(entries):
        found.entry(index, each)
    return found


def test_facts_that_were_written_and_read_give_the_same() -> None:
    direct, again = Replay(time.time), Replay(time.time)
    for index, each in enumerate(life(500)):
        fact = direct.entry(index, each)
        if fact is not None:
            again.apply(Fact.parse(fact.line()))
    assert (again.open, again.listed, again.crls, again.issued) == (
        direct.open,
        direct.listed,
        direct.crls,
        direct.issued,
    )
    for line in (
        b"",
        b"[]",
        b"[1,2,3,4]",
        b'[1,"certificate.intent",0,7]',
        b"\xff",
        b'["x","certificate.intent",0,{}]',
    ):
        with pytest.raises(LedgerError, match="malformed"):
            Fact.parse(line)


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_MOST", 3)
    with pytest.raises(FindingError, match="more than 3"):
        replayed(*(intent(number) for number in range(4)))


def certified(*, imported: bool, serial: int = 9, issuer: str = ISSUER, ca: str = ISSUER) -> bytes:
    payload = {
        "certificate_sha256": digest("ca"),
        "id": ca,
        "imported": imported,
        "issuer": issuer,
        "not_after": BEGIN + 86400,
        "not_before": BEGIN,
        "serial": serial_of(serial),
        "subject": "CN=a",
        "tbs_sha256": digest(f"tbs {serial}"),
    }
    return entry(Kind.ISSUER_CERTIFIED, payload)


def test_certificates_of_cas() -> None:
    found = replayed(intent(9, names=[]), certified(imported=False))
    assert found.cas == {ISSUER: {digest("ca")}}
    with pytest.raises(FindingError, match="no intent before it"):
        replayed(certified(imported=False))
    # A root elsewhere announces nothing here, and may certify a CA again.
    replayed(certified(imported=True), certified(imported=True))
    payload = {
        "id": "x",
        "issuer": ISSUER,
        "name": "a",
        "not_after": BEGIN + 86400,
        "reason": 0,
        "serial": serial_of(9),
    }
    revoking = entry(Kind.ISSUER_REVOKED, payload)
    found = replayed(certified(imported=True), revoking)
    assert found.revoked == 1
    with pytest.raises(FindingError, match="revoked before"):
        replayed(certified(imported=True), revoking, revoking)
    with pytest.raises(FindingError, match="had not issued"):
        replayed(revoking)


def restored(first: int, end: int) -> bytes:
    return entry(Kind.AUTHORITY_RESTORED, {"from_size": first, "to_size": end})


def test_what_a_restore_leaves() -> None:
    payload = {"issuer": ISSUER, "not_after": BEGIN + 9, "reason": 1, "revoked_at": BEGIN - 7, "serial": serial_of(5)}
    again = entry(Kind.REVOCATION_RESTORED, payload)
    found = replayed(again)
    (listed,) = found.listed[ISSUER].values()
    assert (listed.revoked_at, listed.reason, found.revoked) == (BEGIN - 7, 1, 1)
    with pytest.raises(FindingError, match="revoked before"):
        replayed(again, again)
    # A CRL that was withdrawn may be published once more, as it was, and only then.
    replayed(crl(1, through=0), restored(0, 1), crl(1, through=0))
    for entries in (
        (crl(1, through=0), restored(0, 1), crl(1, through=0, sha256=digest("other"))),
        (restored(0, 0), crl(1, through=1), crl(1, through=1)),
        (crl(2, through=0), restored(0, 1), crl(1, through=0)),
    ):
        with pytest.raises(FindingError, match="does not follow"):
            replayed(*entries)
    for first, end in ((0, 1), (1, 0), (-1, 0)):
        with pytest.raises(FindingError, match="brought back"):
            replayed(restored(first, end))


@pytest.mark.parametrize("name", ["not_after", "this_update"])
@pytest.mark.parametrize("value", [-1, 2**53 - 1, True, None, 1e9, "1"])
def test_times_that_are_none(name: str, value: Any) -> None:
    make = intent(1) if name == "not_after" else crl(1, through=0)
    text = make.decode()
    begin = text.index(f'"{name}":') + len(name) + 3
    end = begin + len(str(BEGIN))
    shown = {True: "true", None: "null", "1": '"1"'}.get(value, str(value))
    with pytest.raises(FindingError) as caught:
        replayed((text[:begin] + shown + text[end:]).encode())
    assert caught.value.finding.index == 0


# CRLs against what the entries leave.


class Authority:
    """A CA with a CRL, and the entries that fit to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
        self.id = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest.hex()
        begin = datetime.now(UTC) - timedelta(hours=2)
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), 9)
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=9))
            .add_extension(x509.SubjectKeyIdentifier(bytes.fromhex(self.id)), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        (folder / "crl").mkdir()
        (folder / "roots.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def crl(
        self,
        *serials: int,
        number: int = 1,
        reason: x509.ReasonFlags = x509.ReasonFlags.key_compromise,
        at: int = BEGIN,
        ends: int = BEGIN + 20000,
    ) -> bytes:
        def moment(seconds: int) -> datetime:
            return datetime.fromtimestamp(seconds, UTC)

        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, moment(at), moment(ends))
        builder = builder.add_extension(x509.CRLNumber(number), critical=False).add_extension(
            x509.AuthorityKeyIdentifier(bytes.fromhex(self.id), None, None), critical=False
        )
        for serial in serials:
            listed = x509.RevokedCertificateBuilder(serial, moment(BEGIN))
            builder = builder.add_revoked_certificate(
                listed.add_extension(x509.CRLReason(reason), critical=False).build()
            )
        der = builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)
        (self.folder / f"crl/{self.id}.crl").write_bytes(der)
        return der

    def replay(self, der: bytes, *, through: int | None = None, number: int = 1) -> Replay:
        """Certificates 1 to 3, of which 1 and 2 are revoked and 4 is abandoned."""
        own: dict[str, Any] = {"issuer": self.id}
        entries = [intent(9, names=[], **own), certified(imported=False, issuer=self.id, ca=self.id)]
        for serial in (1, 2, 3):
            entries += [intent(serial, **own), issued(serial, **own)]
        entries += [revoked(1, **own), revoked(2, **own), intent(4, **own)]
        if through is not None:
            through += len(entries)
        entries += [
            crl(
                number,
                through=len(entries) if through is None else through,
                scope="full",
                sha256=hashes_of(der),
                this_update=BEGIN,
                next_update=BEGIN + 20000,
                **own,
            )
        ]
        found = replayed(*entries)
        found.cas[self.id] = {self.certificate.fingerprint(hashes.SHA256()).hex()}
        return found


def hashes_of(der: bytes) -> str:
    digesting = hashes.Hash(hashes.SHA256())
    digesting.update(der)
    return digesting.finalize().hex()


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[tuple[Authority, Server]]:
    with served(tmp_path) as server:
        yield Authority(tmp_path), server


async def judged(authority: Authority, server: Server, replay: Replay) -> str:
    """What is found, empty for nothing."""
    async with new_session() as session:
        check = CrlCheck(HttpLedger(server.url, session), replay, time.time)
        found = await check.compare(authority.id)
        assert check.checked == (not found)
        assert all(each.code is Code.CRL for each in found)
    return found[0].message if found else ""


async def test_a_crl_lists_what_was_revoked_and_nothing_else(authority: tuple[Authority, Server]) -> None:
    ca, server = authority
    assert await judged(ca, server, ca.replay(ca.crl(1, 2))) == ""
    assert f"does not list the serial {serial_of(2)}" in await judged(ca, server, ca.replay(ca.crl(1)))
    assert f"lists the serial {serial_of(3)}" in await judged(ca, server, ca.replay(ca.crl(1, 2, 3)))
    assert "lists the serial" in await judged(ca, server, ca.replay(ca.crl(1, 2, 2**140)))
    assert "twice" in await judged(ca, server, ca.replay(ca.crl(1, 2, 2)))
    other = ca.crl(1, 2, reason=x509.ReasonFlags.superseded)
    assert "another time or reason" in await judged(ca, server, ca.replay(other))


async def test_a_crl_that_does_not_go_that_far(authority: tuple[Authority, Server]) -> None:
    ca, server = authority
    # Entries behind `through` need not be listed, and may not be.
    der = ca.crl(1)
    assert await judged(ca, server, ca.replay(der, through=-2)) == ""
    der = ca.crl(1, 2)
    assert "no entry before" in await judged(ca, server, ca.replay(der, through=-2))


async def test_a_crl_that_is_not_that_of_its_entry(authority: tuple[Authority, Server]) -> None:
    ca, server = authority
    ca.crl(1, 2)
    assert "its hash is another" in await judged(ca, server, ca.replay(b"?"))
    der = ca.crl(1, 2, at=BEGIN + 1)
    assert "other times" in await judged(ca, server, ca.replay(der))
    assert "past its end" in await judged(ca, server, ca.replay(ca.crl(1, 2, ends=BEGIN + 2)))
    assert "in the future" in await judged(ca, server, ca.replay(ca.crl(1, 2, at=int(time.time()) + 4000)))
    der = ca.crl(1, 2, number=3)
    assert "older than the newest" in await judged(ca, server, ca.replay(der, number=4))
    with pytest.raises(NewerCrlError):
        await judged(ca, server, ca.replay(der, number=2))
    with pytest.raises(NewerCrlError):
        await judged(ca, server, Replay(time.time))


# A file with many CRLs.


async def pieces_of(content: bytes, length: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), length):
        yield content[begin : begin + length]


@pytest.mark.parametrize("length", [1, 7, 64, 65, 1000, 100_000])
async def test_crls_in_pem(authority: tuple[Authority, Server], length: int) -> None:
    ca, _ = authority
    ders = [ca.crl(*range(1, count)) for count in (1, 2, 40)]
    bundle = b"".join(map(pem_of, ders))
    found = [reader.sha256.hexdigest() async for reader, _ in crls_in_bundle(pieces_of(bundle, length))]
    assert found == [hashes_of(der) for der in ders]


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense",
        b"-----BEGIN X509 CRL-----\n",
        b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n",
        b"-----BEGIN X509 CRL-----\n!!!!\n-----END X509 CRL-----\n",
        b"-----BEGIN X509 CRL-----\nAA==\nAAAA\nAAAA\nAAAA\n",
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----END X509 CRL-----\n",
        b"A" * 5000,
        b"-----BEGIN X509 CRL-----\n" + b64encode(bytes(300)) + b"\n-----END X509 CRL-----\n",
    ],
)
async def test_what_is_no_pem_of_crls(content: bytes) -> None:
    with pytest.raises(MalformedCrlError):
        async for _ in crls_in_bundle(pieces_of(content, 50)):
            pass


# The source.

FAST = LedgerBounds(seconds=0.3, attempts=2, pause=0.5, longest_pause=3)


async def test_attempts_and_pauses_have_bounds(tmp_path: Path) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    log = SignedLog(life(5))
    with served(log.publish(tmp_path)) as server:
        async with new_session() as session:
            source = HttpLedger(server.url, session, bounds=LedgerBounds(attempts=4, longest_pause=3), sleep=sleep)
            for answer, expected in (
                (answers(503), [0.5, 1, 2]),
                (answers(429, Retry_After="2"), [2, 2, 2]),
                (answers(503, Retry_After="99999999"), [0.5, 1, 2]),
                (answers(503, Retry_After="3600"), [3, 3, 3]),
                (answers(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), [0.5, 1, 2]),
                (answers(404), []),
                (answers(500), []),
            ):
                waited.clear()
                server.faults["/ledger/checkpoint"] = answer
                with pytest.raises(StatusUnavailableError):
                    await source.checkpoint()
                assert waited == expected


async def test_a_server_that_says_nothing_and_one_that_is_away(tmp_path: Path) -> None:
    log = SignedLog(life(5))
    with served(log.publish(tmp_path)) as server:
        async with new_session() as session:
            source = HttpLedger(server.url, session, bounds=FAST, sleep=lambda _: asyncio.sleep(0))
            assert (await source.vkey(), await source.checkpoint()) == (log.vkey, log.note())
            server.faults["/ledger/checkpoint"] = silent(server)
            begin = time.monotonic()
            with pytest.raises(StatusUnavailableError, match="does not arrive within"):
                await source.checkpoint()
            assert time.monotonic() - begin < 5
            assert await source.receipt("0" * 32) is None
            server.faults["/ledger/vkey"] = answers(200, b"\xff")
            with pytest.raises(LedgerError, match="not a verification key"):
                await source.vkey()
            server.faults["/crl/a.crl"] = silent(server)
            with pytest.raises(StatusUnavailableError):
                _ = [each async for each in source.pieces("crl/a.crl", 10, seconds=0.2)]
            server.faults["/crl/a.crl"] = answers(200, bytes(11))
            with pytest.raises(LedgerError, match="longer than 10"):
                _ = [each async for each in source.pieces("crl/a.crl", 10, seconds=5)]
    async with new_session() as session:
        source = HttpLedger(server.url, session, bounds=FAST, sleep=lambda _: asyncio.sleep(0))
        with pytest.raises(StatusUnavailableError, match="cannot be reached"):
            await source.checkpoint()
        with pytest.raises(ConfigurationError, match="access token"):
            HttpLedger(server.url, session, token="ünicode".encode())


def test_abandoned_serials_belong_on_a_crl() -> None:
    found = replayed(intent(1), abandoned(1))
    (listed,) = found.listed[ISSUER].values()
    assert (listed.index, listed.reason, found.abandoned, found.revoked) == (1, 5, 1, 0)
