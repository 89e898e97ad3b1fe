"""``privyseal init``: the key ceremony."""

from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError

from privyseal_ca.ceremony.ceremony import Outcome
from privyseal_ca.ceremony.initialise import initialise
from privyseal_ca.ceremony.plan import Plan
from privyseal_ca.ceremony.settings_file import FirstSettings
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import run, settings_of, surroundings_of
from privyseal_ca.cli.options import constraint_options, name_space
from privyseal_ca.config import ROOTS_FILE, Settings, home_directory
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.attributes import KeyAlgorithm
from privyseal_ca.hsm.softhsm import find_module
from privyseal_ca.sections import ServerSettings

_EMBEDDED_ROOT_TOKEN = "privyseal-root"  # noqa: S105 (a label)
_EMBEDDED_ISSUING_TOKEN = "privyseal-issuing"  # noqa: S105 (a label)
_KEY_ALGORITHM = click.Choice(get_args(KeyAlgorithm))
_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)


def _server_setting(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if value:
        try:
            ServerSettings.model_validate({str(parameter.name): value})
        except ValidationError as error:
            raise click.BadParameter(error.errors(include_input=False)[0]["msg"]) from error
    return value


@click.command("init", cls=Command)
@click.option("--organization", default="Privy Seal", show_default=True, help="Organization in the names of the CAs.")
@click.option("--root-name", help="Common name of the root. Default: ORGANIZATION Root CA.")
@click.option("--issuing-name", help="Common name of the intermediate. Default: ORGANIZATION Issuing CA 1.")
@click.option("--root-key", type=_KEY_ALGORITHM, default="ec-p384", show_default=True, help="Kind of the root's key.")
@click.option(
    "--issuing-key", type=_KEY_ALGORITHM, default="ec-p256", show_default=True, help="Kind of the intermediate's key."
)
@click.option(
    "--offline-root",
    is_flag=True,
    help="The root is elsewhere: write a request for the intermediate's certificate and stop.",
)
@constraint_options
@click.option("--allow-dns", multiple=True, metavar="SUFFIX", help="Domain that may be certified. Repeatable.")
@click.option("--https", default="", callback=_server_setting, metavar="HOST:PORT", help="Listener for ACME.")
@click.option("--http", default="", callback=_server_setting, metavar="HOST:PORT", help="Plain listener.")
@click.option(
    "--https-url", default="", callback=_server_setting, metavar="URL", help="Public URL of the ACME listener."
)
@click.option(
    "--http-url",
    default="",
    callback=_server_setting,
    metavar="URL",
    help="Public URL of the plain listener; it goes into certificates, the intermediate's too.",
)
@click.option("--pkcs11-module", type=_FILE, help="PKCS#11 module of existing tokens. Default: SoftHSM in the home.")
@click.option("--root-token", metavar="LABEL", help="Existing token for the root, with --pkcs11-module.")
@click.option("--root-pin-file", type=_FILE, help="File with the root token's user PIN, with --pkcs11-module.")
@click.option("--issuing-token", metavar="LABEL", help="Existing token for the intermediate, with --pkcs11-module.")
@click.option("--pin-file", type=_FILE, help="File with the issuing token's user PIN, with --pkcs11-module.")
@pass_invocation
def init(invocation: Invocation, **options: Any) -> None:
    """Hold the key ceremony: make a root, an intermediate and this home.

    Keys are generated in PKCS#11 tokens and never leave them. An interrupted ceremony is continued by the same command; a
    finished one is never overwritten. Every step is an entry in the ledger.
    """
    embedded = options["pkcs11_module"] is None
    _check_token_options(options, embedded=embedded)
    home = home_directory(invocation.home)
    outcome = run(
        initialise(
            home,
            _plan(options, embedded=embedded),
            FirstSettings(
                https=options["https"],
                http=options["http"],
                https_url=options["https_url"],
                http_url=options["http_url"],
                allow_dns=options["allow_dns"],
                pin_file=options["pin_file"],
            ),
            embedded=embedded,
            root_pin_file=options["root_pin_file"],
            surroundings=surroundings_of(invocation),
        )
    )
    document = _document(home, outcome, settings_of(invocation))
    invocation.result(document, _text(document))


def _check_token_options(options: dict[str, Any], *, embedded: bool) -> None:
    named = {name for name in ("root_token", "root_pin_file", "issuing_token", "pin_file") if options[name] is not None}
    if embedded:
        if named:
            raise click.UsageError(f"{_flags(named)} only goes with --pkcs11-module.")
        return
    needed = {"issuing_token", "pin_file"}
    unwanted = set()
    if options["offline_root"]:
        unwanted = named & {"root_token", "root_pin_file"}
    else:
        needed |= {"root_token", "root_pin_file"}
    if unwanted:
        raise click.UsageError(f"{_flags(unwanted)} does not go with --offline-root.")
    if needed - named:
        raise click.UsageError(f"--pkcs11-module also needs {_flags(needed - named)}.")


def _plan(options: dict[str, Any], *, embedded: bool) -> Plan:
    module = options["pkcs11_module"] or find_module()
    if module is None:
        raise ConfigurationError(
            "SoftHSM is not installed.",
            hint="Install it (Debian: apt-get install softhsm2), or name another module with --pkcs11-module.",
        )
    organization = options["organization"]
    root_token = options["root_token"] or (_EMBEDDED_ROOT_TOKEN if embedded else "")
    return Plan(
        organization=organization,
        root_common_name=options["root_name"] or f"{organization} Root CA",
        issuing_common_name=options["issuing_name"] or f"{organization} Issuing CA 1",
        root_key=options["root_key"],
        issuing_key=options["issuing_key"],
        offline_root=options["offline_root"],
        names=name_space(options),
        module=module,
        root_token=root_token,
        issuing_token=options["issuing_token"] or _EMBEDDED_ISSUING_TOKEN,
    )


def _flags(names: set[str]) -> str:
    return ", ".join(sorted(f"--{name.replace('_', '-')}" for name in names))


def _document(home: Path, outcome: Outcome, settings: Settings) -> dict[str, str | None]:
    issuer = outcome.issuer
    serve = f"privyseal serve --home {home}"
    return {
        "home": str(home),
        "issuer": issuer.name,
        "issuer_id": issuer.id,
        "state": issuer.state,
        "root_sha256": outcome.root_fingerprint,
        "roots": str(home / ROOTS_FILE) if outcome.root else None,
        "csr": str(outcome.request) if outcome.request else None,
        "directory": f"{settings.server.public_https}/acme/directory",
        "next": serve
        if outcome.request is None
        else f"privyseal issuer import CERT.pem --chain ROOT.pem --home {home}",
    }


def _text(document: dict[str, str | None]) -> str:
    lines = [
        f"home       {document['home']}",
        f"issuer     {document['issuer']} ({document['state']}, id {document['issuer_id']})",
    ]
    if document["root_sha256"]:
        lines += [f"root       SHA-256 {document['root_sha256']}", f"roots      {document['roots']}"]
    else:
        lines += [f"request    {document['csr']}: have the root sign it as a CA certificate"]
    lines += [f"directory  {document['directory']}", f"next       {document['next']}"]
    return "\n".join(lines)
