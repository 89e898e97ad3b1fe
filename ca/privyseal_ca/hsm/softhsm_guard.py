"""What SoftHSM itself does not survive: being killed while it writes.

At every login SoftHSM empties a token's main file and writes it anew. A process that is killed in between leaves it empty, and
with it the key that all others in the token are encrypted under. So before SoftHSM is initialised, a whole file is copied beside
the tokens of an embedded home, and a torn one is replaced by its copy. PINs are in neither: what they protect is.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from privyseal_ca.hsm.softhsm import CONF_VARIABLE, TOKENS_DIRECTORY, create_file

#: Where the copies are, beside the tokens.
COPIES_DIRECTORY: Final = "token-copies"

_log = logging.getLogger(__name__)

_TOKEN_FILE: Final = "token.object"  # noqa: S105 (a file name)
_LARGEST: Final = 1 << 20
#: A file that another process is just writing is whole again long before these have passed.
_LOOKS: Final = 10
_PAUSE: Final = 0.05
_NUMBER: Final = 8
# SoftHSM's object files: a generation, then for each attribute its type, its kind and its value; numbers have eight octets.
_BOOLEAN, _INTEGER, _OCTETS, _ATTRIBUTES, _MECHANISMS = range(1, 6)


def guard_tokens(environ: Mapping[str, str], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Copy what is whole and replace what is torn, of the tokens that ``SOFTHSM2_CONF`` names when they are an embedded home's.

    To be called on the module's thread while SoftHSM does nothing else. What cannot be read or written is logged and left.
    """
    conf = environ.get(CONF_VARIABLE)
    tokens = Path(conf).parent / TOKENS_DIRECTORY if conf else None
    if tokens is None or not tokens.is_dir():
        return
    for token in _tokens_in(tokens):
        try:
            _guard(token, tokens.parent / COPIES_DIRECTORY / token.parent.name, sleep)
        except OSError as error:
            _log.warning("the file %s of a token cannot be guarded: %s", token, error.strerror)


def _tokens_in(tokens: Path) -> Iterator[Path]:
    try:
        for folder in sorted(tokens.iterdir()):
            if (folder / _TOKEN_FILE).is_file():
                yield folder / _TOKEN_FILE
    except OSError as error:
        _log.warning("the tokens in %s cannot be guarded: %s", tokens, error.strerror)


def _guard(token: Path, copy: Path, sleep: Callable[[float], None]) -> None:
    kept = _read(copy) if copy.is_file() else b""
    for look in range(_LOOKS):
        if look:
            sleep(_PAUSE)
        content = _read(token)
        if is_whole(content):
            if content[_NUMBER:] != kept[_NUMBER:]:  # the generation alone is no news
                copy.parent.mkdir(mode=0o700, exist_ok=True)
                create_file(copy, content)
            return
        if not is_whole(kept):
            break
    if not is_whole(kept):
        _log.error("the file %s of a token is torn, and there is no copy of it", token)
        return
    create_file(token, kept)
    _log.error("the file %s of a token was torn, as by a process that was killed; it was restored from its copy", token)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def is_whole(content: bytes) -> bool:
    """Whether ``content`` is that of an object file of SoftHSM from its begin to its end, and has an attribute."""
    place, end = _NUMBER, len(content)
    while place < end:
        place += _NUMBER  # the attribute's type
        kind = int.from_bytes(content[place : place + _NUMBER])
        place += _NUMBER
        if kind == _BOOLEAN:
            place += 1
        elif kind == _INTEGER:
            place += _NUMBER
        elif kind in {_OCTETS, _ATTRIBUTES, _MECHANISMS}:
            if place + _NUMBER > end:
                return False
            length = int.from_bytes(content[place : place + _NUMBER])
            place += _NUMBER + length * (_NUMBER if kind == _MECHANISMS else 1)
        else:
            return False
    return place == end > _NUMBER
