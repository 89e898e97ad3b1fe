"""What the tests with real ACME clients share: one server and one DNS for the run.

Use it with ``pytest_plugins = ("fakes.client_fixtures",)`` and the fixtures ``server``, ``names``, ``name``, ``certbot``
and ``lego``.
"""

import itertools
import os
from collections.abc import Iterator
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
