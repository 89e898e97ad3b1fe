"""Auditing a log from another machine, over HTTP only, with nothing but its key (promises P2, P3 and P6 as far as they show).

1. The newest checkpoint: signed by the log, cosigned by the quorum of its witnesses.
2. It continues the checkpoint that was kept from an earlier audit, and agrees with those seen at other places.
3. Every tile leads to its root; every entry, where they are given, is the one that the tree has, and follows from those before it.
4. The CRLs are signed, and list what the entries revoke and nothing else.
5. Every certificate that was given is in the log.

What is wrong in 1 to 3 ends the audit, as the rest would be compared with nothing: it says what was not checked.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.errors import LedgerError, StatusUnavailableError
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.outside.certificates import CertificateCheck, Held, not_shown
from privyseal_ca.outside.crls import FULL, CrlCheck, NewerCrlError
from privyseal_ca.outside.findings import Code, Finding, FindingError
from privyseal_ca.outside.replay import Replay
from privyseal_ca.outside.signed import LogKeys, Seen, require_continued, require_same_view
from privyseal_ca.outside.source import HttpLedger, Sleep
from privyseal_ca.outside.tiles import CheckedTiles
from privyseal_ca.outside.walk import Progress, Walk

#: How often a newer checkpoint is asked for that has to come within about a second, and seconds between.
TRIES: Final = 6
PAUSE: Final = 2.0
#: An intent that is older than a day is not in flight any more.
_IN_FLIGHT: Final = 86400
#: Open intents and findings of one kind that are listed.
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What an audit is to look at."""

    keys: LogKeys
    #: A checkpoint that was kept, verified with the same key.
    since: Seen | None = None
    #: Other places of the same log.
    also: Sequence[HttpLedger] = ()
    certificates: Sequence[Held] = ()
    #: How old the cosignatures of the quorum may be, in seconds.
    freshness: float | None = None
    #: Whether entries have to be given; None to take them when they are.
    entries: bool | None = None


@dataclass(slots=True)
class Audited:
    """What an audit has seen."""

    findings: list[Finding] = field(default_factory=list)
    #: What could not be checked, and why.
    unchecked: list[str] = field(default_factory=list)
    seen: Seen | None = None
    #: Entries whose hashes were checked, and whether their contents were.
    entries: int = 0
    contents: bool = False
    issued: int = 0
    revoked: int = 0
    abandoned: int = 0
    #: Intents that nothing has followed yet: index and serial.
    open: list[tuple[int, str]] = field(default_factory=list)
    crls: int = 0
    #: The place of each certificate, by its name.
    certificates: dict[str, int] = field(default_factory=dict)
    #: Other places that show the same log.
    views: int = 0


