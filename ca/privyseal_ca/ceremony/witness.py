"""Making a witness: its home, its token and the key that cosigns (promise P1 holds for it as well)."""

import os
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privyseal_ca.ceremony.files import ensure_pin, write_file
from privyseal_ca.config import SETTINGS_FILE
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.attributes import KeyAttestation
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.softhsm import embed, use_embedded
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.sections import HsmSettings
from privyseal_ca.witness.settings import WITNESS_FILE, WitnessHomeSettings, checked, load_witness, settings_text

EMBEDDED_TOKEN: Final = "privyseal-witness"  # noqa: S105 (a label)
_LABEL: Final = "witness"
_PIN: Final = "pin"
_KEY_ID_OCTETS: Final = 8
_CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"


@dataclass(frozen=True, slots=True)
class WitnessPlan:
    """What a witness is to be."""

    name: str
    listen: str
    #: The PKCS#11 module of the token with its key.
    module: Path
    #: The token's label.
    token: str
    #: Whether the token is SoftHSM's in the home, and made with it.
    embedded: bool
    pin_file: Path | None = None


@asynccontextmanager
async def opened_witness_hsm(
    home: Path, settings: WitnessHomeSettings, environ: MutableMapping[str, str]
) -> AsyncIterator[Hsm]:
    """The token of the witness in ``home``."""
    use_embedded(home, environ)
    credentials = environ.get(_CREDENTIALS_VARIABLE)
    bounds = HsmSettings()

    def pins(uri: KeyUri) -> Pin:
        return read_pin(
            uri,
            pin="",
            pin_file=None if settings.pin_file is None else home / settings.pin_file,
            credentials=Path(credentials) if credentials else None,
            home=home,
        )

    hsm = Hsm(pins=pins, queue=bounds.queue, timeout=bounds.timeout, retry_after=bounds.retry_after)
    try:
        yield hsm
    finally:
        await hsm.close()


async def initialise_witness(
    home: Path,
    plan: WitnessPlan,
    *,
    environ: MutableMapping[str, str],
    random_bytes: Callable[[int], bytes],
    progress: Callable[[str], None],
) -> KeyAttestation:
    """Make the witness that ``plan`` describes in ``home``, or finish what an earlier run has begun.

    Raises:
        ConfigurationError: the home is in use, finished or not usable; or the token has no Ed25519.
        SignerError: the token failed. The same call continues.
    """
    settings = _begin(home, plan, random_bytes)
    if plan.embedded:
        embed(home)
        if not use_embedded(home, environ):
            raise ConfigurationError(
                "SOFTHSM2_CONF points SoftHSM elsewhere than to this home.",
                hint="Unset it, or name an existing token with --pkcs11-module and --token.",
            )
        ensure_pin(home, _PIN)
    uri = KeyUri.parse(settings.key)
    async with opened_witness_hsm(home, settings, environ) as hsm:
        if plan.embedded:
            so_pin = read_pin(
                KeyUri(token=plan.token, pin_source=str(ensure_pin(home, f"{_PIN}-so"))),
                pin="",
                pin_file=None,
                credentials=None,
                home=home,
            )
            user_pin = read_pin(KeyUri(token=plan.token), pin="", pin_file=None, credentials=None, home=home)
            await hsm.initialise_token(plan.module, plan.token, so_pin=so_pin, user_pin=user_pin)
        if await hsm.find_key(settings.key) is not None:
            raise ConfigurationError(
                f"{home} has a witness already; nothing was changed.",
                hint="Serve it with `privyseal witness serve`, or choose another home with --home.",
            )
        progress(f"The token {plan.token} is there.")
        token = str(uri.token_uri)
        if not await hsm.supports(token, "ed25519"):
            raise ConfigurationError(
                f"The token {plan.token} has no Ed25519, which cosignatures are made with.", hint="Use another token."
            )
        attestation = await hsm.generate_signing_key(token, _LABEL, "ed25519", key_id=uri.id or b"")
    progress(f"Key of {plan.name}: ed25519, generated in token {plan.token}.")
    return attestation


def _begin(home: Path, plan: WitnessPlan, random_bytes: Callable[[int], bytes]) -> WitnessHomeSettings:
    """The settings in the home, which name the key before there is one: an interrupted run finds what it was to make."""
    path = home / WITNESS_FILE
    if path.exists():
        settings = load_witness(home)
        if settings.name != plan.name or KeyUri.parse(settings.key).token != plan.token:
            raise ConfigurationError(
                f"{home} has another witness, {settings.name}.", hint="Choose another home with --home."
            )
        return settings
    uri = KeyUri(
        token=plan.token,
        object=_LABEL,
        id=random_bytes(_KEY_ID_OCTETS),
        type="private",
        module_path=plan.module,
    )
    document: dict[str, object] = {"name": plan.name, "listen": plan.listen, "key": str(uri)}
    if plan.pin_file is not None:
        document["pin_file"] = str(plan.pin_file)
    settings = checked(document, path)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = sorted(entry.name for entry in home.iterdir() if not entry.name.startswith("."))
        owner = home.stat().st_uid
    except OSError as error:
        raise ConfigurationError(
            f"The home {home} cannot be made or read: {error.strerror}.", hint="Choose another with --home."
        ) from error
    if found or owner != os.geteuid():
        what = "is the home of an authority" if SETTINGS_FILE in found else "is not an empty folder of this user's"
        raise ConfigurationError(
            f"{home} {what}.", hint="A witness has a home of its own, on another machine: choose it with --home."
        )
    home.chmod(0o700)
    write_file(path, settings_text(settings).encode(), mode=0o600)
    return settings
