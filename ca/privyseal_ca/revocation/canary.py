"""Canaries: certificates that are issued in order to be revoked, so that one sees whether revocations become visible.

A canary is revoked in the transaction that records it, and its private key is dropped before that: there is never one that
anybody could use. The newest of each issuer is kept; a watcher looks for it in what is served.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privyseal_ca.clock import Clock
from privyseal_ca.errors import PrivySealError
from privyseal_ca.issuance.authority import Authority, Requester
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.issuance.profile import EXTENDED_KEY_USAGES, Profile, own_profile
from privyseal_ca.issuance.template import CertificateRequest
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.revocation.published import Canary
from privyseal_ca.revocation.revoke import ADMINISTRATOR_REASONS, revoke_certificate
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.canaries import CanaryRow, canaries, set_canary
from privyseal_ca.store.certificates import CertificateRow
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("revocation")

_COMMON_NAME: Final = "revocation canary"
_KEY_TYPE: Final = "ec-p256"
_BACKDATE: Final = 120


class Canaries:
    """Keeps a canary of every issuer that issues."""

    def __init__(
        self,
        *,
        store: Store,
        authority: Authority,
        issuers: Iterable[Issuer],
        settings: StatusSettings,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._authority = authority
        self._issuers = tuple(issuers)
        self._profile = canary_profile(settings.canary_lifetime)
        self._clock = clock
        self._random_bytes = random_bytes

    async def renew_due(self) -> int:
        """Issue and revoke a canary for each active issuer that has none or whose is past half of its life; how many.

        Raises:
            PrivySealError: one could not be issued. All others were; the next call tries again.
        """
        due = await self._due()
        failure: PrivySealError | None = None
        for issuer in due:
            try:
                await self._renew(issuer)
            except PrivySealError as error:
                failure = error
        if failure is not None:
            raise failure
        return len(due)

    async def current(self) -> Sequence[Canary]:
        """The canaries that are to be seen as revoked now.

        Raises:
            StoreError: the database failed.
        """
        return await current_canaries(self._store, self._clock)

    async def _due(self) -> list[Issuer]:
        known = {row.issuer_id: row for row in await self._store.read(canaries)}
        now = self._clock.now()

        def is_due(issuer: Issuer) -> bool:
            row = known.get(issuer.id)
            if row is None:
                return True
            # One that ends with its issuer is the last.
            return row.not_after < issuer.identity.not_after and now >= (row.issued_at + row.not_after) / 2

        # A retired issuer answers for what it issued, and issues nothing.
        active = (issuer for issuer in self._issuers if self._authority.issuers.get(issuer.id) is not None)
        return [issuer for issuer in active if is_due(issuer)]

    async def _renew(self, issuer: Issuer) -> None:
        public_key = ec.generate_private_key(ec.SECP256R1()).public_key()
        spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        request = CertificateRequest(
            profile=self._profile,
            names=(),
            public_key=public_key,
            spki_der=spki,
            spki_sha256=sha256(spki).digest(),
            key_type=_KEY_TYPE,
            common_name=_COMMON_NAME,
        )
        correlation = self._random_bytes(16).hex()

        def complete(transaction: Transaction, certificate: CertificateRow) -> None:
            revocation = revoke_certificate(
                transaction,
                certificate,
                reason=None,
                allowed_reasons=ADMINISTRATOR_REASONS,
                actor=SERVICE_ACTOR,
                correlation=correlation,
                now=self._clock.now(),
            )
            set_canary(
                transaction,
                CanaryRow(
                    issuer_id=certificate.issuer_id,
                    serial=certificate.serial,
                    crl_shard=certificate.crl_shard,
                    issued_at=revocation.revoked_at,
                    revoked_at=revocation.revoked_at,
                    not_after=certificate.not_after,
                ),
            )

        row = await self._authority.issue(
            request,
            Requester(actor=SERVICE_ACTOR, correlation=correlation, purpose="canary"),
            claim=lambda _: None,
            complete=complete,
            issuer=issuer,
        )
        _log.info("canary issued and revoked", issuer=issuer.identity.name, serial=row.serial)


async def current_canaries(store: Store, clock: Clock) -> Sequence[Canary]:
    """The canaries in ``store``, which may be open for reading only, less those that expired and leave the CRLs.

    Raises:
        StoreError: the database failed.
    """
    now = clock.now()
    return [
        Canary(row.issuer_id, row.serial, row.crl_shard, row.issued_at, row.revoked_at)
        for row in await store.read(canaries)
        if now < row.not_after
    ]


def canary_profile(lifetime: int) -> Profile:
    """The profile of canaries that live ``lifetime`` seconds."""
    return own_profile(
        "canary",
        "Issued in order to be revoked, so that revocations can be watched.",
        lifetime=lifetime,
        backdate=_BACKDATE,
        key_types={_KEY_TYPE},
        extended_key_usage=EXTENDED_KEY_USAGES["clientAuth"],
        ocsp=True,
        crl="shard",
    )
