"""The first ``privyseal.toml`` of a home: the few keys that matter, with a word about each."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from privyseal_ca.ceremony.files import write_file
from privyseal_ca.config import SETTINGS_FILE, Settings, problems_of
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.sections import SPECIAL_USE_SUFFIXES, ServerSettings


@dataclass(frozen=True, slots=True)
class FirstSettings:
    """What the options of ``init`` say about settings. Empty values are left to their defaults."""

    https: str = ""
    http: str = ""
    https_url: str = ""
    http_url: str = ""
    allow_dns: Sequence[str] = ()
    pin_file: Path | None = None

    @property
    def given(self) -> bool:
        """Whether there is anything that must stand in the file."""
        return bool(
            self.https or self.http or self.https_url or self.http_url or self.allow_dns or self.pin_file is not None
        )

    def text(self) -> str:
        """The file.

        Raises:
            ConfigurationError: a value is not valid.
        """
        defaults = ServerSettings()
        lines = [
            "# Settings of this Privy Seal home. docs/configuration.md lists every key with its default;",
            "# each can be overridden in the environment as PRIVYSEAL_SECTION__KEY.",
            "",
            "[server]",
            "# Where ACME is served (TLS), and where roots, issuers, health and metrics are (plain HTTP).",
            f"https = {_quoted(self.https or defaults.https)}",
            f"http = {_quoted(self.http or defaults.http)}",
            "# What they are called from outside; this goes into the directory and into certificates.",
            _line("https_url", self.https_url, "https://ca.example.internal"),
            _line("http_url", self.http_url, "http://ca.example.internal"),
            "",
        ]
        if self.pin_file is not None:
            lines += [
                "[hsm]",
                "# The user PIN of the token with the issuing key.",
                _line("pin_file", str(self.pin_file)),
                "",
            ]
        suffixes = [*SPECIAL_USE_SUFFIXES, *self.allow_dns]
        lines += [
            "[policy.default]",
            "# DNS suffixes that may be certified: the names for private use, and your own domains.",
            f"{'' if self.allow_dns else '# '}allow_dns = [{', '.join(_quoted(suffix) for suffix in suffixes)}]",
            "",
        ]
        text = "\n".join(lines)
        try:
            Settings(**tomllib.loads(text))
        except ValidationError as error:
            raise ConfigurationError(
                f"The settings would not be valid: {problems_of(error)}.", hint="Mend the options."
            ) from error
        return text


def write_settings(home: Path, first: FirstSettings) -> None:
    """Write ``privyseal.toml`` unless it is there; a file that its owner put there is kept.

    Raises:
        ConfigurationError: there is another file, and options that it would have to hold.
    """
    path = home / SETTINGS_FILE
    text = first.text()
    if not path.exists():
        write_file(path, text.encode(), mode=0o600)
    elif first.given and path.read_text(encoding="utf-8") != text:
        raise ConfigurationError(
            f"{path} is there already and is not overwritten.",
            hint="Put the settings into it and leave the options out.",
        )


def _line(key: str, value: str, example: str = "") -> str:
    return f"{key} = {_quoted(value)}" if value else f"# {key} = {_quoted(example)}"


def _quoted(text: str) -> str:
    # JSON's strings are TOML's basic strings, but for DEL, which the check of the whole text refuses.
    return json.dumps(text, ensure_ascii=False)
