"""Which public keys are good enough to be certified.

What is refused: other kinds and sizes than the authority certifies, keys with a weakness that the public key shows
(badkeys knows them), and keys whose private half is public.
"""

import mmap
from bisect import bisect_left
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Final

from badkeys.checks import checkrsa
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from privyseal_ca.errors import ConfigurationError, KeyRefusedError
from privyseal_ca.sections import KeyPolicySettings

KEY_TYPES: Final = frozenset({"ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519"})
MIN_RSA_EXPONENT: Final = 65537
MAX_RSA_EXPONENT: Final = 2**31 - 1  # the largest that Go and Windows verify with

_CURVES: Final = {"secp256r1": "ec-p256", "secp384r1": "ec-p384", "secp521r1": "ec-p521"}
_HINT: Final = "Make a new key, such as P-256."

# badkeys' checks of an RSA modulus that need no download, by name: `blocklist` without its data would end the process,
# `smalld` says nothing about exponents as small as those accepted here, `pattern` and `xzbackdoor` cry wolf.
_RSA_CHECKS: Final = {
    "rsainvalid": "it is no RSA key",
    "smallfactors": "its modulus has a small factor",
    "fermat": "its primes are too close together",
    "roca": "it was made by a token with the ROCA weakness (CVE-2017-15361)",
    "sharedprimes": "it shares a prime with other keys",
    "rsapoly": "its primes follow a pattern",
    "rsabias": "its modulus is not random",
}

_ED25519_P: Final = 2**255 - 19
_ED25519_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y coordinates of the eight points of small order (RFC 7748 section 7 has the same concern for X25519).
_ED25519_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _ED25519_P - 1,
        _ED25519_ORDER_8_Y,
        _ED25519_P - _ED25519_ORDER_8_Y,
    }
)

CertifiableKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def key_type(public_key: object) -> str:
    """The name of the kind of ``public_key``, one of :data:`KEY_TYPES`.

    Raises:
        KeyRefusedError: a kind or a curve that is not certified here.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey) and (name := _CURVES.get(public_key.curve.name)):
        return name
    if isinstance(public_key, rsa.RSAPublicKey):
        return "rsa"
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return "ed25519"
    raise _unsupported()


def _unsupported() -> KeyRefusedError:
    return KeyRefusedError(
        "Keys of this kind are not certified here.", hint="Use ECDSA on P-256, P-384 or P-521, RSA, or Ed25519."
    )


class KeyBlocklist:
    """Keys whose private half is public, in the form of badkeys' ``blocklist.dat``.

    Records of 16 octets in ascending order: the first 15 of the SHA-256 of the key's integer (RSA: the modulus, EC: the
    x coordinate, Ed25519: the encoded point, each big-endian without leading zeros) and one that tells the source. So a
    modulus is found whatever exponent stands beside it, and an EC key also when its point is negated.
    """

    _RECORD: Final = 16
    _DIGEST: Final = 15

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data

    @classmethod
    def shipped(cls) -> "KeyBlocklist":
        """The list that comes with the product: test keys of RFCs and of widely installed software, and tiny keys."""
        return cls(files("privyseal_ca.policy").joinpath("known_keys.dat").read_bytes())

    @classmethod
    def open(cls, path: Path) -> "KeyBlocklist":
        """The list in the file ``path``, mapped rather than read: badkeys' own has hundreds of megabytes.

        Raises:
            ConfigurationError: the file cannot be read or is no such list.
        """
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ConfigurationError(
                f"The key blocklist {path} cannot be read: {error}.", hint="Mend keys.blocklist."
            ) from error
        if len(data) % cls._RECORD or data[: cls._DIGEST] > data[-cls._RECORD : -1]:
            raise ConfigurationError(
                f"{path} is no key blocklist: it does not consist of ordered records of {cls._RECORD} octets.",
                hint="Let keys.blocklist name a blocklist.dat of badkeys, unpacked.",
            )
        return cls(data)

    def __len__(self) -> int:
        return len(self._data) // self._RECORD

    def __contains__(self, public_key: object) -> bool:
        wanted = self.digest(public_key)
        at = bisect_left(range(len(self)), wanted, key=self._at)
        return at < len(self) and self._at(at) == wanted

    def _at(self, index: int) -> bytes:
        start = index * self._RECORD
        return bytes(self._data[start : start + self._DIGEST])

    @classmethod
    def digest(cls, public_key: object) -> bytes:
        """What stands for ``public_key`` in a list.

        Raises:
            KeyRefusedError: a kind of key that is not certified here.
        """
        match public_key:
            case rsa.RSAPublicKey():
                number = public_key.public_numbers().n
            case ec.EllipticCurvePublicKey():
                number = public_key.public_numbers().x
            case ed25519.Ed25519PublicKey():
                number = int.from_bytes(public_key.public_bytes_raw(), "big")
            case _:
                raise _unsupported()
        return sha256(number.to_bytes((number.bit_length() + 7) // 8, "big")).digest()[: cls._DIGEST]


class KeyPolicy:
    """Decides about public keys; what only the store knows (account keys, revoked keys) is checked elsewhere."""

    def __init__(self, settings: KeyPolicySettings) -> None:
        """Load the blocklists.

        Raises:
            ConfigurationError: sizes that contradict each other, or a blocklist that cannot be used.
        """
        if settings.min_rsa_bits > settings.max_rsa_bits:
            raise ConfigurationError(
                "keys.min_rsa_bits is larger than keys.max_rsa_bits.", hint="Mend the one that is wrong."
            )
        self._rsa_bits = range(settings.min_rsa_bits, settings.max_rsa_bits + 1)
        self._blocklists = [KeyBlocklist.shipped()]
        if settings.blocklist is not None:
            self._blocklists.append(KeyBlocklist.open(settings.blocklist))

    def check(self, public_key: object, *, spki_der: bytes) -> None:
        """Return when ``public_key`` may be certified; ``spki_der`` is its canonical SubjectPublicKeyInfo.

        The cost is bounded: sizes are looked at before anything is computed.

        Raises:
            KeyRefusedError: it may not; the message says why.
        """
        kind = key_type(public_key)
        if isinstance(public_key, rsa.RSAPublicKey):
            self._check_rsa(public_key)
        elif kind == "ed25519":
            _check_ed25519(spki_der[-32:])
        for blocklist in self._blocklists:
            if public_key in blocklist:
                raise KeyRefusedError("The private key of this key is publicly known.", hint=_HINT)

    def _check_rsa(self, public_key: rsa.RSAPublicKey) -> None:
        bits = public_key.key_size
        if bits not in self._rsa_bits or bits % 8:
            raise KeyRefusedError(
                f"The RSA modulus has {bits} bits.",
                hint=f"Use a multiple of 8 from {self._rsa_bits[0]} to {self._rsa_bits[-1]} bits, or P-256.",
            )
        numbers = public_key.public_numbers()
        if numbers.e % 2 == 0 or not MIN_RSA_EXPONENT <= numbers.e <= MAX_RSA_EXPONENT:
            raise KeyRefusedError("The RSA exponent is not one that is accepted.", hint="Use 65537.")
        findings = checkrsa(numbers.n, numbers.e, tuple(_RSA_CHECKS))  # type: ignore[no-untyped-call]
        for check in findings:
            raise KeyRefusedError(f"The RSA key is weak: {_RSA_CHECKS[check]}.", hint=_HINT)


def _check_ed25519(encoded: bytes) -> None:
    """A point in canonical form (RFC 8032 section 5.1.3) that is not of small order, under which any signature holds."""
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    if y >= _ED25519_P or y in _ED25519_SMALL_ORDER_Y:
        raise KeyRefusedError("The Ed25519 key is no proper point.", hint=_HINT)
