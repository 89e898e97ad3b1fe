"""dehydrated, of Debian, against the real command: a client in bash, openssl and curl, which fetches the issuer by the
certificate's CA Issuers URL and never tries a refused nonce again.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.clients import DNS_HOOK, ZONE, check_chain, serial_of
from fakes.dns import Knot
from fakes.process import ServerProcess, clean_environment, run_command

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.client_fixtures",)

Dehydrated = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def dehydrated(server: ServerProcess, names: Knot, webroot: Path, tmp_path: Path) -> Dehydrated:
    """dehydrated with a folder of its own and an account."""
    hook = tmp_path / "hook"
    change = f'"{sys.executable}" -P "{DNS_HOOK}" {names.port} {ZONE}'
    hook.write_text(
        "#!/bin/bash\nset -eu\n"
        f'case "$1" in deploy_challenge) {change} add "$2" "$4";; clean_challenge) {change} delete "$2" "$4";; esac\n',
        encoding="utf-8",
    )
    hook.chmod(0o755)
    config = tmp_path / "config"
    config.write_text(
        f"CA={server.directory}\nBASEDIR={tmp_path}\nWELLKNOWN={webroot / '.well-known' / 'acme-challenge'}\n"
        "CONTACT_EMAIL=ops@corp.internal\n"
    )

    def run(*arguments: str | Path, expect: int | None = 0) -> "CompletedProcess[str]":
        return run_command(
            "dehydrated",
            *("--config", config),
            *arguments,
            env=clean_environment(CURL_CA_BUNDLE=str(server.roots)),
            cwd=tmp_path,
            expect=expect,
        )

    run("--register", "--accept-terms")
    return run


def test_http01_renewal_and_revocation(
    dehydrated: Dehydrated, server: ServerProcess, name: str, tmp_path: Path
) -> None:
    dehydrated("--cron", "--domain", name)
    chain = tmp_path / "certs" / name / "fullchain.pem"
    leaf = check_chain(server, chain, [name])
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    first = serial_of(chain)
    dehydrated("--cron", "--force", "--domain", name)
    check_chain(server, chain, [name])
    assert serial_of(chain) != first
    dehydrated("--revoke", (tmp_path / "certs" / name / "cert.pem").resolve())
    assert server.json("cert", "show", chain)["state"] == "revoked"


def test_dns01_for_a_wildcard(dehydrated: Dehydrated, server: ServerProcess, name: str, tmp_path: Path) -> None:
    dehydrated("--cron", "--challenge", "dns-01", "--hook", tmp_path / "hook", "--algo", "rsa",
               "--domain", f"{name} *.{name}")  # fmt: skip
    check_chain(server, tmp_path / "certs" / name / "fullchain.pem", [name, f"*.{name}"])


def test_the_issuer_by_its_url(dehydrated: Dehydrated, server: ServerProcess, name: str, tmp_path: Path) -> None:
    """``--signcsr --full-chain`` completes the chain by the leaf's CA Issuers URL (RFC 5280 section 4.2.2.1)."""
    run_command("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key.pem", "-subj", "/",
                "-addext", f"subjectAltName=DNS:{name}", "-out", tmp_path / "csr.pem")  # fmt: skip
    printed = dehydrated("--signcsr", tmp_path / "csr.pem", "--full-chain").stdout
    *_, fetched = x509.load_pem_x509_certificates(printed.encode())
    chain = tmp_path / "chain.pem"
    chain.write_text(printed.partition("# CHAIN #")[0])
    check_chain(server, chain, [name])
    assert fetched == x509.load_pem_x509_certificates(chain.read_bytes())[1]


def test_an_account(dehydrated: Dehydrated, tmp_path: Path) -> None:
    dehydrated("--account")
    with (tmp_path / "config").open("a", encoding="utf-8") as config:
        config.write("CONTACT_EMAIL=security@corp.internal\n")
    dehydrated("--account")
    registrations = list((tmp_path / "accounts").rglob("registration_info.json"))
    assert "security@corp.internal" in registrations[0].read_text(encoding="utf-8")
    refused = dehydrated("--cron", "--domain", "www.example.com", expect=1)
    assert "rejectedIdentifier" in refused.stdout + refused.stderr


def test_control_that_cannot_be_proved(dehydrated: Dehydrated, name: str, tmp_path: Path) -> None:
    """The challenge's file is not where the server asks."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with (tmp_path / "config").open("a", encoding="utf-8") as config:
        config.write(f"WELLKNOWN={elsewhere}\n")
    refused = dehydrated("--cron", "--domain", name, expect=1)
    assert "404" in refused.stdout + refused.stderr
