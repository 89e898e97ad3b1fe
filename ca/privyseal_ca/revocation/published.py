"""What is published about revocation, as those see it who serve it: from the database or from a folder of files."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

#: The scope of a CRL that lists everything its issuer has revoked.
FULL = "full"


def scope_name(shard: int | None) -> str:
    """The scope of a part of an issuer's CRL, or with None of all of it, as tables and the ledger name it."""
    return FULL if shard is None else str(shard)


def scope_shard(scope: str) -> int | None:
    """The reverse of :func:`scope_name`."""
    return None if scope == FULL else int(scope)


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """A CRL that is served. Times are seconds since the epoch."""

    issuer_id: str
    shard: int | None
    """None for the full CRL."""
    delta: bool
    number: int
    this_update: int
    next_update: int
    size: int
    """Octets of DER."""
    sha256: bytes


class CrlSource(Protocol):
    """Where CRLs come from."""

    def find(self, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
        """The newest CRL of this scope that is known, from memory."""
        ...

    def published(self) -> Iterable[PublishedCrl]:
        """The newest CRL of every scope, from memory."""
        ...

    def read(self, crl: PublishedCrl) -> AsyncIterator[bytes]:
        """The DER of ``crl`` in pieces of bounded size.

        Raises:
            StatusUnavailableError: it cannot be read now, or was replaced and is no longer there: find it again.
        """
        ...


class OcspStatus(IntEnum):
    """OCSPResponseStatus of answers that are not signed (RFC 6960 section 4.2.1)."""

    MALFORMED_REQUEST = 1
    INTERNAL_ERROR = 2
    TRY_LATER = 3
    SIG_REQUIRED = 5
    UNAUTHORIZED = 6


@dataclass(frozen=True, slots=True)
class OcspQuery:
    """The one CertID of a request (RFC 6960 section 4.1.1), and its nonce."""

    hash_name: str
    """``sha1`` or ``sha256``."""
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int
    nonce: bytes | None = None
    """The octets to repeat in the answer (RFC 9654); None when there are none, or none that count."""


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """A signed response. Times are seconds since the epoch."""

    der: bytes
    this_update: int
    next_update: int
    fresh_until: int
    """When its source is to be asked again, because a newer response is expected by then."""
    serial: str
    """32 lower-case hex digits."""
    keep: bool
    """Whether the same request may get the same answer again: not when it repeats a nonce, and not for an unknown serial."""


class OcspSource(Protocol):
    """Where OCSP answers come from."""

    async def answer(self, query: OcspQuery) -> OcspAnswer | OcspStatus:
        """The answer to ``query``: a signed response, or the status of an unsigned one. Never raises for want of a database,
        a file or a token: what cannot be answered now is ``TRY_LATER``."""
        ...

    def on_change(self, forget: Callable[[Iterable[str]], None]) -> None:
        """Have ``forget`` called with the serials (32 lower-case hex digits) whose answers changed before their time."""
        ...


@dataclass(frozen=True, slots=True)
class Canary:
    """A certificate that was issued in order to be revoked, by which one sees whether revocations become visible."""

    issuer_id: str
    serial: str
    shard: int | None
    issued_at: int
    revoked_at: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watcher expects to find at the public URLs."""

    issuers: Mapping[str, bytes]
    """The certificate (DER) of every issuer whose status is published, by id."""
    crls: Iterable[PublishedCrl]
    canaries: Iterable[Canary]
