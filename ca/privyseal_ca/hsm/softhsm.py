"""SoftHSM, the embedded default token: found, given a place in the home, and pointed there."""

import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from privyseal_ca.errors import ConfigurationError

CONF_FILE = "softhsm2.conf"
TOKENS_DIRECTORY = "tokens"
CONF_VARIABLE = "SOFTHSM2_CONF"

# Where distributions put the module, most usual first.
MODULE_PATHS = tuple(
    Path(path)
    for path in (
        "/usr/lib/softhsm/libsofthsm2.so",  # Debian, Ubuntu
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",  # Fedora, RHEL
        "/usr/lib64/softhsm/libsofthsm2.so",  # openSUSE
        "/usr/lib/pkcs11/libsofthsm2.so",  # Arch
        "/usr/lib/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",  # macOS
        "/opt/homebrew/opt/softhsm/lib/softhsm/libsofthsm2.so",
        "/opt/local/lib/softhsm/libsofthsm2.so",
    )
)


def find_module(paths: Iterable[Path] = MODULE_PATHS) -> Path | None:
    """SoftHSM's PKCS#11 module, or ``None`` when it is at none of ``paths``."""
    return next((path for path in paths if path.is_file()), None)


def embed(home: Path) -> Path:
    """Give SoftHSM a place in ``home``: ``softhsm2.conf`` and ``tokens/``, for their owner only.

    What is there already is kept, so that this may be called at every start. Gives the configuration file.

    Raises:
        ConfigurationError: ``home`` cannot be written, or has a name that SoftHSM's file format cannot hold.
    """
    home = home.absolute()
    if any(character in str(home) for character in "\r\n#"):
        raise ConfigurationError(
            f"SoftHSM cannot keep tokens under {str(home)!r}.", hint="Choose a home without # and line breaks."
        )
    conf = home / CONF_FILE
    tokens = home / TOKENS_DIRECTORY
    try:
        tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
        tokens.chmod(0o700)
        if not conf.exists():
            text = f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
            create_file(conf, text.encode())
    except OSError as error:
        raise ConfigurationError(
            f"The token's place {tokens} cannot be made: {error.strerror}.",
            hint="Make the home writable for this user.",
        ) from error
    return conf


def use_embedded(home: Path, environ: MutableMapping[str, str]) -> bool:
    """Point SoftHSM at the token in ``home``, and tell whether it is the one in use.

    SoftHSM reads ``SOFTHSM2_CONF`` when it is initialised, so this comes before any key is opened. A variable that the
    operator has set stays.
    """
    conf = home.absolute() / CONF_FILE
    if CONF_VARIABLE not in environ and conf.is_file():
        environ[CONF_VARIABLE] = str(conf)
    return environ.get(CONF_VARIABLE) == str(conf)


def create_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, for its owner only. Processes that meet here write the same.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
