import dataclasses
from pathlib import Path

import pytest

from fakes.issuing import names
from privyseal_ca.errors import ConfigurationError, ProfileRefusedError, UnsupportedNameError
from privyseal_ca.issuance.profile import Profile, load_profiles, usages_for

GOOD = """
description = "A test"
lifetime = 3600
max_lifetime = 7200
key_types = ["ec-p256", "rsa"]
key_usage = ["digitalSignature", "keyEncipherment"]
extended_key_usage = ["serverAuth", "1.3.6.1.4.1.311.20.2.2"]
san_types = ["dns", "uri"]
"""


def write(directory: Path, text: str, name: str = "special.toml") -> Path:
    (directory / name).write_text(text, encoding="utf-8")
    return directory


def load(directory: Path, extra: str = "", *, without: str = "") -> Profile:
    kept = [line for line in GOOD.splitlines() if not (without and line.startswith(without + " "))]
    return load_profiles(write(directory, "\n".join([*kept, extra])))["special"]


def test_the_built_in_profiles() -> None:
    profiles = load_profiles(None)
    assert set(profiles) == {"mtls", "server", "client"}
    mtls = profiles["mtls"]
    assert (mtls.lifetime, mtls.max_lifetime, mtls.backdate) == (86400, 7 * 86400, 120)
    assert mtls.extended_key_usage == ("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2")
    assert mtls.subject == "none"
    assert profiles["server"].extended_key_usage == ("1.3.6.1.5.5.7.3.1",)
    assert profiles["client"].extended_key_usage == ("1.3.6.1.5.5.7.3.2",)
    for profile in profiles.values():
        assert (profile.ocsp, profile.crl, profile.no_rev_avail) == (True, "shard", False)
        assert profile.aia_ca_issuers


def test_a_file_becomes_a_profile(tmp_path: Path) -> None:
    profile = load(tmp_path)
    assert profile.name == "special"
    assert profile.extended_key_usage == ("1.3.6.1.5.5.7.3.1", "1.3.6.1.4.1.311.20.2.2")
    assert profile.key_types == {"ec-p256", "rsa"}
    assert profile.wildcard
    assert len(profile.digest) == 64


def test_a_file_takes_the_place_of_a_built_in_profile(tmp_path: Path) -> None:
    profiles = load_profiles(write(tmp_path, GOOD, "mtls.toml"))
    assert profiles["mtls"].description == "A test"
    assert set(profiles) == {"mtls", "server", "client"}


def test_folders_may_be_missing_or_hold_other_files(tmp_path: Path) -> None:
    assert set(load_profiles(tmp_path / "none")) == set(load_profiles(write(tmp_path, "x", "README.md")))


