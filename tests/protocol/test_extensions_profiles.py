"""draft-ietf-acme-profiles: the client chooses a profile, the server says which there are and which it took."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from fakes.acme_client import AcmeClient, make_csr
from fakes.service import NewClient, RunningService, StartService

_SHORT = """
description = "Short-lived, P-256 only, no wildcards"
lifetime = 600
max_lifetime = 600
key_types = ["ec-p256"]
key_usage = ["digitalSignature"]
extended_key_usage = ["serverAuth"]
san_types = ["dns"]
max_names = 2
wildcard = false
"""


def test_profiles_are_in_the_directory(client: AcmeClient) -> None:
    profiles = client.directory["meta"]["profiles"]
    assert set(profiles) >= {"mtls", "server", "client"}
    assert all(isinstance(text, str) and text for text in profiles.values())


def test_profiles_the_server_picks_one_and_shows_it(service: RunningService, client: AcmeClient) -> None:
    order = client.order("profile.test")
    assert order.json["profile"] == service.settings.issuance.default_profile == "mtls"
    assert client.post(order.headers["Location"]).json["profile"] == "mtls"


@pytest.mark.parametrize(
    ("profile", "usages"),
    [
        ("mtls", {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}),
        ("server", {ExtendedKeyUsageOID.SERVER_AUTH}),
        ("client", {ExtendedKeyUsageOID.CLIENT_AUTH}),
    ],
)
def test_profiles_decide_the_certificate(client: AcmeClient, profile: str, usages: set[x509.ObjectIdentifier]) -> None:
    issued = client.issue("profile.test", profile=profile)
    assert issued.order.json["profile"] == profile
    found = issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(found) == usages


@pytest.mark.parametrize("profile", ["unknown", "", "MTLS", "mtls ", "../mtls", "a" * 200])
def test_profiles_that_are_not_there(service: RunningService, client: AcmeClient, profile: str) -> None:
    with service.unchanged():
        answer = client.new_order("profile.test", profile=profile)
    assert answer.refusal == (400, "invalidProfile")


@pytest.mark.parametrize("profile", [5, [], {}, True, "a" * 300])
def test_profiles_are_named_by_text(service: RunningService, client: AcmeClient, profile: object) -> None:
    with service.unchanged():
        assert client.new_order("profile.test", profile=profile).refusal == (400, "malformed")


def test_profiles_that_an_account_may_not_use(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(policy={"default": {"profiles": ("mtls",)}})
    client = new_client(service)
    with service.unchanged():
        assert client.new_order("profile.test", profile="server").refusal == (400, "invalidProfile")
    assert client.new_order("profile.test").status == 201


def test_profiles_the_server_picks_one_that_the_account_may_use(
    start_service: StartService, new_client: NewClient
) -> None:
    client = new_client(start_service(policy={"default": {"profiles": ("server", "client")}}))
    assert client.new_order("profile.test").json["profile"] == "server"


def test_profiles_of_the_operators(start_service: StartService, new_client: NewClient, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(_SHORT, encoding="utf-8")
    service = start_service(issuance={"profiles_dir": tmp_path, "default_profile": "short"})
    client = new_client(service)
    assert client.directory["meta"]["profiles"]["short"] == "Short-lived, P-256 only, no wildcards"
    issued = client.issue("profile.test")
    lifetime = issued.certificate.not_valid_after_utc.timestamp() - service.clock.now()
    assert 0 < lifetime <= 600

    with service.unchanged():
        assert client.new_order("127.0.0.1").refusal == (400, "unsupportedIdentifier")
        assert client.new_order("*.profile.test").refusal == (400, "unsupportedIdentifier")
        assert client.new_order("a.test", "b.test", "c.test").refusal == (400, "invalidProfile")


def test_profiles_are_checked_again_at_finalize(
    start_service: StartService, new_client: NewClient, tmp_path: Path
) -> None:
    (tmp_path / "short.toml").write_text(_SHORT, encoding="utf-8")
    service = start_service(issuance={"profiles_dir": tmp_path})
    client = new_client(service)
    order = client.ready_order("profile.test", profile="short")
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with service.unchanged():
            answer = client.finalize(order, make_csr(["profile.test"], key))
        assert answer.refusal == (400, "invalidProfile")
    assert client.post(order.headers["Location"]).json["status"] == "ready"
    key = ec.generate_private_key(ec.SECP256R1())
    assert client.finalize(order, make_csr(["profile.test"], key)).status == 200


def test_payloads_that_are_empty_where_an_object_belongs(client: AcmeClient) -> None:
    answer = client.post(client.directory["newOrder"])
    assert answer.refusal == (400, "malformed")
    assert "empty" in answer.json["detail"]
