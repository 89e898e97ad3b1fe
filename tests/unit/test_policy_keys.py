import math
from base64 import urlsafe_b64decode
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from fakes.issuing import key, spki
from privyseal_ca.errors import ConfigurationError, KeyRefusedError
from privyseal_ca.policy.keys import _ED25519_SMALL_ORDER_Y, KeyBlocklist, KeyPolicy, key_type
from privyseal_ca.sections import KeyPolicySettings

POLICY = KeyPolicy(KeyPolicySettings())
ED25519_P = 2**255 - 19


def check(public_key: Any, policy: KeyPolicy = POLICY) -> None:
    policy.check(public_key, spki_der=spki(public_key))


def modulus(n: int, e: int = 65537) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(e, n).public_key()


def is_prime(n: int) -> bool:
    return n > 3 and all(n % small for small in (2, 3, 5, 7, 11, 13)) and all(pow(a, n - 1, n) == 1 for a in (2, 3, 5))


def next_prime(n: int) -> int:
    n |= 1
    while not is_prime(n):
        n += 2
    return n


def base64url(text: str) -> int:
    return int.from_bytes(urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519"])
def test_good_keys_pass(kind: str) -> None:
    public_key = key(kind).public_key()
    assert key_type(public_key) == kind
    check(public_key)


@pytest.mark.parametrize(
    "private_key",
    [
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        ed448.Ed448PrivateKey.generate(),
        x25519.X25519PrivateKey.generate(),
        dsa.generate_private_key(2048),
    ],
    ids=lambda private_key: type(private_key).__name__,
)
def test_other_kinds_are_refused(private_key: Any) -> None:
    with pytest.raises(KeyRefusedError, match="kind"):
        check(private_key.public_key())


@pytest.mark.parametrize("bits", [1024, 2040, 2047, 2049, 4097, 4104, 8192, 16384])
def test_rsa_sizes_outside_the_bounds_are_refused(bits: int) -> None:
    with pytest.raises(KeyRefusedError, match=f"{bits} bits"):
        check(modulus((1 << (bits - 1)) | Random(bits).getrandbits(bits - 1) | 1))  # noqa: S311


def test_rsa_bounds_are_settings() -> None:
    policy = KeyPolicy(KeyPolicySettings(min_rsa_bits=3072))
    with pytest.raises(KeyRefusedError, match="from 3072 to 4096"):
        check(key("rsa").public_key(), policy)
    with pytest.raises(ConfigurationError):
        KeyPolicy(KeyPolicySettings(min_rsa_bits=4096, max_rsa_bits=3072))


@pytest.mark.parametrize("exponent", [3, 17, 65535, 65539 * 2 + 1, 2**31 - 1])
def test_rsa_exponents(exponent: int) -> None:
    n = key("rsa").public_key().public_numbers().n  # type: ignore[union-attr]
    if exponent < 65537:
        with pytest.raises(KeyRefusedError, match="exponent"):
            check(modulus(n, exponent))
    else:
        check(modulus(n, exponent))


@pytest.mark.parametrize("exponent", [2**31 + 1, 2**32 + 1, 2**255 + 1])
def test_huge_rsa_exponents_are_refused(exponent: int) -> None:
    n = key("rsa").public_key().public_numbers().n  # type: ignore[union-attr]
    with pytest.raises(KeyRefusedError, match="exponent"):
        check(modulus(n, exponent))


def test_close_primes_are_refused() -> None:
    p = next_prime(Random(1).getrandbits(1024) | 3 << 1022)  # noqa: S311
    q = next_prime(p + (1 << 300))
    with pytest.raises(KeyRefusedError, match="close"):
        check(modulus(p * q))
    with pytest.raises(KeyRefusedError, match="close"):
        check(modulus(p * p))


def test_small_factors_are_refused() -> None:
    source = Random(2)  # noqa: S311
    for factor in (3, 65521):
        rest = source.getrandbits(2048 - factor.bit_length()) | 1
        n = factor * (rest | (3 << (2046 - factor.bit_length())))
        if n.bit_length() == 2048:
            with pytest.raises(KeyRefusedError, match="small factor"):
                check(modulus(n))


def test_roca_is_refused() -> None:
    # Primes of the form k * M + (65537 ** a mod M), as Infineon's library made them.
    primorial = math.prod(p for p in range(2, 702) if all(p % d for d in range(2, int(p**0.5) + 1)))
    source = Random(3)  # noqa: S311

    def prime() -> int:
        while True:
            k = source.getrandbits(1024 - primorial.bit_length()) | 3 << (1022 - primorial.bit_length())
            candidate = k * primorial + pow(65537, source.getrandbits(62), primorial)
            if candidate.bit_length() == 1024 and is_prime(candidate):
                return candidate

    n = prime() * prime()
    with pytest.raises(KeyRefusedError, match="ROCA"):
        check(modulus(n))


def test_biased_moduli_are_refused() -> None:
    with pytest.raises(KeyRefusedError, match="weak"):
        check(modulus((1 << 2047) + (1 << 1024) + 0x1001))


@pytest.mark.parametrize("y", sorted(_ED25519_SMALL_ORDER_Y))
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_ed25519_points_of_small_order_are_refused(y: int, sign: int) -> None:
    encoded = (y | sign).to_bytes(32, "little")
    with pytest.raises(KeyRefusedError, match="proper point"):
        check(ed25519.Ed25519PublicKey.from_public_bytes(encoded))


def test_the_small_orders_are_those_of_the_curve() -> None:
    """y solves 8 * (x, y) = neutral: doubling thrice gives y = 1."""
    p = ED25519_P
    d = -121665 * pow(121666, -1, p) % p
    for y in _ED25519_SMALL_ORDER_Y:
        xx = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        yy = y * y % p
        for _ in range(3):
            # (x, y) doubled, in x squared and y: x' = 2xy/(1 + dx²y²), y' = (y² + x²)/(1 - dx²y²)
            t = d * xx * yy % p
            new_y = (yy + xx) * pow(1 - t, -1, p) % p
            xx = 4 * xx * yy * pow(1 + t, -2, p) % p
            yy = new_y * new_y % p
        assert (xx, new_y) == (0, 1)


def test_ed25519_encodings_beyond_the_field_are_refused() -> None:
    for y in (ED25519_P, ED25519_P + 1, ED25519_P + 3, 2**255 - 1):
        with pytest.raises(KeyRefusedError, match="proper point"):
            check(ed25519.Ed25519PublicKey.from_public_bytes(y.to_bytes(32, "little")))


PUBLISHED: list[tuple[str, Any]] = [
    (
        "RFC 7515 A.3",
        ec.EllipticCurvePublicNumbers(
            base64url("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            base64url("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
            ec.SECP256R1(),
        ).public_key(),
    ),
    (
        "RFC 7517 A.1",
        ec.EllipticCurvePublicNumbers(
            base64url("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4"),
            base64url("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"),
            ec.SECP256R1(),
        ).public_key(),
    ),
    (
        "RFC 6979 A.2.5",
        ec.EllipticCurvePublicNumbers(
            0x60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6,
            0x7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299,
            ec.SECP256R1(),
        ).public_key(),
    ),
    (
        "RFC 8037 A.2",
        ed25519.Ed25519PublicKey.from_public_bytes(
            bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
        ),
    ),
    (
        "RFC 7517 A.1 RSA",
        rsa.RSAPublicNumbers(
            65537,
            base64url(
                "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
                "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
                "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
                "nqDKgw"
            ),
        ).public_key(),
    ),
]


@pytest.mark.parametrize(("source", "public_key"), PUBLISHED, ids=[source for source, _ in PUBLISHED])
def test_keys_printed_in_rfcs_are_refused(source: str, public_key: Any) -> None:
    with pytest.raises(KeyRefusedError, match="publicly known"):
        check(public_key)


def test_the_known_list_sees_through_disguises() -> None:
    """Another exponent on a known modulus, and the negative of a known point, are as bad."""
    n = PUBLISHED[-1][1].public_numbers().n
    with pytest.raises(KeyRefusedError, match="publicly known"):
        check(modulus(n, 65539))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for scalar in (1, 2, 512, order - 1, order - 512):
        with pytest.raises(KeyRefusedError, match="publicly known"):
            check(ec.derive_private_key(scalar, ec.SECP256R1()).public_key())


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_tiny_scalars_are_known_on_every_curve(curve: ec.EllipticCurve) -> None:
    with pytest.raises(KeyRefusedError, match="publicly known"):
        check(ec.derive_private_key(3, curve).public_key())


def test_seeds_of_one_octet_are_known() -> None:
    for seed in (bytes(32), b"\xff" * 32, (7).to_bytes(32, "little"), bytes(range(32))):
        with pytest.raises(KeyRefusedError, match="publicly known"):
            check(ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key())


def test_the_shipped_list_is_sound() -> None:
    data = KeyBlocklist.shipped()._data
    records = [bytes(data[at : at + 15]) for at in range(0, len(data), 16)]
    assert len(data) % 16 == 0
    assert records == sorted(set(records))
    assert len(records) > 3000


def badkeys_list(path: Path, *public_keys: Any) -> Path:
    """A list as badkeys publishes it, with the hash written out independently."""
    records = []
    for public_key in public_keys:
        numbers = public_key.public_numbers()
        integer = numbers.n if isinstance(public_key, rsa.RSAPublicKey) else numbers.x
        octets = integer.to_bytes(-(-integer.bit_length() // 8), "big")
        records.append(sha256(octets).digest()[:15] + b"\x09")
    noise = [sha256(bytes([number])).digest()[:15] + b"\x01" for number in range(100)]
    path.write_bytes(b"".join(sorted(records + noise)))
    return path


def test_a_badkeys_blocklist_is_used_beside_the_shipped_one(tmp_path: Path) -> None:
    path = badkeys_list(tmp_path / "blocklist.dat", key("rsa").public_key(), key("ec-p384").public_key())
    policy = KeyPolicy(KeyPolicySettings(blocklist=path))
    for kind in ("rsa", "ec-p384"):
        with pytest.raises(KeyRefusedError, match="publicly known"):
            check(key(kind).public_key(), policy)
    check(key("ec-p256").public_key(), policy)
    with pytest.raises(KeyRefusedError):
        check(PUBLISHED[0][1], policy)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 15, b"\x00" * 17, b"\xff" * 16 + b"\x00" * 16, b"PK" + b"\xff" * 14 + bytes(16)]
)
def test_other_files_are_no_blocklists(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "blocklist.dat"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="blocklist"):
        KeyPolicy(KeyPolicySettings(blocklist=path))


def test_a_missing_blocklist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        KeyPolicy(KeyPolicySettings(blocklist=tmp_path / "none.dat"))
