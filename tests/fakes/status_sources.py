"""CRLs and OCSP answers in memory, with real DER by a software key; and plain HTTP, octet for octet."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.revocation.ocsp_request import encode_request
from privyseal_ca.revocation.ocsp_response import CertStatus, Revoked, Statement, issuer_hashes, sign_responses
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus, PublishedCrl

ISSUER_ID = "a1" * 8


def serial_text(serial: int) -> str:
    """A serial as rows and answers have it."""
    return f"{serial:032x}"


class MemoryOcsp:
    """Knows the serials that are in ``statuses``."""

    def __init__(self, now: Callable[[], float] = time.time, *, lifetime: int = 86400) -> None:
        self._now = now
        self.lifetime = lifetime
        self.statuses: dict[int, CertStatus] = {}
        #: Answers to whatever is asked, when set.
        self.refusal: OcspStatus | None = None
        self.asked = 0
        #: Runs after an answer was made and before it is given.
        self.delay: Callable[[], None] = lambda: None
        self._forget: list[Callable[[Iterable[str]], None]] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "responder")])
        begin = datetime.now(UTC) - timedelta(days=1)
        self.certificate = (
            x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=365))
            .sign(self._key, hashes.SHA256())
        )

    def query(self, serial: int, *, hash_name: str = "sha1", nonce: bytes | None = None) -> OcspQuery:
        """What is asked about ``serial``."""
        return OcspQuery(hash_name, *issuer_hashes(self.certificate, hash_name), serial, nonce)

    def request(self, serial: int, *, hash_name: str = "sha1", nonce: bytes | None = None) -> bytes:
        """The request (DER) about ``serial``."""
        query = self.query(serial, hash_name=hash_name)
        if nonce is None:
            return encode_request(query)
        builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
            query.issuer_name_hash,
            query.issuer_key_hash,
            serial,
            hashes.SHA1() if hash_name == "sha1" else hashes.SHA256(),  # noqa: S303 (RFC 6960 section 4.3)
        )
        return builder.add_extension(x509.OCSPNonce(nonce), critical=False).build().public_bytes(Encoding.DER)

    async def answer(self, query: OcspQuery) -> OcspAnswer | OcspStatus:
        """As the protocol says."""
        self.asked += 1
        if self.refusal is not None:
            return self.refusal
        if (query.issuer_name_hash, query.issuer_key_hash) != issuer_hashes(self.certificate, query.hash_name):
            return OcspStatus.UNAUTHORIZED
        now = int(self._now())
        status = self.statuses.get(query.serial, "unknown")
        (der,) = sign_responses(self._key, self.certificate, [Statement(query, status, now, now + self.lifetime)])
        self.delay()
        return OcspAnswer(
            der=der,
            this_update=now,
            next_update=now + self.lifetime,
            fresh_until=now + self.lifetime // 2,
            serial=serial_text(query.serial),
            keep=query.nonce is None and status != "unknown",
        )

    def on_change(self, forget: Callable[[Iterable[str]], None]) -> None:
        """As the protocol says."""
        self._forget.append(forget)

    def revoke(self, *serials: int) -> None:
        """Revoke, and tell those who want to know."""
        for serial in serials:
            self.statuses[serial] = Revoked(int(self._now()), None)
        for forget in self._forget:
            forget([serial_text(serial) for serial in serials])


class MemoryCrls:
    """CRLs of :data:`ISSUER_ID` unless another issuer is given."""

    def __init__(self, now: Callable[[], float] = time.time, *, lifetime: int = 86400) -> None:
        self._now = now
        self._lifetime = lifetime
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._newest: dict[tuple[str, int | None, bool], PublishedCrl] = {}
        self.der: dict[bytes, bytes] = {}
        self.piece = 65_536
        #: Runs before piece ``n`` of a CRL is given.
        self.before_piece: Callable[[PublishedCrl, int], None] = lambda _crl, _number: None
        self.given = 0

    def publish(
        self, shard: int | None = None, *, delta: bool = False, entries: int = 3, issuer_id: str = ISSUER_ID
    ) -> PublishedCrl:
        """A newer CRL of this scope."""
        scope = issuer_id, shard, delta
        number = self._newest[scope].number + 1 if scope in self._newest else 1
        this_update = int(self._now())
        moment = datetime.fromtimestamp(this_update, UTC)
        builder = x509.CertificateRevocationListBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")]),
            moment,
            moment + timedelta(seconds=self._lifetime),
            [],
            [
                x509.RevokedCertificateBuilder(serial, moment).build()
                for serial in range(number * 1_000_000 + 1, number * 1_000_000 + 1 + entries)
            ],
        ).add_extension(x509.CRLNumber(number), critical=False)
        der = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)
        digest = hashlib.sha256(der).digest()
        crl = PublishedCrl(issuer_id, shard, delta, number, this_update, this_update + self._lifetime, len(der), digest)
        self.der[digest] = der
        self._newest[scope] = crl
        return crl

    def find(self, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
        """As the protocol says."""
        return self._newest.get((issuer_id, shard, delta))

    def published(self) -> Iterable[PublishedCrl]:
        """As the protocol says."""
        return tuple(self._newest.values())

    async def read(self, crl: PublishedCrl) -> AsyncIterator[bytes]:
        """As the protocol says."""
        number = 0
        while True:
            self.before_piece(crl, number)
            der = self.der.get(crl.sha256)
            if der is None:
                raise StatusUnavailableError("It is no longer there.")
            piece = der[number * self.piece : (number + 1) * self.piece]
            if not piece:
                return
            self.given += len(piece)
            yield piece
            number += 1


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes


async def exchange(
    port: int,
    target: str | bytes,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """One request on a connection of its own, whose target is sent as it is.

    Raises:
        asyncio.IncompleteReadError: the connection was broken off.
    """
    path = target.encode() if isinstance(target, str) else target
    lines = {"Host": "status.test", "Connection": "close", **(headers or {})}
    if body is not None:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(method.encode() + b" " + path + b" HTTP/1.1\r\n" + head + b"\r\n" + (body or b""))
        return await read_reply(reader, method)
    finally:
        writer.close()


async def read_reply(reader: asyncio.StreamReader, method: str = "GET") -> Reply:
    """The next reply of a connection."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    status = int(first.split()[1])
    size = 0 if method == "HEAD" or status == 304 else int(headers.get("content-length", 0))
    return Reply(status, headers, await reader.readexactly(size))
