"""Certificates in a database without a signature: rows and entries as an issuance leaves them, as many as a test wants.

What looks at the certificates' DER, such as ``privyseal ledger verify``, is not for them.
"""

import hashlib
import json
from collections.abc import Sequence

from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.certificates import CertificateRow, add_certificate
from privyseal_ca.store.statement import Transaction

ISSUER = "ab" * 20


def spki_hash(label: object) -> bytes:
    """The hash of a key that nobody has."""
    return hashlib.sha256(str(label).encode()).digest()


def issue_row(
    transaction: Transaction,
    serial: int,
    *,
    now: float,
    names: Sequence[str] | None = None,
    requester: str = "account:a",
    profile: str = "mtls",
    issuer_id: str = ISSUER,
    key: object = None,
    lifetime: int = 86_400,
    not_before: int | None = None,
) -> CertificateRow:
    """Intent and issued entry, then the row. ``key`` is the label of :func:`spki_hash`; by default each has its own."""
    text = f"{serial:032x}"
    said = {"actor": requester, "correlation": text}
    begin = int(now) if not_before is None else not_before
    append(transaction, encode_entry(Kind.INTENT, time=now, **said, payload={"serial": text}))
    index = append(transaction, encode_entry(Kind.ISSUED, time=begin, **said, payload={"serial": text}))
    row = CertificateRow(
        serial=text,
        issuer_id=issuer_id,
        profile=profile,
        requester=requester,
        names=json.dumps(list(names or [f"dns:h{serial}.corp.example"]), separators=(",", ":")),
        not_before=begin,
        not_after=int(now) + lifetime,
        spki_sha256=spki_hash(serial if key is None else key),
        ledger_index=index,
        der=b"not a certificate",
        crl_shard=serial % 4,
        ocsp=1,
    )
    add_certificate(transaction, row)
    return row
