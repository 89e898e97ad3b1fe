"""A published folder as the status role reads it: whatever is in it, only what is right is served."""

import json
import os
import re
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.service import FakeClock
from fakes.status_rows import DAY, StatusRows
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, StatusUnavailableError
from privyseal_ca.revocation.folder import FolderStatus
from privyseal_ca.revocation.folder_publisher import FolderPublisher
from privyseal_ca.revocation.folder_writer import _RESPONSE, FolderWriter
from privyseal_ca.revocation.manifest import MANIFEST, Manifest, ManifestCrl, ocsp_file, read_manifest
from privyseal_ca.revocation.ocsp_request import encode_request
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus, PublishedCrl
from privyseal_ca.store.readonly import reading

SERIAL = 0x1234


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StatusRows]:
    with closing(StatusRows(f"sqlite:///{tmp_path_factory.mktemp('rows') / 'privyseal.db'}")) as rows:
        rows.crl(3, serials=(1, 2), at=time.time() - 60)
        rows.crl(4, shard=2)
        rows.response(SERIAL)
        yield rows


async def publish(settings: Settings, folder: Path) -> None:
    async with reading(settings) as store:
        with FolderWriter(folder) as writer:
            publisher = FolderPublisher(
                store=store, writer=writer, settings=settings, clock=FakeClock(), progress=lambda _: None
            )
            with closing(publisher):
                await publisher.publish()


@pytest.fixture
async def folder(rows: StatusRows, tmp_path: Path) -> Path:
    await publish(rows.home(tmp_path / "home"), tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def status(folder: Path, clock: FakeClock) -> FolderStatus:
    status = FolderStatus(folder, clock=clock, interval=1)
    await status.refresh()
    return status


async def content(status: FolderStatus, crl: PublishedCrl) -> bytes:
    return b"".join([piece async for piece in status.read(crl)])


def full(status: FolderStatus, rows: StatusRows) -> PublishedCrl:
    crl = status.find(rows.id, None, delta=False)
    assert crl is not None
    return crl


async def test_what_was_published_is_found(status: FolderStatus, rows: StatusRows, clock: FakeClock) -> None:
    assert len(list(status.published())) == 2
    assert len(await content(status, full(status, rows))) == full(status, rows).size
    assert status.find(rows.id, 3, delta=False) is None
    assert status.find(rows.id, 2, delta=True) is None
    answer = await status.answer(rows.query(SERIAL))
    assert isinstance(answer, OcspAnswer)
    assert (answer.serial, answer.keep) == (f"{SERIAL:032x}", True)
    assert clock.now() < answer.fresh_until <= clock.now() + 1
    assert answer.next_update == answer.this_update + DAY
    assert status.certificates.roots_pem.decode() == rows.root.pem
    assert set(status.issuers) == {rows.id, rows.root.id}
    assert status.problem == ""


async def test_a_nonce_changes_nothing_but_that_it_is_not_kept(status: FolderStatus, rows: StatusRows) -> None:
    query = rows.query(SERIAL)
    with_nonce = OcspQuery(query.hash_name, query.issuer_name_hash, query.issuer_key_hash, SERIAL, b"n" * 32)
    plain, repeated = await status.answer(query), await status.answer(with_nonce)
    assert isinstance(plain, OcspAnswer)
    assert isinstance(repeated, OcspAnswer)
    assert (repeated.der, repeated.keep) == (plain.der, False)


async def test_nothing_is_known_before_the_first_look(folder: Path, rows: StatusRows, clock: FakeClock) -> None:
    status = FolderStatus(folder, clock=clock, interval=1)
    assert list(status.published()) == []
    assert await status.answer(rows.query(SERIAL)) is OcspStatus.TRY_LATER
    assert status.problem


@pytest.mark.parametrize("serial", [0, -1, -(1 << 200), 1 << 160, 1 << 2000, SERIAL + 1])
async def test_other_serials_are_not_answered(status: FolderStatus, rows: StatusRows, serial: int) -> None:
    assert await status.answer(rows.query(serial)) is OcspStatus.UNAUTHORIZED


async def test_other_issuers_are_not_answered(status: FolderStatus) -> None:
    for hash_name, size in (("sha1", 20), ("sha256", 32)):
        query = OcspQuery(hash_name, b"x" * size, b"y" * size, SERIAL)
        assert await status.answer(query) is OcspStatus.UNAUTHORIZED


async def test_a_response_that_is_out_of_date_is_not_given(
    status: FolderStatus, rows: StatusRows, clock: FakeClock
) -> None:
    clock.advance(DAY + 10)
    assert await status.answer(rows.query(SERIAL)) is OcspStatus.TRY_LATER


def bad_responses(rows: StatusRows) -> dict[str, bytes]:
    now = int(time.time())
    good = rows.make_response(SERIAL, at=now)
    return {
        "empty": b"",
        "garbage": b"garbage",
        "cut short": good[:-20],
        "too big": good + bytes(1 << 17),
        "for another serial": rows.make_response(SERIAL + 1, at=now),
        "by another hash": rows.make_response(SERIAL, hash_name="sha256", at=now),
        "unsigned": ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED).public_bytes(
            Encoding.DER
        ),
        "out of date": rows.make_response(SERIAL, at=now - 2 * DAY),
    }


