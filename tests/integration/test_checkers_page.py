"""The page for relying parties: every command on it is run, and says what the page says it does."""

import itertools
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fakes.dns import LOOPBACK
from fakes.process import clean_environment
from fakes.relying import APP, CA, PAGE, Authority, Identity, Relying, blocks, code_blocks
from fakes.relying_programs import Program, apache, eventually, haproxy, nginx, stapled

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.relying_fixtures",)

#: Languages whose blocks other tests run, word by word: servers and languages.
_RUN_ELSEWHERE = {"nginx", "haproxy", "apache", "conf", "text", "sh", "ini", "go", "java", "python"}


@pytest.fixture
def folder(relying: Relying, app: Identity, good: Identity, bad: Identity) -> Path:
    """The folder of the page's examples, in which its commands are run."""
    for identity, name in ((app, "app"), (good, "job"), (bad, "gone")):
        shutil.copy(identity.pem, relying.folder / f"{name}.pem")
        shutil.copy(identity.key, relying.folder / f"{name}.key")
    return relying.folder


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it is to print among others."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def run(command: str, folder: Path, places: Mapping[str, str]) -> str:
    for old, new in places.items():
        command = command.replace(old, new)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=clean_environment(CURL_HOME=str(folder)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"\nexit code {done.returncode}")


def check(heading: str, folder: Path, places: Mapping[str, str]) -> None:
    """Run the console blocks below a heading."""
    console = blocks(heading, "console")
    assert console
    for command, expected in itertools.chain.from_iterable(map(commands, console)):
        said = run(command, folder, places)
        if not expected:
            assert "exit code" not in said, f"{command}\n{said}"
        for line in expected:
            assert any(line in each for each in said.splitlines()), f"{command}\ndoes not say {line!r}:\n{said}"


def at(port: int) -> dict[str, str]:
    """Where the page's server is in a test."""
    return {f"https://{APP}/": f"https://{APP}:{port}/", f"-connect {APP}:443": f"-connect {LOOPBACK}:{port}"}


def test_what_to_fetch(folder: Path, authority: Authority) -> None:
    before = {path: path.read_bytes() for path in (folder / "roots.pem", folder / "chain.pem")}
    for path in before:
        path.unlink()
    check("What to fetch", folder, {CA: authority.http_url, "ISSUER": authority.ids["issuing-1"]})
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("heading", ["OpenSSL", "GnuTLS"])
def test_commands(heading: str, folder: Path, authority: Authority) -> None:
    check(heading, folder, {CA: authority.http_url, "ISSUER": authority.ids["issuing-1"]})


Start = Callable[[Path, str, Identity, Relying], AbstractContextManager[Program]]


@pytest.mark.parametrize(
    ("headings", "start", "language"),
    [
        (("nginx", "curl"), nginx, "nginx"),
        (("HAProxy",), haproxy, "haproxy"),
        (("Apache httpd",), apache, "apache"),
    ],
    ids=["nginx", "haproxy", "apache"],
)
def test_commands_with_a_server(
    headings: tuple[str, ...],
    start: Start,
    language: str,
    folder: Path,
    relying: Relying,
    app: Identity,
    tmp_path: Path,
) -> None:
    configuration = blocks(headings[0], language)[0]
    with start(tmp_path / "server", configuration, app, relying) as server:
        (folder / ".curlrc").write_text(
            f'silent\nshow-error\nconnect-to = "{APP}:{server.port}:{LOOPBACK}:{server.port}"\n', encoding="utf-8"
        )
        if start is not haproxy:
            # nginx has no staple for its first client.
            eventually(lambda: stapled(relying, server.port) == "good")
        for heading in headings:
            check(heading, folder, at(server.port))


def test_no_block_is_left_out() -> None:
    """Each is run: console blocks here, the others by name of their section. What was not tried says so."""
    ran = {"What to fetch", "OpenSSL", "GnuTLS", "nginx", "curl", "HAProxy", "Apache httpd"}
    for heading, language in code_blocks():
        if language == "console":
            assert heading in ran
        elif language not in _RUN_ELSEWHERE:
            assert heading == "Envoy"
    assert "[Envoy](#envoy) (not tried here)" in PAGE.read_text(encoding="utf-8")


def test_the_paths_of_the_page_are_those_of_the_certificates(good: Identity, authority: Authority) -> None:
    """The ids are subject key identifiers; the URLs are below the public base URL."""
    issuing, root = authority.ids["issuing-1"], authority.ids["root"]
    assert good.crl_url.startswith(f"{authority.http_url}/crl/{issuing}/")
    assert good.ocsp_url == f"{authority.http_url}/ocsp"
    assert issuing != root
