"""A database with CRLs and OCSP responses in it that no service made: signed by software keys, with whatever one likes.

``authority = StatusRows(url)`` migrates the database and puts a root and an issuer into it; then :meth:`StatusRows.crl`,
:meth:`StatusRows.response` and :meth:`StatusRows.revoke` add rows as the service would, each in a transaction.
"""

import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import create_engine, delete, insert, update

from privyseal_ca.config import Settings
from privyseal_ca.revocation.manifest import CertIds
from privyseal_ca.revocation.ocsp_response import Revoked, Statement, sign_responses
from privyseal_ca.revocation.published import OcspQuery, scope_name
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.tables import Crl, CrlPart, Fact, Issuer, IssuerChain, LedgerHead, OcspResponse, Revocation

DAY = 86400
_PART = 256 * 1024
_ISSUER: Any = Issuer.__table__  # type: ignore[attr-defined]
_CHAIN: Any = IssuerChain.__table__  # type: ignore[attr-defined]
_CRL: Any = Crl.__table__  # type: ignore[attr-defined]
_CRL_PART: Any = CrlPart.__table__  # type: ignore[attr-defined]
_RESPONSE: Any = OcspResponse.__table__  # type: ignore[attr-defined]
_REVOCATION: Any = Revocation.__table__  # type: ignore[attr-defined]
_HEAD: Any = LedgerHead.__table__  # type: ignore[attr-defined]
_FACT: Any = Fact.__table__  # type: ignore[attr-defined]


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


