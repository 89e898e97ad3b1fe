"""One new CRL of one scope, from the revocations in the database to the transaction that publishes it.

Which revocations it lists: those whose entries are in the first ``through`` of the ledger, a size that is read before
anything else. What is committed later is the next CRL's, so the pages that are read one by one belong together.

When an entry leaves (RFC 5280 section 5): after it was on a CRL whose thisUpdate is after the certificate's notAfter. A
row is therefore left out only when its certificate had ended before the previous CRL, which had it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from privyseal_ca.clock import CLOCK_STEP, Clock
from privyseal_ca.errors import SignatureUncertainError, StoreConflictError, StoreError
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.ledger.entries import SERVICE_ACTOR, Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.ledger.log import size as ledger_size
from privyseal_ca.revocation.crl import PIECE, CrlAssembly, CrlOutline, FinishedCrl, names_pointers, sign_crl
from privyseal_ca.revocation.published import scope_name
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.crls import (
    CrlRow,
    ListedRow,
    Part,
    add_part,
    count_parts,
    find_crl,
    find_part,
    listed_from,
    listed_late,
    newest_part,
    remove_parts,
    replace_crl,
    reserve_crls,
    unpublished,
)
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

#: Rows that are read at once. With SQLite that happens on the event loop: 1 to 2 ms.
_PAGE: Final = 500
#: Ledger entries among which late revocations are looked for at once.
_WINDOW: Final = 10_000
#: Octets up to which a CRL is written in the transaction that publishes it.
_TOGETHER: Final = 4 * PIECE
#: Pieces that are removed at once.
_REMOVED: Final = 8
_TAIL: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Scope:
    """What one sequence of CRLs covers: all of an issuer, or one part."""

    issuer: Issuer
    shard: int | None

    @property
    def name(self) -> str:
        """As tables and the ledger name it."""
        return scope_name(self.shard)

    @property
    def key(self) -> tuple[str, str]:
        """Issuer id and name: the primary key of its row."""
        return self.issuer.id, self.name

    @property
    def url(self) -> str | None:
        """How certificates name it; None for the full CRL, which has no issuingDistributionPoint."""
        return None if self.shard is None else self.issuer.identity.pointers.crl(self.shard)

    def freshest(self, settings: StatusSettings) -> str | None:
        """Where its delta CRL is, if there are any."""
        if self.shard is None or not settings.delta_crls:
            return None
        return self.issuer.identity.pointers.delta(self.shard)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of a CRL before its list is read."""

    scope: Scope
    previous: CrlRow
    number: int
    through: int
    """The size of the ledger whose revocations it lists."""
    ended: int
    """Certificates whose notAfter is before this were on an earlier CRL after they had ended."""
    outline: CrlOutline
    bases: tuple[int, int, int, int, int]
    """The last five columns of its row."""
    delta: CrlOutline | None


