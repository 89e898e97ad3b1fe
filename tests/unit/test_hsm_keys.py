"""The facades, over software keys that sign as a token does: raw, and only what they are given."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from privyseal_ca.errors import SignerError
from privyseal_ca.hsm.keys import Scheme, TokenEllipticCurveKey, private_key

RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
SHA1, MD5 = hashes.SHA1(), hashes.MD5()  # noqa: S303 (to be refused)
ED = ed25519.Ed25519PrivateKey.generate()
asked: list[tuple[Scheme, bytes]] = []


def ecdsa_token(key: ec.EllipticCurvePrivateKey) -> Callable[[Scheme, bytes], bytes]:
    def sign(scheme: Scheme, data: bytes) -> bytes:
        assert scheme is Scheme.ECDSA
        hash_ = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}[len(data)]
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(Prehashed(hash_))))
        size = (key.key_size + 7) // 8
        return r.to_bytes(size) + s.to_bytes(size)

    return sign


def rsa_token(scheme: Scheme, data: bytes) -> bytes:
    """RSASP1 over an encoding of this test's own for PKCS #1 v1.5; cryptography's PSS."""
    size = RSA.key_size // 8
    if scheme is Scheme.RSA_PKCS1:
        block = b"\0\1" + b"\xff" * (size - 3 - len(data)) + b"\0" + data
        numbers = RSA.private_numbers()
        return pow(int.from_bytes(block), numbers.d, numbers.public_numbers.n).to_bytes(size)
    hash_ = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}[len(data)]
    return RSA.sign(data, padding.PSS(padding.MGF1(hash_), hash_.digest_size), Prehashed(hash_))


def facade(key: Any, sign: Callable[[Scheme, bytes], bytes]) -> Any:
    return private_key(key.public_key(), sign)


def ed_token(scheme: Scheme, data: bytes) -> bytes:
    assert scheme is Scheme.EDDSA
    return ED.sign(data)


EVERY = [facade(P256, ecdsa_token(P256)), facade(RSA, rsa_token), facade(ED, ed_token)]


@pytest.mark.parametrize("key", [P256, P384])
@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_ecdsa(key: ec.EllipticCurvePrivateKey, hash_: hashes.HashAlgorithm) -> None:
    token_key = facade(key, ecdsa_token(key))
    for _ in range(20):  # r and s whose top bit or top octet differ
        key.public_key().verify(token_key.sign(b"message", ec.ECDSA(hash_)), b"message", ec.ECDSA(hash_))
    assert token_key.curve.name == key.curve.name
    assert token_key.key_size == key.key_size


def test_ecdsa_with_leading_zeros() -> None:
    signature = TokenEllipticCurveKey(P256.public_key(), lambda *_: b"\0" * 31 + b"\1" + b"\xff" * 32).sign(
        b"", ec.ECDSA(hashes.SHA256())
    )
    assert decode_dss_signature(signature) == (1, 2**256 - 1)


@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_rsa(hash_: hashes.HashAlgorithm) -> None:
    token_key = facade(RSA, rsa_token)
    for scheme in (padding.PKCS1v15(), padding.PSS(padding.MGF1(hash_), hash_.digest_size)):
        RSA.public_key().verify(token_key.sign(b"message", scheme, hash_), b"message", scheme, hash_)
    digest_length = padding.PSS(padding.MGF1(hash_), padding.PSS.DIGEST_LENGTH)
    RSA.public_key().verify(token_key.sign(b"m", digest_length, hash_), b"m", digest_length, hash_)
    assert token_key.key_size == 2048


def test_ed25519() -> None:
    ED.public_key().verify(facade(ED, ed_token).sign(bytearray(b"message")), b"message")


def test_prehashed() -> None:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"message")
    octets = digest.finalize()
    key = facade(P256, ecdsa_token(P256))
    signature = key.sign(octets, ec.ECDSA(Prehashed(hashes.SHA256())))
    P256.public_key().verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    for data, hash_ in ((octets[:-1], hashes.SHA256()), (octets, hashes.SHA384())):
        with pytest.raises(SignerError, match="digest"):
            key.sign(data, ec.ECDSA(Prehashed(hash_)))


@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_prehashed_with_rsa_names_the_hash(hash_: hashes.HashAlgorithm) -> None:
    digest = hashes.Hash(hash_)
    digest.update(b"message")
    octets = digest.finalize()
    key = facade(RSA, rsa_token)
    for scheme in (padding.PKCS1v15(), padding.PSS(padding.MGF1(hash_), hash_.digest_size)):
        RSA.public_key().verify(key.sign(octets, scheme, Prehashed(hash_)), b"message", scheme, hash_)
    with pytest.raises(SignerError, match="digest"):
        key.sign(octets[:-1], padding.PKCS1v15(), Prehashed(hash_))


@pytest.mark.parametrize("hash_", [SHA1, MD5, hashes.SHA224(), hashes.SHA512_224(), hashes.SHA3_256()])
def test_weak_hashes_are_refused(hash_: hashes.HashAlgorithm) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("the token was asked")

    attempts: list[Callable[[], Any]] = [
        lambda: facade(P256, never).sign(b"", ec.ECDSA(hash_)),
        lambda: facade(RSA, never).sign(b"", padding.PKCS1v15(), hash_),
        lambda: facade(P256, never).sign(b"\0" * hash_.digest_size, ec.ECDSA(Prehashed(hash_))),
        lambda: facade(RSA, never).sign(b"\0" * hash_.digest_size, padding.PKCS1v15(), Prehashed(hash_)),
    ]
    for call in attempts:
        with pytest.raises(SignerError):
            call()


@pytest.mark.parametrize(
    "scheme",
    [
        padding.PSS(padding.MGF1(SHA1), 32),
        padding.PSS(padding.MGF1(hashes.SHA256()), 20),
        padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH),
        padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None),
    ],
)
def test_padding_that_the_token_would_not_do_is_refused(scheme: padding.AsymmetricPadding) -> None:
    with pytest.raises(SignerError, match="PSS"):
        facade(RSA, rsa_token).sign(b"", scheme, hashes.SHA256())


@pytest.mark.parametrize("key", EVERY, ids=lambda key: type(key).__name__)
@pytest.mark.parametrize(
    "attempt",
    [
        lambda key: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        lambda key: key.private_bytes_raw(),
        lambda key: key.private_numbers(),
        lambda key: key.exchange(ec.ECDH(), P256.public_key()),
        lambda key: key.decrypt(b"", padding.PKCS1v15()),
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
    ],
)
def test_nothing_but_signatures_comes_out(key: Any, attempt: Callable[[Any], Any]) -> None:
    with pytest.raises(SignerError) as caught:
        attempt(key)
    assert caught.value.hint
