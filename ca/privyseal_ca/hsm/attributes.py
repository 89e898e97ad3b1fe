"""What a key must be so that promise P1 holds, and what is told of it to the ledger."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm.signer import PublicKey

KeyAlgorithm = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"]

# CKA_ names (PKCS#11 section 4.9): born in the token, never readable outside, never anything else.
PROTECTION: Mapping[str, bool] = {
    "LOCAL": True,
    "SENSITIVE": True,
    "ALWAYS_SENSITIVE": True,
    "NEVER_EXTRACTABLE": True,
    "EXTRACTABLE": False,
}
# What a new key is given beside them. LOCAL and the ALWAYS and NEVER attributes are the token's to set.
RESTRICTION: Mapping[str, bool] = {
    "TOKEN": True,
    "PRIVATE": True,
    "SENSITIVE": True,
    "EXTRACTABLE": False,
    "UNWRAP": False,
    "DERIVE": False,
    "MODIFIABLE": False,
    "COPYABLE": False,
}
SIGNING: Mapping[str, bool] = {**RESTRICTION, "SIGN": True, "DECRYPT": False}
WRAPPING: Mapping[str, bool] = {
    **RESTRICTION,
    "ENCRYPT": True,
    "DECRYPT": True,
    "SIGN": False,
    "VERIFY": False,
    "WRAP": False,
}
# What is read back: the promise, the uses, and whether each use would need its own PIN entry.
READ_BACK = tuple(dict.fromkeys((*PROTECTION, *SIGNING, *WRAPPING, "ALWAYS_AUTHENTICATE")))


@dataclass(frozen=True)
class KeyAttestation:
    """What the token says about a key; this is what the ledger records of it."""

    uri: str
    algorithm: str
    spki_sha256: str
    """Hexadecimal SHA-256 of the DER SubjectPublicKeyInfo."""
    module: str
    token_serial: str
    attributes: dict[str, bool]
    """The CKA_ attributes, without that prefix, as they were read back."""


def require_protection(uri: str, attributes: Mapping[str, bool], uses: tuple[str, ...]) -> None:
    """Check promise P1 on attributes that were read back, and that the key may do its work.

    An attribute that the token does not tell counts as wrong.

    Raises:
        SignerMisconfiguredError: naming every attribute that is not what it must be.
    """
    wanted = {**PROTECTION, **dict.fromkeys(uses, True)}
    wrong = [f"CKA_{name}" for name, value in wanted.items() if attributes.get(name) is not value]
    if wrong:
        raise SignerMisconfiguredError(
            f"The key {uri} is refused: {', '.join(wrong)} not as promise P1 needs.",
            hint="Generate the key in the token, as `privyseal init` does; imported and extractable keys are never used.",
        )
    if attributes.get("ALWAYS_AUTHENTICATE", False):
        raise SignerMisconfiguredError(
            f"The key {uri} asks for the PIN at every signature (CKA_ALWAYS_AUTHENTICATE).",
            hint="An unattended service cannot use it. Generate a key without that attribute.",
        )


def algorithm_of(public_key: PublicKey) -> str:
    """The :data:`KeyAlgorithm` of a public key, or a name of the same form for a size that is not offered."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return f"ec-p{public_key.key_size}"
    if isinstance(public_key, rsa.RSAPublicKey):
        return f"rsa-{public_key.key_size}"
    return "ed25519"


def spki_sha256(public_key: PublicKey) -> str:
    """Hexadecimal SHA-256 of the key's DER SubjectPublicKeyInfo."""
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
