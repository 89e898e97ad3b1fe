"""The CRLs in the database, as those see them who serve them.

Short ones are kept in memory, so that they are served while the database is away (promise P7); long ones are read piece
by piece. What is kept is bounded (promise P12).
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Final

import structlog

from privyseal_ca.errors import StatusUnavailableError, StoreError
from privyseal_ca.revocation.crl import PIECE
from privyseal_ca.revocation.published import CrlSource, PublishedCrl, scope_name, scope_shard
from privyseal_ca.store.crls import CrlRow, all_crls, find_part
from privyseal_ca.store.engine import Store

_log = structlog.get_logger("crl")

_SHORT: Final = 1024 * 1024
_KEPT: Final = 64 * 1024 * 1024

_Place = tuple[str, int | None, bool]


class StoredCrls(CrlSource):
    """What is published, from the database of ``store``. Shows what the last :meth:`refresh` found."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._published: dict[_Place, PublishedCrl] = {}
        #: The DER of short ones, the least recently read first.
        self._kept: OrderedDict[PublishedCrl, bytes] = OrderedDict()
        self._octets = 0
        self._refreshing = asyncio.Lock()
        #: Whether the last refresh went well; None before the first.
        self.available: bool | None = None

    async def refresh(self) -> None:
        """Look for new CRLs, and read the short ones. When the database is away, everything stays as it was."""
        async with self._refreshing:
            try:
                await self._refresh()
            except StoreError as error:
                if self.available is not False:
                    _log.warning("new CRLs are not seen", reason=str(error))
                self.available = False
            else:
                self.available = True

    def find(self, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
        """The newest CRL of this scope that is known, from memory."""
        return self._published.get((issuer_id, shard, delta))

    def published(self) -> Iterable[PublishedCrl]:
        """The newest CRL of every scope, from memory."""
        return tuple(self._published.values())

    async def read(self, crl: PublishedCrl) -> AsyncIterator[bytes]:
        """The DER of ``crl`` in pieces of at most 256 KiB.

        Raises:
            StatusUnavailableError: the database is away, or the CRL was replaced and is no longer there: find it again.
        """
        der = self._kept.get(crl)
        if der is not None:
            self._kept.move_to_end(crl)
            for position in range(0, len(der), PIECE):
                yield der[position : position + PIECE]
            return
        for position in range(_pieces(crl)):
            try:
                piece = await self._piece(crl, position)
            except StoreError as error:
                raise StatusUnavailableError(
                    f"The CRL cannot be read: {error.message}", hint="Try again in a moment."
                ) from error
            if piece is None:
                raise StatusUnavailableError("The CRL was replaced by a newer one.", hint="Ask for it again.")
            yield piece

    async def _refresh(self) -> None:
        rows = await self._store.read(all_crls)
        found = {(crl.issuer_id, crl.shard, crl.delta): crl for row in rows for crl in _published(row)}
        for place, crl in found.items():
            if crl.size <= _SHORT and self._published.get(place) != crl and crl not in self._kept:
                await self._keep(crl)
        self._published = found
        for gone in self._kept.keys() - set(found.values()):
            self._octets -= len(self._kept.pop(gone))

    async def _keep(self, crl: PublishedCrl) -> None:
        pieces = [await self._piece(crl, position) for position in range(_pieces(crl))]
        der = b"".join(piece for piece in pieces if piece is not None)
        if hashlib.sha256(der).digest() != crl.sha256:
            # Replaced between two statements: the next refresh sees the new one. Or damaged: `ledger verify` tells.
            return
        self._kept[crl] = der
        self._octets += len(der)
        while self._octets > _KEPT:
            _, dropped = self._kept.popitem(last=False)
            self._octets -= len(dropped)

    async def _piece(self, crl: PublishedCrl, position: int) -> bytes | None:
        return await self._store.read(
            partial(
                find_part,
                issuer_id=crl.issuer_id,
                scope=scope_name(crl.shard),
                number=crl.number,
                delta=crl.delta,
                position=position,
            )
        )


def _pieces(crl: PublishedCrl) -> int:
    return -(-crl.size // PIECE)


def _published(row: CrlRow) -> Iterable[PublishedCrl]:
    if row.number:
        of_scope = (row.issuer_id, scope_shard(row.scope))
        when = (row.number, row.this_update, row.next_update)
        yield PublishedCrl(*of_scope, False, *when, row.size, row.sha256)
        if row.delta_size:
            yield PublishedCrl(*of_scope, True, *when, row.delta_size, row.delta_sha256)
