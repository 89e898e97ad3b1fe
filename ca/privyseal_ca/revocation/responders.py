"""The delegated OCSP responders and their certificates (RFC 6960 section 4.2.2.2).

Each issuer has one. Its key is in the issuer's token; its certificate lives for days, is renewed at half of that, and says
that nobody need ask whether it is revoked. A response never outlives the certificate of its signer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privyseal_ca.clock import Clock
from privyseal_ca.errors import PrivySealError
from privyseal_ca.hsm.signer import PublicKey, SigningKey
from privyseal_ca.issuance.authority import Authority, Requester
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.issuance.profile import Profile, own_profile
from privyseal_ca.issuance.template import MAX_COMMON_NAME, CertificateRequest
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.policy.keys import key_type
from privyseal_ca.revocation.ocsp_request import CERT_ID_HASHES
from privyseal_ca.revocation.ocsp_response import Statement, issuer_hashes, sign_responses
from privyseal_ca.revocation.published import OcspQuery
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.certificates import CertificateRow
from privyseal_ca.store.engine import Store
from privyseal_ca.store.ocsp import ResponderRow, all_responders, certify_responder
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("ocsp")

PROFILE_NAME: Final = "ocsp-responder"
_COMMON_NAME_SUFFIX: Final = " OCSP responder"
_BACKDATE: Final = 3600
#: A responder whose certificate ends sooner, in seconds, signs no more.
_LAST_MOMENTS: Final = 60
_OCSP_SIGNING: Final = "1.3.6.1.5.5.7.3.9"


@dataclass(frozen=True, slots=True)
class Responder:
    """A responder with a certificate that is valid now. Times are seconds since the epoch."""

    issuer: Issuer
    key: SigningKey
    certificate: x509.Certificate
    not_after: int
    cert_ids: Mapping[str, tuple[bytes, bytes]]
    """issuerNameHash and issuerKeyHash of the issuer, by the name of the hash."""

    def query(self, hash_name: str, serial: int) -> OcspQuery:
        """The CertID of one of the issuer's certificates."""
        return OcspQuery(hash_name, *self.cert_ids[hash_name], serial)

    async def sign(self, statements: Sequence[Statement]) -> list[bytes]:
        """A signed response (DER) for each of ``statements``, made in one go in the token.

        Raises the errors of :meth:`privyseal_ca.hsm.signer.SigningKey.run`.
        """
        return await self.key.run(
            lambda private: sign_responses(private, responder=self.certificate, statements=statements)
        )


