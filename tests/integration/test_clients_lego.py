"""lego, of Debian, against the real command with SoftHSM2."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fakes.clients import ZONE, Lego, check_chain, serial_of
from fakes.dns import Knot
from fakes.process import ServerProcess, run_command

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.client_fixtures",)


def dns_options(names: Knot) -> tuple[str, ...]:
    return ("--dns", "rfc2136", "--dns.resolvers", names.address, "--dns.disable-cp")


def dns_environment(names: Knot) -> dict[str, str]:
    return {
        "RFC2136_NAMESERVER": names.address,
        "RFC2136_POLLING_INTERVAL": "1",
        "RFC2136_PROPAGATION_TIMEOUT": "10",
        "RFC2136_SEQUENCE_INTERVAL": "1",
    }


def test_http01(lego: Lego, server: ServerProcess, name: str) -> None:
    lego(*lego.http, "--domains", name, "run")
    leaf = check_chain(server, lego.certificate(name), [name])
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)


def test_http01_with_an_rsa_key(lego: Lego, server: ServerProcess, name: str) -> None:
    lego(*lego.http, "--key-type", "rsa2048", "--domains", name, "run")
    assert isinstance(check_chain(server, lego.certificate(name), [name]).public_key(), rsa.RSAPublicKey)


def test_tlsalpn01(lego: Lego, server: ServerProcess, name: str) -> None:
    """RFC 8737, for two names in one order."""
    lego(*lego.tls, "--key-type", "ec384", "--domains", name, "--domains", f"www.{ZONE}", "run")
    check_chain(server, lego.certificate(name), [name, f"www.{ZONE}"])


def test_dns01_for_a_wildcard(lego: Lego, server: ServerProcess, names: Knot, name: str) -> None:
    lego(*dns_options(names), "--domains", f"*.{name}", "--domains", name, "run", environment=dns_environment(names))
    check_chain(server, lego.certificate(f"_.{name}"), [name, f"*.{name}"])


def test_dns01_behind_an_alias(lego: Lego, server: ServerProcess, names: Knot, name: str) -> None:
    """The challenge's name may be an alias for one in a zone that is easier to change."""
    names.set(f"_acme-challenge.{name}", "CNAME", f"{name.partition('.')[0]}.challenges.{ZONE}.")
    lego(*dns_options(names), "--domains", name, "run", environment=dns_environment(names))
    check_chain(server, lego.certificate(name), [name])


def test_renewal_and_revocation(lego: Lego, server: ServerProcess, name: str) -> None:
    lego(*lego.http, "--domains", name, "run")
    chain = lego.certificate(name)
    first = serial_of(chain)
    lego(*lego.http, "--domains", name, "renew", "--days", "365", "--no-random-sleep")
    check_chain(server, chain, [name])
    assert serial_of(chain) != first
    lego(*lego.http, "--domains", name, "revoke", "--keep", "--reason", "4")
    shown = server.json("cert", "show", chain)
    assert (shown["state"], shown["reason"]) == ("revoked", 4)
    again = lego(*lego.http, "--domains", name, "revoke", "--keep", expect=1)
    assert "alreadyRevoked" in again.stdout + again.stderr


def test_a_request_made_elsewhere(lego: Lego, server: ServerProcess, name: str, tmp_path: Path) -> None:
    run_command("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key.pem", "-subj",
                f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},DNS:www.{ZONE}", "-out",
                tmp_path / "csr.pem")  # fmt: skip
    lego(*lego.http, "--csr", tmp_path / "csr.pem", "run")
    check_chain(server, lego.certificate(name), [name, f"www.{ZONE}"])


def test_external_account_binding(lego: Lego, server: ServerProcess, name: str) -> None:
    """A binding counts where none is required, too: it narrows the account (P11)."""
    key = server.json("eab", "create", "--allow-dns", name)
    binding = ("--eab", "--kid", key["kid"], "--hmac", key["hmac_key"])
    lego(*lego.http, *binding, "--domains", name, "run")
    check_chain(server, lego.certificate(name), [name])
    refused = lego(*lego.http, *binding, "--domains", f"other.{ZONE}", "run", expect=1)
    assert "rejectedIdentifier" in refused.stdout + refused.stderr


def test_refusals(lego: Lego, server: ServerProcess, names: Knot, name: str) -> None:
    """A name outside the policy; an address as a DNS name (RFC 8738 section 3); a name that leads to a metadata service."""
    refused = lego(*lego.http, "--domains", "www.example.com", "run", expect=1)
    assert "rejectedIdentifier" in refused.stdout + refused.stderr
    address = lego(*lego.http, "--domains", "127.0.0.1", "run", expect=1)
    assert "identifier of type ip" in address.stdout + address.stderr
    names.set(name, "A", "169.254.169.254")
    metadata = lego(*lego.http, "--domains", name, "run", expect=1)
    assert "169.254.169.254" in metadata.stdout + metadata.stderr, "link-local is never asked"
