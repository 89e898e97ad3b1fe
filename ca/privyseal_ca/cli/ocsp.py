"""``privyseal ocsp``."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as rfc6960

from privyseal_ca.ceremony.files import write_file
from privyseal_ca.ceremony.imports import read_certificates
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of
from privyseal_ca.cli.text import moment, table, when
from privyseal_ca.errors import ConfigurationError, PolicyError
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.certificates import CertificateRow, RevocationRow, find_certificate, find_revocation
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.ocsp import ResponderRow, ResponseRow, all_responders, find_response
from privyseal_ca.store.ocsp_listing import KeptResponses, count_responses
from privyseal_ca.store.statement import Transaction

_SERIAL = re.compile(r"[0-9a-f]{1,32}")
_HASHES = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}  # noqa: S303 (RFC 6960 section 4.3: clients use it)
_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database knows of a serial."""

    certificate: CertificateRow | None
    revocation: RevocationRow | None
    responses: list[ResponseRow]


@click.group("ocsp", cls=Group)
def ocsp() -> None:
    """Show OCSP responders and what is answered, and make requests."""


@ocsp.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """List the OCSP responders and how many responses are kept ready."""

    def unit(transaction: Transaction) -> tuple[dict[str, str], list[ResponderRow], dict[str, KeptResponses]]:
        names = {row.id: row.name for row in all_issuers(transaction)}
        kept = {row.issuer_id: row for row in count_responses(transaction)}
        return names, all_responders(transaction), kept

    async def work() -> tuple[dict[str, str], list[ResponderRow], dict[str, KeptResponses]]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(unit)

    names, responders, kept = run(work())
    documents = [_responder(row, names.get(row.issuer_id), kept.get(row.issuer_id)) for row in responders]
    invocation.result(
        documents,
        table(
            ("ISSUER", "CERTIFICATE", "NOT AFTER", "RESPONSES", "KEY"),
            [
                (
                    document["issuer"] or document["issuer_id"],
                    document["serial"] or "none yet",
                    document["not_after"] or "-",
                    str(document["responses"]),
                    document["key_uri"],
                )
                for document in documents
            ],
        ),
    )


@ocsp.command("show")
@click.argument("certificate", metavar="SERIAL|FILE")
@pass_invocation
def show(invocation: Invocation, certificate: str) -> None:
    """Show what is answered for a certificate, from the database, and which responses are kept ready for it."""
    serial, issuer_id = _named(certificate)

    def unit(transaction: Transaction) -> _Known:
        row = find_certificate(transaction, serial)
        if row is None:
            # An abandoned serial has no certificate, but is revoked all the same.
            owners = [issuer_id] if issuer_id else [issuer.id for issuer in all_issuers(transaction)]
            revocations = [find_revocation(transaction, owner, serial) for owner in owners]
            revocation = next((found for found in revocations if found is not None), None)
        else:
            revocation = find_revocation(transaction, row.issuer_id, serial)
        found = [find_response(transaction, serial, name) for name in _HASHES]
        return _Known(row, revocation, [response for response in found if response is not None])

    async def work() -> _Known:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(unit)

    known = run(work())
    if known.certificate is not None and issuer_id not in {None, known.certificate.issuer_id}:
        # Another CA may have given the same serial: about its certificates nothing is known here.
        known = _Known(None, None, [])
    document = _answer(serial, known)
    lines = [f"{key:<12} {'-' if value is None else value}" for key, value in document.items() if key != "responses"]
    responses = [
        (row["hash"], row["status"], row["this_update"], row["next_update"], row["refresh_at"])
        for row in document["responses"]
    ]
    lines += ["", table(("HASH", "STATUS", "THIS UPDATE", "NEXT UPDATE", "REPLACED AT"), responses)]
    invocation.result(document, "\n".join(lines))


