"""Settings: the file, the environment above it, and what is said of mistakes in either."""

from pathlib import Path

import pytest

from privyseal_ca.config import home_directory, load_settings
from privyseal_ca.errors import ConfigurationError


def test_a_home_without_a_file_has_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.server.public_https == "https://127.0.0.1:8443"
    assert settings.database_url == f"sqlite:///{tmp_path / 'privyseal.db'}"
    assert settings.issuance.default_profile == "mtls"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "privyseal.toml").write_text('[server]\nhttp = "127.0.0.1:1"\nhttps = "127.0.0.1:2"\n')
    monkeypatch.setenv("PRIVYSEAL_SERVER__HTTPS", "127.0.0.1:3")
    settings = load_settings(tmp_path)
    assert (settings.server.http, settings.server.https) == ("127.0.0.1:1", "127.0.0.1:3")


@pytest.mark.parametrize(
    ("value", "resolvers"),
    [
        ("127.0.0.1:8053", ("127.0.0.1:8053",)),
        ("127.0.0.1:8053, 127.0.0.2", ("127.0.0.1:8053", "127.0.0.2")),
        ("[::1]:8053", ("[::1]:8053",)),
        ('["127.0.0.1:8053", "[::1]:53"]', ("127.0.0.1:8053", "[::1]:53")),
        ("[]", ()),
        ("", ()),
    ],
)
def test_a_list_in_the_environment_is_json_or_has_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, resolvers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PRIVYSEAL_VALIDATION__RESOLVERS", value)
    assert load_settings(tmp_path).validation.resolvers == resolvers


def test_networks_and_policies_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVYSEAL_VALIDATION__ALLOWED_NETWORKS", "10.0.0.0/8,fc00::/7")
    monkeypatch.setenv("PRIVYSEAL_POLICY__DEFAULT__ALLOW_DNS", "corp.example, internal")
    settings = load_settings(tmp_path)
    assert [str(network) for network in settings.validation.allowed_networks] == ["10.0.0.0/8", "fc00::/7"]
    assert settings.policy["default"].allow_dns == ("corp.example", "internal")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PRIVYSEAL_SERVER__BOGUS", "1"),
        ("PRIVYSEAL_BOGUS__X", "1"),
        ("PRIVYSEAL_SERVER__HTTPS", "nonsense"),
        ("PRIVYSEAL_SERVER__HTTPS_URL", "http://plain.example"),
        ("PRIVYSEAL_SERVER", "{broken"),
        ("PRIVYSEAL_POLICY__DEFAULT", "{broken"),
        ("PRIVYSEAL_VALIDATION__ALLOWED_NETWORKS", "nowhere"),
        ("PRIVYSEAL_VALIDATION__ATTEMPTS", "many"),
        ("PRIVYSEAL_VALIDATION__CAA", "true"),
    ],
)
def test_mistakes_in_the_environment_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        load_settings(tmp_path)
    assert raised.value.hint


@pytest.mark.parametrize(
    "text", ["[server", '[server]\nhttps = 5\n', "[bogus]\nx = 1\n", '[hsm]\npin = "4711"\n', 'home = "/elsewhere"\n', "\xff"]
)  # fmt: skip
def test_mistakes_in_the_file_are_explained_and_never_repeat_a_pin(tmp_path: Path, text: str) -> None:
    (tmp_path / "privyseal.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError) as raised:
        load_settings(tmp_path)
    assert raised.value.hint
    assert "4711" not in str(raised.value)


def test_the_home_is_the_options_then_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRIVYSEAL_HOME", str(tmp_path / "of-environment"))
    assert home_directory(None) == tmp_path / "of-environment"
    assert home_directory(str(tmp_path / "of-option")) == tmp_path / "of-option"
    assert load_settings(tmp_path / "of-option").home == tmp_path / "of-option"
