"""Checkpoints as somebody sees them who has the log's key and those of its witnesses, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from privyseal_ca.clock import CLOCK_STEP, rfc3339
from privyseal_ca.errors import ConfigurationError, LedgerError
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.outside.findings import Code, Finding, FindingError
from privyseal_ca.outside.tiles import CheckedTiles

_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint whose signature by the log was verified."""

    note: bytes
    checkpoint: Checkpoint
    #: Which witnesses cosigned it, by name, and when, in seconds since the epoch.
    cosigned: Mapping[str, int]
    #: Where it was seen.
    where: str

    def text(self) -> str:
        """The note as findings carry it."""
        return self.note.decode()


@dataclass(frozen=True, slots=True)
class LogKeys:
    """Whose signatures count."""

    log: NoteVerifier
    witnesses: tuple[CosignatureVerifier, ...] = ()
    #: How many of the witnesses have to have cosigned a checkpoint.
    quorum: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.quorum <= len(self.witnesses):
            raise ConfigurationError(
                f"A quorum of {self.quorum} cannot be reached with {len(self.witnesses)} witnesses.",
                hint="Name each witness with --witness.",
            )

    def require_witnesses(self) -> None:
        """Raises ConfigurationError when no cosignature counts, so that nothing says how old a checkpoint is."""
        if not self.quorum:
            raise ConfigurationError(
                "How old a checkpoint is shows in cosignatures only, and none is asked for.",
                hint="Name a witness with --witness, or leave --freshness out.",
            )

    def open(self, note: bytes, where: str) -> Seen:
        """The checkpoint in ``note``, which was seen at ``where``.

        Raises:
            FindingError: it is malformed, not signed by the log, of another log, or has a wrong cosignature.
        """
        try:
            text, _ = open_note(note, [self.log])
            checkpoint = Checkpoint.parse(text)
        except LedgerError as error:
            raise FindingError(
                Code.SIGNATURE, f"What is at {where} is no checkpoint that the log's key signed: {error.message}"
            ) from error
        if checkpoint.origin != self.log.name:
            raise FindingError(
                Code.ORIGIN,
                f"The checkpoint at {where} is of the log {checkpoint.origin[:_SHOWN]!r}, and the key is that of "
                f"{self.log.name!r}.",
                notes=(note.decode(),),
            )
        try:
            return Seen(note, checkpoint, cosignatures(note, self.witnesses), where)
        except LedgerError as error:
            raise FindingError(Code.WITNESS, f"{where}: {error.message}", notes=(note.decode(),)) from error

    def quorum_of(self, seen: Seen) -> bool:
        """Whether enough witnesses have cosigned."""
        return len(seen.cosigned) >= self.quorum

    def judge(self, seen: Seen, *, now: float, freshness: float | None) -> list[Finding]:
        """What is wrong with the cosignatures: too few, from the future, or all but the quorum's older than ``freshness``."""
        if not self.quorum:
            return []
        if not self.quorum_of(seen):
            lacking = sorted({each.name for each in self.witnesses} - seen.cosigned.keys())
            return [
                Finding(
                    Code.WITNESS,
                    f"The checkpoint of {seen.checkpoint.size} entries has {len(seen.cosigned)} cosignatures of the {self.quorum} "
                    f"that it needs; there is none by {', '.join(lacking)}.",
                )
            ]
        found = [
            Finding(Code.WITNESS, f"The witness {name} says that it cosigned in the future, at {_when(time)}.")
            for name, time in seen.cosigned.items()
            if time > now + CLOCK_STEP
        ]
        # So many witnesses say that the log was like this at that time, or later.
        oldest = sorted(seen.cosigned.values(), reverse=True)[self.quorum - 1]
        if freshness is not None and now - oldest > freshness:
            found.append(
                Finding(
                    Code.STALE,
                    f"The newest checkpoint was cosigned by {self.quorum} witnesses at {_when(oldest)} for the last time, "
                    f"more than {freshness:.0f} seconds ago: something newer may be kept back.",
                )
            )
        return found


async def require_continued(kept: Seen, tiles: CheckedTiles, now: Seen) -> None:
    """The log at ``now``, whose tiles were opened, begins with what ``kept`` says.

    Raises:
        FindingError: it has fewer entries, or others.
        StatusUnavailableError: the log cannot be read.
    """
    before, after = kept.checkpoint, now.checkpoint
    if after.size < before.size:
        raise FindingError(
            Code.ROLLBACK,
            f"The log at {now.where} has {after.size} entries, fewer than the {before.size} of the checkpoint from {kept.where}: "
            "it was rolled back.",
            index=after.size,
            notes=(kept.text(), now.text()),
        )
    if await tiles.root_at(before.size) != before.root:
        raise FindingError(
            Code.FORK,
            f"The first {before.size} entries of the log at {now.where} are not those of the checkpoint from {kept.where}: it was "
            "rewritten and signed again.",
            notes=(kept.text(), now.text()),
        )


async def require_same_view(one: Seen, one_tiles: CheckedTiles, other: Seen, other_tiles: CheckedTiles) -> None:
    """Two places show the same log: the larger tree begins with the smaller one. The tiles of the larger one were opened.

    Raises:
        FindingError: they do not.
        StatusUnavailableError: the larger one cannot be read.
    """
    small, large, tiles = one, other, other_tiles
    if one.checkpoint.size > other.checkpoint.size:
        small, large, tiles = other, one, one_tiles
    if await tiles.root_at(small.checkpoint.size) != small.checkpoint.root:
        raise FindingError(
            Code.SPLIT_VIEW,
            f"{one.where} and {other.where} show different logs, both signed by the log's key: the {large.checkpoint.size} entries "
            f"at {large.where} do not begin with the {small.checkpoint.size} at {small.where}.",
            notes=(one.text(), other.text()),
        )


def _when(seconds: int) -> str:
    """A time that a witness says, which may be anything."""
    try:
        return rfc3339(seconds)
    except (ValueError, OverflowError, OSError):
        return f"{seconds} seconds since 1970"