async def test_bad_responses_are_not_given(status: FolderStatus, rows: StatusRows, folder: Path) -> None:
    path = folder / ocsp_file(rows.query(SERIAL))
    for what, der in bad_responses(rows).items():
        path.write_bytes(der)
        assert await status.answer(rows.query(SERIAL)) is OcspStatus.TRY_LATER, what


async def test_a_folder_in_a_responses_place_is_none(status: FolderStatus, rows: StatusRows, folder: Path) -> None:
    path = folder / ocsp_file(rows.query(SERIAL))
    os.unlink(path)  # noqa: PTH108 (the test's own file)
    os.mkdir(path)  # noqa: PTH102
    assert await status.answer(rows.query(SERIAL)) is OcspStatus.UNAUTHORIZED


async def test_a_crl_that_is_replaced_before_its_manifest(status: FolderStatus, rows: StatusRows, folder: Path) -> None:
    old, at = full(status, rows), int(time.time())
    newer = rows.make_crl(rows.issuer, 9, at=at, lifetime=DAY)
    path = folder / f"crl/{rows.id}.crl"
    path.write_bytes(newer)
    os.utime(path, (at, at))
    with pytest.raises(StatusUnavailableError, match="replaced"):
        await content(status, old)
    assert full(status, rows).number == 9
    assert await content(status, full(status, rows)) == newer
    await status.refresh()
    assert full(status, rows).number == 9


async def test_a_crl_that_is_older_or_broken_is_not_given(status: FolderStatus, rows: StatusRows, folder: Path) -> None:
    path, crl, at = folder / f"crl/{rows.id}.crl", full(status, rows), int(time.time())
    for der in (rows.make_crl(rows.issuer, 2, at=at, lifetime=DAY), b"garbage", b""):
        path.write_bytes(der)
        with pytest.raises(StatusUnavailableError):
            await content(status, crl)
        assert full(status, rows) == crl
    os.unlink(path)  # noqa: PTH108 (the test's own file)
    with pytest.raises(StatusUnavailableError, match="No such file"):
        await content(status, crl)


async def test_a_long_crl_comes_in_pieces(rows: StatusRows, folder: Path, clock: FakeClock, tmp_path: Path) -> None:
    status = FolderStatus(folder, clock=clock, interval=1)
    path, at = folder / f"crl/{rows.id}/2.crl", int(time.time()) - 5
    der = rows.make_crl(rows.issuer, 8, at=at, lifetime=DAY, serials=tuple(range(1 << 120, (1 << 120) + 20_000)))
    path.write_bytes(der)
    os.utime(path, (at, at))
    await status.refresh()
    crl = status.find(rows.id, 2, delta=False)
    assert crl is not None
    with pytest.raises(StatusUnavailableError):
        await content(status, crl)
    crl = status.find(rows.id, 2, delta=False)
    assert crl is not None
    pieces = [piece async for piece in status.read(crl)]
    assert max(map(len, pieces)) <= 256 * 1024
    assert b"".join(pieces) == der


def _changed(folder: Path, **members: object) -> bytes:
    return json.dumps({**json.loads((folder / MANIFEST).read_text()), **members}).encode()


def bad_manifests(folder: Path) -> dict[str, bytes]:
    document = json.loads((folder / MANIFEST).read_text())
    crl, issuer = document["crls"][0], document["issuers"][0]
    return {
        "empty": b"",
        "garbage": b"{",
        "another kind": b"[]",
        "another version": _changed(folder, version=2),
        "more than is known": _changed(folder, more=1),
        "a path as issuer": _changed(folder, crls=[{**crl, "issuer": "../../etc"}]),
        "a path as issuer's id": _changed(folder, issuers=[{**issuer, "id": "../x"}]),
        "an id with a line's end": _changed(folder, issuers=[{**issuer, "id": issuer["id"] + "\n"}]),
        "a negative shard": _changed(folder, crls=[{**crl, "shard": -1}]),
        "text as shard": _changed(folder, crls=[{**crl, "shard": "../1"}]),
        "no certificate": _changed(folder, issuers=[{**issuer, "certificate": "AAAA"}]),
        "no base64": _changed(folder, issuers=[{**issuer, "certificate": "?"}]),
        "an issuer without a file": _changed(folder, issuers=[{**issuer, "id": "abcd"}]),
        "too big": b" " * (5 << 20),
        "nothing published": Manifest().encode(),
    }


