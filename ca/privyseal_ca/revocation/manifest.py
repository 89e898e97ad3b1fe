"""The layout of a folder that ``status publish`` writes, and the manifest that says what is in it.

The paths are those of the public URLs (:mod:`privyseal_ca.issuance.pointers`, :mod:`privyseal_ca.revocation.crl_bundle`), so
that any web server can serve the folder.
"""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.issuance.pointers import crl_path
from privyseal_ca.revocation.ocsp_request import CERT_ID_HASHES, encode_request
from privyseal_ca.revocation.ocsp_response import issuer_hashes
from privyseal_ca.revocation.published import Canary, OcspQuery, PublishedCrl

MANIFEST: Final = "manifest.json"
ROOTS: Final = "roots.pem"
#: An unsigned answer for those who ask for what is not there (RFC 6960 section 4.2.1).
UNAUTHORIZED: Final = "unauthorized.ocsp"

#: A manifest with more is not read: a thousand CRLs take less than half of it.
MAX_MANIFEST: Final = 4 << 20
#: A file that holds an OCSP response or a chain is not bigger.
MAX_SMALL: Final = 64 << 10
#: A CRL that the manifest does not describe is parsed only up to this size.
MAX_PARSED_CRL: Final = 64 << 20
IssuerId = Annotated[str, Field(pattern=r"\A[0-9a-f]{1,64}\z")]
Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Serial = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ManifestIssuer(_Strict):
    """A CA certificate; ``certificate`` is its DER in base64."""

    id: IssuerId
    name: str
    certificate_sha256: Digest
    certificate: str


class ManifestCrl(_Strict):
    """A CRL: the fields are those of :class:`PublishedCrl`."""

    issuer: IssuerId
    shard: Count | None
    delta: bool
    number: Count
    this_update: Count
    next_update: Count
    size: Count
    sha256: Digest

    @classmethod
    def of(cls, crl: PublishedCrl) -> "ManifestCrl":
        """``crl`` as the manifest has it."""
        return cls(
            issuer=crl.issuer_id,
            shard=crl.shard,
            delta=crl.delta,
            number=crl.number,
            this_update=crl.this_update,
            next_update=crl.next_update,
            size=crl.size,
            sha256=crl.sha256.hex(),
        )

    def published(self) -> PublishedCrl:
        """The same as those have it who serve it."""
        return PublishedCrl(
            issuer_id=self.issuer,
            shard=self.shard,
            delta=self.delta,
            number=self.number,
            this_update=self.this_update,
            next_update=self.next_update,
            size=self.size,
            sha256=bytes.fromhex(self.sha256),
        )


class ManifestCanary(_Strict):
    """A canary: the fields are those of :class:`Canary`."""

    issuer: IssuerId
    serial: Serial
    shard: Count | None
    issued_at: Count
    revoked_at: Count

    @classmethod
    def of(cls, canary: Canary) -> "ManifestCanary":
        """``canary`` as the manifest has it."""
        return cls(
            issuer=canary.issuer_id,
            serial=canary.serial,
            shard=canary.shard,
            issued_at=canary.issued_at,
            revoked_at=canary.revoked_at,
        )

    def canary(self) -> Canary:
        """The same as the watcher has it."""
        return Canary(self.issuer, self.serial, self.shard, self.issued_at, self.revoked_at)


class Manifest(_Strict):
    """What a folder holds. OCSP responses are not listed: their names say what they answer. The bundle is made of ``crls``."""

    version: Literal[1] = 1
    written_at: Count = 0
    issuers: tuple[ManifestIssuer, ...] = ()
    crls: tuple[ManifestCrl, ...] = ()
    canaries: tuple[ManifestCanary, ...] = ()

    def encode(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of ``folder``; None when it has none.

    Raises:
        StatusUnavailableError: it cannot be read, or is no manifest that this program knows.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StatusUnavailableError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the folder and its permissions."
        ) from error
    try:
        if len(content) > MAX_MANIFEST:
            raise ValueError("too big")
        manifest = Manifest.model_validate_json(content)
        if "version" not in manifest.model_fields_set:
            raise ValueError("without a version")
    except (ValidationError, ValueError) as error:
        raise StatusUnavailableError(
            f"{path} is no manifest of a published status folder.",
            hint="`privyseal status publish` writes it; a newer version of this program may have written this one.",
        ) from error
    return manifest


def crl_file(issuer_id: str, shard: int | None, *, delta: bool) -> str:
    """The path of a CRL in the folder."""
    return crl_path(issuer_id, shard, delta=delta).removeprefix("/")


def ocsp_file(query: OcspQuery) -> str:
    """The path of the response to ``query`` in the folder: the text of a GET request (RFC 6960 appendix A.1).

    A ``/`` in the base64 text makes folders, as a web server sees it in a URL. Where it is the last character the file in that
    folder is called ``_``. Two of them after each other are one, as in every path of a file.
    """
    text = b64encode(encode_request(query)).decode()
    while "//" in text:
        text = text.replace("//", "/")
    return f"ocsp/{text}{'_' if text.endswith('/') else ''}"


@dataclass(frozen=True, slots=True)
class CertIds:
    """What CertIDs (RFC 6960 section 4.1.1) call one issuer, by the name of the hash."""

    hashes: Mapping[str, tuple[bytes, bytes]]
    """The hash of the issuer's name and that of its key."""

    @classmethod
    def of(cls, certificate: x509.Certificate) -> "CertIds":
        """For the issuer with ``certificate``."""
        return cls({hash_name: issuer_hashes(certificate, hash_name) for hash_name in CERT_ID_HASHES})

    def query(self, hash_name: str, serial: int) -> OcspQuery:
        """The question for ``serial``."""
        name_hash, key_hash = self.hashes[hash_name]
        return OcspQuery(hash_name, name_hash, key_hash, serial)


def describe_crl(path: Path, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
    """The CRL that the file at ``path`` holds, read from itself; None when it holds none that can be read.

    For a file that is newer than the manifest, as a publisher leaves it that was killed in between.
    """
    try:
        with path.open("rb") as file:
            der = file.read(MAX_PARSED_CRL + 1)
        if len(der) > MAX_PARSED_CRL:
            return None
        crl = x509.load_der_x509_crl(der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if crl.next_update_utc is None:
            return None
        return PublishedCrl(
            issuer_id=issuer_id,
            shard=shard,
            delta=delta,
            number=number,
            this_update=int(crl.last_update_utc.timestamp()),
            next_update=int(crl.next_update_utc.timestamp()),
            size=len(der),
            sha256=sha256(der).digest(),
        )
    except (OSError, ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None


def read_small(path: Path) -> bytes:
    """The content of a file that is small.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too big to be what it should be.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SMALL + 1)
    if len(content) > MAX_SMALL:
        raise ValueError("too big")
    return content