class CrlBuilder:
    """Makes and publishes CRLs, one scope at a time or several at once, but no scope twice at once."""

    def __init__(self, *, store: Store, settings: StatusSettings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        #: By scope: the highest number whose signature is spent (SignatureUncertainError).
        self._spent: dict[tuple[str, str], int] = {}
        #: By scope: a number whose pieces were left behind by this builder.
        self._left: dict[tuple[str, str], int] = {}

    async def publish(self, scope: Scope) -> CrlRow:
        """Make the next CRL of ``scope``, and its delta CRL where there are any, and publish them.

        Raises:
            StoreConflictError: another publisher was first; nothing is lost.
            StoreUnavailableError: the database failed; what was current stays so.
            SignerError: the token did not sign; as above.
            OSError: the temporary file cannot be written.
        """
        await scope.issuer.key.run(_nothing)  # a long list is not read for a token that is away
        plan = await self._plan(scope)
        await self._remove_left(plan)
        with ExitStack() as stack:
            assemblies = [stack.enter_context(CrlAssembly(plan.outline))]
            if plan.delta is not None:
                assemblies.append(stack.enter_context(CrlAssembly(plan.delta)))
            since = (0, plan.bases[1])
            async for rows in self._listed(plan):
                await asyncio.to_thread(_add, assemblies, since, rows)
            finished = [await self._sign(plan, assembly) for assembly in assemblies]
            row = await self._store_crl(plan, finished)
        await self._clean(row, kept=plan.previous.number)
        return row

    async def is_as_configured(self, scope: Scope, row: CrlRow) -> bool:
        """Whether the current CRL of ``scope`` is there and names the URLs that it would be given now.

        Raises:
            StoreUnavailableError: the database failed.
        """
        last = -(-row.size // PIECE) - 1

        def tail(transaction: Transaction) -> bytes | None:
            pieces = [
                find_part(transaction, *scope.key, row.number, delta=False, position=position)
                for position in range(max(0, last - 1), last + 1)
            ]
            found = [piece for piece in pieces if piece is not None]
            return b"".join(found) if len(found) == len(pieces) else None

        end = await self._store.read(tail)
        return end is not None and names_pointers(end[-_TAIL:], scope.url, scope.freshest(self._settings))

    async def _plan(self, scope: Scope) -> _Plan:
        def look(transaction: Transaction) -> tuple[CrlRow, int, int]:
            row = find_crl(transaction, *scope.key)
            return row or unpublished(*scope.key), ledger_size(transaction), newest_part(transaction, *scope.key)

        now = int(self._clock.now())
        previous, through, newest = await self._store.read(look)
        # Never a number that pieces have, or that a signature may be out under: gaps are allowed, repetition is not.
        number = max(previous.number, newest, self._spent.get(scope.key, 0)) + 1
        this_update = now
        if now < previous.this_update <= now + CLOCK_STEP:
            this_update = previous.this_update
        next_update = this_update + self._settings.crl_lifetime
        freshest = scope.freshest(self._settings)
        identity = scope.issuer.identity
        outline = CrlOutline(identity, number, this_update, next_update, url=scope.url, freshest=freshest)
        bases, delta = (0, 0, 0, 0, 0), None
        if freshest is not None:
            bases = _bases(previous, number, through, this_update, self._settings.crl_lifetime)
            delta = CrlOutline(identity, number, this_update, next_update, url=scope.url, base=bases[0])
        # A clock that was ahead has ended nothing: `now` bounds what the previous thisUpdate says.
        return _Plan(scope, previous, number, through, min(previous.this_update, now), outline, bases, delta)

    async def _listed(self, plan: _Plan) -> AsyncIterator[Sequence[ListedRow]]:
        issuer_id, shard = plan.scope.issuer.id, plan.scope.shard
        after = (plan.ended, "")
        while True:
            rows = await self._store.read(
                partial(listed_from, issuer_id=issuer_id, shard=shard, through=plan.through, after=after, count=_PAGE)
            )
            if rows:
                yield rows
            if len(rows) < _PAGE:
                break
            after = (rows[-1].not_after, rows[-1].serial)
        if not plan.ended:
            return
        # Those that ended before they were revoked, or whose revocation came after the previous CRL.
        for since in range(plan.previous.through, plan.through, _WINDOW):
            through = min(since + _WINDOW, plan.through)
            rows = await self._store.read(
                partial(listed_late, issuer_id=issuer_id, shard=shard, since=since, through=through, expired=plan.ended)
            )
            if rows:
                yield rows
            await asyncio.sleep(0)

    async def _sign(self, plan: _Plan, assembly: CrlAssembly) -> FinishedCrl:
        to_be_signed = await asyncio.to_thread(assembly.to_be_signed)
        try:
            signature = await plan.scope.issuer.key.run(sign_crl(plan.scope.issuer.identity, to_be_signed))
        except SignatureUncertainError:
            self._spent[plan.scope.key] = plan.number
            raise
        return await asyncio.to_thread(assembly.finish, to_be_signed, signature)

    async def _store_crl(self, plan: _Plan, finished: Sequence[FinishedCrl]) -> CrlRow:
        """Write the pieces, and publish them in one transaction with the ledger entry (promise P3)."""
        together: list[Part] = []
        if sum(crl.size for crl in finished) <= _TOGETHER:
            together = await asyncio.to_thread(lambda: list(_parts(plan, finished)))
        else:
            await self._write_parts(plan, _parts(plan, finished))
        row = _row(plan, finished)
        entry = _entry(row, self._clock.now())

        def publish(transaction: Transaction) -> None:
            for part in together:
                add_part(transaction, part)
            for delta, crl in enumerate(finished):
                pieces = count_parts(transaction, row.issuer_id, row.scope, row.number, delta=bool(delta))
                if pieces != -(-crl.size // PIECE):
                    raise StoreConflictError(f"Pieces of CRL {row.number} of scope {row.scope} are missing.")
            reserve_crls(transaction, [plan.scope.key])
            replace_crl(transaction, row, old_number=plan.previous.number)
            append(transaction, entry)

        try:
            await self._store.write(publish)
        except StoreConflictError:
            if not together:
                await self._discard(plan)
            raise
        return row

    async def _write_parts(self, plan: _Plan, parts: Iterator[Part]) -> None:
        """Each in a transaction of its own: a long CRL keeps nobody else waiting."""
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            try:
                await self._store.write(partial(add_part, part=part))
            except StoreConflictError:
                if part.position or part.delta:
                    await self._discard(plan)
                raise
            except BaseException:
                self._left[plan.scope.key] = plan.number
                raise

    async def _discard(self, plan: _Plan) -> None:
        """Remove the pieces that were written for ``plan``, which will never be published; if not now, then before the next."""
        self._left[plan.scope.key] = plan.number
        with suppress(StoreError):
            await self._remove_left(plan)

    async def _remove_left(self, plan: _Plan) -> None:
        number = self._left.get(plan.scope.key)
        if number is not None and number != plan.previous.number:
            await self._remove(plan.scope.key, first=number, below=number + 1, kept=plan.previous.number)
        self._left.pop(plan.scope.key, None)

    async def _clean(self, row: CrlRow, *, kept: int) -> None:
        """Remove what is older, and what earlier attempts left. The one before stays for those who are reading it."""
        with suppress(StoreError):  # the next publication does it
            await self._remove((row.issuer_id, row.scope), first=0, below=row.number, kept=kept)

    async def _remove(self, key: tuple[str, str], *, first: int, below: int, kept: int) -> None:
        removed = _REMOVED
        while removed == _REMOVED:
            removed = await self._store.write(
                lambda tx: remove_parts(tx, *key, first=first, below=below, kept=kept, count=_REMOVED)
            )


def _nothing(_: PrivateKey) -> None:
    """Work that signs nothing, and so asks only whether the token is there."""


def _add(assemblies: Sequence[CrlAssembly], since: Sequence[int], rows: Sequence[ListedRow]) -> None:
    """Add to each of ``assemblies`` the rows with entries ``since`` an index of the ledger."""
    for assembly, first in zip(assemblies, since, strict=False):
        assembly.add(row[:3] for row in rows if row.ledger_index >= first)


def _bases(
    previous: CrlRow, number: int, through: int, this_update: int, lifetime: int
) -> tuple[int, int, int, int, int]:
    """What deltas are relative to with CRL ``number``, and what they will be relative to.

    A base stays until every complete CRL before the next base is past its nextUpdate: whoever has a valid CRL can use the
    delta (RFC 5280 section 5.2.4).
    """
    if not previous.base_number:
        return number, through, number, through, this_update
    if this_update - previous.next_base_at > lifetime:
        return previous.next_base_number, previous.next_base_through, number, through, this_update
    return (
        previous.base_number,
        previous.base_through,
        previous.next_base_number,
        previous.next_base_through,
        previous.next_base_at,
    )


def _parts(plan: _Plan, finished: Iterable[FinishedCrl]) -> Iterator[Part]:
    for delta, crl in enumerate(finished):
        for position, piece in enumerate(crl.pieces()):
            yield Part(*plan.scope.key, plan.number, delta, position, piece)


def _row(plan: _Plan, finished: Sequence[FinishedCrl]) -> CrlRow:
    complete, *deltas = finished
    return CrlRow(
        *plan.scope.key,
        plan.number,
        plan.outline.this_update,
        plan.outline.next_update,
        complete.entries,
        plan.through,
        complete.size,
        complete.sha256,
        deltas[0].size if deltas else 0,
        deltas[0].sha256 if deltas else b"",
        *plan.bases,
    )


def _entry(row: CrlRow, now: float) -> bytes:
    return encode_entry(
        Kind.CRL_PUBLISHED,
        time=now,
        actor=SERVICE_ACTOR,
        correlation=f"crl:{row.issuer_id}:{row.scope}:{row.number}",
        payload={
            "issuer": row.issuer_id,
            "scope": row.scope,
            "number": row.number,
            "this_update": row.this_update,
            "next_update": row.next_update,
            "entries": row.entries,
            "through": row.through,
            "sha256": row.sha256.hex(),
            "delta_sha256": row.delta_sha256.hex() or None,
            "base": row.base_number or None,
        },
    )