async def test_a_bad_manifest_leaves_what_was_known(status: FolderStatus, rows: StatusRows, folder: Path) -> None:
    good = (folder / MANIFEST).read_bytes()
    crl = full(status, rows)
    for what, document in bad_manifests(folder).items():
        (folder / MANIFEST).write_bytes(document)
        with pytest.raises(StatusUnavailableError):
            await status.refresh()
        assert status.problem, what
        assert full(status, rows) == crl
        assert isinstance(await status.answer(rows.query(SERIAL)), OcspAnswer)
    (folder / MANIFEST).write_bytes(good)
    await status.refresh()
    assert status.problem == ""


async def test_a_bad_manifest_is_nothing_to_begin_with(folder: Path, clock: FakeClock) -> None:
    for document in bad_manifests(folder).values():
        (folder / MANIFEST).write_bytes(document)
        with pytest.raises(StatusUnavailableError):
            await FolderStatus(folder, clock=clock, interval=1).refresh()


async def test_a_folder_that_goes_away(status: FolderStatus, rows: StatusRows, folder: Path, tmp_path: Path) -> None:
    os.rename(folder, tmp_path / "away")  # noqa: PTH104 (the test's own folder)
    assert await status.answer(rows.query(SERIAL)) is OcspStatus.TRY_LATER
    with pytest.raises(StatusUnavailableError):
        await status.refresh()
    assert await status.answer(rows.query(SERIAL)) is OcspStatus.TRY_LATER
    os.rename(tmp_path / "away", folder)  # noqa: PTH104
    await status.refresh()
    assert isinstance(await status.answer(rows.query(SERIAL)), OcspAnswer)


def test_a_writer_refuses_a_manifest_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}x")
    with pytest.raises(ConfigurationError), FolderWriter(tmp_path):
        pass
    assert (tmp_path / MANIFEST).read_text() == "{}x"


def test_a_writer_refuses_a_folder_below_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no folder"), FolderWriter(tmp_path / "a" / "b"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError), FolderWriter(tmp_path / "file"):
        pass


def test_a_writer_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with FolderWriter(tmp_path / "status") as writer:
        (tmp_path / "status" / "issuers").symlink_to(outside)
        with pytest.raises(ConfigurationError, match="is a link"):
            writer.put("issuers/ab.cer", b"x")
        (tmp_path / "status" / "roots.pem").symlink_to(outside / "roots.pem")
        writer.put("roots.pem", b"x")
        assert not (tmp_path / "status" / "roots.pem").is_symlink()
    assert list(outside.iterdir()) == []


def test_what_was_left_unfinished_is_swept_away(tmp_path: Path) -> None:
    with FolderWriter(tmp_path) as writer:
        writer.put("crl/ab/1.crl", b"x")
    (tmp_path / "crl/ab/.0123456789abcdef.privyseal").write_bytes(b"half")
    (tmp_path / ".0123456789abcdef.privyseal").write_bytes(b"half")
    with FolderWriter(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".privyseal-publish", "1.crl", MANIFEST,
    ]  # fmt: skip


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FolderWriter(tmp_path) as writer:
        writer.put("roots.pem", b"old")

        def full_disk(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk)
            with pytest.raises(ConfigurationError, match="No space left"):
                writer.put("roots.pem", b"new")
        assert (tmp_path / "roots.pem").read_bytes() == b"old"
        assert not list(tmp_path.glob(".*.privyseal"))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just("sha1"), st.binary(min_size=20, max_size=20), st.binary(min_size=20, max_size=20)),
        st.tuples(st.just("sha256"), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32)),
    ),
    st.integers(min_value=1, max_value=(1 << 159) - 1),
)
def test_every_response_has_a_name_of_its_own_that_a_url_leads_to(
    issuer: tuple[str, bytes, bytes], serial: int
) -> None:
    query = OcspQuery(*issuer, serial)
    name = ocsp_file(query)
    assert _RESPONSE.fullmatch(name)
    parts = name.split("/")
    assert all(0 < len(part) <= 255 and part not in {".", ".."} for part in parts)
    # As a web server finds it: the path of the URL, and the same with _ where that is a folder.
    text = re.sub("/+", "/", b64encode(encode_request(query)).decode())
    assert name == f"ocsp/{text}" if not text.endswith("/") else name == f"ocsp/{text}_"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
@example(b"{}")
def test_whatever_a_manifest_is_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(StatusUnavailableError):
        read_manifest(folder)


def test_a_manifest_says_what_was_put_into_it() -> None:
    crl = PublishedCrl("ab12", 3, True, 7, 100, 200, 5, bytes(32))
    manifest = Manifest(written_at=5, crls=(ManifestCrl.of(crl),))
    again = Manifest.model_validate_json(manifest.encode())
    assert again == manifest
    assert again.crls[0].published() == crl
