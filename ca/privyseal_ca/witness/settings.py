"""Settings of a witness: ``witness.toml`` in its home."""

import json
import tomllib
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from privyseal_ca.config import problems_of
from privyseal_ca.errors import ConfigurationError, LedgerError
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.ledger.note import check_name
from privyseal_ca.sections import LogSettings, parse_listener

WITNESS_FILE: Final = "witness.toml"
DEFAULT_LISTENER: Final = "127.0.0.1:8081"
_HINT: Final = "docs/witnesses.md lists every key."


class WitnessHomeSettings(BaseModel):
    """What ``witness.toml`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(description="What the witness goes by: a URL without its scheme that nobody else uses.")
    listen: str = Field(DEFAULT_LISTENER, description="Where it is served, as HOST:PORT, without TLS.")
    key: str = Field(description="The key that cosigns, as a PKCS#11 URI (RFC 7512).")
    pin_file: Path | None = Field(
        None, description="File with the token's user PIN (a relative file is in the home). Default: `secrets/pin`."
    )
    log: LogSettings = Field(default_factory=LogSettings)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        try:
            check_name(value)
        except LedgerError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("listen")
    @classmethod
    def _is_a_listener(cls, value: str) -> str:
        parse_listener(value)
        return value

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, value: str) -> str:
        try:
            KeyUri.parse(value)
        except ConfigurationError as error:
            raise ValueError(error.message) from error
        return value


def load_witness(home: Path) -> WitnessHomeSettings:
    """The settings of the witness in ``home``.

    Raises:
        ConfigurationError: there is none, or the file is not valid.
    """
    path = home / WITNESS_FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"There is no witness in {home}.",
            hint="Make one with `privyseal witness init`, or name its home with --home.",
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.", hint="Mend the file.") from error
    return checked(document, path)


def checked(document: dict[str, object], path: Path) -> WitnessHomeSettings:
    """The settings in ``document``, which ``path`` has or is to have. Raises ConfigurationError; values are not repeated."""
    try:
        return WitnessHomeSettings.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"The settings in {path} are not valid: {problems_of(error)}.", hint=_HINT) from error


def settings_text(settings: WitnessHomeSettings) -> str:
    """The file of a new witness."""
    lines = [
        "# Settings of this Privy Seal witness. docs/witnesses.md lists every key.",
        f"name = {json.dumps(settings.name, ensure_ascii=False)}",
        "# Where it is served, without TLS: put a proxy in front of it where others listen in.",
        f"listen = {json.dumps(settings.listen)}",
        "# The key that cosigns. It never leaves its token.",
        f"key = {json.dumps(settings.key)}",
    ]
    if settings.pin_file is not None:
        lines.append(f"pin_file = {json.dumps(str(settings.pin_file), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