class OutsideAudit:
    """One audit of the log at ``source``."""

    def __init__(
        self,
        source: HttpLedger,
        asked: Asked,
        *,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._asked = asked
        self._clock = clock
        self._sleep = sleep
        self._replay = Replay(clock.now)
        self._walk = Walk(source, self._replay, entries=asked.entries, progress=progress)
        self._report = Audited()

    async def run(self) -> Audited:
        """Look at everything.

        Raises:
            StatusUnavailableError: the log cannot be read.
        """
        report = self._report
        entries = [held.entry() for held in self._asked.certificates]
        self._walk.wanted = {leaf_hash(entry) for entry in entries if entry is not None}
        try:
            seen = await newest(self._source, self._asked.keys, self._sleep)
            report.findings += self._asked.keys.judge(seen, now=self._clock.now(), freshness=self._asked.freshness)
            tiles = await self._walk.tiles(seen.checkpoint)
            if self._asked.since is not None:
                await require_continued(self._asked.since, tiles, seen)
            await self._views(seen, tiles)
            await self._read(tiles)
        except FindingError as error:
            report.findings.append(error.finding)
            report.unchecked.append("everything else: what was found makes it useless to go on")
            return report
        report.seen = seen
        await self._crls()
        await self._certificates()
        self._sum_up()
        return report

    async def _views(self, seen: Seen, tiles: CheckedTiles) -> None:
        for other in self._asked.also:
            try:
                theirs = self._asked.keys.open(await other.checkpoint(), other.base_url)
                other_tiles = CheckedTiles(other, theirs.checkpoint)
                if theirs.checkpoint.size >= seen.checkpoint.size:
                    await other_tiles.open()
                await require_same_view(seen, tiles, theirs, other_tiles)
            except FindingError:
                raise
            except (StatusUnavailableError, LedgerError) as error:
                self._report.findings.append(Finding(Code.UNREACHABLE, error.message))
            else:
                self._report.views += 1

    async def _read(self, tiles: CheckedTiles) -> None:
        async for _ in self._walk.steps(tiles):
            pass

    async def _read_on(self) -> CheckedTiles | None:
        """Read up to a newer checkpoint, as soon as there is one with the quorum's cosignatures; None when there is none in time.

        Raises:
            FindingError: something is wrong in it, or it does not continue what was read.
            StatusUnavailableError: it cannot be read.
        """
        keys, before = self._asked.keys, self._report.seen
        for _ in range(TRIES):
            seen = keys.open(await self._source.checkpoint(), self._source.base_url)
            if before is not None and seen.checkpoint.size <= self._walk.edge.size:
                # A cache may be behind, but not show another log.
                await require_continued(seen, await self._tiles(), before)
            elif keys.quorum_of(seen):
                tiles = await self._walk.tiles(seen.checkpoint)
                await self._read(tiles)
                self._report.seen = seen
                return tiles
            await self._sleep(PAUSE)
        return None

    async def _crls(self) -> None:
        report = self._report
        if not self._walk.entries:
            report.unchecked.append(
                "the contents of the entries, and whether CRLs list what was revoked: entries are not given to this audit"
            )
        replay = self._replay if self._walk.entries else None
        check = CrlCheck(self._source, replay, self._clock.now)
        try:
            if replay is None:
                found = await check.without_entries()
                report.findings += found
                if not found and not check.checked:
                    report.unchecked.append("the CRLs: no list of them is served")
                if check.checked:
                    report.unchecked.append(
                        "the roots that the CRLs' signatures lead to: they are those that the server names"
                    )
            for issuer in [issuer for issuer, scope in self._replay.crls if scope == FULL]:
                report.findings += await self._crl(check, issuer)
            report.findings += unlisted(self._replay, self._clock.now())
        except StatusUnavailableError as error:
            report.findings.append(Finding(Code.UNREACHABLE, error.message))
        except LedgerError as error:
            report.findings.append(_finding(error, Code.CRL))
        report.crls = check.checked

    async def _crl(self, check: CrlCheck, issuer: str) -> list[Finding]:
        for _ in range(TRIES):
            try:
                return await check.compare(issuer)
            except NewerCrlError:
                if await self._read_on() is None:
                    break
        return [Finding(Code.CRL, f"The CRL of {issuer} is newer than anything that the log says of it.")]

    async def _certificates(self) -> None:
        check = CertificateCheck(self._source, self._asked.keys)
        for held in self._asked.certificates:
            try:
                place = await self._place(check, held)
            except StatusUnavailableError as error:
                self._report.findings.append(Finding(Code.UNREACHABLE, f"{held.name}: {error.message}"))
            except LedgerError as error:
                self._report.findings.append(not_shown(held, error))
            else:
                self._report.certificates[held.name] = place

    async def _place(self, check: CertificateCheck, held: Held) -> int:
        tiles = await self._tiles()
        for _ in range(TRIES):
            place = await check.place(held, tiles, self._walk.found)
            if place is not None:
                return place
            newer = await self._read_on()
            if newer is None:
                break
            tiles = newer
        raise FindingError(
            Code.CERTIFICATE, f"The receipt of {held.name} names a checkpoint that its server does not show."
        )

    async def _tiles(self) -> CheckedTiles:
        """The tiles at what was read."""
        seen = self._report.seen
        if seen is None:
            raise LedgerError("Nothing was read of the log.")
        return await self._walk.tiles(seen.checkpoint)

    def _sum_up(self) -> None:
        report, replay, now = self._report, self._replay, self._clock.now()
        report.entries = self._walk.edge.size
        report.contents = bool(self._walk.entries) or not report.entries
        report.issued, report.revoked, report.abandoned = replay.issued, replay.revoked, replay.abandoned
        report.open = [(each.index, serial) for serial, each in replay.open.items()]
        report.findings += stale_intents(replay, now)


def stale_intents(replay: Replay, now: float) -> list[Finding]:
    """Intents that came to no end within a day: whether the token signed is not said."""
    stale = [(serial, each) for serial, each in replay.open.items() if now - each.time > _IN_FLIGHT]
    return [
        Finding(
            Code.INTENT,
            f"Entry {each.index} announces a certificate with the serial {serial} at {rfc3339(each.time)}, and nothing says what "
            "became of it.",
            index=each.index,
        )
        for serial, each in stale[:_SHOWN]
    ]


def unlisted(replay: Replay, now: float) -> list[Finding]:
    """CAs of this log that have revoked something more than a day ago, and for which it tells of no CRL at all."""
    found = []
    for issuer in sorted(replay.cas.keys() & replay.listed.keys()):
        if (issuer, FULL) in replay.crls:
            continue
        for serial, each in replay.listed[issuer].items():
            if each.revoked_at < now - _IN_FLIGHT and each.not_after > now:
                said = f"The serial {serial.hex()} was revoked by entry {each.index}, and no CRL of {issuer} was published since."
                found.append(Finding(Code.CRL, said, each.index))
                break
    return found


async def newest(source: HttpLedger, keys: LogKeys, sleep: Sleep) -> Seen:
    """The newest checkpoint; one with the quorum's cosignatures, when there is one within a few seconds.

    Raises:
        FindingError: it is not the log's.
        StatusUnavailableError: there is none.
    """
    for left in reversed(range(TRIES)):
        seen = keys.open(await source.checkpoint(), source.base_url)
        if keys.quorum_of(seen) or not left:
            break
        await sleep(PAUSE)
    return seen


def _finding(error: LedgerError, code: Code) -> Finding:
    return error.finding if isinstance(error, FindingError) else Finding(code, error.message)
