"""Checking the CRLs: their entries in the ledger against each other, and the current ones against entry and revocations.

A CRL is read piece by piece and each of its entries is looked up, so memory does not grow with its length. That nothing
is missing shows in two sums, each over the hashes of serials: of what is listed, and of what must be.
"""

import hashlib
import itertools
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cryptography import x509

from privyseal_ca.ledger.audit_errors import AuditError, wrong
from privyseal_ca.ledger.crl_reader import CrlReader, Listed, MalformedCrlError
from privyseal_ca.ledger.entries import Kind, Payload
from privyseal_ca.store.certificates import RevocationRow, find_revocation
from privyseal_ca.store.crls import CrlRow, ListedRow, all_crls, find_crl, find_part, listed_from
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

_FULL: Final = "full"
_SCOPE: Final = re.compile(r"full|0|[1-9][0-9]{0,9}")
_PAGE: Final = 1000
#: How often a CRL may be replaced while it is read before the check gives up.
_TRIES: Final = 20

_Key = tuple[str, str]


class _ReplacedError(Exception):
    """A piece was gone: a newer CRL may have taken the place of the one that was read."""


@dataclass(slots=True)
class _Sum:
    """How many serials, and the sum of their hashes, in which their order does not count."""

    count: int = 0
    total: int = 0

    def add(self, serial: str) -> None:
        self.count += 1
        self.total = (self.total + int.from_bytes(hashlib.sha256(serial.encode()).digest())) % 2**256


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the current row says of its CRL, or of its delta CRL."""

    row: CrlRow
    delta: bool

    @property
    def size(self) -> int:
        return self.row.delta_size if self.delta else self.row.size

    @property
    def sha256(self) -> bytes:
        return self.row.delta_sha256 if self.delta else self.row.sha256

    @property
    def since(self) -> int:
        """The index of the ledger from which on its revocations are."""
        return self.row.base_through if self.delta else 0

    @property
    def shard(self) -> int | None:
        return None if self.row.scope == _FULL else int(self.row.scope)

    def covers(self, row: RevocationRow) -> bool:
        """Whether the revocation may be on it."""
        return self.since <= row.ledger_index < self.row.through and self.shard in {None, row.crl_shard}

    def wrong(self, what: str) -> AuditError:
        return AuditError(f"The {'delta ' if self.delta else ''}{_name(self.row)} {what}.")


class CrlAudit:
    """What the entries so far say of CRLs, and what the tables hold.

    ``certificates_of`` gives the certificates of a CA by its id, ``is_own`` whether its key and its revocations are here.
    """

    def __init__(
        self,
        store: Store,
        *,
        certificates_of: Callable[[str], Sequence[x509.Certificate]],
        is_own: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._certificates_of = certificates_of
        self._is_own = is_own
        #: By issuer and scope, index and payload of the newest entry.
        self._newest: dict[_Key, tuple[int, Payload]] = {}
        #: Index of the newest ``authority.restored``: what was published before may have been withdrawn with it.
        self._restored = -1
        #: Rows that are newer than the entries so far.
        self._awaited: dict[_Key, CrlRow] = {}
        #: How many current CRLs were found right, delta CRLs not counted.
        self.checked = 0

    def published(self, _: Transaction, index: int, members: dict[str, Any]) -> None:
        """``crl.published``."""
        payload: Payload = members["payload"]
        key = payload["issuer"], payload["scope"]
        said = f"({Kind.CRL_PUBLISHED}, issuer {key[0]}, scope {key[1]})"
        before = self._newest.get(key)
        if not _SCOPE.fullmatch(key[1]):
            raise wrong(index, f"{said} names a scope that cannot be")
        # What a restore withdrew may be published again as it was.
        again = before is not None and before[0] < self._restored and payload["sha256"] == before[1]["sha256"]
        if payload["number"] + again <= (before[1]["number"] if before else 0):
            raise wrong(index, f"{said} has the number {payload['number']}, which does not follow the one before")
        if not (before[1]["through"] if before else 0) <= payload["through"] <= index:
            raise wrong(index, f"{said} has revocations up to {payload['through']}, which does not fit its place")
        if payload["next_update"] <= payload["this_update"]:
            raise wrong(index, f"{said} ends before it begins")
        if (payload["delta_sha256"] is None) != (payload["base"] is None):
            raise wrong(index, f"{said} has a delta CRL without a base, or the reverse")
        self._newest[key] = index, payload
        awaited = self._awaited.get(key)
        if awaited is not None and awaited.number <= payload["number"]:
            del self._awaited[key]
            self._compare_row(awaited)

    def restored(self, index: int) -> None:
        """``authority.restored``."""
        self._restored = index

    async def contents(self) -> None:
        """Compare the current CRLs with the entries so far and with the revocations.

        Raises:
            AuditError: the first thing that is wrong.
            StoreError: the database failed.
        """
        rows = {(row.issuer_id, row.scope): row for row in await self._store.read(all_crls) if row.number}
        for key, (index, payload) in self._newest.items():
            if key not in rows and index > self._restored:
                raise wrong(index, f"({Kind.CRL_PUBLISHED}) is for the CRL {payload['number']}, which is not kept")
        for row in rows.values():
            checked = await self._check(row)
            self._compare_row(checked)
            self.checked += 1

    def compare(self) -> None:
        """Raise for the first current CRL that has no entry."""
        for row in self._awaited.values():
            raise AuditError(f"The {_name(row)} has no {Kind.CRL_PUBLISHED} entry.")

    def _compare_row(self, row: CrlRow) -> None:
        key = row.issuer_id, row.scope
        index, payload = self._newest.get(key, (0, {"number": 0}))
        if row.number > payload["number"]:
            self._awaited[key] = row
            return
        if row.number < payload["number"]:
            raise wrong(
                index,
                f"({Kind.CRL_PUBLISHED}) is for the number {payload['number']} of issuer {key[0]}, scope {key[1]}, but the "
                f"number {row.number} is kept",
            )
        columns = {
            "base": row.base_number if row.delta_size else None,
            "delta_sha256": row.delta_sha256.hex() if row.delta_size else None,
            "entries": row.entries,
            "next_update": row.next_update,
            "sha256": row.sha256.hex(),
            "this_update": row.this_update,
            "through": row.through,
        }
        for name, value in columns.items():
            if payload[name] != value:
                raise wrong(
                    index, f"({Kind.CRL_PUBLISHED}) differs from the row of issuer {key[0]}, scope {key[1]}, in {name}"
                )

    async def _check(self, row: CrlRow) -> CrlRow:
        """Check what is kept of ``row``, or of a newer one that takes its place meanwhile; the row that was checked."""
        for _ in range(_TRIES):
            try:
                await self._check_one(_Claim(row, delta=False))
                if row.delta_size:
                    await self._check_one(_Claim(row, delta=True))
            except _ReplacedError:
                newer = await self._store.read(partial(find_crl, issuer_id=row.issuer_id, scope=row.scope))
                if newer is None or newer == row:
                    raise AuditError(f"A piece of the {_name(row)} is missing.") from None
                row = newer
            else:
                return row
        raise AuditError(f"The {_name(row)} is replaced faster than it can be read.")

    async def _check_one(self, claim: _Claim) -> None:
        reader, listed = CrlReader(), _Sum()
        own = self._is_own(claim.row.issuer_id)
        try:
            for position in itertools.count():
                if reader.size >= claim.size:
                    break
                entries = reader.feed(await self._piece(claim, position))
                if own:
                    await self._look_up(claim, entries, listed)
            outline = reader.finish()
        except MalformedCrlError as error:
            raise claim.wrong(f"is malformed: {error}") from error
        if reader.size != claim.size or reader.sha256.digest() != claim.sha256:
            raise claim.wrong("is not the one that was published: its hash is another")
        if not claim.delta and reader.entries != claim.row.entries:
            raise claim.wrong(f"lists {reader.entries} certificates, and not {claim.row.entries}")
        if not any(reader.signed_by(outline, ca) for ca in self._certificates_of(claim.row.issuer_id)):
            raise claim.wrong("is not signed by its issuer")
        _check_outline(claim, outline, own=own)
        if own:
            await self._check_complete(claim, listed)

    async def _piece(self, claim: _Claim, position: int) -> bytes:
        row = claim.row
        piece = await self._store.read(
            partial(
                find_part,
                issuer_id=row.issuer_id,
                scope=row.scope,
                number=row.number,
                delta=claim.delta,
                position=position,
            )
        )
        if not piece:
            raise _ReplacedError
        return piece

    async def _look_up(self, claim: _Claim, entries: Sequence[Listed], listed: _Sum) -> None:
        def unit(transaction: Transaction, page: Sequence[Listed]) -> None:
            for entry in page:
                row = find_revocation(transaction, claim.row.issuer_id, entry.serial)
                if row is None or not claim.covers(row):
                    raise claim.wrong(f"lists the serial {entry.serial}, which does not belong on it")
                if (entry.revoked_at, entry.reason) != (row.revoked_at, row.reason or None):
                    raise claim.wrong(f"lists the serial {entry.serial} with another time or reason")
                if row.not_after >= claim.row.this_update:
                    listed.add(entry.serial)

        for begin in range(0, len(entries), _PAGE):
            await self._store.read(partial(unit, page=entries[begin : begin + _PAGE]))

    async def _check_complete(self, claim: _Claim, listed: _Sum) -> None:
        """Whether the CRL has everything that was revoked and has not expired (RFC 5280 section 5)."""
        needed = _Sum()
        async for rows in self._needed(claim):
            for row in rows:
                needed.add(row.serial)
        if needed == listed:
            return
        if listed.count > needed.count:
            raise claim.wrong("lists a serial twice")
        found = await self._serials(claim)
        async for rows in self._needed(claim):
            for row in rows:
                if row.serial not in found:
                    raise claim.wrong(f"does not list the serial {row.serial}, which was revoked before it was made")
        raise claim.wrong("does not list what it must")

    async def _needed(self, claim: _Claim) -> AsyncIterator[list[ListedRow]]:
        row, after = claim.row, (claim.row.this_update, "")
        while True:
            page: list[ListedRow] = await self._store.read(
                partial(
                    listed_from,
                    issuer_id=row.issuer_id,
                    shard=claim.shard,
                    through=row.through,
                    after=after,
                    count=_PAGE,
                )
            )
            yield [found for found in page if found.ledger_index >= claim.since]
            if len(page) < _PAGE:
                return
            after = page[-1].not_after, page[-1].serial

    async def _serials(self, claim: _Claim) -> set[str]:
        """All of them: only once it is clear that one is missing, to name it."""
        reader = CrlReader()
        found: set[str] = set()
        for position in itertools.count():
            if reader.size >= claim.size:
                break
            found.update(entry.serial for entry in reader.feed(await self._piece(claim, position)))
        return found


def _check_outline(claim: _Claim, crl: x509.CertificateRevocationList, *, own: bool) -> None:
    row = claim.row
    extensions = {type(extension.value): extension for extension in crl.extensions}
    number = extensions.get(x509.CRLNumber)
    if number is None or number.value.crl_number != row.number:
        raise claim.wrong("has another crlNumber")
    end = crl.next_update_utc
    if crl.last_update_utc.timestamp() != row.this_update or end is None or end.timestamp() != row.next_update:
        raise claim.wrong("has other times than were recorded")
    base = extensions.get(x509.DeltaCRLIndicator)
    if (base.value.crl_number if base else None) != (row.base_number if claim.delta else None):
        raise claim.wrong("is relative to another CRL than was recorded")
    if not own:
        return
    key = extensions.get(x509.AuthorityKeyIdentifier)
    if key is None or (key.value.key_identifier or b"").hex() != row.issuer_id:
        raise claim.wrong("names another issuer's key")
    scope = extensions.get(x509.IssuingDistributionPoint)
    if claim.shard is None:
        if scope is not None:
            raise claim.wrong("has an issuingDistributionPoint although it covers everything")
    elif scope is None or not scope.critical or not _is_part(scope.value, row):
        raise claim.wrong("has an issuingDistributionPoint that is not that of its part")


def _is_part(value: x509.IssuingDistributionPoint, row: CrlRow) -> bool:
    names = value.full_name or []
    return (
        value.only_contains_user_certs
        and not (value.only_contains_ca_certs or value.only_contains_attribute_certs or value.indirect_crl)
        and value.only_some_reasons is None
        and len(names) == 1
        and str(names[0].value).endswith(f"/crl/{row.issuer_id}/{row.scope}.crl")
    )


def _name(row: CrlRow) -> str:
    return f"CRL {row.number} of issuer {row.issuer_id}, scope {row.scope},"