@ocsp.command("request")
@click.argument("file", type=_FILE)
@click.option(
    "--hash", "hash_name", type=click.Choice(list(_HASHES)), default="sha1", show_default=True, help="CertID."
)
@click.option("--out", metavar="FILE", help="Write the request as DER to this file.")
@pass_invocation
def request(invocation: Invocation, file: Path, hash_name: str, out: str | None) -> None:
    """Make the OCSP request for a certificate of this authority, and show the URL that asks it with GET."""
    settings = settings_of(invocation)
    certificate = read_certificates(file)[0]

    async def work() -> x509.Certificate:
        async with opened_store(settings) as store:
            return await store.read(lambda tx: _issuer_of(tx, certificate))

    builder = rfc6960.OCSPRequestBuilder().add_certificate(certificate, run(work()), _HASHES[hash_name])
    der = builder.build().public_bytes(Encoding.DER)
    if out is not None:
        write_file(Path(out), der, mode=0o644)
    # RFC 6960 appendix A.1: base64 may hold characters that mean something in a path.
    url = f"{settings.server.public_http}/ocsp/{quote(base64.b64encode(der), safe='')}"
    document = {
        "serial": serial_text(certificate.serial_number),
        "hash": hash_name,
        "request": base64.b64encode(der).decode(),
        "url": url,
        "file": out,
    }
    invocation.result(document, url)


def _named(text: str) -> tuple[str, str | None]:
    """The serial that ``text`` is; or that of the first certificate in the file that it names, with its issuer's id."""
    bare = text.lower().replace(":", "").removeprefix("0x")
    if _SERIAL.fullmatch(bare):
        return bare.zfill(32), None
    path = Path(text)
    if not path.is_file():
        raise click.BadParameter("neither a serial in hex nor a file", param_hint="SERIAL|FILE")
    certificate = read_certificates(path)[0]
    return serial_text(certificate.serial_number), _authority_key(certificate)


def _authority_key(certificate: x509.Certificate) -> str:
    try:
        value = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    return (value.key_identifier or b"").hex()


def _issuer_of(transaction: Transaction, certificate: x509.Certificate) -> x509.Certificate:
    pems = chains(transaction, _authority_key(certificate))
    if not pems:
        raise PolicyError(
            "The certificate is of another authority.", hint="`privyseal issuer list` shows the issuers of this one."
        )
    issuer = x509.load_pem_x509_certificates(pems[0].encode())[0]
    if issuer.subject != certificate.issuer:
        raise ConfigurationError(
            "The certificate names the key of an issuer here, but another issuer.", hint="Get the certificate again."
        )
    return issuer


def _responder(row: ResponderRow, name: str | None, kept: KeptResponses | None) -> dict[str, Any]:
    certificate = None if row.der is None else x509.load_der_x509_certificate(row.der)
    return {
        "issuer": name,
        "issuer_id": row.issuer_id,
        "key_uri": row.key_uri,
        "serial": None if certificate is None else serial_text(certificate.serial_number),
        "not_after": None if certificate is None else moment(row.not_after),
        "responses": 0 if kept is None else kept.responses,
        "earliest_next_update": None if kept is None else moment(kept.next_update),
    }


def _answer(serial: str, known: _Known) -> dict[str, Any]:
    row, revocation = known.certificate, known.revocation
    issued = "unknown" if row is None else "good"
    return {
        "serial": serial,
        "status": issued if revocation is None else "revoked",
        "issuer": next((found.issuer_id for found in (row, revocation) if found is not None), None),
        "not_after": moment(row.not_after if row else None),
        "revoked_at": moment(revocation.revoked_at) if revocation else None,
        "reason": (revocation.reason or 0) if revocation else None,
        "responses": [
            {
                "hash": response.hash,
                "status": "revoked" if response.revoked else "good",
                "this_update": when(response.this_update),
                "next_update": when(response.next_update),
                "refresh_at": when(response.refresh_at),
                "size": len(response.der),
            }
            for response in known.responses
        ],
    }
