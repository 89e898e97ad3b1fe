"""Certificates: download and revocation (RFC 8555 sections 7.4.2 and 7.6)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson
from cryptography import x509

from privyseal_acme.flow.blocked import end_accounts_of_key
from privyseal_acme.flow.context import Context
from privyseal_acme.flow.renewal import RenewalFlow
from privyseal_acme.protocol.encoding import decode
from privyseal_acme.protocol.keys import AccountKey
from privyseal_acme.protocol.messages import RevokeCert
from privyseal_acme.protocol.problems import malformed, unauthorized
from privyseal_acme.store import authorizations
from privyseal_acme.store.accounts import AccountRow
from privyseal_ca.issuance.issuers import chain_pem
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.revocation.lost import adopt, is_certificate_of, is_lost
from privyseal_ca.revocation.revoke import KEY_COMPROMISE, SUBSCRIBER_REASONS, revoke_with_key
from privyseal_ca.store.certificates import (
    CertificateRow,
    find_certificate,
    find_der,
)
from privyseal_ca.store.statement import Transaction

_MAX_CERTIFICATE = 65_536


@dataclass(frozen=True, slots=True)
class Chain:
    """A certificate with one of its chains."""

    pem: str
    #: How many chains there are.
    count: int


class CertificateFlow:
    """What can be done with certificates. ``announce`` is told the serials that were revoked, once that is durable."""

    def __init__(self, context: Context, announce: Callable[[Iterable[str]], None]) -> None:
        self._context = context
        self._announce = announce
        #: When they are to be renewed.
        self.renewal = RenewalFlow(context)

    async def chain(self, account: AccountRow, serial: str, index: int) -> Chain:
        """The certificate with its chain at ``index`` as PEM.

        Raises:
            Problem: malformed with status 404 when there is none, unauthorized when it is another account's.
        """
        found = await self._context.store.read(lambda tx: find_der(tx, serial))
        if found is None:
            raise malformed("There is no such certificate.", status=404)
        der, issuer_id, requester = found
        if requester != account.actor:
            raise unauthorized("The certificate belongs to another account.")
        if not der:
            raise malformed("The certificate was lost when this server was restored: order it anew.", status=404)
        chains = self._context.authority.issuers.chains(issuer_id)
        if index >= len(chains):
            raise malformed("The certificate has no such chain.", status=404)
        return Chain(chain_pem(der, chains[index]), len(chains))

    async def revoke(
        self, message: RevokeCert, *, account: AccountRow | None, key: AccountKey | None, correlation: str
    ) -> None:
        """revokeCert by the account that it was issued to, by one that holds all its names, or by its key (section 7.6).

        keyCompromise takes the key's other certificates along, and an account that signs with the same key.
        """
        context = self._context
        certificate, der = _parse_certificate(message.certificate)
        now = context.clock.now()

        def unit(transaction: Transaction) -> list[str]:
            row = find_certificate(transaction, serial_text(certificate.serial_number))
            if row is None or not is_certificate_of(transaction, row, der):
                raise malformed("The certificate was not issued here.", status=404)
            if is_lost(row):
                row = adopt(transaction, row, der)
            reasons = SUBSCRIBER_REASONS
            if account is None:
                if key is None or key.spki_sha256 != row.spki_sha256:
                    raise unauthorized("The key that signed the request is not the certificate's.")
            elif row.requester != account.actor:
                _check_holds_names(transaction, account, row, int(now))
                # keyCompromise blocks the key, which is not theirs to say who hold the names only.
                reasons -= {KEY_COMPROMISE}
            rows = revoke_with_key(
                transaction,
                row,
                reason=message.reason,
                allowed_reasons=reasons,
                actor="certificate-key" if account is None else account.actor,
                correlation=correlation,
                now=now,
            )
            if message.reason == KEY_COMPROMISE:
                end_accounts_of_key(transaction, row.spki_sha256, correlation=correlation, now=now)
            return [revoked.serial for revoked in rows]

        serials = await context.store.write(unit)
        context.metrics.revoked.inc(len(serials))
        self._announce(serials)


def _parse_certificate(text: str) -> tuple[x509.Certificate, bytes]:
    try:
        der = decode(text)
        if len(der) > _MAX_CERTIFICATE:
            raise ValueError("too long")
        return x509.load_der_x509_certificate(der), der
    except (ValueError, x509.InvalidVersion):
        raise malformed("The certificate is not DER in base64url.") from None


def _check_holds_names(transaction: Transaction, account: AccountRow, row: CertificateRow, now: int) -> None:
    """The account must hold a valid authorization for every name (section 7.6)."""
    refused = unauthorized("The account neither ordered the certificate nor holds authorizations for all its names.")
    names = orjson.loads(row.names)
    if not names:
        # Of a certificate without names, such as one of the authority's own, everybody would hold all.
        raise refused
    for text in names:
        kind, _, value = text.partition(":")
        wildcard = value.startswith("*.")
        held = authorizations.find_usable(
            transaction,
            account.id,
            identifier_type=kind,
            value=value.removeprefix("*."),
            wildcard=wildcard,
            until=now,
            only_reusable=False,
        )
        if held is None:
            raise refused
