"""Logs that a test writes as it wants them, signed with a software key, as files that a real HTTP server serves.

``life(300)`` makes entries that follow from each other; ``SignedLog(entries).publish(folder)`` writes what a log's server has;
``with served(folder) as server`` serves the folder, and ``server.faults[path]`` answers something else.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from fakes.ledgers import ORIGIN, log_key
from fakes.tree_tiles import MemoryTiles
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosigned_message
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, note_with
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.ledger.tree import leaf_hash, root_hash
from privyseal_ca.revocation.folder_ledger import files_between

ISSUER = "a1" * 20
#: The moment of the first entry of :func:`life`.
BEGIN = int(time.time()) - 5000

Fault = Callable[[SimpleHTTPRequestHandler], None]


def digest(text: str) -> str:
    """Some hash in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def entry(kind: Kind, payload: dict[str, Any], *, at: float = BEGIN, actor: str = "service", told: str = "x") -> bytes:
    """An entry."""
    return encode_entry(kind, time=at, actor=actor, correlation=told, payload=payload)


def serial_of(number: int) -> str:
    """A serial."""
    return f"{number:032x}"


def intent(number: int, **changes: Any) -> bytes:
    """The intent of certificate ``number``."""
    payload = {
        "issuer": ISSUER,
        "names": [f"dns:{number}.test"],
        "not_after": BEGIN + 86400,
        "not_before": BEGIN - 60,
        "profile": "server",
        "profile_sha256": digest("profile"),
        "purpose": f"order:{number}",
        "serial": serial_of(number),
        "spki_sha256": digest(f"key {number}"),
        "tbs_sha256": digest(f"tbs {number}"),
    }
    at = changes.pop("at", BEGIN)
    return entry(Kind.INTENT, {**payload, **changes}, at=at, actor="account:1")


def issued(number: int, **changes: Any) -> bytes:
    """The certificate ``number``."""
    payload: dict[str, Any] = {
        "certificate_sha256": digest(f"certificate {number}"),
        "issuer": ISSUER,
        "names": [f"dns:{number}.test"],
        "not_after": BEGIN + 86400,
        "not_before": BEGIN - 60,
        "serial": serial_of(number),
        "spki_sha256": digest(f"key {number}"),
        "tbs_sha256": digest(f"tbs {number}"),
    }
    payload |= changes
    return entry(
        Kind.ISSUED,
        payload,
        at=payload["not_before"],
        actor=f"issuer:{payload['issuer']}",
        told=payload["serial"],
    )


def abandoned(number: int, **changes: Any) -> bytes:
    """The end of an intent that came to nothing."""
    payload = {
        "issuer": ISSUER,
        "not_after": BEGIN + 86400,
        "reason": "interrupted",
        "serial": serial_of(number),
        "tbs_sha256": digest(f"tbs {number}"),
    }
    return entry(Kind.ABANDONED, {**payload, **changes})


def revoked(number: int, **changes: Any) -> bytes:
    """The end of certificate ``number``."""
    payload = {
        "issuer": ISSUER,
        "not_after": BEGIN + 86400,
        "reason": 1,
        "serial": serial_of(number),
        "spki_sha256": digest(f"key {number}"),
    }
    return entry(Kind.REVOKED, {**payload, **changes})


def crl(number: int, *, through: int, **changes: Any) -> bytes:
    """A CRL of a part, which no audit looks for at the server."""
    payload = {
        "base": None,
        "delta_sha256": None,
        "entries": 0,
        "issuer": ISSUER,
        "next_update": BEGIN + 1000,
        "number": number,
        "scope": "7",
        "sha256": digest(f"crl {number}"),
        "this_update": BEGIN,
        "through": through,
    }
    return entry(Kind.CRL_PUBLISHED, {**payload, **changes})


def life(count: int) -> list[bytes]:
    """``count`` entries, each of which follows from those before: certificates, some of them revoked, some abandoned, and CRLs."""
    entries: list[bytes] = [entry(Kind.SERVICE_STARTED, {"at": 0})]
    number = 0
    while len(entries) < count:
        number += 1
        entries.append(intent(number))
        if number % 7 == 3:
            entries.append(abandoned(number))
            continue
        entries.append(issued(number))
        if number % 5 == 1:
            entries.append(revoked(number))
        if number % 11 == 5:
            entries.append(crl(number, through=len(entries)))
    return entries[:count]


@dataclass
class SignedLog:
    """Entries, and a key that signs whatever it is asked to."""

    entries: list[bytes]
    key: ed25519.Ed25519PrivateKey = field(default_factory=log_key)
    origin: str = ORIGIN

    @property
    def verifier(self) -> NoteVerifier:
        """The log's verification key."""
        return NoteVerifier.for_key(self.origin, self.key.public_key())

    @property
    def vkey(self) -> str:
        """The same as text."""
        return self.verifier.vkey()

    @cached_property
    def tiles(self) -> MemoryTiles:
        """The tree."""
        return MemoryTiles(self.entries)

    def note(self, size: int | None = None, *, witnesses: Sequence[tuple["Witness", int]] = ()) -> bytes:
        """The checkpoint at ``size``, cosigned by ``witnesses`` at these times."""
        size = len(self.entries) if size is None else size
        text = Checkpoint(self.origin, size, root_hash(map(leaf_hash, self.entries[:size]))).text()
        note = note_with(text, self.verifier, self.key.sign(text.encode()))
        return note + b"".join(witness.line(text, at).encode() for witness, at in witnesses)

    def publish(self, folder: Path, *, size: int | None = None, entries: bool = True, **note: Any) -> Path:
        """Write tiles, bundles and checkpoint below ``folder``."""
        size = len(self.entries) if size is None else size
        for path in files_between(0, size, entries=entries):
            write(folder, path, self.tiles.data(path))
        (folder / "ledger").mkdir(parents=True, exist_ok=True)
        (folder / "ledger/vkey").write_text(f"{self.vkey}\n")
        (folder / "ledger/checkpoint").write_bytes(self.note(size, **note))
        return folder


def write(folder: Path, path: TilePath, content: bytes) -> None:
    """Put a tile into a folder."""
    # What has the partial tile's name as a folder is another file than the full one.
    file = folder / "ledger" / path.path()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


@dataclass(frozen=True)
class Witness:
    """Cosigns whatever it is asked to."""

    name: str

    @property
    def key(self) -> ed25519.Ed25519PrivateKey:
        return log_key(self.name)

    @property
    def verifier(self) -> CosignatureVerifier:
        return CosignatureVerifier.for_key(self.name, self.key.public_key())

    @property
    def vkey(self) -> str:
        return self.verifier.vkey()

    def line(self, text: str, at: int) -> str:
        return self.verifier.line(text, at, self.key.sign(cosigned_message(text, at)))


class Server:
    """A web server with a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: By path: what is done in place of answering with the file.
        self.faults: dict[str, Fault] = {}
        #: The paths that were asked for, and the Authorization headers.
        self.asked: list[str] = []
        self.shown: list[str | None] = []
        self.ended = threading.Event()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.shown.append(self.headers.get("Authorization"))
                fault = server.faults.get(self.path)
                if fault is not None:
                    fault(self)
                else:
                    super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=partial(self._http.serve_forever, 0.02), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Serve ``folder``."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def silent(server: Server) -> Fault:
    """A fault: no answer, until the server ends."""

    def fault(_: SimpleHTTPRequestHandler) -> None:
        server.ended.wait(30)

    return fault


def answers(status: int, body: bytes = b"", **headers: str) -> Fault:
    """A fault: this answer."""

    def fault(handler: SimpleHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return fault
