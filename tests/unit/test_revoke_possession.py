"""Proving that a private key is out, and everything that is no private key."""

from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import issuing
from fakes.issuing import csr, spki
from privyseal_ca.errors import KeyRefusedError
from privyseal_ca.revocation.possession import key_in, prove_possession

KINDS = ("ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519")
PASSPHRASE = "correct horse battery staple"


def octets(size: int) -> bytes:
    return b"\x07" * size


def never() -> str:
    raise AssertionError("nobody is to be asked")


def private(kind: str, encoding: Encoding = Encoding.PEM, form: Any = PrivateFormat.PKCS8, secret: str = "") -> bytes:
    encryption = BestAvailableEncryption(secret.encode()) if secret else NoEncryption()
    return bytes(issuing.key(kind).private_bytes(encoding, form, encryption))  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_every_kind_of_key(kind: str, encoding: Encoding) -> None:
    shown = prove_possession(private(kind, encoding), passphrase=never, random_bytes=octets)
    assert shown.spki_sha256 == sha256(spki(issuing.key(kind).public_key())).digest()
    assert shown.proof.keys() == {"algorithm", "challenge_sha256", "signature_sha256"}
    assert all(len(shown.proof[name]) == 64 for name in ("challenge_sha256", "signature_sha256"))


@pytest.mark.parametrize("kind", ["ec-p256", "rsa"])
def test_the_traditional_form(kind: str) -> None:
    content = private(kind, form=PrivateFormat.TraditionalOpenSSL)
    assert prove_possession(content, passphrase=never, random_bytes=octets).spki_sha256


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_an_encrypted_key_is_asked_for_once(kind: str, encoding: Encoding) -> None:
    asked: list[str] = []

    def passphrase() -> str:
        asked.append(kind)
        return PASSPHRASE

    shown = prove_possession(private(kind, encoding, secret=PASSPHRASE), passphrase=passphrase, random_bytes=octets)
    assert shown.spki_sha256 == sha256(spki(issuing.key(kind).public_key())).digest()
    assert asked == [kind]


@pytest.mark.parametrize("said", ["wrong", "", "x" * 5000])
def test_a_wrong_passphrase_is_told_and_not_shown(said: str) -> None:
    with pytest.raises(KeyRefusedError, match="decrypted") as refused:
        prove_possession(private("rsa", secret=PASSPHRASE), passphrase=lambda: said, random_bytes=octets)
    assert refused.value.__suppress_context__
    assert "wrong" not in str(refused.value)


def test_the_challenge_is_fresh() -> None:
    numbers = iter(range(2))
    content = private("ed25519")
    proofs = [
        prove_possession(content, passphrase=never, random_bytes=lambda size: bytes([next(numbers)]) * size).proof
        for _ in range(2)
    ]
    assert proofs[0]["challenge_sha256"] != proofs[1]["challenge_sha256"]
    assert proofs[0]["signature_sha256"] != proofs[1]["signature_sha256"]


def test_halves_that_do_not_belong_together() -> None:
    """An EC key in SEC 1 form (RFC 5915) carries its public half: here another's."""
    one, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    points = [key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (one, other)]
    whole = one.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    mixed = whole.replace(*points)
    assert mixed != whole
    with pytest.raises(KeyRefusedError):
        prove_possession(mixed, passphrase=never, random_bytes=octets)


def certificate(encoding: Encoding) -> bytes:
    return issuing.issuer().certificate.public_bytes(encoding)


PUBLIC = {
    "a certificate": certificate,
    "a certificate request": lambda encoding: x509.load_der_x509_csr(csr("dns:a.corp.example")).public_bytes(encoding),
    "a public key": lambda encoding: (
        issuing.key("ec-p256").public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    ),
}


@pytest.mark.parametrize("what", PUBLIC)
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_public_files_are_named_as_what_they_are(what: str, encoding: Encoding) -> None:
    content = PUBLIC[what](encoding)
    with pytest.raises(KeyRefusedError, match=f"holds {what}, not a private key"):
        prove_possession(content, passphrase=never, random_bytes=octets)
    assert len(key_in(content)) == 32


@pytest.mark.parametrize("secret", ["", PASSPHRASE])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_private_key_is_not_taken_where_a_public_one_is_wanted(encoding: Encoding, secret: str) -> None:
    with pytest.raises(KeyRefusedError, match="private key") as refused:
        key_in(private("ec-p256", encoding, secret=secret))
    assert "--private-key" in refused.value.hint


@pytest.mark.parametrize(
    "other",
    [
        ed448.Ed448PrivateKey.generate,
        x25519.X25519PrivateKey.generate,
        lambda: dsa.generate_private_key(2048),
    ],
)
def test_keys_that_are_never_certified(other: Any) -> None:
    content = other().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(KeyRefusedError, match="never certified"):
        prove_possession(content, passphrase=never, random_bytes=octets)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"0\x80",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
)
def test_garbage(content: bytes) -> None:
    for use in (key_in, lambda it: prove_possession(it, passphrase=never, random_bytes=octets)):
        with pytest.raises(KeyRefusedError):
            use(content)


@given(st.binary(max_size=300), st.integers(0, 200), st.booleans())
@settings(max_examples=200, deadline=None)
def test_damaged_files_are_refused_or_read_and_never_more(noise: bytes, at: int, pem: bool) -> None:
    content = private("ec-p256", Encoding.PEM if pem else Encoding.DER)
    damaged = content[:at] + noise + content[at + len(noise) :]
    for use in (key_in, lambda it: prove_possession(it, passphrase=lambda: "x", random_bytes=octets)):
        with suppress(KeyRefusedError):
            use(damaged)


def test_what_is_recorded_has_nothing_of_the_key() -> None:
    key = rsa.generate_private_key(65537, 2048)
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = repr(prove_possession(content, passphrase=never, random_bytes=octets))
    numbers = key.private_numbers()
    for secret in (numbers.d, numbers.p, numbers.q):
        assert str(secret) not in shown
        assert f"{secret:x}" not in shown


def test_an_openssh_key_is_refused_clearly() -> None:
    content = issuing.key("ed25519").private_bytes(Encoding.PEM, serialization.PrivateFormat.OpenSSH, NoEncryption())
    with pytest.raises(KeyRefusedError, match="not a private key that can be read"):
        prove_possession(content, passphrase=never, random_bytes=octets)
