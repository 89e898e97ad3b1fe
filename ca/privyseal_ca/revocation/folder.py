"""CRLs and OCSP responses from a folder that ``status publish`` writes: no database, no token, no key (promise P7).

Whoever can write into the folder decides what is served, so what is read is looked at: a response must be for the question,
and a file has to be what the manifest, or the CRL in it, says. What is wrong is not served.
"""

import asyncio
import os
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import ocsp

from privyseal_ca.clock import Clock
from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.revocation.anchors import PublishedCertificates
from privyseal_ca.revocation.manifest import (
    MANIFEST,
    ROOTS,
    CertIds,
    Manifest,
    crl_file,
    describe_crl,
    ocsp_file,
    read_manifest,
    read_small,
)
from privyseal_ca.revocation.published import Canary, OcspAnswer, OcspQuery, OcspStatus, PublishedCrl

_log = structlog.get_logger("status")

_PIECE: Final = 256 << 10
#: RFC 5280 section 4.1.2.2: serial numbers have at most 20 octets.
_SERIAL_BITS: Final = 160

_Scope = tuple[str, int | None, bool]
_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _State:
    """What one manifest said."""

    stamp: _Stamp | None = None
    issuers: Mapping[str, bytes] = field(default_factory=dict)
    #: By the hash of a CertID, the hash of the issuer's name and that of its key.
    cert_ids: frozenset[tuple[str, bytes, bytes]] = frozenset()
    crls: Mapping[_Scope, PublishedCrl] = field(default_factory=dict)
    canaries: tuple[Canary, ...] = ()
    certificates: PublishedCertificates = field(default_factory=lambda: PublishedCertificates(b"", {}))


