"""``privyseal cert``."""

import re
from pathlib import Path
from typing import Any

import click
import orjson
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.imports import read_certificates
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.text import moment, table, when
from privyseal_ca.errors import PolicyError
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.revocation.revoke import ADMINISTRATOR_REASONS, revoke_certificate
from privyseal_ca.store.certificates import (
    CertificateRow,
    RevocationRow,
    find_certificate,
    find_revocation,
    list_certificates,
)
from privyseal_ca.store.statement import Transaction

_SERIAL = re.compile(r"[0-9a-f]{1,32}")
_MAX_LISTED = 10_000
#: CRLReason (RFC 5280 section 5.3.1), without those that nobody may give here.
_REASONS = {
    "unspecified": 0,
    "keyCompromise": 1,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "privilegeWithdrawn": 9,
}


@click.group("cert", cls=Group)
def cert() -> None:
    """List, show and revoke certificates."""


@cert.command("list")
@click.option("--name", default="", metavar="TEXT", help="Only certificates with this text in a name.")
@click.option("--all", "expired_too", is_flag=True, help="Expired certificates too.")
@click.option("--after", default="", metavar="SERIAL", help="Begin after this serial, for the next page.")
@click.option("--count", type=click.IntRange(1, _MAX_LISTED), default=100, show_default=True, help="How many at most.")
@pass_invocation
def list_command(invocation: Invocation, name: str, after: str, count: int, **options: bool) -> None:
    """List certificates in the order of their serials."""
    now = int(surroundings_of(invocation).clock.now())
    valid_at = 0 if options["expired_too"] else now

    def unit(transaction: Transaction) -> list[tuple[CertificateRow, RevocationRow | None]]:
        rows = list_certificates(transaction, valid_at=valid_at, name=name, after=after, count=count)
        return [(row, find_revocation(transaction, row.issuer_id, row.serial)) for row in rows]

    async def work() -> list[tuple[CertificateRow, RevocationRow | None]]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(unit)

    found = run(work())
    invocation.result(
        [_document(row, revocation, now) for row, revocation in found],
        table(
            ("SERIAL", "STATE", "EXPIRES", "PROFILE", "NAMES"),
            [
                (
                    row.serial,
                    _state(row, revocation, now),
                    when(row.not_after),
                    row.profile,
                    " ".join(orjson.loads(row.names)),
                )
                for row, revocation in found
            ],
        ),
    )


@cert.command("show")
@click.argument("certificate", metavar="SERIAL|FILE")
@pass_invocation
def show(invocation: Invocation, certificate: str) -> None:
    """Show a certificate that was issued here."""
    serial = _serial_of(certificate)

    async def work() -> tuple[CertificateRow, RevocationRow | None]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: _find(tx, serial))

    row, revocation = run(work())
    now = int(surroundings_of(invocation).clock.now())
    pem = x509.load_der_x509_certificate(row.der).public_bytes(Encoding.PEM).decode()
    members = _document(row, revocation, now)
    lines = [f"{key:<14} {' '.join(value) if isinstance(value, list) else value}" for key, value in members.items()]
    invocation.result({**members, "pem": pem}, "\n".join([*lines, pem.rstrip()]))


@cert.command("revoke")
@click.argument("certificate", metavar="SERIAL|FILE")
@click.option(
    "--reason",
    type=click.Choice([*_REASONS, *(str(code) for code in sorted(ADMINISTRATOR_REASONS))]),
    default="unspecified",
    show_default=True,
    help="Why (RFC 5280 section 5.3.1), by name or number. keyCompromise also blocks the key for good.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def revoke(invocation: Invocation, certificate: str, reason: str, **options: bool) -> None:
    """Revoke a certificate, for good."""
    serial = _serial_of(certificate)
    code = _REASONS[reason] if reason in _REASONS else int(reason)
    surroundings = surroundings_of(invocation)

    def unit(transaction: Transaction) -> tuple[CertificateRow, RevocationRow]:
        row, _ = _find(transaction, serial)
        return row, revoke_certificate(
            transaction,
            row,
            reason=code,
            allowed_reasons=ADMINISTRATOR_REASONS,
            actor=surroundings.actor,
            correlation=surroundings.correlation,
            now=surroundings.clock.now(),
        )

    async def work() -> tuple[CertificateRow, RevocationRow]:
        async with opened_store(settings_of(invocation)) as store:
            row, _ = await store.read(lambda tx: _find(tx, serial))
            invocation.confirm(f"Revoke {serial} for {' '.join(orjson.loads(row.names))}?", yes=options["yes"])
            return await store.write(unit)

    row, revocation = run(work())
    members = _document(row, revocation, revocation.revoked_at)
    invocation.result(members, f"Certificate {serial} is revoked.")


def _serial_of(text: str) -> str:
    """The serial that ``text`` is, or that of the first certificate in the file that it names."""
    bare = text.lower().replace(":", "").removeprefix("0x")
    if _SERIAL.fullmatch(bare):
        return bare.zfill(32)
    path = Path(text)
    if not path.is_file():
        raise click.BadParameter("neither a serial in hex nor a file", param_hint="SERIAL|FILE")
    return serial_text(read_certificates(path)[0].serial_number)


def _find(transaction: Transaction, serial: str) -> tuple[CertificateRow, RevocationRow | None]:
    row = find_certificate(transaction, serial)
    if row is None:
        raise PolicyError(
            f"No certificate with the serial {serial} was issued here.", hint="`privyseal cert list` shows serials."
        )
    return row, find_revocation(transaction, row.issuer_id, serial)


def _state(row: CertificateRow, revocation: RevocationRow | None, now: int) -> str:
    if revocation is not None:
        return "revoked"
    return "expired" if row.not_after < now else "valid"


def _document(row: CertificateRow, revocation: RevocationRow | None, now: int) -> dict[str, Any]:
    return {
        "serial": row.serial,
        "state": _state(row, revocation, now),
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
    }
