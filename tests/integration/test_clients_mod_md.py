"""Apache with mod_md, of Debian: a web server that asks when to renew (RFC 9773), and says what it replaces."""

import time
from pathlib import Path

import pytest

from fakes.asking import certificate_id, on_a_clock, questions, replaced_by
from fakes.clients import check_chain, serial_of
from fakes.dns import Knot
from fakes.mod_md import LOOKED, NOT_DUE, TOLD_NOW, TOLD_WHEN, mod_md
from fakes.process import ServerProcess, served

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.client_fixtures",)

_HOUR = 3600


def test_it_renews_when_told_to(server: ServerProcess, name: str) -> None:
    """After a revocation: it asks anew when it is reloaded."""
    with mod_md(server, name) as apache:
        apache.await_certificate()
        apache.reload()
        first = check_chain(server, apache.chain, [name])
        assert apache.served() == first
        replaced = certificate_id(apache.chain)
        apache.await_message(TOLD_WHEN, 1)
        assert not apache.staged.exists(), "the window is ahead"
        server.json("cert", "revoke", apache.chain, "--reason", "superseded")
        apache.reload()
        apache.await_message(TOLD_NOW, 1)
        apache.await_certificate()
        apache.reload()
        second = check_chain(server, apache.chain, [name])
        assert second.serial_number != first.serial_number
        assert apache.served() == second
        assert replaced_by(server, apache.chain) == replaced


def test_it_does_not_renew_when_it_does_not_ask(server: ServerProcess, name: str) -> None:
    """Without renewal information nothing tells it of a revocation; without ``MDStapling`` it does not look at OCSP."""
    with mod_md(server, name, "MDRenewViaARI off") as apache:
        apache.await_certificate()
        apache.reload()
        first = serial_of(apache.chain)
        asked = questions(server)
        server.json("cert", "revoke", apache.chain, "--reason", "superseded")
        apache.reload()
        apache.await_message(NOT_DUE, apache.said(NOT_DUE) + 2)
        assert questions(server) == asked
        assert not apache.staged.exists()
        assert serial_of(apache.chain) == first


def test_it_renews_in_its_window(tmp_path: Path, names: Knot, name: str) -> None:
    """Without a reload: it remembers the moment that it chose. By itself it would renew when a third of the life is left."""
    settings = {"VALIDATION__RESOLVERS": f'["{names.address}"]', "SERVER__TLS_LIFETIME": str(10 * 86400)}
    with (
        on_a_clock(tmp_path) as clock,
        served(tmp_path / "home", settings) as server,
        mod_md(server, name) as apache,
    ):
        begin = time.time()
        apache.await_certificate()
        apache.reload()
        replaced = certificate_id(apache.chain)
        apache.await_message(TOLD_WHEN, 1)
        assert questions(server) == 1
        clock.step(9 * _HOUR)
        apache.await_message(LOOKED, apache.said(LOOKED) + 3)
        assert questions(server) == 1, "it does not ask again in between, whatever Retry-After says"
        assert not apache.staged.exists()
        clock.step(14 * _HOUR)
        apache.await_certificate()
        apache.reload()
        second = check_chain(server, apache.chain, [name])
        assert second.not_valid_before_utc.timestamp() < begin + 15 * _HOUR
        assert replaced_by(server, apache.chain) == replaced
