"""The options that select certificates, and what they mean."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.revocation.possession import MAX_KEY_FILE, key_in
from privyseal_ca.revocation.selection import Selection, make_selection
from privyseal_ca.store.statement import Transaction

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d:\d\d(?:\.0{1,9})?(?:[Zz]|[+-]\d\d:\d\d))?",
    re.ASCII,
)
#: The times that a ledger can hold, within a day: before 1970 and after 9999 there is none.
_FIRST, _LAST = 0, 253_402_214_400
_OPTIONS = (
    (
        "--account",
        "ID",
        "Certificates of this ACME account; `service` means the authority's own, which are spared else.",
    ),
    (
        "--name",
        "PATTERN",
        "Certificates with a name that matches: *, ? and [..] within a label, ** in place of one label or more.",
    ),
    ("--issuer", "NAME|ID", "Certificates that this issuer signed."),
    ("--profile", "NAME", "Certificates of this profile."),
    ("--key", "HEX|FILE", "Certificates with this key: its SPKI's SHA-256, or a certificate, request or public key."),
    ("--issued-after", "TIME", "Certificates that were issued at this time (RFC 3339, or a date in UTC) or later."),
    ("--issued-before", "TIME", "Certificates that were issued before this time."),
)


def selection_options(command: Any) -> Any:
    """``--account`` and the others, which select what all of them say."""
    for name, metavar, help_text in reversed(_OPTIONS):
        command = click.option(name, metavar=metavar, help=help_text)(command)
    return command


def selection_of(transaction: Transaction, options: Mapping[str, Any]) -> Selection:
    """The selection that those options make now.

    Raises:
        click.BadParameter: a time or a key is none.
        PrivySealError: a pattern is none, there is no such issuer, or a file cannot be read.
    """
    key = options["key"]
    return make_selection(
        transaction,
        account=options["account"],
        name=options["name"],
        issuer=options["issuer"],
        profile=options["profile"],
        key=None if key is None else _key(key),
        issued_after=_seconds(options["issued_after"], "--issued-after"),
        issued_before=_seconds(options["issued_before"], "--issued-before"),
    )


def read_key_file(path: Path) -> bytes:
    """What a file, a pipe or a link to one holds.

    Raises:
        ConfigurationError: it cannot be read, or is too large for a key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from error
    if len(content) > MAX_KEY_FILE:
        raise ConfigurationError(f"{path} is too large to be a key.", hint=f"At most {MAX_KEY_FILE} bytes are read.")
    return content


def _key(text: str) -> bytes:
    bare = text.lower().replace(":", "")
    if _SHA256.fullmatch(bare):
        return bytes.fromhex(bare)
    path = Path(text)
    if not path.exists():
        raise click.BadParameter("neither a SHA-256 in hex nor a file", param_hint="--key")
    return key_in(read_key_file(path))


def _seconds(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    wrong = click.BadParameter(
        "give RFC 3339 in whole seconds with a zone, such as 2026-11-21T10:00:00Z, or a date, from 1970 on",
        param_hint=option,
    )
    if not _TIME.fullmatch(text):
        raise wrong
    try:
        moment = datetime.fromisoformat(text.upper().replace(" ", "T"))
    except ValueError:
        raise wrong from None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not _FIRST <= seconds <= _LAST:
        raise wrong
    return seconds
