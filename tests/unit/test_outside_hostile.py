"""What a server may send that wants the auditor's memory, its end, or its blessing: trees of any size, CRLs that are none, entries that lie."""

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.outside_logs import BEGIN, Server, crl, digest, entry, intent, issued, revoked, serial_of, served
from privyseal_ca.ledger.crl_reader import MalformedCrlError
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.outside.anchors import Anchors, key_id
from privyseal_ca.outside.audit import unlisted
from privyseal_ca.outside.crl_reading import StrangeCrlReader
from privyseal_ca.outside.crls import CrlCheck
from privyseal_ca.outside.findings import FindingError
from privyseal_ca.outside.replay import Replay
from privyseal_ca.outside.source import HttpLedger
from privyseal_ca.outside.walk import Walk
from privyseal_ca.web.fetching import new_session


class OneTile:
    """A log of which only the highest tile is there."""

    receipts = False

    def __init__(self, path: TilePath, content: bytes) -> None:
        self._path, self._content = path, content

    async def vkey(self) -> str:
        return ""

    async def checkpoint(self) -> bytes:
        return b""

    async def tile(self, path: TilePath) -> bytes | None:
        return self._content if path == self._path else None

    async def receipt(self, _: str) -> None:
        return None


async def test_a_checkpoint_of_any_size_costs_no_memory() -> None:
    root = bytes(range(32))
    walk = Walk(OneTile(TilePath(4, 0, 1), root), Replay(time.time))
    tracemalloc.start()
    try:
        # Whoever signs can claim any size: the tile at the edge is whatever leads to the root.
        tiles = await walk.tiles(Checkpoint("a.test/log", 256**4, root))
        with pytest.raises(FindingError, match="missing"):
            async for _ in walk.steps(tiles):
                pass
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# CRLs that are none.


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


_ECDSA = bytes.fromhex("300a06082a8648ce3d040302")
_UNKNOWN = bytes.fromhex("300406022a03")
_TIME = der(0x17, b"260101000000Z")


def head(*, entries: int, algorithm: bytes = _ECDSA) -> bytes:
    """A CRL up to its first entry; ``entries`` octets of them follow."""
    fields = der(0x02, b"\x01") + algorithm + der(0x30) + _TIME + _TIME + b"\x30\x84" + entries.to_bytes(4)
    signed = b"\x30\x84" + (len(fields) + entries).to_bytes(4) + fields
    return b"\x30\x84" + (len(signed) + entries + 100).to_bytes(4) + signed


def test_a_date_that_no_calendar_has() -> None:
    listed = der(0x30, der(0x02, b"\x01"), der(0x17, b"261301000000Z"))
    with pytest.raises(MalformedCrlError, match="calendar"):
        StrangeCrlReader().feed(head(entries=len(listed)) + listed)


def test_an_entry_without_an_end_is_not_collected() -> None:
    # The serial in it claims more octets than the entry has.
    reader, piece = StrangeCrlReader(), bytes(64 * 1024)
    reader.feed(head(entries=1 << 30) + der(0x30, b"\x02\x84\x3f\xff\xff\xff", bytes(16)))
    with pytest.raises(MalformedCrlError, match="no end"):
        list(map(reader.feed, repeat(piece, 64)))


def test_a_signature_of_an_unknown_kind_keeps_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privyseal_ca.outside.crl_reading._MOST_WHOLE", 1 << 20)
    reader = StrangeCrlReader()
    reader.feed(head(entries=1 << 30, algorithm=_UNKNOWN))
    listed = der(0x30, der(0x02, b"\x01"), _TIME)
    with pytest.raises(MalformedCrlError, match="all of it"):
        list(map(reader.feed, repeat(listed * 1000, 1000)))


class Ca:
    """A CA whose CRL is whatever a test wants it to list."""

    def __init__(self, folder: Path, *, ends: timedelta = timedelta(days=9)) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.id = identifier.digest.hex()
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), 9)
            .not_valid_before(now - timedelta(days=9))
            .not_valid_after(now + ends)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        (folder / "crl").mkdir(parents=True)
        (folder / "roots.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def crl(self, *serials: int, number: int = 1, ends: int = BEGIN + 20000, made: int = BEGIN) -> bytes:
        def moment(seconds: int) -> datetime:
            return datetime.fromtimestamp(seconds, UTC)

        builder = x509.CertificateRevocationListBuilder(self.name, moment(made), moment(ends))
        # As octets, for the builder makes none that is too long.
        octets = number.to_bytes(number.bit_length() // 8 + 1)
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.CRLNumber.oid, der(0x02, octets)), critical=False
        ).add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(self.id), None, None), critical=False)
        for serial in serials:
            listed = x509.RevokedCertificateBuilder(serial, moment(BEGIN))
            listed = listed.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
            builder = builder.add_revoked_certificate(listed.build())
        made_of = builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)
        return self.serve(made_of)

    def serve(self, content: bytes) -> bytes:
        (self.folder / f"crl/{self.id}.crl").write_bytes(content)
        return content

    def replay(self, content: bytes, *, through: int, ends: int = BEGIN + 20000, made: int = BEGIN) -> Replay:
        """Certificate 1, which entry 3 revokes, and a CRL that claims to have what is before ``through``."""
        own: dict[str, Any] = {"issuer": self.id}
        certified = {
            "certificate_sha256": self.certificate.fingerprint(hashes.SHA256()).hex(),
            "id": self.id,
            "imported": True,
            "issuer": self.id,
            "not_after": BEGIN + 86400,
            "not_before": BEGIN,
            "serial": serial_of(9),
            "subject": "CN=a",
            "tbs_sha256": digest("tbs 9"),
        }
        sha256 = hashes.Hash(hashes.SHA256())
        sha256.update(content)
        published = {"sha256": sha256.finalize().hex(), "this_update": made, "next_update": ends}
        return replayed(
            entry(Kind.ISSUER_CERTIFIED, certified),
            intent(1, **own),
            issued(1, **own),
            revoked(1, **own),
            crl(1, through=through, scope="full", **published, **own),
        )


