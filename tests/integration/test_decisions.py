"""What the authority issues by, in the ledger: each change of settings, policies and profiles, with who may have made it."""

import json
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.service import serving
from privyseal_ca.config import Settings

OWNER = f"file-owner:{pwd.getpwuid(os.getuid()).pw_name}"

Entries = list[dict[str, Any]]


@pytest.fixture
def settings(make_settings: Callable[..., Settings], home: Path, tmp_path: Path) -> Settings:
    """A home with a settings file and a folder of profiles of its own."""
    made = make_settings()
    shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("*.db*", "profiles"))
    return made.model_copy(update={"home": tmp_path / "home"})


def changed(settings: Settings, **sections: dict[str, Any]) -> Settings:
    """The same settings but for some."""
    updates = {name: getattr(settings, name).model_copy(update=keys) for name, keys in sections.items()}
    return settings.model_copy(update=updates)


def started(settings: Settings, since: int = 0) -> Entries:
    """What a start adds to the ledger, from index ``since`` on, and the end of the service."""
    with serving(settings) as service:
        return service.ledger()[since:]


def of_kind(entries: Entries, kind: str) -> list[Any]:
    return [entry["payload"] for entry in entries if entry["kind"] == kind]


def decisions(entries: Entries) -> Entries:
    return [entry for entry in entries if entry["kind"].endswith(".changed")]


def test_the_first_start_records_everything(settings: Settings) -> None:
    entries = started(settings)
    (first,) = of_kind(entries, "settings.changed")
    assert (first["author"], first["changed"], first["was"]) == (OWNER, [], None)
    (policy,) = of_kind(entries, "policy.changed")
    assert (policy["name"], policy["was"], policy["author"]) == ("default", None, OWNER)
    (started_with,) = of_kind(entries, "service.started")
    profiles = {change["name"]: change["sha256"] for change in of_kind(entries, "profile.changed")}
    assert profiles == started_with["profiles"]
    assert all(change["author"] is None for change in of_kind(entries, "profile.changed"))
    assert {entry["actor"] for entry in decisions(entries)} == {"service"}


def test_the_same_again_is_no_entry(settings: Settings) -> None:
    before = len(started(settings)) + 1
    assert decisions(started(settings, before)) == []


def test_a_changed_setting_is_named_but_not_its_value(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = started(settings)
    monkeypatch.setenv("PRIVYSEAL_ACME__MAX_BODY", "12345")
    entries = started(changed(settings, acme={"max_body": 12345}), len(first) + 1)
    (change,) = decisions(entries)
    assert change["payload"]["changed"] == ["acme.max_body"]
    assert change["payload"]["environment"] == ["acme.max_body"]
    # The owner of the file has nothing to do with it.
    assert change["payload"]["author"] is None
    assert change["payload"]["was"] == of_kind(first, "settings.changed")[0]["sha256"] != change["payload"]["sha256"]
    assert "12345" not in json.dumps(change)


def test_pins_and_passwords_leave_no_trace(settings: Settings) -> None:
    first = started(settings)
    pin = (settings.home / "secrets" / "pin").read_text().strip()
    entries = started(changed(settings, hsm={"pin": pin}), len(first) + 1)
    assert decisions(entries) == []


def test_policies_come_change_and_go(settings: Settings) -> None:
    narrow = settings.policy["default"].model_copy(update={"profiles": ("mtls",)})
    with_new = settings.model_copy(update={"policy": {**settings.policy, "narrow": narrow}})
    end = len(started(settings)) + 1
    added = started(with_new, end)
    (new,) = of_kind(added, "policy.changed")
    assert (new["name"], new["was"]) == ("narrow", None)
    end += len(added) + 1
    wider = settings.model_copy(
        update={"policy": {**settings.policy, "narrow": narrow.model_copy(update={"profiles": ("mtls", "server")})}}
    )
    second = started(wider, end)
    (other,) = of_kind(second, "policy.changed")
    assert other["was"] == new["sha256"] != other["sha256"]
    end += len(second) + 1
    (gone,) = of_kind(started(settings, end), "policy.changed")
    assert (gone["name"], gone["was"], gone["sha256"]) == ("narrow", other["sha256"], None)


def test_a_profile_has_its_files_owner(settings: Settings) -> None:
    end = len(started(settings)) + 1
    folder = settings.home / settings.issuance.profiles_dir
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "ca/privyseal_ca/issuance/profiles/mtls.toml", folder / "own.toml")
    entries = started(settings, end)
    (new,) = of_kind(entries, "profile.changed")
    assert (new["name"], new["was"], new["author"]) == ("own", None, OWNER)
    end += len(entries) + 1
    (folder / "own.toml").unlink()
    (gone,) = of_kind(started(settings, end), "profile.changed")
    assert (gone["name"], gone["was"], gone["sha256"], gone["author"]) == ("own", new["sha256"], None, None)
