"""Files of a witness's home: replaced whole or not at all, and durable when the call returns."""

import os
from pathlib import Path

from privyseal_ca.errors import WitnessError


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, for its owner only. Only one at a time may write a path.

    After a crash or a power cut there is what was there before, or all of ``content``; once this returns, ``content``.

    Raises:
        WitnessError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise WitnessError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Check the disk, and who may write to the witness's home.",
        ) from error


def read_file(path: Path, most: int) -> bytes | None:
    """What is at ``path``; None when there is nothing.

    Raises:
        WitnessError: it cannot be read, or is longer than ``most`` octets.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WitnessError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the disk, and who may read the witness's home."
        ) from error
    if len(content) > most:
        raise WitnessError(f"{path} is longer than {most} bytes.", hint="It is not a file that this witness wrote.")
    return content


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
