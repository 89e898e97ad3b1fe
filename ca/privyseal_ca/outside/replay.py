"""Going through the entries of a log with nothing but the entries: what each says has to follow from those before it.

What is kept: for each open intent what it says (some hundred bytes, and they are few), for each serial 16 bytes with its end (about 200 bytes of
memory), for each serial that was revoked or abandoned what a CRL has to say of it (about 300), and for each issuer and scope the newest
CRLs. Everything else is forgotten.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from privyseal_ca.clock import CLOCK_STEP
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.outside.facts import Fact, fact_of
from privyseal_ca.outside.findings import FindingError, wrong_entry

_FULL: Final = "full"
_ABANDONED_REASON: Final = 5
#: CRLs of one issuer and scope that are remembered, for a server that is a little behind.
_CRLS: Final = 8
#: Open intents, issuers, CAs and scopes that are remembered: far more than any authority has.
_MOST: Final = 100_000
#: Of the number that says what has become of a serial: where the end of the validity begins, and what is below.
_SHIFT: Final = 32
_MASK: Final = (1 << _SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Open:
    """An intent that nothing has followed yet."""

    index: int
    time: float
    said: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listed:
    """What a CRL has to say of a serial."""

    index: int
    revoked_at: int
    #: CRLReason; None for 0, which CRLs leave out.
    reason: int | None
    not_after: int


@dataclass(frozen=True, slots=True)
class Published:
    """A ``crl.published`` entry."""

    index: int
    said: dict[str, Any]


class Replay:
    """The entries so far. ``now`` tells the time: nothing can have happened later."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        #: By serial.
        self.open: dict[str, Open] = {}
        #: By the id of the issuer and the 16 bytes of the serial.
        self.listed: dict[str, dict[bytes, Listed]] = {}
        #: The newest CRLs by issuer and scope, the newest one last.
        self.crls: dict[tuple[str, str], deque[Published]] = {}
        #: The hashes of the certificates of each CA, by its id.
        self.cas: dict[str, set[str]] = {}
        self.issued = 0
        self.abandoned = 0
        #: Index of the newest ``authority.restored``.
        self._restored = -1
        #: What has become of each serial, in one number: the end of its validity, the number of its issuer, and whether it is a
        #: certificate that can be revoked.
        self._ended: dict[bytes, int] = {}
        self._issuers: dict[str, int] = {}
        self._checks: dict[Kind, Callable[[Fact], None]] = {
            Kind.INTENT: self._intent,
            Kind.ISSUED: self._issued,
            Kind.ABANDONED: self._abandoned,
            Kind.REVOKED: self._revoked,
            Kind.ISSUER_CERTIFIED: self._certified,
            Kind.ISSUER_REVOKED: self._revoked,
            Kind.REVOCATION_RESTORED: self._revocation_restored,
            Kind.AUTHORITY_RESTORED: self._authority_restored,
            Kind.CRL_PUBLISHED: self._published,
        }

    @property
    def revoked(self) -> int:
        """How many serials were revoked, abandoned ones not counted."""
        return sum(map(len, self.listed.values())) - self.abandoned

    def entry(self, index: int, entry: bytes) -> Fact | None:
        """Take the next entry; the fact in it, if later ones may depend on it.

        Raises:
            FindingError: it is malformed, or does not follow from those before it.
        """
        time, fact = fact_of(index, entry)
        if time > self._now() + CLOCK_STEP:
            raise wrong_entry(index, "says that it was made in the future")
        if fact is not None:
            self.apply(fact)
        return fact

    def apply(self, fact: Fact) -> None:
        """Take a fact.

        Raises:
            FindingError: it does not follow from those before it.
        """
        self._checks[fact.kind](fact)
        if max(len(self.open), len(self._issuers), len(self.cas), len(self.crls)) > _MOST:
            raise wrong_entry(fact.index, f"would make more than {_MOST} open intents, issuers or parts of CRLs")

    def newest_crl(self, issuer: str, scope: str = _FULL) -> Published | None:
        """The newest CRL that the entries tell of."""
        known = self.crls.get((issuer, scope))
        return known[-1] if known else None

    def _intent(self, fact: Fact) -> None:
        serial = fact.said["serial"]
        if serial in self.open or bytes.fromhex(serial) in self._ended:
            raise _about(fact, "is for a serial that was used before")
        begin = fact.said.get("not_before", fact.time)
        if not begin - CLOCK_STEP <= fact.time <= fact.said["not_after"]:
            raise _about(fact, "was made at a time that is not within the validity")
        self.open[serial] = Open(fact.index, fact.time, fact.said)

    def _issued(self, fact: Fact) -> None:
        intent = self._close(fact)
        for name in ("names", "not_after", "spki_sha256"):
            if intent.said.get(name, fact.said[name]) != fact.said[name]:
                raise _about(fact, f"differs from its intent, entry {intent.index}, in {name}")
        self._end(fact, fact.said["not_after"])
        self.issued += 1

    def _abandoned(self, fact: Fact) -> None:
        intent = self._close(fact)
        not_after = fact.said.get("not_after", intent.said["not_after"])
        if not_after != intent.said["not_after"]:
            raise _about(fact, f"differs from its intent, entry {intent.index}, in not_after")
        self._end(fact, None)
        self._list(fact, _ABANDONED_REASON, not_after)
        self.abandoned += 1

    def _certified(self, fact: Fact) -> None:
        # A root elsewhere may certify the same CA again, and its serials are its own.
        if not fact.said["imported"]:
            self._close(fact)
            self._end(fact, fact.said["not_after"])
        else:
            self._ended.setdefault(bytes.fromhex(fact.said["serial"]), self._what(fact, fact.said["not_after"]))
        self.cas.setdefault(fact.said["id"], set()).add(fact.said["certificate_sha256"])

    def _revoked(self, fact: Fact) -> None:
        serial = bytes.fromhex(fact.said["serial"])
        issued = self._ended.get(serial, 0)
        if issued & _MASK != self._what(fact, 0):
            raise _about(fact, "is for a certificate that this issuer had not issued")
        # Else a CRL could leave it out as if it had ended.
        if issued >> _SHIFT != fact.said["not_after"]:
            raise _about(fact, "does not say the end of the certificate's validity")
        if serial in self.listed.get(fact.said["issuer"], ()):
            raise _about(fact, "is for a certificate that was revoked before")
        self._list(fact, fact.said["reason"] or None, fact.said["not_after"])

    def _revocation_restored(self, fact: Fact) -> None:
        """A CRL from outside lists it; its certificate may have been given up with the entries that a restore lost."""
        said = fact.said
        listed = self.listed.setdefault(said["issuer"], {})
        serial = bytes.fromhex(said["serial"])
        if serial in listed:
            raise _about(fact, "is for a certificate that was revoked before")
        listed[serial] = Listed(fact.index, said["revoked_at"], said["reason"] or None, said["not_after"])

    def _authority_restored(self, fact: Fact) -> None:
        if not 0 <= fact.said["from_size"] <= fact.said["to_size"] <= fact.index:
            raise wrong_entry(fact.index, f"({fact.kind}) says that entries were brought back which cannot be")
        self._restored = fact.index

    def _published(self, fact: Fact) -> None:
        said = fact.said
        key = said["issuer"], said["scope"]
        known = self.crls.setdefault(key, deque(maxlen=_CRLS))
        where = f"({fact.kind}, issuer {key[0]}, scope {key[1]})"
        # What a restore withdrew may be published again as it was.
        again = bool(known) and known[-1].index < self._restored and known[-1].said["sha256"] == said["sha256"]
        if said["number"] + again <= (known[-1].said["number"] if known else 0):
            raise wrong_entry(
                fact.index, f"{where} has the number {said['number']}, which does not follow the one before"
            )
        if not (known[-1].said["through"] if known else 0) <= said["through"] <= fact.index:
            raise wrong_entry(
                fact.index, f"{where} has revocations up to {said['through']}, which does not fit its place"
            )
        if said["next_update"] <= said["this_update"]:
            raise wrong_entry(fact.index, f"{where} ends before it begins")
        if (said["delta_sha256"] is None) != (said["base"] is None):
            raise wrong_entry(fact.index, f"{where} has a delta CRL without a base, or the reverse")
        known.append(Published(fact.index, said))

    def _close(self, fact: Fact) -> Open:
        """The intent that has to stand before this entry (promise P2)."""
        intent = self.open.pop(fact.said["serial"], None)
        if intent is None:
            raise _about(fact, "has no intent before it")
        for name in ("issuer", "tbs_sha256"):
            if intent.said[name] != fact.said[name]:
                raise _about(fact, f"differs from its intent, entry {intent.index}, in {name}")
        return intent

    def _end(self, fact: Fact, not_after: int | None) -> None:
        self._ended[bytes.fromhex(fact.said["serial"])] = self._what(fact, not_after)

    def _what(self, fact: Fact, not_after: int | None) -> int:
        """What becomes of a serial, as ``_ended`` keeps it: a certificate until ``not_after``; None when there is none."""
        return (not_after or 0) << _SHIFT | self._number(fact.said["issuer"]) << 1 | (not_after is not None)

    def _list(self, fact: Fact, reason: int | None, not_after: int) -> None:
        listed = self.listed.setdefault(fact.said["issuer"], {})
        listed[bytes.fromhex(fact.said["serial"])] = Listed(fact.index, int(fact.time), reason, not_after)

    def _number(self, issuer: str) -> int:
        return self._issuers.setdefault(issuer, len(self._issuers))


def _about(fact: Fact, what: str) -> FindingError:
    return wrong_entry(fact.index, f"({fact.kind}, serial {fact.said['serial']}) {what}")
