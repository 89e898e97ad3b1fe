"""Stored CRLs as files: one of them, or those that a server needs to check every CA of a chain."""

import itertools
from functools import partial
from hashlib import sha256
from typing import Final

from cryptography import x509

from privyseal_ca.ceremony.certificates import subject_key_identifier
from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.revocation.crl_bundle import pem_of
from privyseal_ca.revocation.published import FULL
from privyseal_ca.store.crls import CrlRow, all_crls, find_crl, find_part
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.statement import Transaction

#: How often a CRL may be replaced while it is read before that is an error.
_TRIES: Final = 10


async def read_der(store: Store, issuer_id: str, scope: str, *, delta: bool) -> tuple[CrlRow, bytes]:
    """The current CRL of a scope, or its delta CRL, read part by part.

    Raises:
        StatusUnavailableError: there is none, or what is stored is not what was published.
        StoreError: the database failed.
    """
    for _ in range(_TRIES):
        row = await store.read(partial(find_crl, issuer_id=issuer_id, scope=scope))
        if row is None or not (row.delta_size if delta else row.number):
            break
        der = bytearray()
        for position in itertools.count():
            piece = partial(find_part, issuer_id=issuer_id, scope=scope, number=row.number, delta=delta)
            found = await store.read(partial(piece, position=position))
            if found is None:
                break
            der += found
        if sha256(der).digest() == (row.delta_sha256 if delta else row.sha256):
            return row, bytes(der)
        if await store.read(partial(find_crl, issuer_id=issuer_id, scope=scope)) == row:
            raise StatusUnavailableError(
                f"The stored CRL {row.number} of {issuer_id}, scope {scope}, is not the one that was published.",
                hint="Run `privyseal ledger verify`.",
            )
    raise StatusUnavailableError(
        f"There is no {'delta ' if delta else ''}CRL of {issuer_id}, scope {scope}.",
        hint="The service publishes the CRLs of issuers; `privyseal crl root` signs the root's.",
    )


async def bundle_of(store: Store) -> tuple[list[CrlRow], bytes]:
    """The complete CRLs of every CA, and all of them as PEM: what the service has at ``/crls.pem``, octet for octet.

    Raises:
        StatusUnavailableError: a CA in the default chain of an active issuer has none.
        StoreError: the database failed.
    """
    needed = await store.read(_needed)
    rows = [row for row in await store.read(all_crls) if row.scope == FULL and row.number]
    missing = sorted(needed.keys() - {row.issuer_id for row in rows})
    if missing:
        raise StatusUnavailableError(
            f"There is no CRL of {needed[missing[0]]} ({missing[0]}).",
            hint="The service publishes those of issuers; `privyseal crl root` signs the root's, and `privyseal crl import` "
            "takes that of a root elsewhere.",
        )
    content = b""
    found = []
    for row in sorted(rows, key=lambda row: row.issuer_id):
        current, der = await read_der(store, row.issuer_id, FULL, delta=False)
        found.append(current)
        content += pem_of(der)
    return found, content


def _needed(transaction: Transaction) -> dict[str, str]:
    """The subject of every CA in the default chains of the active issuers by its id."""
    found: dict[str, str] = {}
    for row in all_issuers(transaction):
        pems = chains(transaction, row.id)
        if row.state in {"root", "active"} and pems:
            for certificate in x509.load_pem_x509_certificates(pems[0].encode()):
                found.setdefault(subject_key_identifier(certificate).digest.hex(), certificate.subject.rfc4514_string())
    return found
