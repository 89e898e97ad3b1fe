"""What the tests with real ACME clients share: one server and one DNS for the run.

Use it with ``pytest_plugins = ("fakes.client_fixtures",)`` and the fixtures ``server``, ``names``, ``name``, ``certbot``,
``lego`` and ``webroot``.
"""

import http.server
import itertools
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fakes.clients import ZONE, Certbot, Lego
from fakes.dns import LOOPBACK, Knot, knot
from fakes.process import ServerProcess, served

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    """DNS for ``corp.internal``, every name of which is this machine."""
    with knot(tmp_path_factory.mktemp("knot"), zones=(ZONE,)) as dns:
        dns.set(f"*.{ZONE}", "A", LOOPBACK)
        yield dns


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, names: Knot) -> Iterator[ServerProcess]:
    """The real command, serving a fresh home."""
    with served(tmp_path_factory.mktemp("server") / "home", {"VALIDATION__RESOLVERS": f'["{names.address}"]'}) as one:
        yield one


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"web{next(_numbers)}-{os.getpid()}.{ZONE}"


@pytest.fixture
def certbot(server: ServerProcess, tmp_path: Path) -> Certbot:
    """certbot for ``server``."""
    return Certbot(server, tmp_path)


@pytest.fixture
def lego(server: ServerProcess, tmp_path: Path) -> Lego:
    """lego for ``server``."""
    return Lego(server, tmp_path)


@pytest.fixture
def webroot(server: ServerProcess, tmp_path: Path) -> Iterator[Path]:
    """A folder that a web server shows at the port of http-01."""
    folder = tmp_path / "webroot"
    (folder / ".well-known" / "acme-challenge").mkdir(parents=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer((LOOPBACK, server.challenge_port), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        yield folder
        web.shutdown()
        thread.join()
