"""``privyseal issuer``."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import click
from cryptography import x509

from privyseal_ca.ceremony.ceremony import request_pem
from privyseal_ca.ceremony.certificates import fingerprint
from privyseal_ca.ceremony.files import REQUEST_SUFFIX, write_file
from privyseal_ca.ceremony.imports import import_certificate, read_certificates, require_issuer, retire
from privyseal_ca.ceremony.issuers import CaSpec, IssuerMaker
from privyseal_ca.ceremony.plan import ISSUING_NAME, ROOT_NAME, subject
from privyseal_ca.ceremony.root_crl import CA_REASONS, renew_root_crl, revoke_issuer
from privyseal_ca.ceremony.roots import write_roots
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_hsm, opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.options import constraint_options, name_space
from privyseal_ca.cli.roots import opened_root, root_pin, root_pin_option
from privyseal_ca.cli.text import moment, table, when
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.attributes import KeyAlgorithm
from privyseal_ca.hsm.places import places_of, plain, read_replicas
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains
from privyseal_ca.store.statement import Transaction

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)

Found = tuple[IssuerRow, list[str]]


@click.group("issuer", cls=Group)
def issuer() -> None:
    """List, create, certify, retire and revoke issuing CAs."""


@issuer.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """List the root and the issuing CAs, the preferred first."""

    async def work() -> list[Found]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: [(row, chains(tx, row.id)) for row in all_issuers(tx)])

    found = run(work())
    now = surroundings_of(invocation).clock.now()
    invocation.result(
        [_document(row, pems) for row, pems in found],
        table(
            ("NAME", "STATE", "KEY", "EXPIRES", "DAYS LEFT", "SUBJECT"),
            [
                (
                    row.name,
                    row.state,
                    row.algorithm,
                    when(_not_after(pems)),
                    _days_left(pems, now),
                    _certificates(pems[0])[0].subject.rfc4514_string() if pems else "-",
                )
                for row, pems in found
            ],
        ),
    )


@issuer.command("show")
@click.argument("name")
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Show a CA: its key and where it is, what the token said about it, and its chains."""

    def unit(transaction: Transaction) -> Found:
        row = require_issuer(transaction, name)
        return row, chains(transaction, row.id)

    async def work() -> Found:
        async with opened_store(settings) as store:
            return await store.read(unit)

    settings = settings_of(invocation)
    row, pems = run(work())
    members = _document(row, pems)
    places = places_of(KeyUri.parse(row.key_uri), read_replicas(settings.hsm.replicas))
    # The replicas as the settings name them; `privyseal doctor` looks into them.
    members["key_uris"] = [plain(place) for place in places]
    hidden = {"chains", "csr", "attestation", "key_uris"}
    lines = [f"{key:<12} {value}" for key, value in members.items() if key not in hidden]
    lines += [f"{'replica':<12} {uri}" for uri in members["key_uris"][1:]]
    lines += [f"{key:<24} {value}" for key, value in members["attestation"]["attributes"].items()]
    lines += [pem.rstrip() for pem in pems] or [members["csr"].rstrip()]
    invocation.result(members, "\n".join(lines))


@issuer.command("create")
@click.argument("name")
@click.option(
    "--key-type",
    type=click.Choice(get_args(KeyAlgorithm)),
    default="ec-p256",
    show_default=True,
    help="Kind of its key.",
)
@click.option("--common-name", help="Common name. Default: that of the first intermediate with NAME behind it.")
@click.option("--token", metavar="LABEL", help="Token for the key. Default: that of the first intermediate.")
@root_pin_option
@click.option("--request", "request_only", is_flag=True, help="Write a request even though the root's key is at hand.")
@constraint_options
@pass_invocation
def create(invocation: Invocation, name: str, **options: Any) -> None:
    """Make another issuing CA, with its key generated in the token.

    The root signs its certificate when its token and PIN are here; where the root's CRL is stands in it when server.http_url is
    set. Otherwise a request is written for `issuer import`. A running service uses the new issuer after a restart.
    """
    if not _NAME.fullmatch(name) or name == ROOT_NAME:
        raise click.BadParameter("use up to 64 lower-case letters, digits, dots, hyphens and underscores")
    settings = settings_of(invocation)
    row = run(_create(invocation, settings, name, options))
    if row.csr is None:
        invocation.result({"name": name, "id": row.id, "state": row.state}, f"Issuer {name} is active.")
        return
    path = settings.home / f"{name}{REQUEST_SUFFIX}"
    write_file(path, request_pem(row.csr), mode=0o644)
    invocation.result(
        {"name": name, "id": row.id, "state": row.state, "csr": str(path)},
        f"Have the root sign {path} as a CA certificate, then: privyseal issuer import CERT.pem --chain ROOT.pem",
    )


async def _create(invocation: Invocation, settings: Settings, name: str, options: dict[str, Any]) -> IssuerRow:
    surroundings = surroundings_of(invocation)
    async with opened_store(settings) as store:
        issuers = {row.name: row for row in await store.read(all_issuers)}
        if name in issuers:
            raise ConfigurationError(f"There is an issuer {name} already.", hint="Choose another name.")
        first = issuers[ISSUING_NAME]
        root_row = issuers.get(ROOT_NAME)
        root_pin_file = root_pin(settings.home, options["root_pin_file"])
        at_hand = root_row is not None and root_pin_file is not None and not options["request_only"]
        token = KeyUri.parse(first.key_uri).token_uri
        if options["token"]:
            token = KeyUri(token=options["token"], module_path=token.module_path)
        root_token = (KeyUri.parse(root_row.key_uri).token or "") if root_row is not None else ""
        async with opened_hsm(settings, root_token=root_token, root_pin_file=root_pin_file) as hsm:
            maker = IssuerMaker(hsm, surroundings.transcript(store), surroundings.random_bytes)
            spec = CaSpec(
                name,
                token,
                options["key_type"],
                await _subject(store, first, name, options["common_name"]),
                name_space(options),
                settings.server.http_url,
            )
            root = await maker.existing_root() if at_hand else None
            row = await maker.intermediate(spec, root)
            if root is not None:
                await renew_root_crl(surroundings.transcript(store), root)
        await write_roots(store, settings.home)
        return row


