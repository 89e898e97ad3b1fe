"""The base URLs by which certificates name parts of CRLs.

A certificate and the CRL that it names must say the same URL (RFC 5280 section 6.3.3). When the public URL changes, the
parts that living certificates name keep theirs, and new certificates are given new parts.
"""

from typing import Final

import orjson

from privyseal_ca.revocation.published import scope_shard
from privyseal_ca.store.crls import all_crls
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction

_FACT: Final = "crl-bases"

Base = tuple[int, str]
"""The first part that a URL names, and the URL without a slash at the end."""


def take_base(transaction: Transaction, url: str) -> tuple[Base, ...]:
    """Every base URL since the first, in their order, the last of which is ``url``; it is recorded when it is new."""
    known = find_fact(transaction, _FACT)
    bases: list[Base] = [(first, base) for first, base in orjson.loads(known)] if known else []
    if not bases or bases[-1][1] != url:
        parts = [shard for row in all_crls(transaction) if (shard := scope_shard(row.scope)) is not None]
        bases.append((max(parts, default=-1) + 1 if bases else 0, url))
        set_fact(transaction, _FACT, orjson.dumps(bases).decode())
    return tuple(bases)
