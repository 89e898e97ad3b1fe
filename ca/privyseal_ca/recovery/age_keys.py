"""Whom a backup is encrypted to, and who opens it: age's X25519 recipients and identities, as its files have them."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyrage  # type: ignore[import-untyped]

from privyseal_ca.ceremony.files import write_file
from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.errors import BackupError
from privyseal_ca.recovery.archive import Identity, Recipient

#: Of a file with recipients or identities, in bytes, and how many of them may be given.
_MAX_FILE: Final = 64 << 10
_MOST: Final = 64


def read_recipients(given: Iterable[str]) -> dict[str, Recipient]:
    """The recipients that ``given`` names, by their text: each ``age1...``, or ``@FILE`` with one in each line.

    Raises:
        BackupError: one is none, or a file cannot be read.
    """
    found: dict[str, Recipient] = {}
    for text in given:
        for line in _lines(Path(text[1:])) if text.startswith("@") else [text]:
            try:
                found[line] = pyrage.x25519.Recipient.from_str(line)
            except pyrage.RecipientError:
                raise BackupError(
                    "A recipient is none of age's X25519 public keys.",
                    hint="They begin with age1 and are made by age-keygen, or by `privyseal backup identity FILE`.",
                ) from None
    if not 0 < len(found) <= _MOST:
        raise BackupError(f"{len(found)} recipients were given; there must be 1 to {_MOST}.", hint="Give --recipient.")
    return found


def read_identities(path: Path) -> list[Identity]:
    """The identities in the file at ``path``, as age-keygen writes it.

    Raises:
        BackupError: it cannot be read, may be read by others, or holds no X25519 identity.
    """
    found = []
    for line in _lines(path, secret=True):
        try:
            found.append(pyrage.x25519.Identity.from_str(line))
        except pyrage.IdentityError:
            # Without what stands there: it may be a secret all the same.
            raise BackupError(
                f"{path} holds a line that is none of age's X25519 identities.",
                hint="They begin with AGE-SECRET-KEY-1. One that is itself encrypted is opened with age first.",
            ) from None
    if not 0 < len(found) <= _MOST:
        raise BackupError(
            f"{path} holds {len(found)} identities; there must be 1 to {_MOST}.", hint="Name another file."
        )
    return found


def new_identity(path: Path, clock: Clock) -> str:
    """Write a new identity to ``path``, which must not be there, and give its recipient.

    Raises:
        BackupError: the file is there.
        ConfigurationError: it cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise BackupError(f"{path} is there already and is not overwritten.", hint="Name another file.")
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    # The form of age-keygen's files.
    text = f"# created: {rfc3339(clock.now())}\n# public key: {recipient}\n{identity}\n"
    write_file(path, text.encode(), mode=0o600)
    return recipient


def _lines(path: Path, *, secret: bool = False) -> list[str]:
    """The lines of a file that are no comments."""
    try:
        # A pipe is welcome, as shells give one for `<(...)`.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if secret and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                raise BackupError(f"{path} can be read by others, and opens backups.", hint=f"Run: chmod 600 {path}")
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.", hint="Check the file.") from error
    if len(content) > _MAX_FILE:
        raise BackupError(f"{path} is longer than {_MAX_FILE} bytes.", hint="Name a file with keys of age.")
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise BackupError(f"{path} is not text.", hint="Name a file with keys of age.") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
