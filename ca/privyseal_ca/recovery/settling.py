"""Settling a restore, step by step; each may be the last before a crash, and the next call goes on from there.

1. The tree over what the database has is compared with every checkpoint that is known outside.
2. It is written down that the database waits to be settled, so that nothing else is appended until the end.
3. What is missing is fetched, verified and appended; or, where nobody has it and that was accepted, another log begins.
4. The entry ``authority.restored`` ends it, in the transaction that takes that back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError, LedgerBehindError, LedgerError, PrivySealError, StatusUnavailableError
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import load_profiles
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, lock_head, size
from privyseal_ca.outside.source import HttpLedger
from privyseal_ca.private_file import read_private_line
from privyseal_ca.recovery.catch_up import (
    CatchUp,
    complete_tiles,
    first_difference,
)
from privyseal_ca.recovery.crl_evidence import NONE, ShownCrl, read_crls, require_known
from privyseal_ca.recovery.crl_numbers import reserve_numbers
from privyseal_ca.recovery.facts import RESTORE_FACT, restored_fact
from privyseal_ca.recovery.kept_file import give_up_checkpoint, kept_path
from privyseal_ca.recovery.new_log import Importer, Number, require_crls, switch_log
from privyseal_ca.recovery.outside import (
    Evidence,
    Found,
    LogIdentity,
    Seen,
    behind,
    is_url,
    log_identity,
    look_outside,
    opened,
    shown_place,
)
from privyseal_ca.recovery.rebuild import Pointing, Rebuilder
from privyseal_ca.recovery.sources import Source
from privyseal_ca.recovery.sufficiency import require_answers, shown_by, what_is_unknown
from privyseal_ca.recovery.summary import Summary, summarise
from privyseal_ca.revocation.bases import take_base
from privyseal_ca.revocation.folder_ledger import FolderLedger
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import set_fact
from privyseal_ca.store.rebuilding import count_lost, forget_fact
from privyseal_ca.store.statement import Transaction
from privyseal_ca.web.fetching import new_session

#: Places that the entry names, and characters of each.
_PLACES: Final = 32
_PLACE: Final = 200
_SHORTEST_TOKEN: Final = 32


@dataclass(frozen=True, slots=True)
class Settled:
    """What was done. When there was nothing to do, ``index`` is None and nothing was changed."""

    #: Entries that the database had, and those that it was brought to; the root over the latter.
    from_size: int
    to_size: int
    root: bytes
    #: Index of the ``authority.restored`` entry.
    index: int | None
    #: Entries that a checkpoint shows and that are gone; None where that is not known, as without any checkpoint.
    missing: int | None = 0
    #: Certificates that are known by their entries only.
    lost: int = 0
    #: Revocations that were taken from CRLs.
    imported: int = 0
    #: The log's new name; empty while it is the same log.
    new_origin: str = ""
    #: CRLs that go on above a number: issuer, scope, number.
    crls: list[Number] = field(default_factory=list)
    #: Checkpoints that were found outside, by place, and places that did not answer.
    seen: dict[str, int] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    #: Entries that the file with the missing ones has beyond the newest checkpoint, and serials that they revoke. They were not
    #: taken, for nothing proves them.
    unproved: int = 0
    unproved_revocations: list[str] = field(default_factory=list)
    #: What people have to know of what was brought back.
    summary: Summary = field(default_factory=Summary)


class Settling:
    """One attempt to settle. The arguments are those of :func:`privyseal_ca.recovery.guard.settle`."""

    def __init__(
        self,
        store: Store,
        evidence: Evidence,
        settings: Settings,
        *,
        actor: str,
        correlation: str,
        clock: Clock,
        progress: Callable[[str], None],
    ) -> None:
        self._store = store
        self._evidence = evidence
        self._settings = settings
        self._actor = actor
        self._correlation = correlation
        self._clock = clock
        self._progress = progress
        self._unproved: tuple[int, list[str]] = 0, []

    async def run(self) -> Settled:
        """Settle. The errors are those of :func:`privyseal_ca.recovery.guard.settle`."""
        fact = await self._store.read(restored_fact)
        crls = await read_crls(self._store, [place for place in self._evidence.crls if place != NONE])
        if fact is not None and "new_origin" in fact:
            # It was accepted before, and the former log has ended: there is no way back.
            return await self._go_on_anew(crls, fact, missing=fact.get("missing"), found=Found([], []))
        identity = await self._store.read(partial(log_identity, vkey=self._evidence.vkey))
        async with self._source() as source:
            found = await self._look(identity, source)
            await complete_tiles(self._store)
            catch_up = CatchUp(self._store, found.seen, progress=self._progress)
            self._progress("comparing the database with what is kept outside")
            async with self._naming_a_fork(source, found):
                await catch_up.hash_own()
            target = catch_up.target
            accepted = self._evidence.accept_loss and source is None
            newer = await shown_by(self._store, crls)
            if target is None and newer is not None and not accepted:
                raise newer
            if target is None and newer is None and fact is None:
                return Settled(catch_up.size, catch_up.size, catch_up.root, None, **_places(found))
            if target is not None and source is None and not accepted:
                raise behind(target, catch_up.size)
            require_answers(found, self._evidence.checkpoints)
            unknown = await self._store.read(partial(what_is_unknown, found=found))
            if unknown is not None and not accepted:
                raise unknown
            if accepted and (target is not None or newer is not None or unknown is not None):
                missing = None if target is None else target.checkpoint.size - catch_up.size
                await self._store.read(partial(require_crls, shown=crls, places=self._evidence.crls))
                fact = await self._wait_for_the_end(catch_up, fact, missing=missing)
                return await self._go_on_anew(crls, fact, missing=missing, found=found)
            fact = await self._wait_for_the_end(catch_up, fact, identity=identity)
            if target is not None and source is not None:
                entries = source.entries(catch_up.size, target.checkpoint.size)
                async with self._naming_a_fork(source, found):
                    await catch_up.catch_up(entries, Rebuilder(await self._pointing()), source.place)
                await complete_tiles(self._store)
            if source is not None:
                self._unproved = await source.unproved(catch_up.size)
        await require_known(self._store, crls, {})
        return await self._end(catch_up, fact, found)

    @asynccontextmanager
    async def _naming_a_fork(self, source: Source | None, found: Found) -> AsyncIterator[None]:
        """Say of a ledger that is another than what is kept outside where the two part, when that can be seen."""
        try:
            yield
        except LedgerBehindError as error:
            index: int | None = None
            if source is not None:
                with suppress(PrivySealError):  # what was found wrong counts, not that it cannot be told more closely
                    # Partial tiles are there for the sizes of checkpoints only.
                    end = max(seen.checkpoint.size for seen in found.seen)
                    index = await first_difference(self._store, source.leaves(end))
            if index is None:
                raise
            raise LedgerBehindError(
                f"{error.message} The first entry of the database that is another in {shown_place(self._evidence.entries)} is {index}.",
                hint=error.hint,
            ) from error

    @asynccontextmanager
    async def _source(self) -> AsyncIterator[Source | None]:
        """Where missing entries come from; None without such a place."""
        place = self._evidence.entries
        if not place:
            yield None
        elif is_url(place):
            file = self._evidence.token_file
            token = None
            if file is not None:
                token = read_private_line(file, what="the access token for entries", shortest=_SHORTEST_TOKEN)
            async with new_session() as session:
                yield Source(shown_place(place), HttpLedger(place, session, token=token))
        elif await asyncio.to_thread(Path(place).is_dir):
            yield Source(place, FolderLedger(Path(place)))
        else:
            yield Source(place, None)

    async def _look(self, identity: LogIdentity, source: Source | None) -> Found:
        found = await look_outside(self._settings, identity, more=self._evidence.checkpoints)
        given = {shown_place(place) for place in self._evidence.checkpoints}
        for place, reason in found.silent:
            if place in given:
                raise BackupError(f"The checkpoint {place} {reason}.", hint="Give another place, or a copy as a file.")
        for place, reason in found.silent:
            self._progress(f"{place} {reason}")
        if source is not None and source.ledger is not None:
            try:
                note = await source.ledger.checkpoint()
            except StatusUnavailableError as error:
                self._progress(f"{source.place} shows no checkpoint: {error.message}")
            else:
                checkpoint = opened(note, identity, source.place)
                if checkpoint is not None:
                    found.seen.append(Seen(source.place, checkpoint))
        if identity.verifier is None and found.seen:
            raise LedgerError(
                f"{found.seen[0].place} shows a checkpoint, and the database has no key to verify it with.",
                hint="Give the key that was kept with it: --vkey VKEY|@FILE, as `privyseal ledger vkey` printed it.",
            )
        return found

    async def _wait_for_the_end(
        self,
        catch_up: CatchUp,
        fact: dict[str, Any] | None,
        *,
        missing: int | None = 0,
        identity: LogIdentity | None = None,
    ) -> dict[str, Any]:
        """Write down that this database waits to be settled, and take what settings say of parts of CRLs."""
        known = fact or {
            "at": rfc3339(self._clock.now()),
            "by": self._actor,
            "root": catch_up.root.hex(),
            "size": catch_up.size,
        }
        known = {**known, "missing": missing}

        def unit(transaction: Transaction) -> None:
            lock_head(transaction)
            set_fact(transaction, RESTORE_FACT, orjson.dumps(known).decode())
            if identity is not None and identity.verifier is not None:
                # The backup may be from before the first checkpoint, which said it.
                set_fact(transaction, ORIGIN_FACT, identity.origin)
            # Before parts come back that only the lost entries name: a new base URL begins behind those that are known.
            take_base(transaction, self._settings.server.public_http)

        await self._store.write(unit)
        return known

    async def _pointing(self) -> Pointing:
        profiles = load_profiles(self._settings.home / self._settings.issuance.profiles_dir)
        return Pointing(profiles, (await self._pointers())(""))

    async def _pointers(self) -> Callable[[str], Pointers]:
        bases = await self._store.read(lambda tx: take_base(tx, self._settings.server.public_http))
        first, url = bases[-1]
        return lambda issuer: Pointers(url, issuer, shards=self._settings.status.crl_shards, first_shard=first)

    async def _go_on_anew(
        self, crls: list[ShownCrl], fact: dict[str, Any], *, missing: int | None, found: Found
    ) -> Settled:
        """Go on as another log, with what CRLs tell."""
        if not self._evidence.accept_loss:
            raise LedgerBehindError(
                "It was accepted before that entries are lost, and the former log has ended.",
                hint="Go on as it was begun, with --accept-loss and the same --crl, or restore the backup anew.",
            )
        await self._store.read(partial(require_crls, shown=crls, places=self._evidence.crls))
        new_origin = await self._store.write(switch_log)
        give_up_checkpoint(kept_path(self._settings))
        importer = Importer(
            self._store,
            self._settings,
            pointers=await self._pointers(),
            actor=self._actor,
            correlation=self._correlation,
            clock=self._clock,
        )
        imported = await importer.revoke(crls)
        numbers = await importer.raise_numbers(crls)
        catch_up = CatchUp(self._store, (), progress=self._progress)
        await complete_tiles(self._store)
        await catch_up.hash_own()
        return await self._end(
            catch_up,
            fact,
            found,
            accepted=True,
            new_origin=new_origin,
            missing=missing,
            imported=imported,
            crls=numbers,
        )

    async def _end(
        self,
        catch_up: CatchUp,
        fact: dict[str, Any],
        found: Found,
        *,
        accepted: bool = False,
        new_origin: str = "",
        missing: int | None = 0,
        imported: int = 0,
        crls: list[Number] | None = None,
    ) -> Settled:
        first, end = min(int(fact["size"]), catch_up.size), catch_up.size
        summary = await summarise(self._store, first, end)
        numbers = summary.numbers() if crls is None else crls

        def unit(transaction: Transaction) -> tuple[int, int]:
            lock_head(transaction)
            if size(transaction) != end:
                raise LedgerBehindError(
                    "Somebody else appended to the ledger while it was settled.",
                    hint="Look who uses it, and settle again.",
                )
            if not accepted:
                interval = self._settings.status.interval
                reserve_numbers(transaction, end=end, now=self._clock.now(), interval=interval)
            lost = count_lost(transaction)
            payload = {
                "accepted_loss": accepted,
                "accounts_ended": len(summary.accounts_ended),
                "crls": len(numbers),
                "evidence": [
                    {"place": seen.place[:_PLACE], "size": seen.checkpoint.size} for seen in found.seen[:_PLACES]
                ],
                "from_size": first,
                "lost": lost,
                "missing": missing,
                "origin": new_origin or None,
                "root": catch_up.root.hex(),
                "to_size": end,
            }
            entry = encode_entry(
                Kind.AUTHORITY_RESTORED,
                time=self._clock.now(),
                actor=self._actor,
                correlation=self._correlation,
                payload=payload,
            )
            index = append(transaction, entry)
            forget_fact(transaction, RESTORE_FACT)
            return index, lost

        index, lost = await self._store.write(unit)
        return Settled(
            first,
            end,
            catch_up.root,
            index,
            missing=missing,
            lost=lost,
            imported=imported,
            new_origin=new_origin,
            crls=numbers,
            summary=summary,
            unproved=self._unproved[0],
            unproved_revocations=self._unproved[1],
            **_places(found),
        )


def _places(found: Found) -> dict[str, Any]:
    return {"seen": {seen.place: seen.checkpoint.size for seen in found.seen}, "silent": dict(found.silent)}
