"""The trust anchors of an authority, as a file for those who are to trust it."""

from pathlib import Path

from cryptography import x509

from privyseal_ca.ceremony.certificates import fingerprint, pem
from privyseal_ca.ceremony.files import write_file
from privyseal_ca.config import ROOTS_FILE
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.statement import Transaction


def roots(transaction: Transaction) -> list[x509.Certificate]:
    """The roots in which the chains of this authority end, without repetition."""
    found: dict[str, x509.Certificate] = {}
    for issuer in all_issuers(transaction):
        for chain in chains(transaction, issuer.id):
            root = x509.load_pem_x509_certificates(chain.encode())[-1]
            found.setdefault(fingerprint(root), root)
    return list(found.values())


async def write_roots(store: Store, home: Path) -> None:
    """Write ``roots.pem`` anew; nothing is written as long as there is no root."""
    certificates = await store.read(roots)
    if certificates:
        write_file(home / ROOTS_FILE, pem(*certificates).encode(), mode=0o644)
