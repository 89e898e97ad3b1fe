"""certbot against the real command with SoftHSM2: RFC 8555 as its most used client speaks it."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fakes.clients import ZONE, Certbot, check_chain, serial_of
from fakes.dns import Knot
from fakes.process import ServerProcess, run_command, served

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.client_fixtures",)


def state_of(server: ServerProcess, chain: Path) -> str:
    """What ``privyseal cert show`` says of a certificate."""
    return str(server.json("cert", "show", chain)["state"])


# Issuing


def test_http01_with_an_ec_key(certbot: Certbot, server: ServerProcess, name: str) -> None:
    certbot.certonly(*certbot.standalone, "-d", name)
    leaf = check_chain(server, certbot.lineage(name) / "fullchain.pem", [name])
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert leaf.not_valid_after_utc.timestamp() - leaf.not_valid_before_utc.timestamp() <= 86400 + 120


def test_http01_with_an_rsa_key_and_two_names(certbot: Certbot, server: ServerProcess, name: str) -> None:
    certbot.certonly(
        *certbot.standalone, "--key-type", "rsa", "--rsa-key-size", "3072", "-d", name, "-d", f"www.{ZONE}"
    )
    leaf = check_chain(server, certbot.lineage(name) / "fullchain.pem", [name, f"www.{ZONE}"])
    key = leaf.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 3072


def test_http01_for_an_address(certbot: Certbot, server: ServerProcess) -> None:
    """RFC 8738."""
    certbot.certonly(*certbot.standalone, "--ip-address", "127.0.0.1", "--cert-name", "address")
    check_chain(server, certbot.lineage("address") / "fullchain.pem", ["127.0.0.1"])


def test_dns01_for_a_name_and_its_wildcard(certbot: Certbot, server: ServerProcess, names: Knot, name: str) -> None:
    """Two values stand at one name (RFC 8555 section 8.4)."""
    certbot.certonly(*certbot.dns(names), "-d", name, "-d", f"*.{name}")
    check_chain(server, certbot.lineage(name) / "fullchain.pem", [name, f"*.{name}"])


def test_a_request_made_elsewhere(certbot: Certbot, server: ServerProcess, name: str, tmp_path: Path) -> None:
    run_command("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout",
                tmp_path / "key.pem", "-subj", "/", "-addext", f"subjectAltName=DNS:{name}", "-out",
                tmp_path / "csr.pem")  # fmt: skip
    certbot.certonly(*certbot.standalone, "--csr", tmp_path / "csr.pem", "--fullchain-path", tmp_path / "chain.pem")
    leaf = check_chain(server, tmp_path / "chain.pem", [name])
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)


def test_a_profile(certbot: Certbot, name: str) -> None:
    certbot.certonly(*certbot.standalone, "--required-profile", "server", "-d", name)
    shown = run_command(
        "openssl", "x509", "-noout", "-ext", "extendedKeyUsage", "-in", certbot.lineage(name) / "cert.pem"
    ).stdout
    assert "Server Authentication" in shown
    assert "Client Authentication" not in shown


# Refusals


def test_a_name_outside_the_policy(certbot: Certbot) -> None:
    refused = certbot.certonly(*certbot.standalone, "-d", "www.example.com", expect=1)
    assert "www.example.com" in refused.stderr
    assert "rejectedIdentifier" in refused.stderr + log_of(certbot)


def test_an_unknown_profile(certbot: Certbot, name: str) -> None:
    refused = certbot.certonly(*certbot.standalone, "--required-profile", "gold", "-d", name, expect=1)
    assert "no such profile" in refused.stderr


def test_control_that_cannot_be_proved(certbot: Certbot, names: Knot, server: ServerProcess, name: str) -> None:
    """Nothing answers at the port where the server asks."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
    refused = certbot.certonly("--standalone", "--http-01-port", str(port), "-d", name, expect=1)
    assert name in refused.stdout
    assert str(server.challenge_port) in refused.stdout, "it says where it asked"


def test_a_dns_record_with_another_value(certbot: Certbot, names: Knot, name: str) -> None:
    names.set(f"_acme-challenge.{name}", "TXT", "somebody-else")
    refused = certbot.certonly(
        "--manual", "--preferred-challenges", "dns", "--manual-auth-hook", "true", "-d", name, expect=1
    )
    assert "somebody-else" in refused.stdout


# Renewal and revocation


def test_renewal_gives_a_new_certificate(certbot: Certbot, server: ServerProcess, name: str) -> None:
    certbot.certonly(*certbot.standalone, "-d", name)
    chain = certbot.lineage(name) / "fullchain.pem"
    first = serial_of(chain)
    assert "not yet due" in (soon := certbot("renew")).stdout + soon.stderr, "renewal information says later (RFC 9773)"
    assert serial_of(chain) == first
    certbot("renew", "--force-renewal")
    check_chain(server, chain, [name])
    assert serial_of(chain) != first


def test_renewal_when_told_to(certbot: Certbot, server: ServerProcess, name: str) -> None:
    """The window of a revoked certificate has passed (RFC 9773 section 4.2). certbot asks for it first, and OCSP after."""
    certbot.certonly(*certbot.standalone, "-d", name)
    chain = certbot.lineage(name) / "fullchain.pem"
    first = serial_of(chain)
    server.json("cert", "revoke", chain, "--reason", "superseded")
    certbot("renew")
    check_chain(server, chain, [name])
    assert serial_of(chain) != first
    assert "certificate is revoked" not in log_of(certbot), "renewal information sufficed"


