"""Comparing the CRLs that are served with what the log says was revoked.

A CRL is read piece by piece. What is kept of it are its serials that the log revokes, about 100 bytes each, to see that none is
missing. Nothing of it is believed before its signature was verified, and nothing that it says makes this use more memory.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from privyseal_ca.clock import CLOCK_STEP, rfc3339
from privyseal_ca.ledger.crl_reader import CrlReader, Listed, MalformedCrlError
from privyseal_ca.outside.anchors import Anchors
from privyseal_ca.outside.crl_reading import StrangeCrlReader
from privyseal_ca.outside.findings import Code, Finding, FindingError
from privyseal_ca.outside.pem import crls_in_bundle
from privyseal_ca.outside.replay import Listed as Recorded
from privyseal_ca.outside.replay import Published, Replay
from privyseal_ca.outside.source import HttpLedger

FULL: Final = "full"
#: A CRL of ten million entries.
_MOST: Final = 1 << 30
#: As long may a CRL be beside what the log says that it lists, in octets: there may be news of a million more. And for each entry.
_NEWS: Final = 64 << 20
_OCTETS: Final = 128
#: An id of a CA (a subject key identifier is 20 octets long), and a serial number as it stands in a message.
_MAX_ID: Final = 128
_SHOWN: Final = 64
_BUNDLE: Final = "crls.pem"
_SECONDS: Final = 1800.0
#: How long after a CRL was made an older one may still be served: publication and caches take a moment.
_BEHIND: Final = 600
#: RFC 5280 section 5.2.3: at most 20 octets.
_NUMBER_BITS: Final = 160


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
        listing = _Listing(replay.listed.get(issuer, {}))
        most = min(_MOST, _NEWS + _OCTETS * len(listing.recorded))
        try:
            reader, crl = await _read(self._source.pieces(f"crl/{issuer}.crl", most, seconds=_SECONDS), listing, issuer)
            number, this_update = self._outline(crl, issuer)
            await self._verify(reader, crl, issuer)
            published = self._published(issuer, number)
            self._compare_entry(issuer, published, reader, crl)
        except MalformedCrlError as error:
            return [Finding(Code.CRL, f"The CRL of {issuer} is malformed: {error}.")]
        except FindingError as error:
            return [error.finding]
        # A CA whose key is elsewhere lists what only it knows of.
        found = listing.judge(published, this_update, issuer, ours=issuer in replay.cas)
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
                if not 0 < len(issuer) <= _MAX_ID:
                    found.append(Finding(Code.CRL, f"A CRL in {self._source.base_url}/{_BUNDLE} names no CA."))
                    continue
                try:
                    self._outline(crl, issuer)
                    await self._verify(reader, crl, issuer)
                    self.checked += 1
                except FindingError as error:
                    found.append(error.finding)
        except MalformedCrlError as error:
            found.append(Finding(Code.CRL, f"A CRL in {self._source.base_url}/{_BUNDLE} is malformed: {error}."))
        return found

    def _outline(self, crl: x509.CertificateRevocationList, issuer: str) -> tuple[int, int]:
        """Number and thisUpdate.

        Raises:
            FindingError: it lacks one or its end, is another CA's or not complete, or begins in the future.
        """
        extensions = {type(extension.value): extension.value for extension in crl.extensions}
        number = extensions.get(x509.CRLNumber)
        end = crl.next_update_utc
        if not isinstance(number, x509.CRLNumber) or end is None or not 0 <= number.crl_number < 1 << _NUMBER_BITS:
            raise FindingError(Code.CRL, f"The CRL of {issuer} has no end, or no number that one can have.")
        if _issuer_of(crl) != issuer or {x509.DeltaCRLIndicator, x509.IssuingDistributionPoint} & extensions.keys():
            raise FindingError(
                Code.CRL, f"What is served as the CRL of {issuer} is another CA's, or not a complete one."
            )
        this_update = int(crl.last_update_utc.timestamp())
        if this_update > self._now() + CLOCK_STEP:
            raise FindingError(Code.CRL, f"The CRL {number.crl_number} of {issuer} begins in the future.")
        return number.crl_number, this_update

    async def _verify(self, reader: CrlReader, crl: x509.CertificateRevocationList, issuer: str) -> None:
        """Raises FindingError when it is not signed by that CA, or is past its end while the CA is not."""
        signer = next((ca for ca in await self._anchors.of(issuer) if _signed(reader, crl, ca)), None)
        if signer is None:
            raise FindingError(Code.CRL, f"The CRL of {issuer} is not signed by that CA.")
        end, now = crl.next_update_utc, self._now()
        # A CA that has ended signs no more.
        if end is not None and end.timestamp() < now <= signer.not_valid_after_utc.timestamp():
            raise FindingError(Code.CRL, f"The CRL of {issuer} is past its end, {rfc3339(end.timestamp())}.")

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


class _Listing:
    """What a CRL lists, against what the entries say that was revoked."""

    def __init__(self, recorded: Mapping[bytes, Recorded]) -> None:
        self.recorded = recorded
        self._listed: set[bytes] = set()
        #: The youngest of those that are listed.
        self._youngest: Recorded | None = None
        #: The first that no entry revokes, and the first with another time or reason than its entry says.
        self._unknown: str | None = None
        self._other: str | None = None

    def take(self, listed: Listed) -> None:
        """Look at one of its entries.

        Raises:
            MalformedCrlError: it is there twice.
        """
        serial = _octets(listed.serial)
        known = self.recorded.get(serial)
        if known is None:
            self._unknown = self._unknown or listed.serial[:_SHOWN]
            return
        if serial in self._listed:
            raise MalformedCrlError(f"it lists the serial {listed.serial} twice")
        self._listed.add(serial)
        if (listed.revoked_at, listed.reason) != (known.revoked_at, known.reason):
            self._other = self._other or listed.serial
        if self._youngest is None or known.index > self._youngest.index:
            self._youngest = known

    def judge(self, published: Published, this_update: int, issuer: str, *, ours: bool) -> list[Finding]:
        """Nothing is listed that was not revoked, and nothing that was revoked is missing (RFC 5280 section 5).

        Not ``ours`` is a CRL of which only that is known which is revoked here.
        """
        through = published.said["through"]
        name = f"The CRL {published.said['number']} of {issuer}"
        if ours and self._unknown is not None:
            return [
                Finding(Code.CRL, f"{name} lists the serial {self._unknown}, which no entry before {through} revokes.")
            ]
        if ours and self._youngest is not None and self._youngest.index >= through:
            index = self._youngest.index
            return [
                Finding(Code.CRL, f"{name} lists what no entry before {through} revokes: entry {index} does.", index)
            ]
        if self._other is not None:
            index = self.recorded[_octets(self._other)].index
            said = f"{name} lists the serial {self._other} with another time or reason than entry {index} says."
            return [Finding(Code.CRL, said, index)]
        for serial, known in self.recorded.items():
            if serial not in self._listed and known.not_after >= this_update:
                said = f"{name} does not list the serial {serial.hex()}, which entry {known.index} revokes"
                if known.index < through:
                    return [Finding(Code.CRL, f"{said}.", known.index)]
                # What it covers is for the CA to say, but not that it leaves out what was long known when it was made.
                if ours and known.index < published.index and known.revoked_at < this_update - _BEHIND:
                    said += f" at {rfc3339(known.revoked_at)}: it was made at {rfc3339(this_update)}."
                    return [Finding(Code.CRL, said, known.index)]
        return []


async def _read(
    pieces: AsyncIterator[bytes], listing: _Listing, issuer: str
) -> tuple[CrlReader, x509.CertificateRevocationList]:
    """A CRL, whose entries go into ``listing``. Raises MalformedCrlError, and FindingError when there is none."""
    reader = StrangeCrlReader()
    async for piece in pieces:
        for listed in reader.feed(piece):
            listing.take(listed)
    if not reader.size:
        raise FindingError(Code.CRL, f"The CRL of {issuer} is not served, although the log says that it was published.")
    return reader, reader.finish()


def _octets(serial: str) -> bytes:
    """A serial number of a CRL as entries have it; empty for one that none of them can have, such as a negative one."""
    try:
        return bytes.fromhex(serial) if len(serial) == 32 else b""
    except ValueError:
        return b""


def _signed(reader: CrlReader, crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    try:
        return reader.signed_by(crl, ca)
    except (ValueError, UnsupportedAlgorithm):
        # The certificate's key is none, or of a kind that nobody signs CRLs with.
        return False


def _issuer_of(crl: x509.CertificateRevocationList) -> str:
    """The id of the CA that a CRL names (RFC 5280 section 5.2.1); empty when it names none."""
    for extension in crl.extensions:
        if isinstance(extension.value, x509.AuthorityKeyIdentifier):
            return (extension.value.key_identifier or b"").hex()
    return ""