class FolderStatus:
    """A published folder. :meth:`refresh` reads its manifest; until then there is nothing.

    ``interval`` is how many seconds an answer may be given again without a look at its file.
    """

    def __init__(self, folder: Path, *, clock: Clock, interval: float) -> None:
        self._folder = folder
        self._clock = clock
        self._interval = interval
        self._state = _State()
        #: Why the folder was no use when it was last looked at; empty when it was.
        self.problem = "the folder was not read yet"

    @property
    def issuers(self) -> Mapping[str, bytes]:
        """The certificate (DER) of every CA, by id."""
        return self._state.issuers

    @property
    def canaries(self) -> Iterable[Canary]:
        """What a watcher of this folder looks for."""
        return self._state.canaries

    @property
    def certificates(self) -> PublishedCertificates:
        """The roots and the CA certificates that the folder holds."""
        return self._state.certificates

    async def refresh(self) -> None:
        """Read the manifest if it changed. What was known before remains when that fails.

        Raises:
            StatusUnavailableError: the folder cannot be read, or nothing has been published in it yet.
        """
        try:
            self._state = await asyncio.to_thread(self._load, self._state)
        except StatusUnavailableError as error:
            self.problem = error.message
            raise
        self.problem = ""

    def find(self, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
        """The CRL of a scope."""
        return self._state.crls.get((issuer_id, shard, delta))

    def published(self) -> Iterable[PublishedCrl]:
        """The CRL of every scope."""
        return self._state.crls.values()

    async def read(self, crl: PublishedCrl) -> AsyncIterator[bytes]:
        """The DER of ``crl`` in pieces.

        Raises:
            StatusUnavailableError: its file is another one by now, or gone.
        """
        path = self._folder / crl_file(crl.issuer_id, crl.shard, delta=crl.delta)
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except OSError as error:
            raise StatusUnavailableError(f"A CRL's file cannot be read: {error.strerror}.") from error
        with closing(file):
            if not _matches(file, crl):
                await asyncio.to_thread(self._learn, path, crl)
                raise StatusUnavailableError("The CRL was replaced meanwhile.", hint="Ask again.")
            left = crl.size
            while left:
                piece = await asyncio.to_thread(file.read, min(left, _PIECE))
                if not piece:
                    raise StatusUnavailableError("A CRL's file was cut short while it was read.")
                left -= len(piece)
                yield piece

    async def answer(self, query: OcspQuery) -> OcspAnswer | OcspStatus:
        """The response whose file has the name of ``query``."""
        cert_id = (query.hash_name, query.issuer_name_hash, query.issuer_key_hash)
        if cert_id not in self._state.cert_ids or not 0 < query.serial < 1 << _SERIAL_BITS:
            return OcspStatus.TRY_LATER if self._state.stamp is None else OcspStatus.UNAUTHORIZED
        path = self._folder / ocsp_file(query)
        try:
            der = await asyncio.to_thread(read_small, path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            # A folder that is gone as a whole says nothing about the certificate.
            gone = bool(self.problem) or not await asyncio.to_thread((self._folder / MANIFEST).exists)
            return OcspStatus.TRY_LATER if gone else OcspStatus.UNAUTHORIZED
        except (OSError, ValueError) as error:
            _log.warning("an OCSP response's file cannot be used", path=str(path), error=str(error))
            return OcspStatus.TRY_LATER
        try:
            times = _times_of(der, query)
        except (ValueError, UnsupportedAlgorithm) as error:
            _log.warning("a file is no OCSP response for its name", path=str(path), error=str(error))
            return OcspStatus.TRY_LATER
        this_update, next_update = times
        now = self._clock.now()
        if next_update <= now:
            return OcspStatus.TRY_LATER
        return OcspAnswer(
            der=der,
            this_update=this_update,
            next_update=next_update,
            fresh_until=min(next_update, int(now + self._interval)),
            serial=f"{query.serial:032x}",
            keep=query.nonce is None,
        )

    def on_change(self, forget: Callable[[Iterable[str]], None]) -> None:
        """Nothing changes before its time: answers are fresh for one interval only."""

    def _load(self, before: _State) -> _State:
        stamp = self._stamp()
        if stamp is not None and stamp == before.stamp:
            return before
        manifest = read_manifest(self._folder)
        if manifest is None or not manifest.issuers:
            raise StatusUnavailableError(
                f"Nothing has been published in {self._folder} yet.", hint="Run `privyseal status publish` for it."
            )
        return self._read(manifest, stamp)

    def _read(self, manifest: Manifest, stamp: _Stamp | None) -> _State:
        issuers: dict[str, bytes] = {}
        cert_ids: set[tuple[str, bytes, bytes]] = set()
        try:
            roots = read_small(self._folder / ROOTS)
            pems = {issuer.id: read_small(self._folder / f"issuers/{issuer.id}.pem") for issuer in manifest.issuers}
            for issuer in manifest.issuers:
                issuers[issuer.id] = b64decode(issuer.certificate, validate=True)
                ids = CertIds.of(x509.load_der_x509_certificate(issuers[issuer.id]))
                cert_ids |= {(hash_name, *hashes) for hash_name, hashes in ids.hashes.items()}
        except OSError as error:
            raise StatusUnavailableError(f"A file of {self._folder} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise StatusUnavailableError(f"A certificate in {self._folder} is none: {error}.") from error
        crls = {(crl.issuer, crl.shard, crl.delta): crl.published() for crl in manifest.crls}
        return _State(
            stamp=stamp,
            issuers=issuers,
            cert_ids=frozenset(cert_ids),
            crls=crls,
            canaries=tuple(canary.canary() for canary in manifest.canaries),
            certificates=PublishedCertificates(roots, {name: (issuers[name], pem) for name, pem in pems.items()}),
        )

    def _stamp(self) -> _Stamp | None:
        try:
            state = (self._folder / MANIFEST).stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size

    def _learn(self, path: Path, crl: PublishedCrl) -> None:
        """Take what the file says for the manifest's word, unless that is older: its writer was not done, or was killed."""
        found = describe_crl(path, crl.issuer_id, crl.shard, delta=crl.delta)
        scope = (crl.issuer_id, crl.shard, crl.delta)
        if found is None or found.number < crl.number:
            _log.warning("a CRL's file is not what it should be", path=str(path))
        elif self._state.crls.get(scope) == crl:
            self._state = _replaced(self._state, scope, found)


def _replaced(state: _State, scope: _Scope, crl: PublishedCrl) -> _State:
    return _State(
        state.stamp, state.issuers, state.cert_ids, {**state.crls, scope: crl}, state.canaries, state.certificates
    )


def _matches(file: BinaryIO, crl: PublishedCrl) -> bool:
    """Whether the open ``file`` is that of ``crl``: the writer gives it the time of its thisUpdate."""
    state = os.fstat(file.fileno())
    return state.st_size == crl.size and int(state.st_mtime) == crl.this_update


def _times_of(der: bytes, query: OcspQuery) -> tuple[int, int]:
    """thisUpdate and nextUpdate of the response to ``query``.

    Raises:
        ValueError: it is no successful response, or one to another question.
        UnsupportedAlgorithm: the same, by an algorithm that is not known.
    """
    response = ocsp.load_der_ocsp_response(der)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise ValueError("not a successful response")
    asked = (query.hash_name, query.issuer_name_hash, query.issuer_key_hash, query.serial)
    answered = (
        response.hash_algorithm.name,
        response.issuer_name_hash,
        response.issuer_key_hash,
        response.serial_number,
    )
    if asked != answered:
        raise ValueError("for another certificate")
    if response.next_update_utc is None:
        raise ValueError("without nextUpdate")
    return int(response.this_update_utc.timestamp()), int(response.next_update_utc.timestamp())
