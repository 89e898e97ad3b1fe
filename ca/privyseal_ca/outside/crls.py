"""Comparing the CRLs that are served with what the log says was revoked.

A CRL is read piece by piece. What is kept of it are its serials, about 300 bytes each, to see that none is missing.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from cryptography import x509

from privyseal_ca.clock import CLOCK_STEP, rfc3339
from privyseal_ca.ledger.crl_reader import CrlReader, Listed, MalformedCrlError
from privyseal_ca.outside.anchors import Anchors
from privyseal_ca.outside.findings import Code, Finding, FindingError
from privyseal_ca.outside.pem import crls_in_bundle
from privyseal_ca.outside.replay import Published, Replay
from privyseal_ca.outside.source import HttpLedger

FULL: Final = "full"
#: A CRL of ten million entries.
_MOST: Final = 1 << 30
_BUNDLE: Final = "crls.pem"
_SECONDS: Final = 1800.0
#: How long after a CRL was made an older one may still be served: publication and caches take a moment.
_BEHIND: Final = 600


class NewerCrlError(Exception):
    """The CRL that is served is newer than what was read of the log."""


class CrlCheck:
    """The CRLs below a base URL. ``replay`` is what the entries say; None where nobody gets them."""

    def __init__(self, source: HttpLedger, replay: Replay | None, now: Callable[[], float]) -> None:
        self._source = source
        self._replay = replay
        self._now = now
        self._anchors = Anchors(source, None if replay is None else replay.cas)
        #: How many were found right.
        self.checked = 0

    async def compare(self, issuer: str) -> list[Finding]:
        """Compare the full CRL of ``issuer`` with the entries.

        Raises:
            NewerCrlError: read on in the log, and come back.
            StatusUnavailableError, LedgerError: it cannot be read.
        """
        replay = self._replay
        if replay is None:
            return []
        pieces = self._source.pieces(f"crl/{issuer}.crl", _MOST, seconds=_SECONDS)
        serials: dict[str, Listed] = {}
        try:
            reader, crl = await _read(pieces, serials, issuer)
            number, this_update, _ = self._outline(crl, issuer)
            await self._verify(reader, crl, issuer)
            published = self._published(issuer, number)
            self._compare_entry(issuer, published, reader, crl)
        except MalformedCrlError as error:
            return [Finding(Code.CRL, f"The CRL of {issuer} is malformed: {error}.")]
        except FindingError as error:
            return [error.finding]
        found: list[Finding] = []
        if issuer in replay.cas:
            found = self._compare_serials(issuer, published, serials, this_update)
        self.checked += not found
        return found

    async def without_entries(self) -> list[Finding]:
        """Verify the signature and the dates of every full CRL.

        Raises:
            StatusUnavailableError, LedgerError: they cannot be read.
        """
        found: list[Finding] = []
        pieces = self._source.pieces(_BUNDLE, _MOST, seconds=_SECONDS)
        try:
            async for reader, crl in crls_in_bundle(pieces):
                issuer = _issuer_of(crl)
                try:
                    self._outline(crl, issuer)
                    await self._verify(reader, crl, issuer)
                    self.checked += 1
                except FindingError as error:
                    found.append(error.finding)
        except MalformedCrlError as error:
            found.append(Finding(Code.CRL, f"A CRL in {self._source.base_url}/{_BUNDLE} is malformed: {error}."))
        return found

    def _outline(self, crl: x509.CertificateRevocationList, issuer: str) -> tuple[int, int, int]:
        """Number, thisUpdate and nextUpdate.

        Raises:
            FindingError: it lacks one, is another CA's or not complete, or is past its end.
        """
        extensions = {type(extension.value): extension.value for extension in crl.extensions}
        number = extensions.get(x509.CRLNumber)
        end = crl.next_update_utc
        if not isinstance(number, x509.CRLNumber) or end is None:
            raise FindingError(Code.CRL, f"The CRL of {issuer} has no number or no end.")
        if _issuer_of(crl) != issuer or {x509.DeltaCRLIndicator, x509.IssuingDistributionPoint} & extensions.keys():
            raise FindingError(
                Code.CRL, f"What is served as the CRL of {issuer} is another CA's, or not a complete one."
            )
        this_update, next_update = int(crl.last_update_utc.timestamp()), int(end.timestamp())
        if next_update < self._now():
            raise FindingError(
                Code.CRL, f"The CRL {number.crl_number} of {issuer} is past its end, {rfc3339(next_update)}."
            )
        if this_update > self._now() + CLOCK_STEP:
            raise FindingError(Code.CRL, f"The CRL {number.crl_number} of {issuer} begins in the future.")
        return number.crl_number, this_update, next_update

    async def _verify(self, reader: CrlReader, crl: x509.CertificateRevocationList, issuer: str) -> None:
        if not any(reader.signed_by(crl, ca) for ca in await self._anchors.of(issuer)):
            raise FindingError(Code.CRL, f"The CRL of {issuer} is not signed by that CA.")

    def _published(self, issuer: str, number: int) -> Published:
        """The entry of the CRL with ``number``.

        Raises:
            NewerCrlError: it may be in what was not read yet.
            FindingError: there is none.
        """
        known: Sequence[Published] = () if self._replay is None else tuple(self._replay.crls.get((issuer, FULL), ()))
        if not known or number > known[-1].said["number"]:
            raise NewerCrlError
        newest = known[-1].said
        found = next((each for each in known if each.said["number"] == number), None)
        behind = f"The CRL {number} of {issuer} is older than the newest in the log, {newest['number']} (entry {known[-1].index})"
        if found is None:
            raise FindingError(Code.CRL, f"{behind}, and not one of those before it.", index=known[-1].index)
        if found is not known[-1] and self._now() - newest["this_update"] > _BEHIND:
            raise FindingError(
                Code.CRL, f"{behind}, which was made at {rfc3339(newest['this_update'])}.", index=known[-1].index
            )
        return found

    def _compare_entry(
        self, issuer: str, published: Published, reader: CrlReader, crl: x509.CertificateRevocationList
    ) -> None:
        said, number = published.said, published.said["number"]
        if reader.sha256.hexdigest() != said["sha256"]:
            raise FindingError(
                Code.CRL,
                f"The CRL {number} of {issuer} is not the one that entry {published.index} says: its hash is another.",
                index=published.index,
            )
        end = crl.next_update_utc
        times = int(crl.last_update_utc.timestamp()), 0 if end is None else int(end.timestamp())
        if times != (said["this_update"], said["next_update"]):
            raise FindingError(
                Code.CRL,
                f"The CRL {number} of {issuer} has other times than entry {published.index} says.",
                index=published.index,
            )

    def _compare_serials(
        self, issuer: str, published: Published, serials: dict[str, Listed], this_update: int
    ) -> list[Finding]:
        """Nothing is listed that was not revoked, and nothing that was revoked is missing (RFC 5280 section 5)."""
        replay = self._replay
        recorded = {} if replay is None else replay.listed.get(issuer, {})
        through, name = published.said["through"], f"The CRL {published.said['number']} of {issuer}"
        for serial, listed in serials.items():
            known = recorded.get(bytes.fromhex(serial)) if len(serial) == 32 else None
            if known is None or known.index >= through:
                return [
                    Finding(Code.CRL, f"{name} lists the serial {serial}, which no entry before {through} revokes.")
                ]
            if (listed.revoked_at, listed.reason) != (known.revoked_at, known.reason):
                return [
                    Finding(
                        Code.CRL,
                        f"{name} lists the serial {serial} with another time or reason than entry {known.index} says.",
                        index=known.index,
                    )
                ]
        for serial_bytes, known in recorded.items():
            if known.index < through and known.not_after >= this_update and serial_bytes.hex() not in serials:
                return [
                    Finding(
                        Code.CRL,
                        f"{name} does not list the serial {serial_bytes.hex()}, which entry {known.index} revokes.",
                        index=known.index,
                    )
                ]
        return []


async def _read(
    pieces: AsyncIterator[bytes], serials: dict[str, Listed], issuer: str
) -> tuple[CrlReader, x509.CertificateRevocationList]:
    """A CRL, whose entries go into ``serials``. Raises MalformedCrlError, and FindingError when there is none."""
    reader = CrlReader()
    async for piece in pieces:
        for listed in reader.feed(piece):
            if listed.serial in serials:
                raise MalformedCrlError(f"it lists the serial {listed.serial} twice")
            serials[listed.serial] = listed
    if not reader.size:
        raise FindingError(Code.CRL, f"The CRL of {issuer} is not served, although the log says that it was published.")
    return reader, reader.finish()


def _issuer_of(crl: x509.CertificateRevocationList) -> str:
    """The id of the CA that a CRL names (RFC 5280 section 5.2.1); empty when it names none."""
    for extension in crl.extensions:
        if isinstance(extension.value, x509.AuthorityKeyIdentifier):
            return (extension.value.key_identifier or b"").hex()
    return ""
