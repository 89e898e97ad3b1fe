"""The ledger over real connections, from a source in memory: paths, media types, caching, and who may read entries."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fakes.status_sources import Reply, exchange
from privyseal_acme.listener import Listener
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError
from privyseal_ca.ledger.access import EntriesAccess, entries_access
from privyseal_ca.ledger.proofs import Receipt
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web import ledger as ledger_routes
from privyseal_ca.web.ledger import LedgerRoutes
from privyseal_ca.web.status import Anchors, Readiness, status_app

NOTE = "origin.test/log\n5\nAAAA\n\n\u2014 origin.test/log c2ln\n".encode()
SERIAL, PENDING = "ab" * 16, "cd" * 16
TOKEN = b"0123456789abcdef0123456789abcdef"
BUNDLE = b"\x00\x03abc" * 5
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN.decode()}"}
PATHS = ("/ledger/vkey", "/ledger/checkpoint", "/ledger/tile/0/000.p/5", f"/ledger/proof/{SERIAL}")


class MemoryLedger:
    """A ledger of five entries."""

    def __init__(self) -> None:
        self.receipts = True
        self.tiles = {TilePath(0, 0, 5): b"h" * 160, TilePath(None, 0, 5): BUNDLE, TilePath(0, 1234067): b"H" * 8192}
        self.failure: Exception | None = None
        self.asked: list[TilePath] = []

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def vkey(self) -> str:
        self._fail()
        return "origin.test/log+00000000+AAAA"

    async def checkpoint(self) -> bytes:
        self._fail()
        return NOTE

    async def tile(self, path: TilePath) -> bytes | None:
        self._fail()
        self.asked.append(path)
        return self.tiles.get(path)

    async def receipt(self, serial: str) -> Receipt | None:
        self._fail()
        if serial == PENDING:
            raise StatusUnavailableError("Not yet.")
        return Receipt(3, (b"\x01" * 32,), NOTE) if serial == SERIAL else None


class Served:
    """A source behind a listener."""

    def __init__(self, port: int, source: MemoryLedger) -> None:
        self.port = port
        self.source = source

    async def get(self, path: str | bytes, **options: Any) -> Reply:
        return await exchange(self.port, path, **options)


@asynccontextmanager
async def serving(access: EntriesAccess | None = None) -> AsyncIterator[Served]:
    async def ready() -> Readiness:
        return Readiness({})

    source = MemoryLedger()
    app = status_app(Anchors(b"", {}), Metrics(), ready, ledger=source, entries=access)
    async with Listener(app, "127.0.0.1", 0, grace=1) as listener:
        yield Served(listener.port, source)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def test_the_key_is_a_line_of_text(served: Served) -> None:
    reply = await served.get("/ledger/vkey")
    assert (reply.status, reply.body) == (200, b"origin.test/log+00000000+AAAA\n")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.headers["cache-control"] == "public, max-age=3600"


async def test_a_checkpoint_is_the_note_and_kept_for_seconds(served: Served) -> None:
    reply = await served.get("/ledger/checkpoint")
    assert (reply.status, reply.body) == (200, NOTE)
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.headers["cache-control"] == "public, max-age=2"
    assert reply.headers["etag"] == f'"{hashlib.sha256(NOTE).hexdigest()}"'
    assert reply.headers["access-control-allow-origin"] == "*"
    again = await served.get("/ledger/checkpoint", headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", reply.headers["etag"])
    assert (await served.get("/ledger/checkpoint", headers={"If-None-Match": '"another"'})).status == 200


@pytest.mark.parametrize(("path", "size"), [("0/000.p/5", 160), ("0/x001/x234/067", 8192)])
async def test_tiles_are_for_ever(served: Served, path: str, size: int) -> None:
    reply = await served.get(f"/ledger/tile/{path}")
    assert (reply.status, len(reply.body)) == (200, size)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", PATHS)
async def test_head_says_what_get_would(served: Served, path: str) -> None:
    got, head = await served.get(path), await served.get(path, method="HEAD")
    assert head.status == 200
    ours = {"content-type", "content-length", "cache-control", "etag"}
    assert {k: v for k, v in head.headers.items() if k in ours} == {k: v for k, v in got.headers.items() if k in ours}
    assert head.headers["content-length"] == str(len(got.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", PATHS)
async def test_nothing_is_changed_from_outside(served: Served, path: str, method: str) -> None:
    reply = await served.get(path, method=method)
    assert reply.status == 405
    assert "GET" in reply.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/000",
        "0/0",
        "0/1234067",
        "0/x001/x234/67",
        "0/x001/234/067",
        "0/x000/x001/067",
        "0/000.p/0",
        "0/000.p/05",
        "0/000.p/256",
        "0/000.p/6",
        "0/000.p",
        "00/000.p/5",
        "-1/000",
        "64/000",
        "0/000.p/5/",
        "0/000.p/5%00",
        "0/../0/000.p/5x",
        "0//000.p/5",
        "0/%D9%A0%D9%A0%D9%A0.p/5",
        "8/0/000",
        "0/" + "x999/" * 30 + "999",
        "0/" + "9" * 3000,
    ],
)
async def test_what_is_no_tile_is_not_found(served: Served, path: str) -> None:
    reply = await served.get(f"/ledger/tile/{path}")
    assert reply.status == 404
    assert reply.headers["cache-control"] == "no-store"


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(level=st.integers(0, 63) | st.none(), index=st.integers(0, 2**62), width=st.integers(1, 256))
async def test_a_path_leads_to_its_tile_and_no_other(level: int | None, index: int, width: int) -> None:
    path = TilePath(level, index, width)
    async with serving(EntriesAccess("open")) as served:
        assert (await served.get(f"/ledger/{path.path()}")).status in {200, 404}
        assert served.source.asked == [path]


async def test_a_long_bundle_comes_whole() -> None:
    async with serving(EntriesAccess("open")) as served:
        content = bytes(range(256)) * 4000
        served.source.tiles[TilePath(None, 7)] = content
        assert (await served.get("/ledger/tile/entries/007")).body == content
        head = await served.get("/ledger/tile/entries/007", method="HEAD")
        assert head.headers["content-length"] == str(len(content))


# Who may read entries.


@pytest.mark.parametrize("headers", [None, WITH_TOKEN])
async def test_entries_are_closed_unless_somebody_opens_them(served: Served, headers: dict[str, str] | None) -> None:
    for path in ("entries/000.p/5", "entries/999", "entries/nonsense", "entries/"):
        reply = await served.get(f"/ledger/tile/{path}", headers=headers)
        assert (reply.status, b"abc" in reply.body) == (403, False)
    assert served.source.asked == []


@pytest.mark.parametrize(
    "path", ["entries%2F000.p/5", "%65ntries/000.p/5", "./entries/000.p/5", "x/../entries/000.p/5"]
)
async def test_no_other_spelling_opens_them(served: Served, path: str) -> None:
    reply = await served.get(f"/ledger/tile/{path}")
    assert reply.status in {403, 404}
    assert served.source.asked == []


async def test_open_entries_are_for_everybody() -> None:
    async with serving(EntriesAccess("open")) as served:
        reply = await served.get("/ledger/tile/entries/000.p/5")
        assert (reply.status, reply.body) == (200, BUNDLE)
        assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert reply.headers["content-type"] == "application/octet-stream"


async def test_slow_readers_cost_a_bounded_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 16 << 20
    monkeypatch.setattr(ledger_routes, "_MOST", size)
    async with serving(EntriesAccess("open")) as served:
        served.source.tiles[TilePath(None, 0)] = bytes(size)
        path = "/ledger/tile/entries/000"
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1 << 10)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reply = await served.get(path)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert (await served.get("/ledger/tile/entries/000", method="HEAD")).status == 200
        assert (await served.get("/ledger/tile/entries/000.p/5")).status == 200
        writer.transport.abort()
        async with asyncio.timeout(20):
            while (reply := await served.get(path)).status == 503:
                pass
        assert len(reply.body) == size


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (None, False),
        ("", False),
        ("Basic dXNlcjpwYXNz", False),
        (TOKEN.decode(), False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Bearer wrong", True),
        (f"Bearer {TOKEN.decode()}x", True),
        (f"Bearer {TOKEN.decode()[:-1]}", True),
        (f"Bearer {TOKEN.decode().upper()}", True),
        (f"Bearer {TOKEN.decode()} {TOKEN.decode()}", True),
        ("Bearer \xff\xfe", True),
    ],
)
async def test_a_token_is_asked_for(sent: str | None, error: bool) -> None:
    async with serving(EntriesAccess("token", TOKEN)) as served:
        for path in ("entries/000.p/5", "entries/nonsense"):
            reply = await served.get(f"/ledger/tile/{path}", headers=None if sent is None else {"Authorization": sent})
            assert (reply.status, b"abc" in reply.body) == (401, False)
            assert reply.headers["www-authenticate"].startswith('Bearer realm="')
            assert ("invalid_token" in reply.headers["www-authenticate"]) == error
            assert reply.headers["cache-control"] == "no-store"
        assert served.source.asked == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_who_shows_the_token_may_read_and_shared_caches_may_not(scheme: str) -> None:
    async with serving(EntriesAccess("token", TOKEN)) as served:
        headers = {"Authorization": f"{scheme} {TOKEN.decode()}"}
        reply = await served.get("/ledger/tile/entries/000.p/5", headers=headers)
        assert (reply.status, reply.body) == (200, BUNDLE)
        assert reply.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert "access-control-allow-origin" not in reply.headers
        assert (await served.get("/ledger/tile/entries/001", headers=headers)).status == 404
        # What is not secret needs none.
        assert (await served.get("/ledger/tile/0/000.p/5")).headers["cache-control"].startswith("public")


def test_a_token_belongs_to_its_mode() -> None:
    for wrong in (("token", None), ("open", TOKEN), ("closed", TOKEN)):
        with pytest.raises(ValueError, match="token"):
            EntriesAccess(*wrong)
    with pytest.raises(ValueError, match="token"):
        LedgerRoutes(MemoryLedger(), entries="token")
    assert "0123" not in repr(EntriesAccess("token", TOKEN))
    assert not EntriesAccess("token", TOKEN).admits(None)


# Receipts.


async def test_a_receipt(served: Served) -> None:
    reply = await served.get(f"/ledger/proof/{SERIAL}")
    assert reply.status == 200
    assert Receipt.parse(reply.body.decode()) == Receipt(3, (b"\x01" * 32,), NOTE)
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.headers["cache-control"] == "public, max-age=60"


@pytest.mark.parametrize("serial", ["", "0", SERIAL.upper(), f"{SERIAL}00", "00" * 16, f"{SERIAL}/", "%00", "x" * 4000])
async def test_no_receipt_for_what_is_not_known(served: Served, serial: str) -> None:
    assert (await served.get(f"/ledger/proof/{serial}")).status == 404


async def test_an_entry_that_no_checkpoint_covers_yet(served: Served) -> None:
    reply = await served.get(f"/ledger/proof/{PENDING}")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert reply.headers["cache-control"] == "no-store"


async def test_a_source_without_receipts_says_what_to_do(served: Served) -> None:
    served.source.receipts = False
    reply = await served.get(f"/ledger/proof/{SERIAL}")
    assert (reply.status, b"tiles" in reply.body) == (404, True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("failure", "told"), [(StatusUnavailableError("Away."), b"Away."), (LedgerError("Entry 7 is secret."), b"ledger")]
)
async def test_what_cannot_be_read_is_not_kept_by_anybody(
    served: Served, path: str, failure: Exception, told: bytes
) -> None:
    served.source.failure = failure
    reply = await served.get(path)
    assert (reply.status, reply.headers["retry-after"], reply.headers["cache-control"]) == (503, "1", "no-store")
    assert told in reply.body
    assert b"secret" not in reply.body


async def test_without_a_ledger_there_are_no_paths() -> None:
    async def ready() -> Readiness:
        return Readiness({})

    app: web.Application = status_app(Anchors(b"", {}), Metrics(), ready)
    async with Listener(app, "127.0.0.1", 0, grace=1) as listener:
        for path in PATHS:
            assert (await exchange(listener.port, path)).status == 404


# The settings.


def settings_with(home: Path, **ledger: Any) -> Settings:
    return Settings(ledger=ledger).model_copy(update={"home": home})


def token_file(home: Path, content: bytes = TOKEN + b"\n", mode: int = 0o600) -> Path:
    path = home / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_entries_are_closed_by_default(tmp_path: Path) -> None:
    assert Settings().ledger.entries == "closed"
    assert entries_access(settings_with(tmp_path)) == EntriesAccess("closed")
    assert entries_access(settings_with(tmp_path, entries="open")) == EntriesAccess("open")


@pytest.mark.parametrize("name", ["token", None])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_token_is_a_line_of_a_private_file(tmp_path: Path, name: str | None, end: bytes) -> None:
    path = token_file(tmp_path, TOKEN + end)
    access = entries_access(settings_with(tmp_path, entries="token", entries_token_file=name or path))
    assert access == EntriesAccess("token", TOKEN)


@pytest.mark.parametrize(
    "ledger",
    [
        {"entries": "token"},
        {"entries": "open", "entries_token_file": "token"},
        {"entries_token_file": "token"},
        {"entries": "everybody"},
        {"entries": "open\n"},
    ],
)
def test_settings_that_contradict_themselves(ledger: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="entries"):
        Settings(ledger=ledger)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        TOKEN[:31],
        TOKEN + b"\n\n",
        TOKEN + b"\nmore",
        b" " + TOKEN,
        TOKEN + b" x",
        TOKEN + b"\0",
        TOKEN * 8,
        TOKEN + b"\xc3\xa9",
        TOKEN * 100_000,
    ],
)
def test_a_bad_token_is_refused_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    token_file(tmp_path, content)
    with pytest.raises(ConfigurationError, match="32 to 255") as caught:
        entries_access(settings_with(tmp_path, entries="token", entries_token_file="token"))
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o777])
def test_a_token_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    token_file(tmp_path, mode=mode)
    with pytest.raises(ConfigurationError, match="can be used by others") as caught:
        entries_access(settings_with(tmp_path, entries="token", entries_token_file="token"))
    assert "chmod 600" in caught.value.hint


def test_a_token_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        entries_access(settings_with(tmp_path, entries="token", entries_token_file="none"))
    with pytest.raises(ConfigurationError, match="regular"):
        entries_access(settings_with(tmp_path, entries="token", entries_token_file=tmp_path))
