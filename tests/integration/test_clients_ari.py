"""Real clients and renewal information (RFC 9773): certbot renews when it is told, and not before; lego never asks.

Where time has to pass, authority and client are on one clock that the test steps. How Apache does it is in
``test_clients_mod_md.py``.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fakes.asking import on_a_clock, questions, replaced_by, workloads
from fakes.clients import Certbot, Lego, check_chain, read_chain, serial_of
from fakes.clock_steps import SteppingClock
from fakes.dns import Knot
from fakes.process import ServerProcess, served
from fakes.relying_programs import eventually

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.client_fixtures",)

_HOUR = 3600
#: Certificates live for a day: certbot's own rule is to renew after the half of it, and windows lie around that.
_NOT_DUE = "not yet due"


class Day:
    """An authority and certbot on one clock, which begins at the present."""

    def __init__(self, server: ServerProcess, clock: SteppingClock, begin: float, folder: Path) -> None:
        self.server = server
        self.certbot = Certbot(server, folder)
        self._clock = clock
        self._begin = begin
        self._ahead = 0

    def until(self, hours: float) -> None:
        """Let it be so many hours after the begin."""
        self._ahead = round(self._begin + hours * _HOUR - time.time())
        self._clock.step(self._ahead)

    def hours(self, moment: datetime) -> float:
        """How many hours after the begin a time is."""
        return (moment.timestamp() - self._begin) / _HOUR

    def renew(self) -> str:
        """What certbot says when it is run as by its timer."""
        done = self.certbot("renew")
        return done.stdout + done.stderr


@pytest.fixture
def day(tmp_path: Path, names: Knot) -> Iterator[Day]:
    """A day on which nothing is to be renewed from 9:30 to 16:00, nor from 17:00 to 25:00."""
    begin = time.time()

    def at(hours: float) -> str:
        return datetime.fromtimestamp(begin + hours * _HOUR, UTC).strftime("%Y-%m-%dT%H:%M:%S")

    settings = {
        "VALIDATION__RESOLVERS": f'["{names.address}"]',
        "RENEWAL__CLOSED": f'["{at(9.5)}/{at(16)}", "{at(17)}/{at(25)}"]',
        # The server's own certificate is not what this is about.
        "SERVER__TLS_LIFETIME": str(10 * 86400),
    }
    with on_a_clock(tmp_path) as clock, served(tmp_path / "home", settings) as server:
        (tmp_path / "certbot").mkdir()
        yield Day(server, clock, begin, tmp_path / "certbot")


def told_to_ask_at(certbot: Certbot, name: str) -> datetime:
    """When certbot has noted to ask again (Retry-After)."""
    text = (certbot.folder / "config" / "renewal" / f"{name}.conf").read_text(encoding="utf-8")
    noted = re.search(r"^\[acme_renewal_info\]\nari_retry_after = (\S+)$", text, re.MULTILINE)
    assert noted, text
    return datetime.fromisoformat(noted[1]).astimezone()


def log_of(certbot: Certbot) -> str:
    """What certbot wrote when it was run last."""
    return (certbot.folder / "logs" / "letsencrypt.log").read_text(encoding="utf-8")


def test_certbot_renews_when_told_and_not_before(day: Day, name: str) -> None:
    """Before it would have of itself, because it asked; and later, for as long as it asks."""
    day.certbot.certonly(*day.certbot.standalone, "-d", name)
    chain = day.certbot.lineage(name) / "fullchain.pem"
    first = serial_of(chain)
    assert _NOT_DUE in day.renew()
    assert questions(day.server) == 1
    assert 0.7 < day.hours(told_to_ask_at(day.certbot, name)) < 1.3, "a 24th of the life, a quarter more or less"
    day.until(0.5)
    assert _NOT_DUE in day.renew()
    assert questions(day.server) == 1, "it heeds Retry-After"

    # The window lies before the closed period: by itself certbot would renew at 12:00.
    day.until(10)
    assert _NOT_DUE not in day.renew()
    assert questions(day.server) == 2
    second = check_chain(day.server, chain, [name])
    assert second.serial_number != first
    assert 9.9 < day.hours(second.not_valid_before_utc) < 10.1

    # The next window lies behind a closed period, after 25:00, when by itself certbot would renew at 22:00.
    day.until(23)
    assert _NOT_DUE in day.renew()
    assert questions(day.server) == 3
    assert serial_of(chain) == second.serial_number
    assert replaced_by(day.server, chain) is None, "certbot does not say what it replaces: its account and names tell"

    # Run again before it is to ask again, it goes by its own rule as if it had not been told.
    assert day.hours(told_to_ask_at(day.certbot, name)) > 23.7
    day.until(23.5)
    assert _NOT_DUE not in day.renew()
    assert questions(day.server) == 3
    third = serial_of(chain)
    assert third != second.serial_number

    # It is called before its time.
    day.server.json("cert", "revoke", chain, "--reason", "superseded")
    day.until(25)
    assert _NOT_DUE not in day.renew()
    assert questions(day.server) == 4
    assert "certificate is revoked" not in log_of(day.certbot), "it did not have to look at the status"
    assert serial_of(chain) != third


def test_certbot_learns_of_a_revocation_before_it_asks_again(
    certbot: Certbot, server: ServerProcess, name: str
) -> None:
    """By OCSP, which it asks whenever renewal information did not make it renew."""
    certbot.certonly(*certbot.standalone, "-d", name)
    chain = certbot.lineage(name) / "fullchain.pem"
    first = serial_of(chain)
    assert _NOT_DUE in (soon := certbot("renew")).stdout + soon.stderr
    asked = questions(server)
    server.json("cert", "revoke", chain, "--reason", "superseded")

    def renewed() -> bool:
        certbot("renew")
        return serial_of(chain) != first

    # The service takes up to `status.interval` to say so.
    eventually(renewed)
    assert questions(server) == asked, "not before Retry-After"
    assert "certificate is revoked" in log_of(certbot)


def test_certbot_does_not_wait_when_it_has_days_of_its_own(certbot: Certbot, server: ServerProcess, name: str) -> None:
    certbot.certonly(*certbot.standalone, "-d", name)
    chain = certbot.lineage(name) / "fullchain.pem"
    first = serial_of(chain)
    settings = certbot.folder / "config" / "renewal" / f"{name}.conf"
    settings.write_text("renew_before_expiry = 30 days\n" + settings.read_text(encoding="utf-8"), encoding="utf-8")
    asked = questions(server)
    certbot("renew")
    assert questions(server) == asked + 1
    assert serial_of(chain) != first, "though the window is ahead"


def test_lego_does_not_ask(lego: Lego, server: ServerProcess, name: str) -> None:
    """Debian's lego, 4.9, goes by days: a certificate that lives for one is renewed whenever it is run."""
    asked = questions(server)
    lego(*lego.http, "--domains", name, "run")
    chain = lego.certificate(name)
    first = serial_of(chain)
    lego(*lego.http, "--domains", name, "renew", "--days", "0", "--no-random-sleep")
    assert serial_of(chain) != first
    assert replaced_by(server, chain) is None
    assert questions(server) == asked
    assert len(read_chain(chain)) == 2


def test_who_does_not_ask_and_does_not_renew_is_reported_as_silent(day: Day, name: str) -> None:
    lego = Lego(day.server, day.certbot.folder)
    lego(*lego.http, "--domains", name, "run")
    asking = f"asks-{name}"
    day.certbot.certonly(*day.certbot.standalone, "-d", asking)
    # Both windows have passed, and who goes by a clock of its own would have come: of one client nothing is heard.
    day.until(20)
    assert _NOT_DUE not in day.renew()
    day.until(22)
    assert _NOT_DUE in day.renew()
    found = workloads(day.server)
    silent, renewed = found[name], found[asking]
    assert (silent["state"], silent["polled_at"], silent["certificates"]) == ("silent", None, 1)
    assert silent["missed_at"] == silent["deadline"] < silent["not_after"]
    assert "has never asked when to renew" in silent["seen"]
    assert (renewed["state"], renewed["missed_at"], renewed["certificates"]) == ("current", None, 2)
    assert 21.9 < day.hours(datetime.fromisoformat(renewed["polled_at"])) < 22.1