class Responders:
    """The responder of each issuer that has a key for one.

    ``issuers`` are those whose own keys can be used, ``keys`` the responders' keys by the id of their issuer.
    """

    def __init__(
        self,
        *,
        store: Store,
        authority: Authority,
        issuers: Sequence[Issuer],
        keys: Mapping[str, SigningKey],
        settings: StatusSettings,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._authority = authority
        self._issuers = {issuer.id: issuer for issuer in issuers if issuer.id in keys}
        self._keys = {issuer_id: keys[issuer_id] for issuer_id in self._issuers}
        self._lifetime = settings.responder_lifetime
        self._profile = responder_profile(settings.responder_lifetime)
        self._clock = clock
        self._random_bytes = random_bytes
        self._metrics = metrics
        self._current: dict[str, Responder] = {}

    def __contains__(self, issuer_id: str) -> bool:
        """Whether the issuer has a responder here, be it usable now or not."""
        return issuer_id in self._issuers

    def find(self, issuer_id: str) -> Responder | None:
        """The issuer's responder, when its token is there and its certificate has some time left."""
        responder = self._current.get(issuer_id)
        if responder is None or not responder.key.available:
            return None
        return responder if responder.not_after >= self._clock.now() + _LAST_MOMENTS else None

    def usable(self) -> list[Responder]:
        """Every responder that :meth:`find` would give."""
        return [responder for issuer_id in self._issuers if (responder := self.find(issuer_id)) is not None]

    async def renew_due(self) -> int:
        """Take up the certificates in the database, and issue those that are missing or at half their life; how many.

        What cannot be issued now is logged and tried again by the next call; until then the certificate before serves.

        Raises:
            StoreError: the database cannot be read.
        """
        rows = {row.issuer_id: row for row in await self._store.read(all_responders)}
        renewed = 0
        for issuer_id, issuer in self._issuers.items():
            row = rows.get(issuer_id)
            if row is not None and row.der is not None:
                self._take_up(issuer, row.der)
            if self._is_due(issuer):
                try:
                    self._take_up(issuer, await self._issue(issuer))
                    renewed += 1
                except PrivySealError as error:
                    _log.warning("no new OCSP responder certificate", issuer=issuer.identity.name, error=str(error))
        return renewed

    def _take_up(self, issuer: Issuer, der: bytes) -> None:
        """Use the certificate ``der`` from now on, if it is the issuer's for the key that is there."""
        key = self._keys[issuer.id]
        certificate = x509.load_der_x509_certificate(der)
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        if authority != issuer.identity.key_id or _spki(certificate.public_key()) != _spki(key.public_key):  # type: ignore[arg-type]  # keys of other kinds have another SPKI
            return
        not_after = int(certificate.not_valid_after_utc.timestamp())
        current = self._current.get(issuer.id)
        if current is None or current.not_after <= not_after or self._is_early(current):
            cert_ids = {name: issuer_hashes(issuer.identity.certificate, name) for name in CERT_ID_HASHES}
            self._current[issuer.id] = Responder(issuer, key, certificate, not_after, cert_ids)
            self._metrics.ocsp_responder_not_after.labels(issuer.identity.name).set(not_after)

    def _is_due(self, issuer: Issuer) -> bool:
        """Whether less than half of the lifetime is left, and a new certificate would end later."""
        current = self._current.get(issuer.id)
        if current is None or self._is_early(current):
            return True
        now = self._clock.now()
        end = min(int(now) + self._lifetime - 1, issuer.identity.not_after)
        return current.not_after - now < self._lifetime / 2 and end > current.not_after

    def _is_early(self, responder: Responder) -> bool:
        """Whether its certificate is not valid yet, because a clock that was ahead made it."""
        return responder.certificate.not_valid_before_utc.timestamp() > self._clock.now()

    async def _issue(self, issuer: Issuer) -> bytes:
        key = self._keys[issuer.id]
        spki = _spki(key.public_key)
        request = CertificateRequest(
            profile=self._profile,
            names=(),
            public_key=key.public_key,
            spki_der=spki,
            spki_sha256=sha256(spki).digest(),
            key_type=key_type(key.public_key),
            common_name=common_name(issuer.identity.name),
        )
        requester = Requester(actor=SERVICE_ACTOR, correlation=self._random_bytes(16).hex(), purpose=PROFILE_NAME)
        row = await self._authority.issue(
            request, requester, claim=lambda _: None, complete=partial(_certified, issuer.id, key.uri), issuer=issuer
        )
        _log.info("OCSP responder certificate in use", issuer=issuer.identity.name, serial=row.serial)
        return row.der


def responder_profile(lifetime: int) -> Profile:
    """The profile of responders' certificates that live for ``lifetime`` seconds."""
    return own_profile(
        PROFILE_NAME,
        "OCSP responders of this authority",
        lifetime=lifetime,
        backdate=_BACKDATE,
        key_types={"ec-p256", "ec-p384", "rsa"},
        extended_key_usage=_OCSP_SIGNING,
        ocsp_no_check=True,
    )


def common_name(issuer_name: str) -> str:
    """The subject of a responder's certificate."""
    return issuer_name[: MAX_COMMON_NAME - len(_COMMON_NAME_SUFFIX)] + _COMMON_NAME_SUFFIX


def _certified(issuer_id: str, key_uri: str, transaction: Transaction, row: CertificateRow) -> None:
    certify_responder(transaction, ResponderRow(issuer_id, key_uri, row.der, row.not_after))


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
