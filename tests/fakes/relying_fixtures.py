"""What the tests with relying parties share: one service for the run, a folder of CRLs, and certificates.

Use it with ``pytest_plugins = ("fakes.relying_fixtures",)``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.relying import APP, Authority, Identity, Relying, running_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """One service for the run."""
    with running_authority(tmp_path_factory.mktemp("authority")) as one:
        yield one


@pytest.fixture
def relying(authority: Authority, tmp_path: Path) -> Relying:
    """A relying party with CRLs as they are now."""
    return Relying(authority, tmp_path / "trust")


@pytest.fixture(scope="session")
def app(authority: Authority) -> Identity:
    """The certificate of the program that the page configures. Nobody revokes it."""
    return authority.issue(APP)


@pytest.fixture(scope="session")
def good(authority: Authority) -> Identity:
    """A client's certificate. Nobody revokes it."""
    return authority.issue()


@pytest.fixture(scope="session")
def bad(authority: Authority) -> Identity:
    """A certificate that was revoked before the test."""
    return authority.revoked()
