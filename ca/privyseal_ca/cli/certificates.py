"""``privyseal cert``."""

import ssl
from functools import partial
from pathlib import Path

import click
import orjson
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.imports import read_certificates
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.issued import Named, document_of, named, require_certificate, state_of
from privyseal_ca.cli.revoke import jobs, revoke
from privyseal_ca.cli.text import table, when
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.revocation.lost import adopt, is_lost
from privyseal_ca.store.certificates import CertificateRow, RevocationRow, find_revocation, list_certificates
from privyseal_ca.store.statement import Transaction

_MAX_LISTED = 10_000
_LOST = "The certificate itself was lost in a restore: `privyseal cert adopt FILE` takes it back from whoever has it."


@click.group("cert", cls=Group)
def cert() -> None:
    """List, show, revoke and adopt certificates."""


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
        [document_of(row, revocation, now) for row, revocation in found],
        table(
            ("SERIAL", "STATE", "EXPIRES", "PROFILE", "NAMES"),
            [
                (
                    row.serial,
                    state_of(row, revocation, now) + (" (lost)" if is_lost(row) else ""),
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
    wanted = named(certificate)

    async def work() -> tuple[CertificateRow, RevocationRow | None]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: require_certificate(tx, wanted))

    row, revocation = run(work())
    now = int(surroundings_of(invocation).clock.now())
    pem = None if is_lost(row) else ssl.DER_cert_to_PEM_cert(row.der)
    members = document_of(row, revocation, now)
    lines = [f"{key:<14} {' '.join(value) if isinstance(value, list) else value}" for key, value in members.items()]
    invocation.result({**members, "pem": pem}, "\n".join([*lines, pem.rstrip() if pem else _LOST]))


@cert.command("adopt")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@pass_invocation
def adopt_command(invocation: Invocation, file: Path) -> None:
    """Give certificates back that were lost in a restore.

    FILE holds one or more, as their owners have them. Each must be the very one that the ledger's entry is of.
    """
    ders = [certificate.public_bytes(Encoding.DER) for certificate in read_certificates(file)]

    def unit(transaction: Transaction, der: bytes) -> tuple[str, bool]:
        serial = serial_text(x509.load_der_x509_certificate(der).serial_number)
        row, _ = require_certificate(transaction, Named(serial, der))
        if is_lost(row):
            adopt(transaction, row, der)
            return serial, True
        return serial, False

    async def work() -> list[tuple[str, bool]]:
        async with opened_store(settings_of(invocation)) as store:
            return [await store.write(partial(unit, der=der)) for der in ders]

    found = run(work())
    invocation.result(
        [{"serial": serial, "adopted": adopted} for serial, adopted in found],
        "\n".join(f"{serial} {'adopted' if adopted else 'was here'}" for serial, adopted in found),
    )


cert.add_command(revoke)
cert.add_command(jobs)
