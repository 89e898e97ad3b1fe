"""What others keep of the ledger: where its newest checkpoint is to be found outside of the database, and what it is (P8).

A checkpoint counts only when the log's own key has signed it and it is of this log. Places are asked at the same time, and
all of them together have a limit: one that hangs keeps nobody waiting.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from privyseal_ca.config import Settings
from privyseal_ca.errors import LedgerBehindError, LedgerError, PrivySealError, StatusUnavailableError
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, VKEY_FACT
from privyseal_ca.ledger.note import MAX_NOTE, Checkpoint, NoteVerifier, open_note
from privyseal_ca.recovery.facts import former_logs
from privyseal_ca.recovery.kept_file import kept_path
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.statement import Transaction
from privyseal_ca.web.fetching import Bounds, fetch, new_session
from privyseal_ca.witness.monitoring import ask_witnesses

#: Seconds within which every place has to answer.
PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an operator can show of what the database was."""

    #: Files, folders or URLs with the newest checkpoint that is known.
    checkpoints: tuple[str, ...] = ()
    #: The key that verifies them, kept elsewhere; None for the ledger's own.
    vkey: str | None = None
    #: Where the missing entries are to be had: the URL or the folder of a published ledger, or a file of JSON lines as
    #: ``privyseal ledger export`` writes them. Empty when there is no such place.
    entries: str = ""
    #: A file with the access token for entries at a URL.
    token_file: Path | None = None
    #: CRLs that were published, as files or URLs; ``none`` says that the other issuers never published any.
    crls: tuple[str, ...] = ()
    #: Go on although entries are missing that nobody has any more.
    accept_loss: bool = False


class LogIdentity(NamedTuple):
    """Which log this is."""

    #: Its name; empty while it has none.
    origin: str = ""
    #: None in a database that never signed a checkpoint.
    verifier: NoteVerifier | None = None
    #: Origins of the logs that were given up before.
    former: frozenset[str] = frozenset()


class Seen(NamedTuple):
    """A checkpoint that was found outside, verified."""

    place: str
    checkpoint: Checkpoint


class Silent(NamedTuple):
    """A place that did not answer, and why."""

    place: str
    reason: str


class Found(NamedTuple):
    """What all places together say."""

    seen: list[Seen]
    silent: list[Silent]


def log_identity(transaction: Transaction, vkey: str | None = None) -> LogIdentity:
    """The log of this database, by the key ``vkey`` that was kept elsewhere or by what it knows itself.

    Raises:
        LedgerError: ``vkey`` is none, or not the key of this database's log.
    """
    own = find_fact(transaction, VKEY_FACT)
    text = vkey or own
    origin = find_fact(transaction, ORIGIN_FACT)
    # No log is its own predecessor: whoever writes that into the database must not silence what is kept outside.
    former = frozenset(log["origin"] for log in former_logs(transaction)) - {origin}
    if text is None:
        return LogIdentity(origin or "", None, former)
    verifier = NoteVerifier.parse(text)
    if vkey is not None and own is not None and verifier.vkey() != own:
        raise LedgerError(
            f"The key that was given is {verifier.name}+{verifier.key_id.hex()}; the database's log has {_short(own)}.",
            hint="Give the key of this ledger, as `privyseal ledger vkey` printed it. If it is that one, the database was "
            "exchanged for another: find out why before anything else.",
        )
    if origin is not None and origin != verifier.name:
        raise LedgerError(
            f"The key that was given is of the log {verifier.name}, and the database's is {origin}.",
            hint="Give the key of this ledger, as `privyseal ledger vkey` printed it.",
        )
    return LogIdentity(verifier.name, verifier, former)


def _short(vkey: str) -> str:
    verifier = NoteVerifier.parse(vkey)
    return f"{verifier.name}+{verifier.key_id.hex()}"


async def look_outside(
    settings: Settings, identity: LogIdentity, *, more: Sequence[str] = (), patience: float = PATIENCE
) -> Found:
    """The newest checkpoint at every place: the home's own file, ``ledger.outside``, the witnesses, and ``more``.

    Without a key, as in a database that never signed a checkpoint, what places show is taken as it is: that there is any says
    enough. A place of a log that was given up says nothing.

    Raises:
        LedgerError: a place shows another log, or a checkpoint that this log's key has not signed.
    """
    configured = [str(kept_path(settings))] if kept_path(settings).exists() else []
    configured += [_in_home(settings, place) for place in settings.ledger.outside]
    places = [*configured, *(place for place in more if place not in configured)]
    async with new_session() as session:

        async def one(place: str) -> Seen | Silent | None:
            try:
                async with asyncio.timeout(patience):
                    note = await _note_at(place, lambda url: fetch(session, url, _bounds(patience)))
            except TimeoutError:
                return Silent(shown_place(place), f"does not answer within {patience:.0f} seconds")
            except StatusUnavailableError as error:
                return Silent(shown_place(place), error.message)
            checkpoint = opened(note, identity, shown_place(place))
            return None if checkpoint is None else Seen(shown_place(place), checkpoint)

        async def witnesses() -> list[Seen | Silent | None]:
            asked = settings.ledger.witnesses
            if identity.verifier is None or not asked:
                return []
            shown = await ask_witnesses(asked, identity.origin, identity.verifier, session, seconds=patience)
            return [
                # What the log itself has signed is evidence, with or without the witness's own signature.
                Seen(f"witness {each.name}", each.checkpoint)
                if each.checkpoint is not None
                else Silent(f"witness {each.name}", each.problem)
                for each in shown
                if each.checkpoint is not None or each.problem
            ]

        answers, cosigned = await asyncio.gather(asyncio.gather(*map(one, places)), witnesses())
    return _sorted([*answers, *cosigned])