def test_profiles_are_immutable(tmp_path: Path) -> None:
    profiles = load_profiles(None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profiles["mtls"].lifetime = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        profiles["x"] = profiles["mtls"]  # type: ignore[index]


def test_the_digest_is_of_name_and_content(tmp_path: Path) -> None:
    digest = load(tmp_path).digest
    assert load(tmp_path).digest == digest
    assert load(tmp_path, "backdate = 60").digest != digest
    assert load_profiles(write(tmp_path, GOOD, "copy.toml"))["copy"].digest != digest
    assert load_profiles(None)["mtls"].digest == load_profiles(None)["mtls"].digest


@pytest.mark.parametrize(
    ("without", "extra", "reason"),
    [
        ("", "lifetimes = 5", "lifetimes"),
        ("", "[keys]\nx = 1", "keys"),
        ("description", "", "description"),
        ("lifetime", "", "lifetime"),
        ("lifetime", "lifetime = 7201", "longer than max_lifetime"),
        ("lifetime", "lifetime = 10", "lifetime"),
        ("lifetime", 'lifetime = "1h"', "lifetime"),
        ("max_lifetime", "max_lifetime = 99999999", "max_lifetime"),
        ("", "backdate = -1", "backdate"),
        ("", "backdate = 86400", "backdate"),
        ("key_types", 'key_types = ["dsa"]', "key_types"),
        ("key_types", "key_types = []", "key_types"),
        ("key_types", 'key_types = ["rsa", "rsa"]', "twice"),
        ("key_usage", 'key_usage = ["keyCertSign"]', "key_usage"),
        ("key_usage", 'key_usage = ["cRLSign"]', "key_usage"),
        ("key_usage", "key_usage = []", "key_usage"),
        ("key_usage", 'key_usage = ["keyEncipherment"]', "leaves nothing for ec-p256"),
        ("key_usage", 'key_usage = ["keyAgreement"]', "leaves nothing for rsa"),
        ("extended_key_usage", 'extended_key_usage = ["webAuth"]', "unknown name webAuth"),
        ("extended_key_usage", "extended_key_usage = []", "extended_key_usage"),
        ("extended_key_usage", 'extended_key_usage = ["1.2.03"]', "extended_key_usage"),
        ("extended_key_usage", 'extended_key_usage = ["2.5.29.37.0"]', "may not hold"),
        ("extended_key_usage", 'extended_key_usage = ["1.3.6.1.5.5.7.3.9"]', "may not hold"),
        ("extended_key_usage", 'extended_key_usage = ["serverAuth", "1.3.6.1.5.5.7.3.1"]', "twice"),
        ("", 'subject = "organization"', "subject"),
        ("san_types", 'san_types = ["dns", "other"]', "san_types"),
        ("san_types", "san_types = []", "san_types"),
        ("", "max_names = 0", "max_names"),
        ("", 'issuers = ["Bad Name"]', "issuers"),
        ("", "no_rev_avail = true\nocsp = true", "no_rev_avail excludes"),
        ("", 'no_rev_avail = true\ncrl = "full"', "no_rev_avail excludes"),
        ("", 'crl = "http://a.example/crl"', "crl"),
        ("", "nameless = true", "nameless"),
        ("", "ocsp_no_check = true", "ocsp_no_check"),
    ],
)
def test_rules_are_kept_when_a_profile_is_loaded(tmp_path: Path, without: str, extra: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load(tmp_path, extra, without=without)
    assert "special.toml" in str(caught.value)


@pytest.mark.parametrize("name", ["Upper.toml", "a b.toml", ".toml.toml", "ü.toml"])
def test_names_of_files_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        load_profiles(write(tmp_path, GOOD, name))


@pytest.mark.parametrize("content", [b"lifetime = ", b"\xff\xfe", b"a" * 70_000])
def test_files_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "special.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"special\.toml"):
        load_profiles(tmp_path)


def test_too_many_profiles(tmp_path: Path) -> None:
    for number in range(101):
        write(tmp_path, GOOD, f"p{number}.toml")
    with pytest.raises(ConfigurationError, match="more than"):
        load_profiles(tmp_path)


def test_pointers_go_with_no_rev_avail_and_are_there_without(tmp_path: Path) -> None:
    profile = load(tmp_path)
    assert (profile.ocsp, profile.crl) == (True, "shard")
    profile = load(tmp_path, "no_rev_avail = true")
    assert (profile.ocsp, profile.crl, profile.no_rev_avail) == (False, "none", True)


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    profile = load(tmp_path, "max_names = 2\nwildcard = false")
    profile.check_names(names("dns:a.example", "uri:spiffe://a.example/x"))
    with pytest.raises(UnsupportedNameError, match="type ip"):
        profile.check_names(names("ip:10.0.0.1"))
    with pytest.raises(UnsupportedNameError, match="wildcards"):
        profile.check_names(names("dns:*.a.example"))
    for wrong in ([], ["dns:a.example", "dns:b.example", "dns:c.example"]):
        with pytest.raises(ProfileRefusedError, match="names do not fit"):
            profile.check_names(names(*wrong))


def test_one_uri_beside_a_spiffe_id(tmp_path: Path) -> None:
    profile = load(tmp_path)
    profile.check_names(names("uri:https://a.example/x", "uri:https://a.example/y"))
    with pytest.raises(ProfileRefusedError, match="exactly one URI"):
        profile.check_names(names("uri:spiffe://a.example/x", "uri:https://a.example/y"))


def test_key_types_that_do_not_fit(tmp_path: Path) -> None:
    profile = load(tmp_path)
    profile.check_key_type("rsa")
    with pytest.raises(ProfileRefusedError, match="ed25519"):
        profile.check_key_type("ed25519")


def test_usages_depend_on_the_key() -> None:
    everything = ("digitalSignature", "keyEncipherment", "keyAgreement")
    assert usages_for(everything, "rsa") == {"digitalSignature", "keyEncipherment"}  # type: ignore[arg-type]
    assert usages_for(everything, "ec-p256") == {"digitalSignature", "keyAgreement"}  # type: ignore[arg-type]
    assert usages_for(everything, "ed25519") == {"digitalSignature"}  # type: ignore[arg-type]
