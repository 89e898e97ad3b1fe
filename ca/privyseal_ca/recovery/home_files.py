"""The files of a home that go into a backup and come back: settings, profiles, roots, and embedded tokens where wanted.

PINs and access tokens, which are in ``secrets/`` or elsewhere, are never among them (promise P10): with the tokens and their
PIN whoever opens the backup would have the keys.
"""

import os
import re
import shutil
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from privyseal_ca.ceremony.files import PROFILES_DIRECTORY, write_file
from privyseal_ca.config import ROOTS_FILE, SETTINGS_FILE, Settings
from privyseal_ca.errors import BackupError
from privyseal_ca.hsm.softhsm import CONF_FILE, TOKENS_DIRECTORY
from privyseal_ca.recovery.contents import MOST_FILES, MOST_IN_FILES

#: How often the tokens' folder is read anew when somebody changes it meanwhile: keys are made seldom.
_READINGS: Final = 5
_TOKEN_DIRECTORY: Final = re.compile(r"^\s*directories\.tokendir\s*=\s*(.*?)\s*$", re.MULTILINE)
_DATABASE_URL: Final = re.compile(r"^url\s*=.*$", re.MULTILINE)
_DATABASE_SECTION: Final = re.compile(r"^\[database\][ \t]*(?:#.*)?\n(.*?)(?=^\[|\Z)", re.MULTILINE | re.DOTALL)

#: What :func:`write_home` makes in a home.
WRITTEN_LAST: Final = frozenset({ROOTS_FILE, CONF_FILE, TOKENS_DIRECTORY, PROFILES_DIRECTORY})

Files = dict[str, bytes]


class Collected(NamedTuple):
    """Files by their path below the home, and what a person has to know of others."""

    files: Files
    left_out: list[str]


def collect(settings: Settings, *, with_settings: bool, with_tokens: bool) -> Collected:
    """The files of the home that ``settings`` are of.

    Raises:
        BackupError: one cannot be read, or is none that a backup holds; there are no embedded tokens here.
    """
    home, found, left_out = settings.home, Files(), list[str]()
    if (home / ROOTS_FILE).exists():
        found[ROOTS_FILE] = _read(home / ROOTS_FILE)
    if with_settings:
        if (home / SETTINGS_FILE).exists():
            found[SETTINGS_FILE] = _read(home / SETTINGS_FILE)
        folder = _profiles_folder(settings)
        if folder is None:
            left_out.append(f"the profiles in {settings.issuance.profiles_dir}, outside of the home")
        elif folder.is_dir():
            for path in sorted(folder.glob("*.toml")):
                found[f"{PROFILES_DIRECTORY}/{path.name}"] = _read(path)
    if with_tokens:
        found |= _tokens(home)
    elif _has_tokens(home):
        left_out.append(f"the tokens in {home / TOKENS_DIRECTORY}, which hold the keys (--with-tokens)")
    if len(found) > MOST_FILES or sum(map(len, found.values())) > MOST_IN_FILES:
        raise BackupError(
            f"{home} has more files than a backup holds.",
            hint="Back the tokens up by themselves, without --with-tokens.",
        )
    return Collected(found, left_out)


def _profiles_folder(settings: Settings) -> Path | None:
    """Where profiles are; None outside of the home, where others look after them."""
    home = settings.home.resolve()
    folder = (home / settings.issuance.profiles_dir).resolve()
    return folder if folder.is_relative_to(home) and folder != home else None


def _has_tokens(home: Path) -> bool:
    tokens = home / TOKENS_DIRECTORY
    return tokens.is_dir() and any(tokens.iterdir())


def _tokens(home: Path) -> Files:
    """The embedded tokens as they were at one moment."""
    conf, tokens = home / CONF_FILE, home / TOKENS_DIRECTORY
    if not conf.is_file() or not _has_tokens(home):
        raise BackupError(
            f"{home} has no embedded tokens: the keys are in an HSM.",
            hint="Leave --with-tokens out, and back the HSM up as its maker says.",
        )
    content = _read(conf)
    named = _TOKEN_DIRECTORY.search(content.decode(errors="replace"))
    if named is None or Path(named[1]).resolve() != tokens.resolve():
        raise BackupError(
            f"{conf} names another folder than {tokens}.",
            hint="Leave --with-tokens out, and back that folder up by itself while the service is stopped.",
        )
    for _ in range(_READINGS):
        before = _states(tokens)
        found = {CONF_FILE: content}
        for path, state in before.items():
            if state is not None:
                found[f"{TOKENS_DIRECTORY}/{path}"] = _read(tokens / path, links=os.O_NOFOLLOW)
        if _states(tokens) == before:
            return found
    raise BackupError(f"{tokens} changes all the time.", hint="Try again when nobody makes keys.")