class _Ca:
    """A certificate and its key."""

    def __init__(self, name: str, signer: "_Ca | None", usages: tuple[Any, ...] = ()) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key_id = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.id = self.key_id.digest.hex()
        above = signer or self
        builder = (
            x509.CertificateBuilder()
            .issuer_name(above.subject)
            .subject_name(self.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_when(time.time() - DAY))
            .not_valid_after(_when(time.time() + 365 * DAY))
            .add_extension(x509.BasicConstraints(ca=not usages, path_length=None), critical=True)
            .add_extension(self.key_id, critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            builder = builder.add_extension(x509.OCSPNoCheck(), critical=False)
        else:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        self.certificate = builder.sign(above.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def leaf(self, serial: int) -> x509.Certificate:
        """A certificate for an end entity."""
        return (
            x509.CertificateBuilder()
            .issuer_name(self.subject)
            .subject_name(x509.Name([]))
            .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
            .serial_number(serial)
            .not_valid_before(_when(time.time() - 3600))
            .not_valid_after(_when(time.time() + DAY))
            .sign(self.key, hashes.SHA256())
        )


class StatusRows:
    """The database at ``url``, with an issuer."""

    def __init__(self, url: str) -> None:
        self.url = url
        migrate(url)
        self._engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        self.root = _Ca("Rows Root", None)
        self.issuer = self.add_issuer("issuing-1")
        self.responder = _Ca("Rows Responder", self.issuer, (ExtendedKeyUsageOID.OCSP_SIGNING,))
        self._write(insert(_FACT).values(name="ceremony", value="finished"))

    @property
    def id(self) -> str:
        """The issuer's id."""
        return self.issuer.id

    def home(self, folder: Path) -> Settings:
        """A home with nothing in it but the trust anchors, and the settings for it."""
        folder.mkdir(exist_ok=True)
        (folder / "roots.pem").write_text(self.root.pem)
        settings = Settings(database={"url": self.url}, status={"ocsp_lifetime": DAY})
        return settings.model_copy(update={"home": folder})

    def add_issuer(self, name: str) -> _Ca:
        """One more issuer."""
        ca = _Ca(f"Rows {name}", self.root)
        self._write(
            insert(_ISSUER).values(
                id=ca.id, name=name, state="active", key_uri="pkcs11:", algorithm="ec-p256", attestation="{}",
                csr=None, preference=0, created=0,
            ),
            insert(_CHAIN).values(issuer_id=ca.id, position=0, pem=ca.pem + self.root.pem),
        )  # fmt: skip
        return ca

    def crl(
        self,
        number: int,
        *,
        shard: int | None = None,
        serials: tuple[int, ...] = (),
        at: float | None = None,
        lifetime: int = DAY,
        issuer: _Ca | None = None,
        delta: bool = False,
    ) -> bytes:
        """Publish a CRL, with ``delta`` also a delta CRL; its DER."""
        ca, at = issuer or self.issuer, int(time.time() if at is None else at)
        der = self.make_crl(ca, number, serials=serials, at=at, lifetime=lifetime)
        delta_der = self.make_crl(ca, number, at=at, lifetime=lifetime, base=number) if delta else b""
        scope = {"issuer_id": ca.id, "scope": scope_name(shard)}
        mine = (_CRL.c.issuer_id == ca.id) & (_CRL.c.scope == scope["scope"])
        self._write(
            delete(_CRL).where(mine),
            delete(_CRL_PART).where((_CRL_PART.c.issuer_id == ca.id) & (_CRL_PART.c.scope == scope["scope"])),
            insert(_CRL).values(
                **scope, number=number, this_update=at, next_update=at + lifetime, entries=len(serials), through=0,
                size=len(der), sha256=sha256(der).digest(), delta_size=len(delta_der),
                delta_sha256=sha256(delta_der).digest() if delta else b"", base_number=0, base_through=0,
                next_base_number=0, next_base_through=0, next_base_at=0,
            ),
            *(
                insert(_CRL_PART).values(
                    **scope, number=number, delta=int(content is delta_der), position=begin // _PART,
                    der=content[begin : begin + _PART],
                )
                for content in (der, delta_der)
                for begin in range(0, len(content), _PART)
            ),
        )  # fmt: skip
        return der

    def make_crl(
        self, ca: _Ca, number: int, *, at: int, lifetime: int, serials: tuple[int, ...] = (), base: int | None = None
    ) -> bytes:
        """The DER of a CRL."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(ca.subject)
            .last_update(_when(at))
            .next_update(_when(at + lifetime))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier(ca.key_id.digest, None, None), critical=False)
        )
        if base is not None:
            builder = builder.add_extension(x509.DeltaCRLIndicator(base), critical=True)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_when(at)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def drop_crl(self, shard: int | None) -> None:
        """Take a scope away."""
        self._write(delete(_CRL).where(_CRL.c.scope == scope_name(shard)))

    def query(self, serial: int, hash_name: str = "sha1", *, issuer: _Ca | None = None) -> OcspQuery:
        """The question for a serial."""
        return CertIds.of((issuer or self.issuer).certificate).query(hash_name, serial)

    def make_response(
        self, serial: int, *, revoked: bool = False, hash_name: str = "sha1", at: int, lifetime: int = DAY
    ) -> bytes:
        """The DER of a response."""
        statement = Statement(
            self.query(serial, hash_name), Revoked(at=at, reason=None) if revoked else "good", at, at + lifetime
        )
        return sign_responses(self.responder.key, self.responder.certificate, [statement])[0]

    def response(
        self,
        serial: int,
        *,
        revoked: bool = False,
        hash_name: str = "sha1",
        at: float | None = None,
        lifetime: int = DAY,
    ) -> bytes:
        """Keep a response ready; its DER."""
        at = int(time.time() if at is None else at)
        der = self.make_response(serial, revoked=revoked, hash_name=hash_name, at=at, lifetime=lifetime)
        self.put_responses([(serial, hash_name, revoked, at, lifetime, der)])
        return der

    def put_responses(self, rows: list[tuple[int, str, bool, int, int, bytes]]) -> None:
        """Keep responses ready that were made before: serial, hash, whether revoked, thisUpdate, lifetime, DER."""
        values = [
            {
                "serial": f"{serial:032x}", "hash": hash_name, "issuer_id": self.id, "revoked": int(revoked),
                "this_update": at, "next_update": at + lifetime, "refresh_at": at + lifetime // 2, "der": der,
            }
            for serial, hash_name, revoked, at, lifetime, der in rows
        ]  # fmt: skip
        if len(values) == 1:
            self.drop_response(rows[0][0], rows[0][1])
        with self._engine.begin() as connection:
            connection.execute(insert(_RESPONSE), values)

    def drop_response(self, serial: int, hash_name: str = "sha1") -> None:
        """Keep a response ready no longer."""
        self._write(delete(_RESPONSE).where((_RESPONSE.c.serial == f"{serial:032x}") & (_RESPONSE.c.hash == hash_name)))

    def revoke(self, serial: int, index: int) -> None:
        """Revoke a serial by the ledger's entry ``index``."""
        self._write(
            insert(_REVOCATION).values(
                issuer_id=self.id, serial=f"{serial:032x}", revoked_at=int(time.time()), reason=None,
                not_after=int(time.time()) + DAY, crl_shard=0, ledger_index=index,
            ),
            update(_HEAD).values(size=index + 1),
        )  # fmt: skip

    def close(self) -> None:
        """Disconnect."""
        self._engine.dispose()

    def _write(self, *statements: Any) -> None:
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(statement)
