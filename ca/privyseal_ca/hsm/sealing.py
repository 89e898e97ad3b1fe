"""AES-256-GCM by a key in a token, and whether a key is the one that sealed something. Used on the token's thread."""

from collections.abc import Callable

from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.faults import reaction_to

# version (1 octet) || nonce (12) || ciphertext || tag (16)
_VERSION = b"\x01"
_NONCE = 12
_TAG = 16
#: How many octets at the most are sealed.
MOST = 65536


def seal(key: cryptoki.Key, secret: bytes, context: bytes, random: Callable[[int], bytes]) -> bytes:
    """``secret`` encrypted and authenticated together with ``context``. ``random`` gives that many random octets."""
    nonce = random(_NONCE)
    return _VERSION + nonce + cryptoki.encrypt(key, nonce, secret, _VERSION + context)


def is_sealed(octets: bytes) -> bool:
    """Whether ``octets`` have the form of what :func:`seal` gives."""
    return octets[:1] == _VERSION and 1 + _NONCE + _TAG <= len(octets) <= 1 + _NONCE + _TAG + MOST


def unseal(key: cryptoki.Key, sealed: bytes, context: bytes, random: Callable[[int], bytes]) -> bytes | None:
    """What :func:`seal` was given, or ``None`` when another key or context sealed it, or it was changed since.

    Raises:
        CryptokiError: the token cannot decrypt now.
    """
    nonce, octets = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
    try:
        return cryptoki.decrypt(key, nonce, octets, _VERSION + context)
    except cryptoki.CryptokiError as error:
        if reaction_to(error).again:
            raise
    # Tokens tell a wrong tag in many ways, SoftHSM as a general error. Whether the token or the data is at fault shows in
    # whether it can decrypt what it encrypts; when it cannot, that error goes up.
    other = random(_NONCE)
    cryptoki.decrypt(key, other, cryptoki.encrypt(key, other, _VERSION, _VERSION), _VERSION)
    try:
        return cryptoki.decrypt(key, nonce, octets, _VERSION + context)
    except cryptoki.CryptokiError as error:
        if reaction_to(error).again:
            raise
    return None
