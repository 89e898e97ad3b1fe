"""Making CAs: a key in a token, then its certificate, or the request for one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.certificates import (
    check_base_url,
    issuing_template,
    own_identifier,
    pem,
    request,
    root_template,
)
from privyseal_ca.ceremony.certify import certify
from privyseal_ca.ceremony.keys import KeyMaker, attestation_text
from privyseal_ca.ceremony.plan import ROOT_NAME, NameSpace
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.attributes import KeyAlgorithm, KeyAttestation
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import PublicKey, SigningKey
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.template import new_serial
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.issuers import IssuerRow, add_chain, add_issuer, all_issuers, chains, find_issuer
from privyseal_ca.store.statement import Transaction


@dataclass(frozen=True, slots=True)
class Root:
    """A root whose key is at hand."""

    id: str
    certificate: x509.Certificate
    key: SigningKey


@dataclass(frozen=True, slots=True)
class CaSpec:
    """A CA that is to be made: its name here, which is its key's label too, and what its certificate says."""

    name: str
    token: KeyUri
    algorithm: KeyAlgorithm
    subject: x509.Name
    names: NameSpace
    #: The public base URL below which its certificate says that the root and its CRL are; without one it does not say.
    base_url: str = ""


class IssuerMaker:
    """Makes CAs, and finds those that an earlier run made."""

    def __init__(self, hsm: Hsm, transcript: Transcript, random_bytes: Callable[[int], bytes]) -> None:
        self._hsm = hsm
        self._transcript = transcript
        self._random_bytes = random_bytes
        self.keys = KeyMaker(hsm, transcript, random_bytes)

    async def root(self, spec: CaSpec) -> Root:
        """The root, made unless it is there.

        Raises the errors of :func:`privyseal_ca.ceremony.certify.certify`.
        """
        existing = await self.existing_root()
        if existing is not None:
            return existing
        attestation = await self.keys.signing_key(spec.token, spec.name, spec.algorithm)
        key = await self._hsm.open_signing_key(attestation.uri)
        template = root_template(key.public_key, spec.subject, serial=self._serial(), now=self._now())
        row = self._row(spec, "root", key.public_key, attestation, None)

        def record(transaction: Transaction, certificate: x509.Certificate) -> None:
            _add_last(transaction, row)
            add_chain(transaction, row.id, pem(certificate))

        certificate = await certify(self._transcript, key, row.id, template, profile="root", issuer=None, record=record)
        return Root(row.id, certificate, key)

    async def existing_root(self) -> Root | None:
        """The root that this authority has made, with its key opened; None when its root is elsewhere."""

        def unit(transaction: Transaction) -> tuple[IssuerRow, str] | None:
            row = find_issuer(transaction, ROOT_NAME)
            return None if row is None else (row, chains(transaction, row.id)[0])

        found = await self._transcript.store.read(unit)
        if found is None:
            return None
        row, chain = found
        return Root(
            row.id, x509.load_pem_x509_certificate(chain.encode()), await self._hsm.open_signing_key(row.key_uri)
        )

    async def intermediate(self, spec: CaSpec, root: Root | None) -> IssuerRow:
        """The intermediate ``spec``, made unless it is there: active when ``root`` signs it, else pending with a request.

        Raises the errors of :func:`privyseal_ca.ceremony.certify.certify`.
        """
        existing = await self._transcript.store.read(lambda tx: find_issuer(tx, spec.name))
        if existing is not None:
            return existing
        check_base_url(spec.base_url)
        attestation = await self.keys.signing_key(spec.token, spec.name, spec.algorithm)
        key = await self._hsm.open_signing_key(attestation.uri)
        if root is None:
            await self._request(spec, key, attestation)
        else:
            await self._certify_intermediate(spec, key, attestation, root)
        made = await self._transcript.store.read(lambda tx: find_issuer(tx, spec.name))
        if made is None:
            raise ConfigurationError(
                f"Issuer {spec.name} vanished while it was made.", hint="Run one ceremony at a time."
            )
        return made

    async def _request(self, spec: CaSpec, key: SigningKey, attestation: KeyAttestation) -> None:
        csr = await key.run(lambda private: request(private, spec.subject, spec.names).public_bytes(Encoding.DER))
        payload = {
            "id": _id_of(key.public_key),
            "name": spec.name,
            "spki_sha256": attestation.spki_sha256,
            "subject": spec.subject.rfc4514_string(),
        }
        row = self._row(spec, "pending", key.public_key, attestation, csr)
        await self._transcript.record(Kind.CSR_WRITTEN, payload, lambda tx: _add_last(tx, row))

    async def _certify_intermediate(
        self, spec: CaSpec, key: SigningKey, attestation: KeyAttestation, root: Root
    ) -> None:
        template = issuing_template(
            key.public_key,
            spec.subject,
            root.certificate,
            spec.names,
            pointers=Pointers(spec.base_url, root.id) if spec.base_url else None,
            serial=self._serial(),
            now=self._now(),
        )
        row = self._row(spec, "active", key.public_key, attestation, None)

        def record(transaction: Transaction, certificate: x509.Certificate) -> None:
            _add_last(transaction, row)
            add_chain(transaction, row.id, pem(certificate, root.certificate))
            self._transcript.append(transaction, Kind.ISSUER_ACTIVATED, {"id": row.id, "name": row.name})

        await certify(
            self._transcript,
            root.key,
            root.id,
            template,
            profile="intermediate",
            issuer=root.certificate,
            record=record,
        )

    def _row(
        self, spec: CaSpec, state: str, key: PublicKey, attestation: KeyAttestation, csr: bytes | None
    ) -> IssuerRow:
        return IssuerRow(
            id=_id_of(key),
            name=spec.name,
            state=state,
            key_uri=attestation.uri,
            algorithm=attestation.algorithm,
            attestation=attestation_text(attestation),
            csr=csr,
            preference=0,
            created=int(self._now()),
        )

    def _serial(self) -> int:
        return new_serial(self._random_bytes)

    def _now(self) -> float:
        return self._transcript.clock.now()


def _id_of(key: PublicKey) -> str:
    return own_identifier(key).digest.hex()


def _add_last(transaction: Transaction, row: IssuerRow) -> None:
    """Add ``row`` behind the issuers that are there: the first that was made stays the preferred one."""
    add_issuer(transaction, replace(row, preference=len(all_issuers(transaction))))
