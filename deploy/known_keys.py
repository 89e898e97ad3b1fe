"""Write ``ca/privyseal_ca/policy/known_keys.dat``: public keys whose private halves anybody can have.

    python deploy/known_keys.py FILE [FOLDER ...]

Adds to FILE, which it creates when needed, the keys that follow from tiny or monotonous private values on the curves that
are certified, and every private key in a PEM file below each FOLDER that opens without a password. Nothing is ever taken
out. The form is that of badkeys' ``blocklist.dat``; the last octet of a record says where it is from: 1 derived, 2 found.

The file in the repository was made from: the private keys in RFC 6979 (A.2.5 to A.2.7), RFC 7515 (A.2 to A.4), RFC 7517
(A.2), RFC 8032 (7.1) and RFC 9500, each checked against the public key printed beside it; and the test data of CPython,
cryptography_vectors 50, certbot 5.8, acme 5.9, pycryptodomex 3.24 and xmlsec1.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from privyseal_ca.errors import KeyRefusedError
from privyseal_ca.policy.keys import KeyBlocklist, key_type

DERIVED, FOUND = 1, 2
SMALLEST = 512
MAX_FILE = 1 << 20
_PEM = re.compile(rb"-----BEGIN ((?:RSA |EC )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


def derived() -> Iterator[object]:
    """Keys of the smallest private values, and of those that repeat one octet."""
    for curve, octets in ((ec.SECP256R1(), 32), (ec.SECP384R1(), 48), (ec.SECP521R1(), 65)):
        scalars = set(range(1, SMALLEST + 1)) | {
            int.from_bytes(bytes([octet]) * octets, "big") for octet in range(1, 255)
        }
        for scalar in scalars:
            yield ec.derive_private_key(scalar, curve).public_key()
    seeds = {bytes([octet]) * 32 for octet in range(256)} | {bytes(range(32))}
    for number in range(SMALLEST + 1):
        seeds |= {number.to_bytes(32, "big"), number.to_bytes(32, "little")}
    for seed in seeds:
        yield ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key()


def found(folder: Path) -> Iterator[object]:
    """Keys of the certified kinds in files below ``folder``."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.stat().st_size > MAX_FILE:
            continue
        for match in _PEM.finditer(path.read_bytes()):
            try:
                public_key = load_pem_private_key(match[0], None, unsafe_skip_rsa_key_validation=True).public_key()
                key_type(public_key)
            except (ValueError, TypeError, UnsupportedAlgorithm, KeyRefusedError):
                continue  # encrypted, deliberately broken, or of a kind that is refused anyway
            yield public_key


def main(file: Path, folders: list[Path]) -> None:
    """Rewrite ``file``."""
    data = file.read_bytes() if file.exists() else b""
    records = {data[start : start + 15]: data[start + 15] for start in range(0, len(data), 16)}
    for public_key in derived():
        records.setdefault(KeyBlocklist.digest(public_key), DERIVED)
    for folder in folders:
        for public_key in found(folder):
            records.setdefault(KeyBlocklist.digest(public_key), FOUND)
    file.write_bytes(b"".join(digest + bytes([source]) for digest, source in sorted(records.items())))
    print(f"{file}: {len(records)} keys, {sum(source == FOUND for source in records.values())} of them found")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
