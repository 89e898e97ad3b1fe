"""Which certificates are to be revoked together: what an operator says, made fast at one moment of the ledger.

A selection never reaches what is issued after it was made, and leaves the authority's own certificates alone unless it names
their requester. "When issued" is a place in the ledger, not notBefore, which a client may have asked for.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, partial
from ipaddress import IPv6Address
from typing import Any

import orjson

from privyseal_ca.clock import rfc3339, rfc3339_milliseconds
from privyseal_ca.errors import PolicyError
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import entries, size
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers
from privyseal_ca.store.revoking import OWN_REQUESTER, Candidates, MatchRow
from privyseal_ca.store.statement import Transaction

_MAX_PATTERN = 2048
_SEPARATORS = {"dns": ".", "ip": ".:", "uri": "/", "email": "@."}
_ANY_LABELS = "**"
#: What stands for other characters. A ``]`` right after ``[`` or ``[!`` is one of those in the brackets.
_WILD = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]?")
_PAGE = 5000
_LOOKED_AT = 50
_SHOWN = 10
#: How many profiles and accounts a preview tells apart.
_TOLD_APART = 1000


class NamePattern:
    """A pattern for names, as shells have them, that knows where a label ends.

    ``*`` and ``?`` stand for characters of one label of a DNS name, one number of an address or one segment of a URI, ``[..]``
    for one of some characters. ``**`` in place of a label stands for one label or more. Case does not matter, nor does the
    form of an IPv6 address that is written out.
    """

    def __init__(self, text: str) -> None:
        """``text`` is the pattern.

        Raises:
            PolicyError: it is empty, too long, or not printable, or no name could match for its characters.
        """
        if not 0 < len(text) <= _MAX_PATTERN or not text.isprintable():
            raise PolicyError(
                f"A pattern for names has 1 to {_MAX_PATTERN} printable characters.", hint="Such as '*.corp.example'."
            )
        if not text.isascii():
            raise PolicyError(
                "A pattern for names is in ASCII, as the names in certificates are.",
                hint="Give the A-labels of an internationalised name (`xn--...`).",
            )
        self._lower = _shortest(text.lower())
        self._labels = {kind: _split(self._lower, separators) for kind, separators in _SEPARATORS.items()}

    @property
    def literal(self) -> str:
        """The longest text, in lower case, that every name that matches has in it; may be empty."""
        return max(_WILD.split(self._lower), key=len)

    def matches(self, names: str) -> bool:
        """Whether one of ``names``, a JSON list of ``type:value``, matches."""
        for name in orjson.loads(names):
            kind, _, value = name.partition(":")
            if kind in _SEPARATORS and _labels_match(self._labels[kind], _split(value.lower(), _SEPARATORS[kind])):
                return True
        return False


def _shortest(text: str) -> str:
    """An IPv6 address in the form in which it is kept (RFC 5952); everything else as it is."""
    try:
        return str(IPv6Address(text))
    except ValueError:
        return text


def _split(text: str, separators: str) -> list[str]:
    return re.split(f"[{re.escape(separators)}]", text)


def _labels_match(pattern: Sequence[str], labels: Sequence[str]) -> bool:
    """Compare label by label, going back to the last ``**`` only: an earlier one could match no more than it."""
    at = label = 0
    retry_at = retry_label = -1
    while label < len(labels):
        if at < len(pattern) and pattern[at] == _ANY_LABELS:
            at, label = at + 1, label + 1
            retry_at, retry_label = at, label
        elif at < len(pattern) and fnmatchcase(labels[label], pattern[at]):
            at, label = at + 1, label + 1
        elif retry_at >= 0:
            retry_label += 1
            at, label = retry_at, retry_label
        else:
            return False
    return at == len(pattern)


@dataclass(frozen=True)
class Selection:
    """Certificates that have everything in common that is not None."""

    account: str | None
    """The id of an ACME account, or ``service`` for the authority's own."""
    name: str | None
    """A :class:`NamePattern`."""
    issuer: str | None
    """The id of the CA that signed."""
    profile: str | None
    key: str | None
    """SHA-256 of the SubjectPublicKeyInfo in hex."""
    issued_after: int | None
    """Seconds since the epoch."""
    issued_before: int | None
    first: int
    """The index of the first ledger entry that counts: what these two times mean in the ledger."""
    end: int
    """The index after the last one, at most the size of the ledger when the selection was made."""

    def document(self) -> dict[str, Any]:
        """The members that are not None, as JSON has them."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def load(cls, text: str) -> "Selection":
        """The reverse, from the text of a job."""
        members = orjson.loads(text)
        return cls(**{name: members.get(name) for name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        said = []
        for name, value in self.document().items():
            if name not in {"first", "end"}:
                said.append(f"{name.replace('_', '-')} {rfc3339(value) if isinstance(value, int) else value}")
        return ", ".join(said)

    @cached_property
    def candidates(self) -> Candidates:
        """The certificates that the database can tell to be selected; of names it knows a part only."""
        requester = None
        if self.account is not None:
            requester = OWN_REQUESTER if self.account == OWN_REQUESTER else f"account:{self.account}"
        return Candidates(
            requester=requester,
            issuer_id=self.issuer,
            profile=self.profile,
            spki_sha256=None if self.key is None else bytes.fromhex(self.key),
            name_part=self._pattern.literal if self._pattern else "",
            first=self.first,
            end=self.end,
        )

    @cached_property
    def _pattern(self) -> NamePattern | None:
        return None if self.name is None else NamePattern(self.name)

    def has_name(self, names: str) -> bool:
        """Whether the names of a candidate are selected."""
        return self._pattern is None or self._pattern.matches(names)


def make_selection(
    transaction: Transaction,
    *,
    account: str | None = None,
    name: str | None = None,
    issuer: str | None = None,
    profile: str | None = None,
    key: bytes | None = None,
    issued_after: int | None = None,
    issued_before: int | None = None,
) -> Selection:
    """The selection that an operator means now. ``issuer`` is a name or an id, ``key`` the SHA-256 of a SubjectPublicKeyInfo.

    Raises:
        PolicyError: nothing is said, a pattern is none, or there is no such issuer.
    """
    if all(value is None for value in (account, name, issuer, profile, key, issued_after, issued_before)):
        raise PolicyError("Nothing is selected.", hint="Say which certificates, such as with --account or --name.")
    if name is not None:
        NamePattern(name)
    end = size(transaction)
    return Selection(
        account=None if account is None else account.removeprefix("account:"),
        name=name,
        issuer=None if issuer is None else _issuer_id(transaction, issuer),
        profile=profile,
        key=None if key is None else key.hex(),
        issued_after=issued_after,
        issued_before=issued_before,
        first=0 if issued_after is None else _index_at(transaction, issued_after, end),
        end=end if issued_before is None else _index_at(transaction, issued_before, end),
    )


def _issuer_id(transaction: Transaction, text: str) -> str:
    for row in all_issuers(transaction):
        if text in {row.name, row.id} or text.lower().replace(":", "") == row.id:
            return row.id
    raise PolicyError(f"There is no issuer {text[:64]!r}.", hint="`privyseal issuer list` shows those that there are.")


def _index_at(transaction: Transaction, seconds: int, end: int) -> int:
    """The index of the first entry that was made at ``seconds`` since the epoch or later; ``end`` when there is none."""
    low, high = 0, end
    wanted = rfc3339_milliseconds(seconds)
    while low < high:
        middle = (low + high) // 2
        index, time = _time_from(transaction, middle, high)
        if time is not None and time < wanted:
            low = index + 1
        else:
            high = middle
    # Certificates whose entries come right after an earlier one were issued then.
    return _time_from(transaction, low, end)[0]


def _time_from(transaction: Transaction, index: int, end: int) -> tuple[int, str | None]:
    """The first entry from ``index`` on that tells when it was made: the time of ``certificate.issued`` is notBefore."""
    while index < end:
        for row in entries(transaction, first=index, count=min(_LOOKED_AT, end - index)):
            members = decode_entry(row.entry)
            if members["kind"] != Kind.ISSUED:
                return row.index, str(members["time"])
        index += _LOOKED_AT
    return end, None


@dataclass
class Preview:
    """What a selection would hit, and what else it names."""

    total: int = 0
    """How many would be revoked."""
    expired: int = 0
    revoked: int = 0
    own: int = 0
    """The authority's own, which are spared."""
    sample: list[tuple[str, list[str]]] = field(default_factory=list)
    """Serial and names of the first few."""
    profiles: Counter[str] = field(default_factory=Counter)
    requesters: Counter[str] = field(default_factory=Counter)

    def add(self, row: MatchRow, *, spare_own: bool, now: int) -> None:
        """Count one certificate."""
        if spare_own and row.requester == OWN_REQUESTER:
            self.own += 1
        elif row.revoked_at is not None:
            self.revoked += 1
        elif row.not_after <= now:
            self.expired += 1
        else:
            self.total += 1
            if len(self.sample) < _SHOWN:
                self.sample.append((row.serial, orjson.loads(row.names)))
            for counter, value in ((self.profiles, row.profile), (self.requesters, row.requester)):
                counter[value if value in counter or len(counter) < _TOLD_APART else "others"] += 1


async def preview_selection(store: Store, selection: Selection, *, now: int) -> Preview:
    """Look at everything that ``selection`` names, in pages.

    Raises:
        StoreUnavailableError: the database failed.
    """
    preview = Preview()
    spare_own = selection.account != OWN_REQUESTER
    after = ""
    while page := await store.read(partial(selection.candidates.matching, after=after, count=_PAGE)):
        for row in page:
            if selection.has_name(row.names):
                preview.add(row, spare_own=spare_own, now=now)
        after = page[-1].serial
    return preview