async def look_at_home(settings: Settings, identity: LogIdentity) -> Found:
    """What :func:`look_outside` finds in the home's own file, which takes no network.

    Raises:
        LedgerError: it is of another log, or a checkpoint that this log's key has not signed.
    """
    path = kept_path(settings)
    if not path.exists():
        return Found([], [])
    try:
        checkpoint = opened(await asyncio.to_thread(_read_note, path), identity, str(path))
    except StatusUnavailableError as error:
        return Found([], [Silent(str(path), error.message)])
    return Found([] if checkpoint is None else [Seen(str(path), checkpoint)], [])


def _sorted(answers: Iterable[Seen | Silent | None]) -> Found:
    found = Found([], [])
    for answer in answers:
        if isinstance(answer, Seen):
            found.seen.append(answer)
        elif isinstance(answer, Silent):
            found.silent.append(answer)
    return found


def opened(note: bytes, identity: LogIdentity, place: str) -> Checkpoint | None:
    """The checkpoint in ``note``, found at ``place``; None when it is of a log that was given up.

    Raises:
        LedgerError: it is of another log, or not signed by the log's key.
    """
    try:
        origin = note[:MAX_NOTE].partition(b"\n")[0].decode()
        if origin in identity.former:
            return None
        if identity.verifier is None:
            return Checkpoint.parse(note.decode().partition("\n\n")[0] + "\n")
        text, _ = open_note(note, [identity.verifier])
        checkpoint = Checkpoint.parse(text)
    except (PrivySealError, UnicodeDecodeError) as error:
        why = error.message if isinstance(error, PrivySealError) else "It is not text."
        raise LedgerError(
            f"What {place} shows is no checkpoint of this ledger: {why}",
            hint="Look whether the place is right (ledger.outside, --checkpoint), and whether the key is (--vkey).",
        ) from error
    if checkpoint.origin != identity.origin:
        raise LedgerError(
            f"What {place} shows is of the log {checkpoint.origin}, and this is {identity.origin}.",
            hint="Look whether the place is right (ledger.outside, --checkpoint), and whether the database is.",
        )
    return checkpoint


async def _note_at(place: str, get: Callable[[str], Any]) -> bytes:
    """The note at ``place``. Raises StatusUnavailableError when it cannot be read now."""
    if not is_url(place):
        return await asyncio.to_thread(_read_note, Path(place))
    fetched = await get(checkpoint_url(place))
    if fetched.body is None:
        raise StatusUnavailableError(fetched.failure or "is longer than a checkpoint may be")
    return bytes(fetched.body)


def _read_note(path: Path) -> bytes:
    try:
        if path.is_dir():
            below = path / "ledger" / "checkpoint"
            path = below if below.exists() else path / "checkpoint"
        with path.open("rb") as file:
            return file.read(MAX_NOTE + 1)
    except OSError as error:
        raise StatusUnavailableError(f"cannot be read: {error.strerror}") from error


def is_url(place: str) -> bool:
    """Whether ``place`` is fetched over HTTP."""
    return place.startswith(("http://", "https://"))


def checkpoint_url(place: str) -> str:
    """Where the checkpoint is: ``place`` itself, or below it as tlog-tiles and `privyseal status publish` have it."""
    base = place.rstrip("/")
    if base.endswith("/checkpoint"):
        return base
    return f"{base}/checkpoint" if base.endswith("/ledger") else f"{base}/ledger/checkpoint"


def shown_place(place: str) -> str:
    """A place as it is told: of a URL without user, password and query, which may be secrets (promise P10)."""
    if not is_url(place):
        return place
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _in_home(settings: Settings, place: str) -> str:
    return place if is_url(place) else str(settings.home / place)


def _bounds(seconds: float) -> Bounds:
    return Bounds(keep=MAX_NOTE, most=MAX_NOTE, seconds=seconds)


def behind(seen: Seen, size: int) -> LedgerBehindError:
    """That the ledger, of ``size`` entries, lacks what ``seen`` shows it had."""
    missing = seen.checkpoint.size - size
    return LedgerBehindError(
        f"The database is behind: it has {size} entries, and {seen.place} shows a checkpoint of {seen.checkpoint.size}. "
        f"{missing} {'entry is' if missing == 1 else 'entries are'} missing, from index {size} on: certificates and "
        "revocations may be among them.",
        hint="Nothing is issued or published until that is settled: privyseal recovery settle --entries URL|FOLDER|FILE. Places "
        "in the settings are asked for their checkpoints; give others with --checkpoint. `privyseal recovery status` shows "
        "what is known.",
    )


def forked(seen: Seen) -> LedgerBehindError:
    """That the ledger is not the one that ``seen`` is of."""
    return LedgerBehindError(
        f"The database is another ledger than the one that {seen.place} shows: its first {seen.checkpoint.size} entries have "
        "another root.",
        hint="Nothing was appended. One of the two was rewritten, or went on from a restored database: keep both, find out "
        "which one is right, and restore that. `privyseal ledger verify --since` checks a database against a checkpoint.",
    )
