"""The newest checkpoint in a file beside the database: what shows that the database alone was put back (promise P8)."""

from pathlib import Path
from typing import Final

from privyseal_ca.ceremony.files import write_file
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError

_FORMER: Final = "former-checkpoint"


def kept_path(settings: Settings) -> Path:
    """Where it is."""
    return settings.home / settings.ledger.kept_checkpoint


def keep_checkpoint(path: Path, note: bytes) -> None:
    """Write ``note``, a checkpoint that is published, in place of the one before: whole or not at all, surviving a power cut.

    To be called after the note is durable in the database, so that the file is never ahead of it.

    Raises:
        ConfigurationError: it cannot be written.
    """
    write_file(path, note, mode=0o600)


def give_up_checkpoint(kept: Path) -> None:
    """Put the file of a log that was given up aside, where it is evidence and counts no more.

    Raises:
        ConfigurationError: it cannot be renamed.
    """
    number = 1
    while (former := kept.with_name(f"{_FORMER}-{number}")).exists():
        number += 1
    try:
        kept.rename(former)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(
            f"{kept} cannot be renamed: {error.strerror}.", hint="Move it away by hand: it is of the former log."
        ) from error