def _states(tokens: Path) -> dict[str, tuple[int, ...] | None]:
    """Each file below ``tokens`` with what changes when it is written; None for a folder."""
    found: dict[str, tuple[int, ...] | None] = {}
    for path in sorted(_below(tokens)):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            found[path.relative_to(tokens).as_posix()] = None
        elif stat.S_ISREG(status.st_mode):
            found[path.relative_to(tokens).as_posix()] = (status.st_ino, status.st_size, status.st_mtime_ns)
        else:
            raise BackupError(f"{path} is neither a file nor a folder.", hint="It is none of SoftHSM's: move it away.")
        if len(found) > MOST_FILES:
            raise BackupError(
                f"{tokens} has too many files.", hint="Leave --with-tokens out, and back it up by itself."
            )
    return found


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from path.iterdir()


def _read(path: Path, *, links: int = 0) -> bytes:
    """A regular file; configuration is often mounted with links, tokens are not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | links)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BackupError(f"{path} is not a regular file.", hint="Put a file in its place.")
            content = file.read(MOST_IN_FILES + 1)
    except OSError as error:
        raise BackupError(
            f"{path} cannot be read: {error.strerror}.", hint="Run the backup as the user of the service."
        ) from error
    if len(content) > MOST_IN_FILES:
        raise BackupError(f"{path} is too long for a backup.", hint="Look what it is.")
    return content


def write_home(home: Path, files: Mapping[str, bytes], settings: Settings) -> None:
    """Write the files of a backup into ``home``, but for the settings, which are there already.

    Raises:
        BackupError: the settings have their profiles elsewhere than in the home.
        ConfigurationError: a file cannot be written.
    """
    profiles = _profiles_folder(settings)
    for path, content in files.items():
        first, _, rest = path.partition("/")
        if path == SETTINGS_FILE:
            continue
        if first == PROFILES_DIRECTORY:
            if profiles is None:
                raise BackupError(
                    "The backup has profiles, and its settings want them outside of the home.",
                    hint="The backup was not made by this program. Do not use it.",
                )
            _write(home.resolve(), profiles / rest, content)
        elif path == CONF_FILE:
            _write(home, home / path, _moved(content, home))
        else:
            _write(home, home / path, content, mode=0o644 if path == ROOTS_FILE else 0o600)


def _write(home: Path, path: Path, content: bytes, *, mode: int = 0o600) -> None:
    for folder in reversed(path.parents):
        if folder.is_relative_to(home) and folder != home:
            folder.mkdir(mode=0o700, exist_ok=True)
    write_file(path, content, mode=mode)


def _moved(conf: bytes, home: Path) -> bytes:
    """SoftHSM's configuration for tokens in ``home``."""
    if any(character in str(home) for character in "\r\n#"):
        raise BackupError(
            f"SoftHSM cannot keep tokens under {str(home)!r}.", hint="Choose a home without # and line breaks."
        )
    line = f"directories.tokendir = {home / TOKENS_DIRECTORY}"
    return _TOKEN_DIRECTORY.sub(lambda _: line, conf.decode(errors="replace")).encode()


def clear_home(home: Path) -> None:
    """Remove what an interrupted restore left, and nothing else."""
    for name in (SETTINGS_FILE, ROOTS_FILE, CONF_FILE):
        (home / name).unlink(missing_ok=True)
        (home / f".{name}.draft").unlink(missing_ok=True)
    for name in (TOKENS_DIRECTORY, PROFILES_DIRECTORY):
        if (home / name).is_dir() and not (home / name).is_symlink():
            shutil.rmtree(home / name)


def with_database(text: str, url: str) -> str:
    """Settings with ``url`` as that of the database; all else stays as its owner wrote it.

    Raises:
        BackupError: the file is written in a way in which that cannot be done safely.
    """
    line = f"url = {orjson.dumps(url).decode()}"
    try:
        wanted = tomllib.loads(text)
        section = _DATABASE_SECTION.search(text)
        if section is None:
            changed = f"{text.rstrip()}\n\n[database]\n{line}\n".lstrip()
        else:
            body = section[1]
            body = _DATABASE_URL.sub(lambda _: line, body) if _DATABASE_URL.search(body) else f"{line}\n{body}"
            changed = text[: section.start(1)] + body + text[section.end(1) :]
        wanted["database"] = {**wanted.get("database", {}), "url": url}
        if tomllib.loads(changed) == wanted:
            return changed
    except tomllib.TOMLDecodeError:
        pass
    raise BackupError(
        f"{SETTINGS_FILE} of the backup cannot be given another database.",
        hint="Leave --database out and set PRIVYSEAL_DATABASE__URL for this command and for the service.",
    )
