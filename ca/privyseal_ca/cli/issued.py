"""What commands about issued certificates share: how one is named on the command line, and how it is shown."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.imports import read_certificates
from privyseal_ca.cli.text import moment
from privyseal_ca.errors import PolicyError
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.revocation.lost import is_certificate_of, is_lost
from privyseal_ca.store.certificates import CertificateRow, RevocationRow, find_certificate, find_revocation
from privyseal_ca.store.statement import Transaction

_SERIAL = re.compile(r"[0-9a-f]{1,32}")


class Named(NamedTuple):
    """A certificate as somebody named it."""

    serial: str
    #: What it is, when it was given as a file: anybody can make a certificate with the serial of another.
    der: bytes | None = None


def named(text: str) -> Named:
    """The certificate whose serial ``text`` is, or the first one in the file that it names.

    Raises:
        click.BadParameter: it is neither.
        ConfigurationError: the file holds no certificate.
    """
    bare = text.lower().replace(":", "").removeprefix("0x")
    if _SERIAL.fullmatch(bare):
        return Named(bare.zfill(32))
    path = Path(text)
    if not path.is_file():
        raise click.BadParameter("neither a serial in hex nor a file", param_hint="SERIAL|FILE")
    certificate = read_certificates(path)[0]
    return Named(serial_text(certificate.serial_number), certificate.public_bytes(Encoding.DER))


def require_certificate(transaction: Transaction, wanted: Named) -> tuple[CertificateRow, RevocationRow | None]:
    """The certificate that is ``wanted``, and its revocation.

    Raises:
        PolicyError: it was not issued here.
    """
    serial, der = wanted
    row = find_certificate(transaction, serial)
    if row is not None and der is not None and not is_certificate_of(transaction, row, der):
        raise PolicyError(
            f"The certificate in the file was not issued here; another one with its serial {serial} was.",
            hint="Ask where the file comes from. If the other one is meant, give its serial.",
        )
    if row is None:
        raise PolicyError(
            f"No certificate with the serial {serial} was issued here.", hint="`privyseal cert list` shows serials."
        )
    return row, find_revocation(transaction, row.issuer_id, serial)


def state_of(row: CertificateRow, revocation: RevocationRow | None, now: int) -> str:
    """``valid``, ``expired`` or ``revoked``."""
    if revocation is not None:
        return "revoked"
    return "expired" if row.not_after < now else "valid"


def document_of(row: CertificateRow, revocation: RevocationRow | None, now: int) -> dict[str, Any]:
    """A certificate as documents have it."""
    return {
        "serial": row.serial,
        "state": state_of(row, revocation, now),
        "names": orjson.loads(row.names),
        "profile": row.profile,
        "requester": row.requester,
        "issuer": row.issuer_id,
        "not_before": moment(row.not_before),
        "not_after": moment(row.not_after),
        "spki_sha256": row.spki_sha256.hex(),
        "ledger_index": row.ledger_index,
        "revoked_at": moment(revocation.revoked_at) if revocation else None,
        "reason": (revocation.reason or 0) if revocation else None,
        "lost": is_lost(row),
    }
