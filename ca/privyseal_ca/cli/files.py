"""Files that commands write: whole or not at all, for their owner alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from privyseal_ca.errors import ConfigurationError

Write = Callable[[str], object]


@contextmanager
def replacing(path: Path) -> Iterator[Write]:
    """A function that writes what takes the place of ``path``, once all of it is on the disk.

    Raises:
        ConfigurationError: it cannot be written; what was there stays, as does what is no file, such as /dev/stdout.
    """
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path} is no regular file, and nothing is put in its place.", hint="Name a file.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    made = False
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made = True
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file.write
            file.flush()
            os.fsync(descriptor)
        draft.rename(path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the folder, the disk and their permissions."
        ) from error
    finally:
        # What somebody else has put there is not ours to remove.
        with suppress(OSError):
            if made:
                draft.unlink(missing_ok=True)
