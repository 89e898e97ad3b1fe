"""Watching a log all the time: each round reads what is new, and compares it with everything that was seen before.

What shows that the log was rolled back, forked or split is kept as evidence, and told again in every round until a person has
removed it. Everything else is told as long as it is so.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError
from privyseal_ca.outside.audit import PAUSE, TRIES, newest, stale_intents, unlisted
from privyseal_ca.outside.crls import FULL, CrlCheck, NewerCrlError
from privyseal_ca.outside.facts import Fact
from privyseal_ca.outside.findings import Code, Finding, FindingError
from privyseal_ca.outside.replay import Replay
from privyseal_ca.outside.signed import LogKeys, Seen, require_continued, require_same_view
from privyseal_ca.outside.source import EntriesRefusedError, HttpLedger, Sleep
from privyseal_ca.outside.state import MonitorState
from privyseal_ca.outside.tiles import CheckedTiles
from privyseal_ca.outside.walk import Progress, Walk

_KEPT: Final = frozenset({Code.ROLLBACK, Code.FORK, Code.SPLIT_VIEW, Code.ORIGIN})
#: Entries after which is kept how far the reading is.
_STEP: Final = 1 << 16
#: Seconds after which CRLs are looked at again although the log tells of no new one: they may be exchanged, or run out.
_CRL_SECONDS: Final = 900


@dataclass(slots=True)
class Round:
    """What one round has seen."""

    time: float
    findings: list[Finding] = field(default_factory=list)
    #: What is no finding yet.
    notes: list[str] = field(default_factory=list)
    size: int | None = None
    root: bytes | None = None
    #: Entries that are new, and whether their contents were checked.
    read: int = 0
    entries: bool = False

    def document(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "time": rfc3339(self.time),
            "ok": not self.findings,
            "size": self.size,
            "root": None if self.root is None else self.root.hex(),
            "new_entries": self.read,
            "entries_checked": self.entries,
            "notes": self.notes,
            "findings": [finding.document() for finding in self.findings],
        }


class Monitor:
    """Rounds over the log at ``source``; ``also`` are other places that show it.

    ``entries`` says whether entries have to be given; None to take them when they are. ``freshness`` is how old the quorum's
    cosignatures may be, ``patience`` how long the log, another place or a CRL may be out of reach, in seconds.
    """

    def __init__(
        self,
        source: HttpLedger,
        keys: LogKeys,
        state: MonitorState,
        *,
        clock: Clock,
        freshness: float,
        patience: float,
        also: Sequence[HttpLedger] = (),
        entries: bool | None = None,
        sleep: Sleep = asyncio.sleep,
        progress: Progress | None = None,
    ) -> None:
        """Raises ConfigurationError when entries have to be given, and the state was begun without."""
        self._source = source
        self._keys = keys
        if entries and state.entries is False:
            raise ConfigurationError(
                "The state was begun without the entries, which were not given then.",
                hint="Begin anew with an empty folder (--state), so that all of them are read.",
            )
        self._state = state
        self._clock = clock
        self._freshness = freshness
        self._patience = patience
        self._also = also
        self._entries = entries
        self._sleep = sleep
        self._progress = progress
        self._began = clock.now()
        self._walk: Walk | None = None
        #: The newest CRLs when they were compared last, and when that was.
        self._crls: dict[str, int] = {}
        self._crls_at = 0.0
        #: Since when other places and CRLs are out of reach.
        self._away: dict[str, float] = {}

    async def round(self) -> Round:
        """Look at what is new.

        Raises:
            ConfigurationError: the state cannot be read or written.
        """
        done = Round(self._clock.now())
        for path in self._state.evidence():
            code = next((each for each in _KEPT if path.name.startswith(f"evidence-{each}-")), Code.FORK)
            done.findings.append(
                Finding(code, f"There is evidence in {path}. Remove it when somebody has dealt with it.")
            )
        if done.findings:
            return done
        try:
            await self._look(done)
        except FindingError as error:
            # What was read in this round does not count: the next one begins where the last good one ended.
            self._walk = None
            done.findings.append(error.finding)
        except EntriesRefusedError as error:
            done.findings.append(Finding(Code.UNREACHABLE, f"Entries are not given any more: {error.message}"))
        except StatusUnavailableError as error:
            self._out_of_reach(done, error.message)
        except LedgerError as error:
            # An answer that is no checkpoint, such as one without an end.
            done.findings.append(Finding(Code.SIGNATURE, error.message))
        for finding in done.findings:
            if finding.code in _KEPT:
                self._keep(done, finding)
        return done

    def _keep(self, done: Round, finding: Finding) -> None:
        try:
            self._state.keep_evidence(finding)
        except ConfigurationError as error:
            # What was found is told all the same. It is found again: what was kept of the log is from before.
            done.notes.append(f"The evidence could not be kept: {error.message}")

    async def _look(self, done: Round) -> None:
        walk = self._opened()
        seen, before = await self._newest(), walk.edge.size
        try:
            tiles = await self._accept(done, walk, seen)
            await self._views(done, seen, tiles)
            await self._read(walk, tiles)
            now = self._clock.now()
            done.findings += self._keys.judge(seen, now=now, freshness=self._freshness)
            done.findings += stale_intents(walk.replay, now)
            if walk.entries:
                await self._compare_crls(done, walk, now)
                done.findings += unlisted(walk.replay, now)
        finally:
            done.read, done.entries = walk.edge.size - before, bool(walk.entries)

    async def _accept(self, done: Round, walk: Walk, seen: Seen) -> CheckedTiles:
        """Make sure that the log continues what was kept of it, and keep what it says now; its tiles."""
        state = self._state
        done.size, done.root = seen.checkpoint.size, seen.checkpoint.root
        if state.kept is not None and seen.checkpoint.size < state.kept.checkpoint.size:
            await require_continued(state.kept, CheckedTiles(self._source, seen.checkpoint), seen)
        tiles = await walk.tiles(seen.checkpoint)
        if state.kept is not None:
            await _continued(walk, state.kept, tiles, seen)
        state.contact = self._clock.now()
        if state.kept is None or state.kept.note != seen.note:
            # Before anything is read: whatever the entries are, the log has said this.
            state.kept = seen
            state.commit(())
        return tiles

    def _opened(self) -> Walk:
        """What was read so far, from the folder when there is nothing in memory."""
        if self._walk is None:
            replay = Replay(self._clock.now)
            for fact in self._state.facts():
                replay.apply(fact)
            # The edge in the state changes only when it is kept.
            edge = self._state.edge.copy()
            entries = self._entries if self._state.entries is None else self._state.entries
            self._walk = Walk(self._source, replay, edge=edge, entries=entries, progress=self._progress)
        return self._walk

    async def _newest(self) -> Seen:
        """The newest checkpoint. A cache may be a little behind what was seen before: it is given a moment."""
        kept = self._state.kept
        for left in reversed(range(TRIES)):
            seen = await newest(self._source, self._keys, self._sleep)
            if kept is None or seen.checkpoint.size >= kept.checkpoint.size or not left:
                break
            await self._sleep(PAUSE)
        return seen

    async def _read(self, walk: Walk, tiles: CheckedTiles) -> None:
        facts: list[Fact] = []
        try:
            async for found in walk.steps(tiles):
                facts += found
                if walk.edge.size - self._state.edge.size >= _STEP:
                    self._commit(walk, facts)
        except StatusUnavailableError:
            self._commit(walk, facts)
            raise
        self._commit(walk, facts)

    def _commit(self, walk: Walk, facts: list[Fact]) -> None:
        self._state.edge = walk.edge.copy()
        self._state.entries = walk.entries
        self._state.commit(facts)
        facts.clear()

    async def _views(self, done: Round, seen: Seen, tiles: CheckedTiles) -> None:
        for other in self._also:
            try:
                theirs = self._keys.open(await other.checkpoint(), other.base_url)
                other_tiles = CheckedTiles(other, theirs.checkpoint)
                if theirs.checkpoint.size >= seen.checkpoint.size:
                    await other_tiles.open()
                await require_same_view(seen, tiles, theirs, other_tiles)
            except FindingError as error:
                done.findings.append(error.finding)
            except (StatusUnavailableError, LedgerError) as error:
                self._is_away(done, other.base_url, error.message)
                continue
            self._away.pop(other.base_url, None)

    def _is_away(self, done: Round, what: str, message: str) -> None:
        """``what`` cannot be read: somebody who shows several logs would see to that."""
        since = self._away[what] = min(self._away.get(what, done.time), done.time)
        if done.time - since < self._patience:
            done.notes.append(message)
        else:
            done.findings.append(Finding(Code.UNREACHABLE, f"{message} It is out of reach since {rfc3339(since)}."))

    async def _compare_crls(self, done: Round, walk: Walk, now: float) -> None:
        """Compare the CRLs that are new, and all of them now and then."""
        newest_crls = _newest_crls(walk.replay)
        if newest_crls == self._crls and now - self._crls_at < _CRL_SECONDS:
            return
        check = CrlCheck(self._source, walk.replay, self._clock.now)
        found: list[Finding] = []
        complete = True
        for issuer in newest_crls:
            what = f"crl/{issuer}"
            try:
                found += await self._crl(done, check, issuer, walk)
                self._away.pop(what, None)
            except StatusUnavailableError as error:
                self._is_away(done, what, error.message)
                complete = False
        done.findings += found
        if complete and not found:
            self._crls, self._crls_at = _newest_crls(walk.replay), now

    async def _crl(self, done: Round, check: CrlCheck, issuer: str, walk: Walk) -> list[Finding]:
        for _ in range(TRIES):
            try:
                return await check.compare(issuer)
            except NewerCrlError:
                # Its entry has to be in a checkpoint within about a second.
                if not await self._read_on(done, walk):
                    break
            except LedgerError as error:
                return [Finding(Code.CRL, error.message)]
        return [Finding(Code.CRL, f"The CRL of {issuer} is newer than anything that the log says of it.")]

    async def _read_on(self, done: Round, walk: Walk) -> bool:
        """Read up to a newer checkpoint with the quorum's cosignatures; whether there was one within a few seconds."""
        for _ in range(TRIES):
            seen = self._keys.open(await self._source.checkpoint(), self._source.base_url)
            if seen.checkpoint.size > walk.edge.size and self._keys.quorum_of(seen):
                await self._read(walk, await self._accept(done, walk, seen))
                return True
            await self._sleep(PAUSE)
        return False

    def _out_of_reach(self, done: Round, message: str) -> None:
        reached = self._state.contact is not None
        last = self._state.contact if self._state.contact is not None else self._began
        if last > done.time:
            # From before a clock stepped back: nothing is said of the time until then.
            last = self._state.contact = done.time
        if done.time - last < self._patience:
            done.notes.append(message)
        else:
            since = "It was reached for the last time at" if reached else "This monitor has not reached it since"
            done.findings.append(Finding(Code.UNREACHABLE, f"{message} {since} {rfc3339(last)}."))


def _newest_crls(replay: Replay) -> dict[str, int]:
    """The numbers of the newest full CRLs that the entries tell of, by issuer."""
    return {issuer: each[-1].said["number"] for (issuer, scope), each in replay.crls.items() if scope == FULL}


async def _continued(walk: Walk, kept: Seen, tiles: CheckedTiles, seen: Seen) -> None:
    """The log continues what was kept.

    Raises:
        FindingError: it does not; with the first entry that differs, where the edge of the tree tells.
    """
    try:
        await walk.require_same(tiles)
    except FindingError as error:
        found = error.finding
        notes = (kept.text(), seen.text()) if found.code is Code.FORK else ()
        raise FindingError(found.code, found.message, index=found.index, notes=notes) from error
    await require_continued(kept, tiles, seen)