def test_revocation_by_the_account(certbot: Certbot, server: ServerProcess, name: str) -> None:
    certbot.certonly(*certbot.standalone, "-d", name)
    chain = certbot.lineage(name) / "fullchain.pem"
    assert state_of(server, chain) == "valid"
    certbot("revoke", "--cert-name", name, "--reason", "superseded", "--no-delete-after-revoke")
    assert state_of(server, chain) == "revoked"
    again = certbot("revoke", "--cert-name", name, "--no-delete-after-revoke", expect=None)
    assert "already" in (again.stdout + again.stderr + log_of(certbot)).lower()


def test_revocation_by_the_certificates_key(certbot: Certbot, server: ServerProcess, name: str, tmp_path: Path) -> None:
    """Without any account (RFC 8555 section 7.6)."""
    certbot.certonly(*certbot.standalone, "-d", name)
    stranger = Certbot(server, tmp_path / "stranger")
    stranger.folder.mkdir()
    live = certbot.lineage(name)
    stranger("revoke", "--cert-path", live / "fullchain.pem", "--key-path", live / "privkey.pem", "--reason",
             "keycompromise", "--no-delete-after-revoke")  # fmt: skip
    assert state_of(server, live / "fullchain.pem") == "revoked"


def test_revocation_by_another_account_is_refused(
    certbot: Certbot, server: ServerProcess, name: str, tmp_path: Path
) -> None:
    certbot.certonly(*certbot.standalone, "-d", name)
    stranger = Certbot(server, tmp_path / "stranger")
    stranger.folder.mkdir()
    stranger.register()
    chain = certbot.lineage(name) / "fullchain.pem"
    refused = stranger("revoke", "--cert-path", chain, "--no-delete-after-revoke", expect=1)
    assert "unauthorized" in refused.stderr + log_of(stranger)
    assert state_of(server, chain) == "valid"


# Accounts


def test_an_account_from_first_to_last_day(certbot: Certbot, name: str) -> None:
    certbot.register()
    certbot("update_account", "--email", "ops@corp.internal", "--no-eff-email")
    assert "ops@corp.internal" in certbot("show_account").stdout
    kept = certbot.folder / "kept"
    shutil.copytree(certbot.folder / "config", kept, symlinks=True)
    certbot("unregister")
    shutil.rmtree(certbot.folder / "config")
    kept.rename(certbot.folder / "config")
    refused = certbot.certonly(*certbot.standalone, "-d", name, expect=1)
    assert "deactivated" in refused.stderr + log_of(certbot)


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory, names: Knot) -> Iterator[ServerProcess]:
    """A server that wants external account binding (RFC 8555 section 7.3.4)."""
    settings = {"VALIDATION__RESOLVERS": f'["{names.address}"]', "ACME__EXTERNAL_ACCOUNT_REQUIRED": "true"}
    with served(tmp_path_factory.mktemp("bound") / "home", settings) as server:
        yield server


def test_external_account_binding(bound: ServerProcess, name: str, tmp_path: Path) -> None:
    key = bound.json("eab", "create", "--single-use", "--allow-dns", name)
    client = Certbot(bound, tmp_path)
    client.register("--eab-kid", key["kid"], "--eab-hmac-key", key["hmac_key"])
    client.certonly(*client.standalone, "-d", name)
    check_chain(bound, client.lineage(name) / "fullchain.pem", [name])
    refused = client.certonly(*client.standalone, "-d", f"other.{ZONE}", expect=1)
    assert f"other.{ZONE}" in refused.stderr, "the key narrows what its account may have (P11)"
    assert next(row for row in bound.json("eab", "list") if row["kid"] == key["kid"])["uses"] == 1
    assert key["hmac_key"] not in bound.log + bound.output + json.dumps(bound.json("eab", "list"))


def test_accounts_without_their_binding(bound: ServerProcess, tmp_path: Path) -> None:
    key = bound.json("eab", "create", "--single-use")
    client = Certbot(bound, tmp_path)
    options = ("register", "--agree-tos", "--register-unsafely-without-email")
    assert "external account" in client(*options, expect=1).stderr.lower()
    wrong = client(
        *options, "--eab-kid", key["kid"], "--eab-hmac-key", "d3Jvbmcta2V5LXdyb25nLWtleS13cm9uZy1rZXk", expect=1
    )
    assert "unauthorized" in wrong.stderr + log_of(client)
    client.register("--eab-kid", key["kid"], "--eab-hmac-key", key["hmac_key"])
    second = Certbot(bound, tmp_path / "second")
    second.folder.mkdir()
    used = second(*options, "--eab-kid", key["kid"], "--eab-hmac-key", key["hmac_key"], expect=1)
    assert "unauthorized" in used.stderr + log_of(second)


def log_of(certbot: Certbot) -> str:
    """certbot's own log."""
    return (certbot.folder / "logs" / "letsencrypt.log").read_text(encoding="utf-8")
