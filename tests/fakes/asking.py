"""What the authority saw of clients that ask when to renew (RFC 9773), and of those that do not: questions, what orders replace, workloads."""

import sqlite3
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fakes.clients import read_chain, serial_of
from fakes.clock_steps import SteppingClock
from fakes.process import ServerProcess
from privyseal_ca.issuance.record import serial_text

#: In which whoever leads has renewed the lease, with time to spare.
_PATIENCE = 60
_QUESTION = '"route":"/acme/renewal-info/{id}"'


def questions(server: ServerProcess) -> int:
    """How often anybody has asked for renewal information."""
    return server.log.count(_QUESTION)


def certificate_id(chain: Path) -> str:
    """The identifier of the first certificate in a PEM file (RFC 9773 section 4.1)."""
    leaf = read_chain(chain)[0]
    key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert key is not None
    number = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in (key, number))


def replaced_by(server: ServerProcess, chain: Path) -> str | None:
    """What the order of the first certificate in a PEM file says that it replaces (RFC 9773 section 5)."""
    serial = serial_text(serial_of(chain))
    with closing(sqlite3.connect(f"file:{server.home / 'privyseal.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT replaces FROM acme_order WHERE serial = ?", (serial,)).fetchall()
    ((replaces,),) = rows
    return None if replaces is None else str(replaces)


def workloads(server: ServerProcess) -> dict[str, dict[str, Any]]:
    """What ``privyseal fleet list`` says by now of each workload with one DNS name."""
    # A clock that has leapt has ended the lease: who leads is known again when it has been renewed.
    deadline = time.monotonic() + _PATIENCE
    while server.command("job", "run", "fleet-follow", expect=None).returncode and time.monotonic() < deadline:
        time.sleep(0.2)
    for job in ("fleet-follow", "fleet-notes", "fleet-states"):
        server.command("job", "run", job)
    found = server.json("fleet", "list")
    return {each["names"][0].removeprefix("dns:"): each for each in found if len(each["names"]) == 1}


@contextmanager
def on_a_clock(folder: Path) -> Iterator[SteppingClock]:
    """A clock that every program started inside is on; this process keeps the right time."""
    clock = SteppingClock(folder)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in clock.environment.items():
            patch.setenv(variable, value)
        yield clock
