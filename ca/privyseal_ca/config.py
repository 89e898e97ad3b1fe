"""Settings: ``privyseal.toml`` in the home, each key overridable as ``PRIVYSEAL_SECTION__KEY``.

:mod:`privyseal_ca.sections` has the keys. Unknown ones are errors.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.fleet_sections import FleetSettings
from privyseal_ca.notification_sections import NotificationSettings
from privyseal_ca.sections import (
    AcmeSettings,
    DatabaseSettings,
    HsmSettings,
    IssuanceSettings,
    KeyPolicySettings,
    LedgerSettings,
    LimitSettings,
    LogSettings,
    PolicySettings,
    RenewalSettings,
    RetentionSettings,
    SchedulerSettings,
    ServerSettings,
    StatusSettings,
    TelemetrySettings,
    ValidationSettings,
)
from privyseal_ca.upkeep_sections import BackupSettings

SETTINGS_FILE = "privyseal.toml"
ROOTS_FILE = "roots.pem"

#: What is wrong with a key, by pydantic's type of the error, where pydantic says it in the words of Python.
_PLAIN: Final = {
    "extra_forbidden": "there is no such key",
    "missing": "must be set",
    "tuple_type": 'must be a list: ["..."], or [[...]] above each of several tables',
    "list_type": 'must be a list: ["..."], or [[...]] above each of several tables',
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "string_type": "must be text, in quotes",
    "int_type": "must be a whole number, without quotes",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number, without quotes",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


class _Environment(EnvSettingsSource):
    """The environment, where a list may be written as JSON or with commas."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """``value`` as JSON, else as a list."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            if value.lstrip().startswith("{"):
                raise
            return [part.strip() for part in value.split(",") if part.strip()]


class Settings(BaseSettings):
    """All settings of one home."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRIVYSEAL_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(Path("~/.privyseal"), exclude=True)
    server: ServerSettings = Field(default_factory=ServerSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    hsm: HsmSettings = Field(default_factory=HsmSettings)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    acme: AcmeSettings = Field(default_factory=AcmeSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    policy: dict[str, PolicySettings] = Field(default_factory=dict)
    keys: KeyPolicySettings = Field(default_factory=KeyPolicySettings)
    issuance: IssuanceSettings = Field(default_factory=IssuanceSettings)
    status: StatusSettings = Field(default_factory=StatusSettings)
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    renewal: RenewalSettings = Field(default_factory=RenewalSettings)
    fleet: FleetSettings = Field(default_factory=FleetSettings)
    notifications: NotificationSettings = Field(default_factory=NotificationSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    backup: BackupSettings = Field(default_factory=BackupSettings)
    scheduler: SchedulerSettings = Field(default_factory=SchedulerSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)

    @field_validator("policy")
    @classmethod
    def _default_policy(cls, value: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        return {"default": PolicySettings(), **value}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file; nothing else is read."""
        del env_settings, dotenv_settings, file_secret_settings
        return _Environment(settings_cls), init_settings

    @property
    def database_url(self) -> str:
        """The database's URL with an absolute path for SQLite."""
        url = self.database.url or "sqlite:///privyseal.db"
        if url.startswith("sqlite:///"):
            return f"sqlite:///{(self.home / url.removeprefix('sqlite:///')).absolute()}"
        return url


def home_directory(option: str | None) -> Path:
    """The home: ``option`` (``--home``), else ``$PRIVYSEAL_HOME``, else ``~/.privyseal``."""
    return Path(option or os.environ.get("PRIVYSEAL_HOME") or "~/.privyseal").expanduser().absolute()


def load_settings(home: Path) -> Settings:
    """The settings of ``home``, checked. A home without ``privyseal.toml`` has the defaults.

    Raises:
        ConfigurationError: the file is not TOML, or a key is unknown or has a bad value. Values are not repeated.
    """
    path = home / SETTINGS_FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.", hint="Mend the file.") from error
    if "pin" in document.get("hsm", {}):
        raise ConfigurationError(
            f"{path} holds hsm.pin; a PIN does not belong in a settings file.",
            hint="Put it into a file of its own with mode 0600 and name that in hsm.pin_file.",
        )
    if "home" in document:
        raise ConfigurationError(f"{path} sets home, which cannot be set there.", hint="Remove the key.")
    _refuse_unknown_sections(os.environ)
    try:
        # PRIVYSEAL_HOME would otherwise win over the home that was asked for with --home.
        return Settings(**document).model_copy(update={"home": home})
    except ValidationError as error:
        raise ConfigurationError(
            f"The settings of {home} are not valid: {problems_of(error)}.",
            hint=f"Mend {path} or the PRIVYSEAL_ variables; docs/configuration.md lists every key.",
        ) from error
    except SettingsError as error:
        raise ConfigurationError(
            f"A PRIVYSEAL_ variable cannot be read: {error}.",
            hint="Lists and tables are written as JSON, lists also with commas.",
        ) from error


def problems_of(error: ValidationError) -> str:
    """What is wrong with settings or another document, key by key, for who wrote it. Values are not repeated."""
    return "; ".join(
        ": ".join(filter(None, [".".join(str(part) for part in issue["loc"]), _plainly(issue)]))
        for issue in error.errors(include_input=False, include_url=False)
    )


def _plainly(issue: ErrorDetails) -> str:
    if issue["type"] in _PLAIN:
        return _PLAIN[issue["type"]]
    return issue["msg"].removeprefix("Value error, ").replace("Input should", "must")


def _refuse_unknown_sections(environment: Mapping[str, str]) -> None:
    for name in environment:
        section, separator, _ = name.upper().removeprefix("PRIVYSEAL_").partition("__")
        if name.upper().startswith("PRIVYSEAL_") and separator and section.lower() not in Settings.model_fields:
            raise ConfigurationError(
                f"{name} sets a key of no section.", hint="docs/configuration.md lists every section and key."
            )
