"""The PIN of a token, read where its owner put it, and shown nowhere (promise P10)."""

import os
import stat
from pathlib import Path
from typing import Never

from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm.uri import KeyUri

CREDENTIAL = "privyseal-pin"
HOME_FILE = Path("secrets", "pin")
_MAX_LENGTH = 255


class Pin:
    """A PIN. Only :meth:`reveal` gives its text; ``repr``, ``str`` and pickling do not."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not _acceptable(text):
            raise SignerMisconfiguredError(
                f"A PIN is empty, longer than {_MAX_LENGTH} bytes, or holds control characters.",
                hint="It must be one line of text.",
            )
        self._text = text

    def reveal(self) -> str:
        """The text, for the call that hands it to the token."""
        return self._text

    def __repr__(self) -> str:
        return "Pin(hidden)"

    def __reduce__(self) -> Never:
        raise TypeError("a PIN is not written anywhere")


def read_pin(uri: KeyUri, *, pin: str, pin_file: Path | None, credentials: Path | None, home: Path) -> Pin:
    """The user PIN of the token that ``uri`` names.

    The first of these that is there: the URI's own ``pin-source``; ``pin`` (the setting, from the environment);
    ``pin_file`` (the setting); the systemd credential ``privyseal-pin`` in ``credentials``; ``secrets/pin`` in ``home``.
    A source that is named and cannot be used is an error, not a reason to look further.

    Raises:
        SignerMisconfiguredError: there is none, or its file is not private, not regular or not one line.
    """
    if uri.pin_file is not None:
        return _read(uri.pin_file, forbidden=0o077)
    if pin:
        return Pin(pin)
    if pin_file is not None:
        return _read(pin_file, forbidden=0o077)
    if credentials is not None and (credentials / CREDENTIAL).exists():
        # systemd may grant access by an ACL, whose mask shows as the group's bits.
        return _read(credentials / CREDENTIAL, forbidden=0o037)
    if (home / HOME_FILE).exists():
        return _read(home / HOME_FILE, forbidden=0o077)
    raise SignerMisconfiguredError(
        "There is no PIN for the token.",
        hint=f"Put it into {home / HOME_FILE} with mode 0600, name its file in hsm.pin_file, or set PRIVYSEAL_HSM__PIN.",
    )


def _read(path: Path, *, forbidden: int) -> Pin:
    try:
        # O_NONBLOCK: a FIFO in its place must not stop us; symbolic links are followed, as secrets are mounted with them.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SignerMisconfiguredError(
            f"The PIN file {path} cannot be read: {error.strerror}.",
            hint="It must exist and be readable by the user that runs privyseal.",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SignerMisconfiguredError(f"The PIN file {path} is not a regular file.", hint="Name the file itself.")
        if status.st_uid not in {os.geteuid(), 0}:
            raise SignerMisconfiguredError(
                f"The PIN file {path} belongs to another user.",
                hint="Give it to the user that runs privyseal, or root.",
            )
        if status.st_mode & forbidden:
            raise SignerMisconfiguredError(
                f"The PIN file {path} can be used by others (mode {stat.S_IMODE(status.st_mode):04o}).",
                hint=f"Run: chmod 600 {path}",
            )
        content = os.read(descriptor, _MAX_LENGTH + 3)
    finally:
        os.close(descriptor)
    text = _line(content)
    if text is None:
        raise SignerMisconfiguredError(
            f"The PIN file {path} is empty, longer than {_MAX_LENGTH} bytes, or not one line of text.",
            hint="It must hold the PIN and nothing else.",
        )
    return Pin(text)


def _line(content: bytes) -> str | None:
    """The one line in ``content``; ``None``, and no exception that would carry the bytes, when it is none."""
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return None
    return text if _acceptable(text) else None


def _acceptable(text: str) -> bool:
    return bool(text) and len(text.encode()) <= _MAX_LENGTH and text.isprintable()
