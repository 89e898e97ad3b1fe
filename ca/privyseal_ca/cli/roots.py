"""Opening the root's key for a command: what ``crl root``, ``issuer create`` and ``issuer revoke`` share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from privyseal_ca.ceremony.initialise import ROOT_PIN
from privyseal_ca.ceremony.issuers import IssuerMaker, Root
from privyseal_ca.ceremony.plan import ROOT_NAME
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.cli.frame import Invocation
from privyseal_ca.cli.home import opened_hsm, opened_store, settings_of, surroundings_of
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.store.issuers import find_issuer

_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)

#: ``--root-pin-file``.
root_pin_option = click.option(
    "--root-pin-file", type=_FILE, help="File with the root token's user PIN. Default: secrets/root-pin."
)


@dataclass(frozen=True, slots=True)
class OpenedRoot:
    """The root with its key at hand, and where what it does is recorded."""

    root: Root
    transcript: Transcript


def root_pin(home: Path, given: Path | None) -> Path | None:
    """The file with the root token's user PIN: ``given``, else that of the embedded token if it is still here."""
    embedded = home / "secrets" / ROOT_PIN
    return given or (embedded if embedded.exists() else None)


@asynccontextmanager
async def opened_root(invocation: Invocation, root_pin_file: Path | None) -> AsyncIterator[OpenedRoot]:
    """The root of this authority.

    Raises:
        ConfigurationError: the root is elsewhere.
        SignerError: its token is away or refuses the PIN.
    """
    settings, surroundings = settings_of(invocation), surroundings_of(invocation)
    async with opened_store(settings) as store:
        row = await store.read(lambda tx: find_issuer(tx, ROOT_NAME))
        if row is None:
            raise ConfigurationError(
                "The root's key is not in a token of this authority.",
                hint="Have the root sign its CRL where its key is, then take it with `privyseal crl import FILE`.",
            )
        pin = root_pin(settings.home, root_pin_file)
        token = KeyUri.parse(row.key_uri).token or ""
        async with opened_hsm(settings, root_token=token, root_pin_file=pin) as hsm:
            transcript = surroundings.transcript(store)
            root = await IssuerMaker(hsm, transcript, surroundings.random_bytes).existing_root()
            if root is None:
                raise ConfigurationError("The root vanished meanwhile.", hint="Run one ceremony at a time.")
            yield OpenedRoot(root, transcript)
