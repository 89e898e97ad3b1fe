"""Certificates that a root elsewhere has signed: taken in for a key that is here, and the end of an issuer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.certificates import (
    ca_public_key,
    check_ca_certificate,
    fingerprint,
    pem,
    subject_key_identifier,
)
from privyseal_ca.ceremony.certify import append_certified
from privyseal_ca.ceremony.keys import attested_spki_sha256
from privyseal_ca.ceremony.roots import write_roots
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.attributes import spki_sha256
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.issuers import (
    IssuerRow,
    add_chain,
    all_issuers,
    chains,
    find_issuer,
    set_issuer_id,
    set_issuer_state,
)
from privyseal_ca.store.statement import Transaction

_MAX_FILE = 1 << 20
_MAX_CHAIN = 10


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    issuer: IssuerRow
    root: x509.Certificate
    #: Whether it activated the issuer, rather than adding a chain to an active one.
    activated: bool


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a file, PEM or one as DER.

    Raises:
        ConfigurationError: it cannot be read or holds none.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_FILE else b""
        if b"-----BEGIN" in content:
            return x509.load_pem_x509_certificates(content)
        return [x509.load_der_x509_certificate(content)]
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} holds no certificate that can be read.", hint="Give a file with PEM certificates, or one as DER."
        ) from error


async def import_certificate(
    transcript: Transcript, home: Path, given: Sequence[x509.Certificate], *, alternate: bool
) -> Imported:
    """Take ``given`` for the issuer whose key its first certificate certifies; the others lead up to a root.

    A pending issuer becomes active. An active one gets one more chain, when ``alternate`` is set.

    Raises:
        ConfigurationError: no key here fits, or the certificates are not a chain of valid CA certificates.
        StoreError: the database failed.
    """
    certificate = given[0]
    key_sha256 = spki_sha256(ca_public_key(certificate))
    issuers = await transcript.store.read(all_issuers)
    row = next((issuer for issuer in issuers if attested_spki_sha256(issuer) == key_sha256), None)
    if row is None or row.state == "root":
        raise ConfigurationError(
            "The certificate is for a key that no issuer here has.",
            hint="`privyseal issuer list` shows the issuers; sign the request of one of them.",
        )
    chain = _chain(given, now=transcript.clock.now())
    _check_state(row, chain[0], alternate=alternate)
    activated = row.state == "pending"
    issuer_id = subject_key_identifier(certificate).digest.hex()

    def unit(transaction: Transaction) -> None:
        current = find_issuer(transaction, row.name)
        if current is None or current.state != row.state:
            raise ConfigurationError(f"Issuer {row.name} changed meanwhile.", hint="Try again.")
        _refuse_known(certificate, chains(transaction, row.id))
        if activated and issuer_id != row.id:
            # Roots may compute key identifiers otherwise than the request asks; leaves will carry the one in the certificate.
            set_issuer_id(transaction, row.id, issuer_id)
        append_certified(transcript, transaction, certificate, _signer_id(chain[1]), imported=True)
        add_chain(transaction, issuer_id, pem(*chain))
        if activated:
            set_issuer_state(transaction, issuer_id, "active")
            transcript.append(transaction, Kind.ISSUER_ACTIVATED, {"id": issuer_id, "name": row.name})

    try:
        await transcript.store.write(unit)
    finally:
        # An import that was interrupted before this is refused as known, and leaves the right file all the same.
        await write_roots(transcript.store, home)
    made = await transcript.store.read(lambda tx: find_issuer(tx, row.name))
    return Imported(made or row, chain[-1], activated)


async def retire(transcript: Transcript, name: str) -> IssuerRow:
    """End the use of the issuer ``name`` for new certificates. What it has issued stays valid.

    Raises:
        ConfigurationError: there is no such issuer, or it does not issue.
    """

    def unit(transaction: Transaction) -> IssuerRow:
        row = require_issuer(transaction, name)
        if row.state not in {"active", "pending"}:
            raise ConfigurationError(f"Issuer {name} is {row.state}; only issuing CAs can be retired.")
        set_issuer_state(transaction, row.id, "retired")
        transcript.append(transaction, Kind.ISSUER_RETIRED, {"id": row.id, "name": name, "was": row.state})
        return row

    return await transcript.store.write(unit)


def require_issuer(transaction: Transaction, name: str) -> IssuerRow:
    """The issuer called ``name``.

    Raises:
        ConfigurationError: there is none.
    """
    row = find_issuer(transaction, name)
    if row is None:
        raise ConfigurationError(
            f"There is no issuer {name[:64]!r}.", hint="`privyseal issuer list` shows those that there are."
        )
    return row


def _check_state(row: IssuerRow, certificate: x509.Certificate, *, alternate: bool) -> None:
    if row.state == "retired":
        raise ConfigurationError(f"Issuer {row.name} is retired.", hint="Make another with `privyseal issuer create`.")
    if row.state == "pending" and alternate:
        raise ConfigurationError(
            f"Issuer {row.name} has no certificate yet.", hint="Import its first one without --alternate."
        )
    if row.state == "active":
        if not alternate:
            raise ConfigurationError(
                f"Issuer {row.name} is active already.", hint="Use --alternate to add a chain to another root."
            )
        if subject_key_identifier(certificate).digest.hex() != row.id:
            raise ConfigurationError(
                "The alternate certificate has another subject key identifier than the first.",
                hint=f"Have it signed with the identifier {row.id}, which the issued certificates name.",
            )


def _chain(given: Sequence[x509.Certificate], *, now: float) -> list[x509.Certificate]:
    """``given`` in order, each signed by the next, the last by itself."""
    if len(given) > _MAX_CHAIN:
        raise ConfigurationError(f"More than {_MAX_CHAIN} certificates were given.", hint="Give one chain.")
    chain = [given[0]]
    others = {fingerprint(certificate): certificate for certificate in given[1:]}
    while chain[-1].issuer != chain[-1].subject:
        above = next((other for other in others.values() if other.subject == chain[-1].issuer), None)
        if above is None:
            raise ConfigurationError(
                f"The issuer of {chain[-1].subject.rfc4514_string()} was not given.",
                hint="Name the file of its root with --chain.",
            )
        check_ca_certificate(chain[-1], above, now=now)
        chain.append(others.pop(fingerprint(above)))
    if len(chain) == 1:
        raise ConfigurationError("The certificate is self-signed.", hint="Have a root sign the request.")
    check_ca_certificate(chain[-1], chain[-1], now=now)
    return chain


def _refuse_known(certificate: x509.Certificate, known: Sequence[str]) -> None:
    wanted = certificate.public_bytes(Encoding.DER)
    for chain in known:
        if x509.load_pem_x509_certificates(chain.encode())[0].public_bytes(Encoding.DER) == wanted:
            raise ConfigurationError("This certificate was imported before.")


def _signer_id(certificate: x509.Certificate) -> str:
    return subject_key_identifier(certificate).digest.hex()
