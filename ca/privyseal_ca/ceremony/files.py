"""The files of a home: made private, written whole or not at all, never overwritten."""

import os
import secrets
import stat
from pathlib import Path

from privyseal_ca.config import ROOTS_FILE, SETTINGS_FILE
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.softhsm import CONF_FILE, TOKENS_DIRECTORY
from privyseal_ca.hsm.softhsm_guard import COPIES_DIRECTORY

SECRETS_DIRECTORY = "secrets"
DATABASE_FILE = "privyseal.db"
PROFILES_DIRECTORY = "profiles"
REQUEST_SUFFIX = ".csr"

#: What a home may hold before its ceremony: what operators put there, and what an interrupted ceremony left.
_OURS = frozenset(
    {
        SETTINGS_FILE,
        ROOTS_FILE,
        CONF_FILE,
        TOKENS_DIRECTORY,
        COPIES_DIRECTORY,
        SECRETS_DIRECTORY,
        PROFILES_DIRECTORY,
        DATABASE_FILE,
    }
)


def prepare_home(home: Path) -> None:
    """Make the folder ``home``, for its owner only, or accept the one that an interrupted ceremony left.

    Raises:
        ConfigurationError: it holds files that are none of ours, is no folder, belongs to somebody else, or cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = home.stat()
        foreign = sorted(path.name for path in home.iterdir() if not _is_ours(path.name))
    except OSError as error:
        raise ConfigurationError(
            f"The home {home} cannot be made or read: {error.strerror}.", hint="Choose another with --home."
        ) from error
    if foreign:
        raise ConfigurationError(
            f"{home} holds files that are none of Privy Seal's, such as {foreign[0]!r}.",
            hint="Choose an empty or new folder with --home.",
        )
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{home} belongs to another user.", hint="Run the ceremony as the user that will run the service."
        )
    home.chmod(0o700)


def _is_ours(name: str) -> bool:
    drafted = name.removeprefix(".").partition(".draft")[0] if name.startswith(".") else name
    return (
        drafted in _OURS or name.startswith((f"{DATABASE_FILE}-", f".{CONF_FILE}.")) or drafted.endswith(REQUEST_SUFFIX)
    )


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Put ``content`` at ``path``, whole or not at all, surviving a power cut; what was there is replaced.

    Raises:
        ConfigurationError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the folder, the disk and their permissions."
        ) from error


def ensure_pin(home: Path, name: str) -> Path:
    """The file ``secrets/name`` with a random PIN, made if it is not there."""
    folder = home / SECRETS_DIRECTORY
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be made: {error.strerror}.", hint="Check the permissions of the home."
        ) from error
    path = folder / name
    if not path.exists():
        write_file(path, secrets.token_hex(16).encode() + b"\n", mode=0o600)
    return path


def is_private(path: Path) -> bool:
    """Whether nobody but its owner can do anything with ``path``."""
    return not stat.S_IMODE(path.stat().st_mode) & 0o077


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