def replayed(*entries: bytes) -> Replay:
    found = Replay(time.time)
    for index, each in enumerate(entries):
        found.entry(index, each)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, Server]]:
    with served(tmp_path / "log") as server:
        yield tmp_path / "log", server


async def judged(ca: Ca, server: Server, replay: Replay) -> str:
    async with new_session() as session:
        found = await CrlCheck(HttpLedger(server.url, session), replay, time.time).compare(ca.id)
    return found[0].message if found else ""


async def test_a_number_that_cannot_be_written_in_digits(place: tuple[Path, Server]) -> None:
    ca = Ca(place[0])
    content = ca.crl(1, number=1 << 20_000)
    assert "no number" in await judged(ca, place[1], ca.replay(content, through=4))


async def test_a_serial_that_no_certificate_has(place: tuple[Path, Server]) -> None:
    ca = Ca(place[0])
    right = x509.load_der_x509_crl(ca.crl(1)).tbs_certlist_bytes
    wrong = right.replace(der(0x02, b"\x01") + b"\x17", der(0x02, b"\xff") + b"\x17")
    assert wrong != right
    signature = der(0x03, b"\0" + ca.key.sign(wrong, ec.ECDSA(hashes.SHA256())))
    content = ca.serve(der(0x30, wrong, _ECDSA, signature))
    assert "which no entry before 4 revokes" in await judged(ca, place[1], ca.replay(content, through=4))


async def test_a_crl_that_leaves_out_what_was_long_revoked(place: tuple[Path, Server]) -> None:
    ca, server = Ca(place[0]), place[1]
    late, ends = BEGIN + 3600, BEGIN + 20000
    content = ca.crl(made=late)
    found = await judged(ca, server, ca.replay(content, through=2, made=late, ends=ends))
    assert f"does not list the serial {serial_of(1)}" in found
    # What was revoked while it was made is for the next one.
    soon = BEGIN + 30
    content = ca.crl(made=soon)
    assert await judged(ca, server, ca.replay(content, through=2, made=soon, ends=ends)) == ""


async def test_the_last_crl_of_a_ca_that_has_ended(place: tuple[Path, Server], tmp_path: Path) -> None:
    ended = Ca(place[0], ends=timedelta(hours=-1))
    content = ended.crl(1, ends=BEGIN + 60)
    assert await judged(ended, place[1], ended.replay(content, through=4, ends=BEGIN + 60)) == ""
    with served(tmp_path / "other") as server:
        alive = Ca(tmp_path / "other")
        content = alive.crl(1, ends=BEGIN + 60)
        assert "past its end" in await judged(alive, server, alive.replay(content, through=4, ends=BEGIN + 60))


async def test_certificates_that_are_none(place: tuple[Path, Server]) -> None:
    folder, server = place
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), der(0x30, der(0xA3, b"")))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 9)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .add_extension(strange, critical=False)
        .sign(key, hashes.SHA256())
    )
    assert key_id(made) == ""
    folder.mkdir()
    (folder / "roots.pem").write_bytes(made.public_bytes(Encoding.PEM))
    async with new_session() as session:
        with pytest.raises(FindingError, match="does not lead to one of the roots"):
            await Anchors(HttpLedger(server.url, session), None).of("aa")


# Entries that lie.


def test_a_revocation_that_says_another_end_of_the_certificate() -> None:
    # A CRL could leave it out, as if the certificate had ended.
    with pytest.raises(FindingError, match="does not say the end") as caught:
        replayed(intent(1), issued(1), revoked(1, not_after=BEGIN - 1))
    assert caught.value.finding.index == 2


def test_a_ca_that_revokes_and_publishes_no_crl(tmp_path: Path) -> None:
    ca = Ca(tmp_path)
    found = ca.replay(b"", through=4)
    assert unlisted(found, time.time() + 2 * 86400) == []
    del found.crls[ca.id, "full"]
    later = BEGIN + 86400
    assert unlisted(found, later - 10) == []
    found.listed[ca.id] = {serial: replace(each, not_after=later + 99) for serial, each in found.listed[ca.id].items()}
    (missing,) = unlisted(found, later + 10)
    assert (missing.index, "no CRL" in missing.message) == (3, True)
