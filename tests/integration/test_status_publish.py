"""``status publish``: a folder that is a copy of what the database holds, whatever happens while it is written."""

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.service import FakeClock
from fakes.status_rows import DAY, StatusRows
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, PrivySealError, StoreUnavailableError
from privyseal_ca.revocation.crl_bundle import CrlBundle, pem_of
from privyseal_ca.revocation.folder import FolderStatus
from privyseal_ca.revocation.folder_publisher import Counts, FolderPublisher
from privyseal_ca.revocation.folder_writer import FolderWriter
from privyseal_ca.revocation.manifest import Manifest, crl_file, ocsp_file, read_manifest
from privyseal_ca.revocation.ocsp_request import encode_request
from privyseal_ca.revocation.published import OcspAnswer, OcspStatus
from privyseal_ca.revocation.stored_crls import StoredCrls
from privyseal_ca.store.readonly import reading

#: The base64 text of the SHA-1 request for it ends with a slash.
ENDS_WITH_SLASH = (0x80 << 120) | 0x3F


@pytest.fixture
def rows(database_url: str) -> Iterator[StatusRows]:
    with closing(StatusRows(database_url)) as rows:
        yield rows


@pytest.fixture
def settings(rows: StatusRows, tmp_path: Path) -> Settings:
    return rows.home(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published"


async def publish(settings: Settings, folder: Path, said: list[str] | None = None) -> Counts:
    async with reading(settings) as store:
        with FolderWriter(folder) as writer:
            publisher = FolderPublisher(
                store=store,
                writer=writer,
                settings=settings,
                clock=FakeClock(),
                progress=(said if said is not None else []).append,
            )
            with closing(publisher):
                await publisher.publish()
                return publisher.counts


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time and content of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def modes(folder: Path, *, files: bool) -> set[int]:
    """Who may do what with the files, the lock aside, or with the folders."""
    found = [folder, *folder.rglob("*")]
    return {
        stat.S_IMODE(path.stat().st_mode)
        for path in found
        if path.is_file() == files and path.name != ".privyseal-publish"
    }


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def response_at(folder: Path, rows: StatusRows, serial: int, hash_name: str = "sha1") -> Path:
    return folder / ocsp_file(rows.query(serial, hash_name))


async def test_everything_is_there_under_the_names_of_the_urls(
    rows: StatusRows, settings: Settings, folder: Path
) -> None:
    full, part = rows.crl(3, serials=(1, 2)), rows.crl(9, shard=4, serials=(2,), delta=True)
    responses = {(5, "sha1"): rows.response(5), (5, "sha256"): rows.response(5, hash_name="sha256")}
    counts = await publish(settings, folder)
    assert (counts.crls, counts.responses, counts.removed) == (3, 2, 0)
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == full
    assert (folder / f"crl/{rows.id}/4.crl").read_bytes() == part
    delta = x509.load_der_x509_crl((folder / f"crl/{rows.id}/4-delta.crl").read_bytes())
    assert delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator).critical
    for (serial, hash_name), der in responses.items():
        assert response_at(folder, rows, serial, hash_name).read_bytes() == der
    assert (folder / "roots.pem").read_text() == rows.root.pem
    assert (folder / f"issuers/{rows.id}.pem").read_text() == rows.issuer.pem + rows.root.pem
    x509.load_der_x509_certificate((folder / f"issuers/{rows.id}.cer").read_bytes())
    x509.load_der_x509_certificate((folder / f"issuers/{rows.root.id}.cer").read_bytes())
    assert (folder / "unauthorized.ocsp").read_bytes() == bytes.fromhex("30030a0106")


