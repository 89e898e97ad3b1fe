"""CRLs that were published, as evidence: what they list was revoked, and their numbers were used (promise P8).

A CRL counts when a CA of this database has signed it. It is read in pieces by the reader that audits use.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.errors import BackupError, LedgerBehindError
from privyseal_ca.ledger.crl_reader import CrlReader, Listed, MalformedCrlError
from privyseal_ca.recovery.outside import is_url
from privyseal_ca.store.certificates import find_revocation
from privyseal_ca.store.crls import find_crl, newest_part
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.statement import Transaction
from privyseal_ca.web.fetching import Bounds, fetch, new_session

#: Says that issuers of which no CRL is given never published one.
NONE: Final = "none"
#: Octets of one CRL, about 1.5 million entries, and seconds in which it has to arrive.
_MAX_CRL: Final = 64 << 20
_SECONDS: Final = 120.0
_PIECE: Final = 256 << 10
_PART: Final = re.compile(r"/crl/[0-9a-f]+/(?P<part>[0-9]{1,9})\.crl")
_FULL: Final = "full"
_PAGE: Final = 1000
_MAX_NUMBER: Final = 2**53 - 1


class Ca(NamedTuple):
    """A CA whose certificate is here, and whether its key is as well, so that its revocations are this database's."""

    id: str
    name: str
    own: bool
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class ShownCrl:
    """A CRL that was given, verified."""

    place: str
    issuer: Ca
    scope: str
    number: int
    listed: Sequence[Listed]
    der: bytes

    @property
    def shard(self) -> int | None:
        """The part that it is; None for one that has everything."""
        return None if self.scope == _FULL else int(self.scope)


def all_cas(transaction: Transaction) -> list[Ca]:
    """Every CA in the chains of this database's issuers, once for each of its certificates."""
    rows = {row.id: row for row in all_issuers(transaction)}
    found: dict[bytes, Ca] = {}
    for row in rows.values():
        for pem in chains(transaction, row.id):
            for certificate in x509.load_pem_x509_certificates(pem.encode()):
                extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
                identifier = extension.value.digest.hex()
                own = rows.get(identifier)
                name = own.name if own else certificate.subject.rfc4514_string()
                found[certificate.tbs_certificate_bytes] = Ca(identifier, name, own is not None, certificate)
    return list(found.values())


async def read_crls(store: Store, places: Sequence[str]) -> list[ShownCrl]:
    """The CRLs at ``places``, files or URLs.

    Raises:
        BackupError: one cannot be read, is no complete CRL, or no CA of this database has signed it.
        StoreError: the database failed.
    """
    cas = await store.read(all_cas)
    shown = []
    async with new_session() as session:
        for place in places:
            if is_url(place):
                bounds = Bounds(keep=_MAX_CRL, most=_MAX_CRL, seconds=_SECONDS)
                fetched = await fetch(session, place, bounds)
                if fetched.body is None:
                    raise BackupError(f"The CRL {place} {fetched.failure}.", hint="Give it as a file.")
                content = fetched.body
            else:
                content = await asyncio.to_thread(_read, Path(place))
            shown.append(await asyncio.to_thread(_parse, place, content, cas))
    return shown


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CRL + 1)
    except OSError as error:
        raise BackupError(f"The CRL {path} cannot be read: {error.strerror}.", hint="Check its name.") from error
    if len(content) > _MAX_CRL:
        raise BackupError(f"The CRL {path} has more than {_MAX_CRL} octets.", hint="Give a CRL.")
    return content


def _parse(place: str, content: bytes, cas: Sequence[Ca]) -> ShownCrl:
    der = content
    try:
        if content.lstrip().startswith(b"-----BEGIN"):
            der = x509.load_pem_x509_crl(content).public_bytes(Encoding.DER)
        reader, listed = CrlReader(), list[Listed]()
        for at in range(0, len(der), _PIECE):
            listed += reader.feed(der[at : at + _PIECE])
        outline = reader.finish()
    except (MalformedCrlError, ValueError, x509.InvalidVersion) as error:
        raise BackupError(f"{place} holds no CRL that can be read.", hint="Give one CRL, DER or PEM.") from error
    issuer = next(
        (ca for ca in cas if ca.certificate.subject == outline.issuer and reader.signed_by(outline, ca.certificate)),
        None,
    )
    if issuer is None:
        raise BackupError(
            f"No CA of this database has signed the CRL {place}.", hint="Give the CRLs of this authority."
        )
    number, scope = _outline(place, outline)
    return ShownCrl(place, issuer, scope, number, listed, der)


def _outline(place: str, crl: x509.CertificateRevocationList) -> tuple[int, str]:
    """crlNumber and scope."""
    values = {type(extension.value): extension.value for extension in crl.extensions}
    number = values.get(x509.CRLNumber)
    if not isinstance(number, x509.CRLNumber) or not 0 < number.crl_number <= _MAX_NUMBER:
        raise BackupError(f"The CRL {place} has no crlNumber.", hint="Give the CRLs of this authority.")
    if x509.DeltaCRLIndicator in values:
        raise BackupError(f"{place} is a delta CRL.", hint="Give the complete one.")
    point = values.get(x509.IssuingDistributionPoint)
    if not isinstance(point, x509.IssuingDistributionPoint):
        return number.crl_number, _FULL
    names = [str(name.value) for name in point.full_name or ()]
    part = _PART.search(names[0]) if len(names) == 1 else None
    if part is None:
        raise BackupError(f"The CRL {place} is a part that this authority does not make.", hint="Give its own CRLs.")
    return number.crl_number, part["part"]


async def require_known(store: Store, shown: Sequence[ShownCrl], unsigned: Mapping[tuple[str, str], int]) -> None:
    """Look whether the database knows the number of every CRL, and has revoked what it lists.

    ``unsigned`` are numbers by issuer and scope that entries say were used, beside those that the tables have.

    Raises:
        LedgerBehindError: it does not.
        StoreError: the database failed.
    """
    for crl in shown:
        known = max(await store.read(partial(highest_number, crl=crl)), unsigned.get((crl.issuer.id, crl.scope), 0))
        if crl.number > known:
            raise LedgerBehindError(
                f"The database is behind: the CRL {crl.place} of {crl.issuer.name} (scope {crl.scope}) has the number "
                f"{crl.number}, and the highest that the database knows is {known}.",
                hint="Its entry is missing: give a newer checkpoint with --checkpoint and the entries up to it with --entries.",
            )
        if crl.issuer.own and (missing := await unrevoked(store, crl)):
            raise LedgerBehindError(
                f"The database is behind: the CRL {crl.place} of {crl.issuer.name} lists {len(missing)} serials that are not "
                f"revoked here, such as {missing[0].serial}.",
                hint="Give a newer checkpoint with --checkpoint and the entries up to it with --entries.",
            )


def highest_number(transaction: Transaction, crl: ShownCrl) -> int:
    """The highest number that the tables have for the scope of ``crl``."""
    row = find_crl(transaction, crl.issuer.id, crl.scope)
    return max(row.number if row else 0, newest_part(transaction, crl.issuer.id, crl.scope))


async def unrevoked(store: Store, crl: ShownCrl) -> list[Listed]:
    """What ``crl`` lists and the database has not revoked."""

    def page(begin: int, transaction: Transaction) -> list[Listed]:
        part = crl.listed[begin : begin + _PAGE]
        return [each for each in part if find_revocation(transaction, crl.issuer.id, each.serial) is None]

    missing: list[Listed] = []
    for begin in range(0, len(crl.listed), _PAGE):
        missing += await store.read(partial(page, begin))
    return missing
