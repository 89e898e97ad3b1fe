"""The manual of settings is what the classes say."""

import tomllib
from pathlib import Path

import pytest

from privyseal_ca.ceremony.settings_file import FirstSettings, write_settings
from privyseal_ca.cli.manual import configuration_page
from privyseal_ca.config import Settings, load_settings
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.sections import SPECIAL_USE_SUFFIXES, WitnessSettings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_that_of_the_classes() -> None:
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), (
        "run: privyseal config docs > docs/configuration.md"
    )


def test_every_setting_is_described() -> None:
    page = configuration_page()
    for section, field in Settings.model_fields.items():
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"`PRIVYSEAL_{section}__{key}`".upper() in page.replace("`privyseal", "`PRIVYSEAL").upper()


def test_the_keys_of_tables_in_a_list_are_described() -> None:
    page = configuration_page()
    for key, field in WitnessSettings.model_fields.items():
        assert f"  - `{key}` (" in page
        assert str(field.description) in page


def test_every_setting_has_a_description() -> None:
    for field in Settings.model_fields.values():
        for key, setting in getattr(field.annotation, "model_fields", {}).items():
            assert setting.description, key


def test_the_first_settings_are_valid_and_say_what_was_asked(tmp_path: Path) -> None:
    first = FirstSettings(
        https="0.0.0.0:443", http_url="http://ca.corp.example", allow_dns=("corp.example",), pin_file=Path('/a "b"/pin')
    )
    write_settings(tmp_path, first)
    settings = load_settings(tmp_path)
    assert settings.server.https == "0.0.0.0:443"
    assert settings.server.public_http == "http://ca.corp.example"
    assert settings.policy["default"].allow_dns == (*SPECIAL_USE_SUFFIXES, "corp.example")
    assert settings.hsm.pin_file == Path('/a "b"/pin')


def test_the_first_settings_without_options_change_no_default(tmp_path: Path) -> None:
    write_settings(tmp_path, FirstSettings())
    assert load_settings(tmp_path) == load_settings(tmp_path / "nowhere").model_copy(update={"home": tmp_path})
    assert tomllib.loads((tmp_path / "privyseal.toml").read_text())["server"]["https"] == "127.0.0.1:8443"


def test_settings_of_the_owner_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "privyseal.toml"
    path.write_text("[log]\nlevel = 'debug'\n")
    write_settings(tmp_path, FirstSettings())
    assert load_settings(tmp_path).log.level == "debug"
    with pytest.raises(ConfigurationError, match="not overwritten"):
        write_settings(tmp_path, FirstSettings(allow_dns=("corp.example",)))
    assert path.read_text() == "[log]\nlevel = 'debug'\n"


def test_bad_first_settings_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.https_url"):
        write_settings(tmp_path, FirstSettings(https_url="http://plain.example"))
    assert not list(tmp_path.iterdir())