async def test_the_manifest_says_what_is_there(rows: StatusRows, settings: Settings, folder: Path) -> None:
    der = rows.crl(7, at=time.time() - 60)
    await publish(settings, folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    (crl,) = manifest.crls
    assert (crl.number, crl.size, crl.sha256) == (7, len(der), sha256(der).hexdigest())
    assert {issuer.id: issuer.name for issuer in manifest.issuers} == {rows.id: "issuing-1", rows.root.id: "Rows Root"}
    path = folder / f"crl/{rows.id}.crl"
    assert path.stat().st_mtime == crl.this_update
    assert modes(folder, files=True) == {0o644}
    assert modes(folder, files=False) == {0o755}


async def test_the_masks_of_a_process_do_not_hide_the_files(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.crl(1)
    before = os.umask(0o077)
    try:
        await publish(settings, folder)
    finally:
        os.umask(before)
    assert modes(folder, files=True) == {0o644}
    assert modes(folder, files=False) == {0o755}


async def test_the_second_time_nothing_happens(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.crl(1)
    rows.crl(1, shard=0)
    rows.response(5)
    await publish(settings, folder)
    before = snapshot(folder)
    counts = await publish(settings, folder)
    assert not counts
    assert snapshot(folder) == before


async def test_only_what_changed_is_written(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.crl(1)
    rows.crl(1, shard=0, at=time.time() - 100)
    rows.response(5, at=time.time() - 100)
    rows.response(6)
    await publish(settings, folder)
    before = snapshot(folder)
    der = rows.crl(2, shard=0, serials=(5,))
    revoked = rows.response(5, revoked=True)
    counts = await publish(settings, folder)
    assert (counts.crls, counts.responses) == (1, 1)
    changed = {path for path, state in snapshot(folder).items() if before.get(path) != state}
    assert changed == {"manifest.json", f"crl/{rows.id}/0.crl", ocsp_file(rows.query(5))}
    assert (folder / f"crl/{rows.id}/0.crl").read_bytes() == der
    assert response_at(folder, rows, 5).read_bytes() == revoked


async def test_what_is_gone_from_the_database_goes_with_its_folders(
    rows: StatusRows, settings: Settings, folder: Path
) -> None:
    rows.crl(1)
    rows.crl(1, shard=0)
    rows.response(5)
    rows.response(ENDS_WITH_SLASH)
    await publish(settings, folder)
    rows.drop_crl(0)
    rows.drop_response(5)
    rows.drop_response(ENDS_WITH_SLASH)
    counts = await publish(settings, folder)
    assert counts.removed == 3
    assert not (folder / f"crl/{rows.id}").exists()
    assert not [path for path in snapshot(folder) if path.startswith("ocsp/")]
    assert (folder / f"crl/{rows.id}.crl").exists()


async def bundle_of(source: FolderStatus | StoredCrls) -> bytes:
    await source.refresh()
    return b"".join([piece async for piece in CrlBundle.of(source.published()).read(source)])


async def test_full_crls_come_together_the_same_everywhere(rows: StatusRows, settings: Settings, folder: Path) -> None:
    other = rows.add_issuer("issuing-2")
    ders = {
        rows.id: rows.crl(3, serials=tuple(range(1 << 100, (1 << 100) + 9000)), at=time.time() - 50),
        other.id: rows.crl(1, issuer=other, at=time.time() - 90),
    }
    rows.crl(9, shard=4, serials=(2,), delta=True)
    counts = await publish(settings, folder)
    assert (counts.crls, counts.bundles) == (4, 1)
    text = (folder / "crls.pem").read_bytes()
    crls = [x509.load_der_x509_crl(ders[each]) for each in sorted(ders)]
    assert text == b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)
    assert (folder / "crls.pem").stat().st_mtime == max(crl.last_update_utc.timestamp() for crl in crls)
    assert await bundle_of(FolderStatus(folder, clock=FakeClock(), interval=1)) == text
    async with reading(settings) as store:
        assert await bundle_of(StoredCrls(store)) == text


async def test_the_file_of_all_crls_follows_the_full_ones(rows: StatusRows, settings: Settings, folder: Path) -> None:
    path, at = folder / "crls.pem", int(time.time()) - 60
    await publish(settings, folder)
    assert not path.exists()
    rows.crl(1, at=at)
    rows.crl(1, shard=0, at=at)
    await publish(settings, folder)
    before = snapshot(folder)["crls.pem"]
    rows.crl(2, shard=0, at=at)
    assert (await publish(settings, folder)).bundles == 0
    assert snapshot(folder)["crls.pem"] == before
    # In the same second and of the same length: a web server that goes by the time has to see another one.
    for number in range(2, 5):
        rows.crl(number, at=at)
        await publish(settings, folder)
        crl = x509.load_pem_x509_crl(path.read_bytes())
        assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
        assert path.stat().st_mtime == at + number - 1
    path.write_bytes(b"half")
    await publish(settings, folder)
    assert x509.load_pem_x509_crl(path.read_bytes()) == crl
    rows.drop_crl(None)
    assert (await publish(settings, folder)).removed == 2
    assert not path.exists()


async def test_the_file_of_all_crls_is_whole_after_a_crash(
    rows: StatusRows, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.crl(1, at=time.time() - 60)
    await publish(settings, folder)
    before = (folder / "crls.pem").read_bytes()
    der = rows.crl(2, serials=(1,))

    class KilledError(BaseException):
        pass

    async def killed(self: CrlBundle, source: object) -> AsyncIterator[bytes]:
        yield b"-----BEGIN"
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(CrlBundle, "read", killed)
        with pytest.raises(KilledError):
            await publish(settings, folder)
    assert (folder / "crls.pem").read_bytes() == before
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == der
    await publish(settings, folder)
    assert (folder / "crls.pem").read_bytes() == pem_of(der)


async def test_files_that_lost_their_times_get_them_back(rows: StatusRows, settings: Settings, folder: Path) -> None:
    """As after a copy that kept none: who reads the folder knows a CRL's file by its time."""
    der = rows.crl(1, at=time.time() - 600)
    await publish(settings, folder)
    os.utime(folder / f"crl/{rows.id}.crl")
    (folder / "crls.pem").unlink()
    await publish(settings, folder)
    assert await bundle_of(FolderStatus(folder, clock=FakeClock(), interval=1)) == pem_of(der)
    assert (folder / "crls.pem").read_bytes() == pem_of(der)


async def test_a_crl_of_the_same_second_and_length_is_another(
    rows: StatusRows, settings: Settings, folder: Path
) -> None:
    at = time.time() - 60
    rows.crl(1, at=at, serials=(1,))
    await publish(settings, folder)
    before = (folder / f"crl/{rows.id}.crl").stat().st_size
    der = rows.crl(2, at=at, serials=(2,))
    while len(der) != before:  # a signature is not always of the same length
        der = rows.crl(2, at=at, serials=(2,))
    await publish(settings, folder)
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == der


async def test_what_others_put_there_stays(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.response(5)
    await publish(settings, folder)
    foreign = [folder / name for name in ("robots.txt", "crl/old.crl", "ocsp/README", "issuers/other.cer", "ocsp/a/b")]
    for path in foreign:
        put(path, "not ours")
    rows.drop_response(5)
    await publish(settings, folder)
    assert all(path.read_text() == "not ours" for path in foreign)


async def test_a_folder_with_something_else_in_it_is_not_taken(settings: Settings, folder: Path) -> None:
    put(folder / "precious", "data")
    with pytest.raises(ConfigurationError, match="not empty"):
        await publish(settings, folder)
    assert snapshot(folder).keys() <= {"precious", ".privyseal-publish"}


async def test_the_folder_of_another_authority_is_not_taken(
    rows: StatusRows, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    rows.crl(1)
    await publish(settings, folder)
    before = snapshot(folder)
    with (
        closing(StatusRows(f"sqlite:///{tmp_path / 'other.db'}")) as other,
        pytest.raises(ConfigurationError, match="another authority"),
    ):
        await publish(other.home(tmp_path / "other"), folder)
    assert snapshot(folder) == before


async def test_two_publishers_do_not_meet(settings: Settings, folder: Path) -> None:
    with FolderWriter(folder), pytest.raises(ConfigurationError, match="Another process"):
        await publish(settings, folder)
    await publish(settings, folder)


async def test_a_crl_does_not_go_back(rows: StatusRows, settings: Settings, folder: Path) -> None:
    newer = rows.crl(5, serials=(1,))
    await publish(settings, folder)
    rows.crl(4)
    said: list[str] = []
    counts = await publish(settings, folder, said)
    assert counts.kept == 1
    assert any("older database" in text for text in said)
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == newer
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.crls[0].number == 5
    latest = rows.crl(6)
    await publish(settings, folder)
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == latest


async def test_a_file_that_is_newer_than_the_manifest_does_not_go_back(
    rows: StatusRows, settings: Settings, folder: Path
) -> None:
    rows.crl(4, at=time.time() - 60)
    await publish(settings, folder)
    # As a publisher leaves it that is killed before the manifest.
    at = int(time.time())
    newer = rows.make_crl(rows.issuer, 9, at=at, lifetime=DAY, serials=(1,))
    path = folder / f"crl/{rows.id}.crl"
    path.write_bytes(newer)
    os.utime(path, (at, at))
    counts = await publish(settings, folder)
    assert counts.kept == 1
    assert path.read_bytes() == newer


async def test_a_damaged_crl_is_mended(rows: StatusRows, settings: Settings, folder: Path) -> None:
    der = rows.crl(4)
    await publish(settings, folder)
    path = folder / f"crl/{rows.id}.crl"
    path.write_bytes(b"garbage")
    await publish(settings, folder)
    assert path.read_bytes() == der


async def test_a_crl_of_another_issuer_is_not_published(rows: StatusRows, settings: Settings, folder: Path) -> None:
    good = rows.crl(4, at=time.time() - 60)
    await publish(settings, folder)
    other = rows.add_issuer("issuing-2")
    other.id = rows.id
    rows.crl(5, issuer=other)
    with pytest.raises(PrivySealError, match="another issuer"):
        await publish(settings, folder)
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == good


async def test_good_is_not_left_for_what_is_revoked(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.response(5)
    await publish(settings, folder)
    assert response_at(folder, rows, 5).exists()
    # Revoked, and the new response is not there yet.
    rows.revoke(5, index=7)
    await publish(settings, folder)
    assert not response_at(folder, rows, 5).exists()
    revoked = rows.response(5, revoked=True)
    await publish(settings, folder)
    assert response_at(folder, rows, 5).read_bytes() == revoked


async def test_a_restored_database_does_not_make_good_what_was_revoked(
    rows: StatusRows, settings: Settings, folder: Path
) -> None:
    revoked = rows.response(5, revoked=True, at=time.time() - 100)
    await publish(settings, folder)
    rows.response(5)
    counts = await publish(settings, folder)
    assert counts.kept == 1
    assert response_at(folder, rows, 5).read_bytes() == revoked


async def test_a_response_does_not_go_back(rows: StatusRows, settings: Settings, folder: Path) -> None:
    newer = rows.response(5)
    await publish(settings, folder)
    rows.response(5, at=time.time() - 1000)
    await publish(settings, folder)
    assert response_at(folder, rows, 5).read_bytes() == newer


async def test_following_takes_over_what_changes(rows: StatusRows, settings: Settings, folder: Path) -> None:
    clock = FakeClock()
    rows.crl(1, at=time.time() - 60)
    rows.response(5, at=time.time() - DAY // 2)
    async with reading(settings) as store:
        with FolderWriter(folder) as writer:
            publisher = FolderPublisher(
                store=store, writer=writer, settings=settings, clock=clock, progress=lambda _: None
            )
            with closing(publisher):
                await publisher.publish()
                der = rows.crl(2, serials=(5,))
                rows.revoke(5, index=7)
                await publisher.follow()
                assert (folder / f"crl/{rows.id}.crl").read_bytes() == der
                assert not response_at(folder, rows, 5).exists()
                revoked, fresh = rows.response(5, revoked=True, at=clock.now()), rows.response(6, at=clock.now())
                await publisher.follow()
                assert response_at(folder, rows, 5).read_bytes() == revoked
                assert response_at(folder, rows, 6).read_bytes() == fresh
                # An issuer that is new shows within a minute.
                issuer = rows.add_issuer("issuing-2")
                clock.advance(61)
                await publisher.follow()
                assert (folder / f"issuers/{issuer.id}.cer").exists()
                before = snapshot(folder)
                await publisher.follow()
                assert snapshot(folder) == before


async def test_a_crash_leaves_a_folder_that_serves_and_is_finished_later(
    rows: StatusRows, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.crl(1, at=time.time() - 60)
    rows.crl(1, shard=0, at=time.time() - 60)
    rows.response(5, at=time.time() - 60)
    await publish(settings, folder)
    der = rows.crl(2, serials=(5,))
    rows.crl(2, shard=0)
    rows.response(5, revoked=True)

    class KilledError(BaseException):
        pass

    real, left = Path.rename, 1

    def rename(self: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise KilledError
        left -= 1
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(KilledError):
            await publish(settings, folder)
    # A kill leaves this behind.
    (folder / f"crl/{rows.id}/.0123456789abcdef.privyseal").write_bytes(b"half")
    status = FolderStatus(folder, clock=FakeClock(), interval=1)
    await status.refresh()
    for shard in (None, 0):
        crl = status.find(rows.id, shard, delta=False)
        assert crl is not None
        try:
            content = b"".join([piece async for piece in status.read(crl)])
        except PrivySealError:
            crl = status.find(rows.id, shard, delta=False)
            assert crl is not None
            content = b"".join([piece async for piece in status.read(crl)])
        assert sha256(content).digest() == crl.sha256
    assert isinstance(await status.answer(rows.query(5)), OcspAnswer)
    await publish(settings, folder)
    assert not [path for path in snapshot(folder) if path.endswith(".privyseal")]
    assert (folder / f"crl/{rows.id}.crl").read_bytes() == der


async def test_a_first_run_that_is_interrupted_can_be_repeated(
    rows: StatusRows, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.crl(1)
    with monkeypatch.context() as patched:
        patched.setattr(FolderWriter, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            await publish(settings, folder)
    assert read_manifest(folder) == Manifest()
    await publish(settings, folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert len(manifest.crls) == 1


async def test_nothing_is_removed_when_the_database_fails(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.crl(1)
    rows.response(5)
    await publish(settings, folder)
    before = snapshot(folder)
    elsewhere = settings.model_copy(
        update={"database": settings.database.model_copy(update={"url": f"sqlite:///{folder}-nothing.db"})}
    )
    with pytest.raises(StoreUnavailableError):
        await publish(elsewhere, folder)
    assert snapshot(folder) == before


async def test_many_pages_of_responses(rows: StatusRows, settings: Settings, folder: Path) -> None:
    at = int(time.time())
    some = {serial: rows.make_response(serial, at=at) for serial in range(1, 1102)}
    rows.put_responses([(serial, "sha1", False, at, DAY, der) for serial, der in some.items()])
    counts = await publish(settings, folder)
    assert counts.responses == len(some)
    assert all(response_at(folder, rows, serial).read_bytes() == der for serial, der in some.items())
    rows.drop_response(600)
    counts = await publish(settings, folder)
    assert (counts.responses, counts.removed) == (0, 1)


async def test_names_with_slashes(rows: StatusRows, settings: Settings, folder: Path) -> None:
    serials = [ENDS_WITH_SLASH, (0x42 << 120) | 0x3FFFF, (0x42 << 120) | (0x3FFFF << 60), (1 << 127) - 1, 1]
    ders = {(serial, name): rows.response(serial, hash_name=name) for serial in serials for name in ("sha1", "sha256")}
    assert encode_request(rows.query(ENDS_WITH_SLASH))[-1] & 0x3F == 0x3F
    assert response_at(folder, rows, ENDS_WITH_SLASH).name == "_"
    await publish(settings, folder)
    status = FolderStatus(folder, clock=FakeClock(), interval=1)
    await status.refresh()
    for (serial, name), der in ders.items():
        answer = await status.answer(rows.query(serial, name))
        assert isinstance(answer, OcspAnswer)
        assert answer.der == der
        assert ocsp.load_der_ocsp_response(answer.der).serial_number == serial
    assert await status.answer(rows.query(77)) is OcspStatus.UNAUTHORIZED
    assert max(len(part) for path in snapshot(folder) for part in path.split("/")) <= 255


async def test_it_works_in_one_event_loop_with_others(rows: StatusRows, settings: Settings, folder: Path) -> None:
    rows.crl(1)
    results = await asyncio.gather(publish(settings, folder), publish(settings, folder), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["ConfigurationError", "Counts"]


def test_crl_paths() -> None:
    assert crl_file("ab", None, delta=False) == "crl/ab.crl"
    assert crl_file("ab", 3, delta=True) == "crl/ab/3-delta.crl"
