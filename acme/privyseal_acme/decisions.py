"""What this authority issues by, in the ledger: settings, policies and profiles, each time that they are other than before.

They are files, which anybody with access to the machine may have changed while no service ran. What a start finds is what
counts from then on, so that is when it is recorded: the content's hash, and who owns the file that says so.
"""

import pwd
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_plus, urlsplit, urlunsplit

import orjson

from privyseal_acme.flow.context import Context
from privyseal_ca.config import SETTINGS_FILE, Settings
from privyseal_ca.ledger.entries import SERVICE_ACTOR, Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction

_FACT: Final = "decided"
#: Never recorded, not even as a hash: whoever has that could try PINs on it. Of a database's URL the password is left out.
_PIN: Final = "hsm.pin"
_DATABASE: Final = "database.url"
#: A part of the content for which there is a kind of its own.
_POLICY: Final = "policy"
#: What variables of the environment begin with that set something, and the one among them that is no setting.
_PREFIX: Final = "PRIVYSEAL_"
_HOME: Final = "home"


class Decided(NamedTuple):
    """What a service works by: for each setting, policy and profile the SHA-256 of its content in hex."""

    settings: dict[str, str]
    policies: dict[str, str]
    profiles: dict[str, str]


def decided(context: Context) -> Decided:
    """What the service of ``context`` works by."""
    settings = context.settings
    return Decided(
        settings=dict(_settings(settings)),
        policies={name: _digest(policy.model_dump(mode="json")) for name, policy in settings.policy.items()},
        profiles={name: profile.digest for name, profile in context.profiles.items()},
    )


async def record_decisions(context: Context, environ: Mapping[str, str], correlation: str) -> int:
    """Add an entry for everything that is other than at the start before; how many.

    ``environ`` is where settings may come from besides the home.

    Raises:
        StoreError: the database failed; nothing was recorded.
    """
    now = decided(context)

    def unit(transaction: Transaction) -> int:
        found = find_fact(transaction, _FACT)
        # A name that was left out of what an earlier version wrote is one that was not there.
        was = Decided(**orjson.loads(found)) if found is not None else Decided({}, {}, {})
        changes = list(_changes(context.settings, environ, was, now, first=found is None))
        for kind, payload in changes:
            append(
                transaction,
                encode_entry(
                    kind,
                    time=context.clock.now(),
                    actor=SERVICE_ACTOR,
                    correlation=correlation,
                    payload=payload,
                ),
            )
        if changes:
            set_fact(transaction, _FACT, orjson.dumps(now._asdict()).decode())
        return len(changes)

    return await context.store.write(unit)


def _changes(
    settings: Settings, environ: Mapping[str, str], was: Decided, now: Decided, *, first: bool
) -> Iterator[tuple[Kind, Payload]]:
    file = settings.home / SETTINGS_FILE
    author, overridden = _owner(file), _from_environment(environ)
    policies_author = None if any(name.partition(".")[0] == _POLICY for name in overridden) else author
    if was.settings != now.settings:
        names = sorted(was.settings.keys() | now.settings.keys())
        changed = [] if first else [name for name in names if was.settings.get(name) != now.settings.get(name)]
        # Who owns the file has not written what comes from elsewhere.
        elsewhere = changed and all({name, name.partition(".")[0]} & {*overridden} for name in changed)
        yield (
            Kind.SETTINGS_CHANGED,
            {
                "author": None if elsewhere else author,
                "changed": changed,
                "environment": overridden,
                "sha256": _digest(now.settings),
                "was": None if first else _digest(was.settings),
            },
        )
    for name in sorted(was.policies.keys() | now.policies.keys()):
        if was.policies.get(name) != now.policies.get(name):
            yield Kind.POLICY_CHANGED, _change(name, was.policies, now.policies, policies_author)
    folder = settings.home / settings.issuance.profiles_dir
    for name in sorted(was.profiles.keys() | now.profiles.keys()):
        if was.profiles.get(name) != now.profiles.get(name):
            yield Kind.PROFILE_CHANGED, _change(name, was.profiles, now.profiles, _owner(folder / f"{name}.toml"))


def _change(name: str, was: Mapping[str, str], now: Mapping[str, str], author: str | None) -> Payload:
    return {"author": author, "name": name, "sha256": now.get(name), "was": was.get(name)}


def _owner(path: Path) -> str | None:
    """``file-owner:NAME`` of ``path``; None when there is no such file, as for what comes with the program."""
    try:
        uid = path.stat().st_uid
    except OSError:
        return None
    try:
        return f"file-owner:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"file-owner:uid-{uid}"


def _from_environment(environ: Mapping[str, str]) -> list[str]:
    """What the environment sets: ``section.key``, or ``section`` where a variable holds a whole one. Empty ones set nothing."""
    found = set()
    for variable, value in environ.items():
        name = variable.upper()
        if value and name.startswith(_PREFIX):
            section, *keys = name.removeprefix(_PREFIX).lower().split("__")
            if section in Settings.model_fields and section != _HOME:
                found.add(".".join((section, *keys)))
    return sorted(found)


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    for section, content in settings.model_dump(mode="json").items():
        if section == _POLICY:
            continue
        for key, value in content.items():
            name = f"{section}.{key}"
            if name != _PIN:
                yield name, _digest(_without_password(value) if name == _DATABASE else value)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    # libpq takes passwords in the query too, also that of a key for TLS.
    query = "&".join(part for part in parts.query.split("&") if not _is_password(part))
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{host}", query=query))


def _is_password(parameter: str) -> bool:
    return "password" in unquote_plus(parameter.partition("=")[0]).lower()


def _digest(value: Any) -> str:
    return sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
