"""uacme, of Debian, against the real command: a client in C that polls the challenge and not the authorization."""

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from fakes.clients import DNS_HOOK, ZONE, check_chain, serial_of
from fakes.dns import Knot
from fakes.process import ServerProcess, run_command

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.client_fixtures",)

Uacme = Callable[..., "CompletedProcess[str]"]
TRUST_STORE = Path("/etc/ssl/certs/ca-certificates.crt")
#: uacme knows no option for trust anchors, so it runs where the machine's are ours: in a mount namespace of its own.
NAMESPACE = ("unshare", "--map-root-user", "--mount", "--")
IN_NAMESPACE = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


@pytest.fixture
def uacme(server: ServerProcess, names: Knot, webroot: Path, tmp_path: Path) -> Uacme:
    """uacme with a folder of its own and an account."""
    if not TRUST_STORE.exists() or run_command(*NAMESPACE, "true", expect=None).returncode != 0:
        pytest.skip("no trust store, or no mount namespaces for this user")
    challenges = webroot / ".well-known" / "acme-challenge"
    change = f'"{sys.executable}" -P "{DNS_HOOK}" {names.port} {ZONE}'
    hook = tmp_path / "hook"
    hook.write_text(
        "#!/bin/sh\nset -eu\n"
        'case "$1 $2" in\n'
        f'"begin http-01") printf %s "$5" >"{challenges}/$4";;\n'
        f'"done http-01" | "failed http-01") rm "{challenges}/$4";;\n'
        f'"begin dns-01") {change} add "$3" "$5";;\n'
        f'"done dns-01" | "failed dns-01") {change} delete "$3" "$5";;\n'
        "*) exit 1;;\n"
        "esac\n"
    )
    hook.chmod(0o755)

    def run(*arguments: str | Path, expect: int | None = 0) -> "CompletedProcess[str]":
        return run_command(
            *(*NAMESPACE, "sh", "-c", IN_NAMESPACE, "sh", server.roots, TRUST_STORE),
            *("uacme", "--yes", "--no-ocsp", "--acme-url", server.directory, "--confdir", tmp_path / "uacme"),
            *("--hook", hook),
            *arguments,
            cwd=tmp_path,
            expect=expect,
        )

    run("new", "ops@corp.internal")
    return run


def chain_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / "uacme" / name / "cert.pem"


def test_http01_renewal_and_revocation(uacme: Uacme, server: ServerProcess, name: str, tmp_path: Path) -> None:
    uacme("issue", name)
    chain = chain_of(tmp_path, name)
    check_chain(server, chain, [name])
    first = serial_of(chain)
    uacme("--force", "issue", name)
    check_chain(server, chain, [name])
    assert serial_of(chain) != first
    uacme("revoke", chain)
    renamed = [path for path in chain.parent.iterdir() if path.name.startswith("revoked")]
    assert server.json("cert", "show", renamed[0])["state"] == "revoked"


def test_dns01_for_a_wildcard(uacme: Uacme, server: ServerProcess, name: str, tmp_path: Path) -> None:
    uacme("--type", "EC", "issue", f"*.{name}")
    check_chain(server, chain_of(tmp_path, name), [f"*.{name}"])


def test_an_address(uacme: Uacme, server: ServerProcess, tmp_path: Path) -> None:
    """RFC 8738."""
    uacme("issue", "127.0.0.1")
    check_chain(server, chain_of(tmp_path, "127.0.0.1"), ["127.0.0.1"])


def test_an_account_from_first_to_last_day(uacme: Uacme, name: str) -> None:
    uacme("update", "security@corp.internal")
    uacme("newkey")
    uacme("issue", name)
    uacme("deactivate")
    assert "deactivated" in uacme("issue", f"www.{name}", expect=2).stderr


def test_control_that_cannot_be_proved(uacme: Uacme, name: str, tmp_path: Path) -> None:
    """The hook publishes nothing: the challenge ends, and uacme with it."""
    (tmp_path / "hook").write_text('#!/bin/sh\n[ "$2" = http-01 ]\n', encoding="utf-8")
    refused = uacme("issue", name, expect=2)
    assert "404" in refused.stderr
    assert not chain_of(tmp_path, name).exists()
