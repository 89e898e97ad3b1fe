"""Checking what a restore may leave behind: certificates that are known by their entries only.

That a certificate is gone is right only when its entry is one of those that a restore brought back, which an entry
``authority.restored`` says. Otherwise somebody has removed it.
"""

from typing import Final

from privyseal_ca.ledger.audit_errors import wrong, wrong_about
from privyseal_ca.ledger.entries import Kind, Payload

_CA: Final = "is for a certificate that no issuer has"
_LEAF: Final = "has a row without the certificate, and no restore brought the entry back"


class RestoreAudit:
    """What the entries so far say of restores."""

    def __init__(self) -> None:
        #: Begin and end of what each restore brought back.
        self._restored: list[tuple[int, int]] = []
        #: The index of the newest entry, and how many certificates were gone then: some of them may be back since, no others
        #: may be gone.
        self._newest = (0, 0)
        #: Index and serial of certificates that are gone, and index and hash of those of CAs.
        self._certificates: list[tuple[int, str]] = []
        self._cas: list[tuple[int, str]] = []

    @property
    def lost(self) -> int:
        """How many certificates are known by their entries only."""
        return len(self._certificates)

    def restored(self, index: int, payload: Payload, root: bytes) -> None:
        """``authority.restored`` behind a ledger with ``root``."""
        first, end = payload["from_size"], payload["to_size"]
        if not 0 <= first <= end == index or payload["root"] != root.hex():
            raise wrong(
                index, f"({Kind.AUTHORITY_RESTORED}) says what cannot be: entries {first} to {end} were brought back"
            )
        self._restored.append((first, end))
        self._newest = index, int(payload["lost"])

    def certificate_lost(self, index: int, serial: str) -> None:
        """The row of ``certificate.issued`` at ``index`` has no certificate."""
        self._certificates.append((index, serial))

    def ca_lost(self, index: int, fingerprint: str) -> None:
        """No issuer has the certificate of ``issuer.certified`` at ``index``."""
        self._cas.append((index, fingerprint))

    def compare(self) -> None:
        """Raise for the first that no restore explains."""
        for index, serial in self._certificates:
            if not self._explained(index):
                raise wrong_about(index, Kind.ISSUED, serial, _LEAF)
        for index, _ in self._cas:
            if not self._explained(index):
                raise wrong(index, f"({Kind.ISSUER_CERTIFIED}) {_CA}")
        index, said = self._newest
        if self.lost > said:
            raise wrong(
                index, f"({Kind.AUTHORITY_RESTORED}) says that {said} certificates were lost, and {self.lost} are"
            )

    def _explained(self, index: int) -> bool:
        return any(first <= index < end for first, end in self._restored)