@issuer.command("import")
@click.argument("certificate", type=_FILE)
@click.option("--chain", type=_FILE, multiple=True, help="File with the root, and what is between. Repeatable.")
@click.option("--alternate", is_flag=True, help="Add a chain to another root to an active issuer.")
@pass_invocation
def import_command(invocation: Invocation, certificate: Path, chain: tuple[Path, ...], **options: bool) -> None:
    """Take the certificate that a root has signed for a key of this authority, and activate it."""
    settings = settings_of(invocation)
    given = [found for path in (certificate, *chain) for found in read_certificates(path)]

    async def work() -> Any:
        async with opened_store(settings) as store:
            transcript = surroundings_of(invocation).transcript(store)
            return await import_certificate(transcript, settings.home, given, alternate=options["alternate"])

    imported = run(work())
    verb = "is active" if imported.activated else "has another chain"
    invocation.result(
        {
            "name": imported.issuer.name,
            "id": imported.issuer.id,
            "state": imported.issuer.state,
            "activated": imported.activated,
            "root_sha256": fingerprint(imported.root),
            "roots": str(settings.home / ROOTS_FILE),
        },
        f"Issuer {imported.issuer.name} {verb}. Root: SHA-256 {fingerprint(imported.root)}",
    )


@issuer.command("retire")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def retire_command(invocation: Invocation, name: str, **options: bool) -> None:
    """End the use of an issuing CA. What it has issued stays valid; a running service follows after a restart."""
    invocation.confirm(f"Retire issuer {name}?", yes=options["yes"])

    async def work() -> IssuerRow:
        async with opened_store(settings_of(invocation)) as store:
            return await retire(surroundings_of(invocation).transcript(store), name)

    row = run(work())
    invocation.result({"name": name, "id": row.id, "state": "retired"}, f"Issuer {name} is retired.")


@issuer.command("revoke")
@click.argument("name")
@click.option(
    "--reason",
    type=click.Choice(list(CA_REASONS)),
    default="unspecified",
    show_default=True,
    help="Why (RFC 5280 section 5.3.1).",
)
@root_pin_option
@click.option("--yes", is_flag=True, help="Do not ask, and accept that the issuer is still active.")
@pass_invocation
def revoke_command(invocation: Invocation, name: str, reason: str, root_pin_file: Path | None, **options: bool) -> None:
    """Revoke an issuing CA, for good: nothing that it has issued is trusted any more.

    The root's key must be at hand: it signs its CRL anew. An issuer that is still active is retired with it; a running
    service uses it no more after a restart.
    """
    invocation.confirm(f"Revoke issuer {name} and with it everything that it has issued?", yes=options["yes"])

    async def work() -> IssuerRow:
        async with opened_root(invocation, root_pin_file) as opened:
            row = await opened.transcript.store.read(lambda tx: require_issuer(tx, name))
            if row.state == "active" and not options["yes"]:
                raise ConfigurationError(
                    f"Issuer {name} is active.", hint="Retire it first, or say --yes to retire and revoke it at once."
                )
            return await revoke_issuer(opened.transcript, opened.root, name, reason=CA_REASONS[reason])

    row = run(work())
    invocation.result(
        {"name": name, "id": row.id, "state": "retired", "reason": CA_REASONS[reason]},
        f"Issuer {name} is revoked, and the root's CRL says so. Restart a running service.",
    )


async def _subject(store: Store, first: IssuerRow, name: str, common_name: str | None) -> x509.Name:
    """The new CA's name, with the organization of the first intermediate."""
    pems = await store.read(lambda tx: chains(tx, first.id))
    if pems:
        of_first = _certificates(pems[0])[0].subject
    elif first.csr is not None:
        of_first = x509.load_der_x509_csr(first.csr).subject
    else:
        raise ConfigurationError(f"Issuer {first.name} has neither certificate nor request.")
    organization = of_first.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    existing = of_first.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    default = f"{existing[0].value!s} {name}" if existing else name
    return subject(str(organization[0].value) if organization else "Privy Seal", common_name or default)


def _certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def _not_after(pems: list[str]) -> float | None:
    return _certificates(pems[0])[0].not_valid_after_utc.timestamp() if pems else None


def _days_left(pems: list[str], now: float) -> str:
    not_after = _not_after(pems)
    return "-" if not_after is None else str(int((not_after - now) // 86400))


def _document(row: IssuerRow, pems: list[str]) -> dict[str, Any]:
    return {
        "name": row.name,
        "id": row.id,
        "state": row.state,
        "algorithm": row.algorithm,
        "key_uri": row.key_uri,
        "created": moment(row.created),
        "not_after": moment(_not_after(pems)),
        "sha256": fingerprint(_certificates(pems[0])[0]) if pems else None,
        "attestation": json.loads(row.attestation),
        "csr": request_pem(row.csr).decode() if row.csr is not None and not pems else None,
        "chains": pems,
    }
