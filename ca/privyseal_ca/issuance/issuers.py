"""The issuers that are in use: their keys, certificates and chains, and which of them signs what."""

import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from privyseal_ca.errors import ConfigurationError, ProfileRefusedError
from privyseal_ca.hsm.signer import PublicKey, SigningKey, as_public_key
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.template import IssuerIdentity
from privyseal_ca.store.issuers import IssuerRow


@dataclass(frozen=True, slots=True)
class Issuer:
    """An active issuer. ``chains`` are PEM without the root, the default first; each certifies the same key."""

    id: str
    identity: IssuerIdentity
    key: SigningKey
    chains: tuple[str, ...]


def make_issuer(row: IssuerRow, chains: Sequence[str], key: SigningKey, *, pointers: Pointers) -> Issuer:
    """The issuer of ``row`` with ``chains`` (PEM, each from the issuer's certificate up to a root).

    Raises:
        ConfigurationError: the certificate in the store is not for the key in the token.
    """
    if not chains:
        raise ConfigurationError(
            f"Issuer {row.name} has no certificate.", hint="Import it with `privyseal issuer import`."
        )
    certificate = x509.load_pem_x509_certificates(chains[0].encode())[0]
    expected = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    actual = key.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if expected != actual:
        raise ConfigurationError(
            f"The token's key {key.uri} does not belong to the certificate of issuer {row.name}.",
            hint="Check the key URI with `privyseal issuer show` and the token.",
        )
    identity = IssuerIdentity.from_certificate(certificate, name=row.name, pointers=pointers)
    return Issuer(row.id, identity, key, served_chains(chains))


def certified_key(chains: Sequence[str]) -> PublicKey | None:
    """The public key that the first of ``chains`` (PEM) certifies; ``None`` without one, or for a key of another kind."""
    return as_public_key(x509.load_pem_x509_certificates(chains[0].encode())[0].public_key()) if chains else None


def served_chains(chains: Iterable[str]) -> tuple[str, ...]:
    """``chains`` (PEM) without their roots, which relying parties have (RFC 8555 section 9.1)."""
    return tuple(_without_roots(chain) for chain in chains)


def chain_pem(leaf: bytes, chain: str) -> str:
    """``leaf`` (DER) and its ``chain`` as strict PEM, leaf first (RFC 8555 section 9.1)."""
    return ssl.DER_cert_to_PEM_cert(leaf) + chain


def _without_roots(chain: str) -> str:
    certificates = x509.load_pem_x509_certificates(chain.encode())
    kept = [certificate for certificate in certificates if certificate.issuer != certificate.subject]
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in kept)


class IssuerSet:
    """Every active issuer, the preferred first, by name and id; of the ``retired`` ones the chains, by id.

    ``finishing`` are retired issuers whose keys are still there: they issue nothing, but answer for what they issued.
    """

    def __init__(
        self,
        issuers: Iterable[Issuer],
        *,
        retired: Mapping[str, tuple[str, ...]] | None = None,
        finishing: Iterable[Issuer] = (),
    ) -> None:
        self._preferred = tuple(issuers)
        #: Those who sign CRLs and certify OCSP responders.
        self.answering: Sequence[Issuer] = (*self._preferred, *finishing)
        self._chains = {**(retired or {}), **{issuer.id: issuer.chains for issuer in self._preferred}}
        self._by_name: Mapping[str, Issuer] = {issuer.identity.name: issuer for issuer in self._preferred}
        self._by_id: Mapping[str, Issuer] = {issuer.id: issuer for issuer in self._preferred}

    def __iter__(self) -> Iterator[Issuer]:
        return iter(self._preferred)

    def get(self, issuer_id: str) -> Issuer | None:
        """The active issuer with the id (hex of its subject key identifier)."""
        return self._by_id.get(issuer_id)

    def chains(self, issuer_id: str) -> tuple[str, ...]:
        """The chains of an issuer, whether it still issues or not; none when it is not known."""
        return self._chains.get(issuer_id, ())

    def allowed(self, profile: Profile) -> Sequence[Issuer]:
        """The active issuers that ``profile`` may use, the preferred first."""
        if not profile.issuers:
            return self._preferred
        return [self._by_name[name] for name in profile.issuers if name in self._by_name]

    def choose(self, profile: Profile, key_type: str) -> Issuer:
        """The issuer for a certificate with ``profile`` and a key of ``key_type``.

        Among the issuers that the profile allows, one whose own key is of the same family wins, so that an RSA client
        meets an RSA chain; else the preferred one.

        Raises:
            ProfileRefusedError: none of the issuers that the profile names is active.
        """
        allowed = self.allowed(profile)
        if not allowed:
            raise ProfileRefusedError(
                f"No issuer of profile {profile.name} is active.",
                hint="The operator of this authority must activate one.",
            )
        family = key_type.partition("-")[0]
        for issuer in allowed:
            if issuer.identity.key_type.partition("-")[0] == family:
                return issuer
        return allowed[0]
