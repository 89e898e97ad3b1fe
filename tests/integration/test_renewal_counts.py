"""What windows are spread by is read from the certificates' table, piece by piece, and new certificates are counted."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime

import pytest

from fakes.acme_client import AcmeClient, Issued
from fakes.service import NewClient, RunningService, StartService, serving
from privyseal_acme.flow.renewal import RenewalFlow, Suggestion
from privyseal_acme.protocol.ari import certificate_id
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.renewal.due import Issued as Lifetime
from privyseal_ca.store.certificates import CertificateRow, add_certificate, find_certificate
from privyseal_ca.store.statement import Transaction

Restarted = Callable[[RunningService], RunningService]
_MANY = 12_000
_HOUR = 3600


def row_of(service: RunningService, issued: Issued) -> CertificateRow:
    row = service.read(lambda tx: find_certificate(tx, serial_text(issued.certificate.serial_number)))
    assert row is not None
    return row


def put(service: RunningService, like: CertificateRow, *, shift: int, index: int) -> None:
    """Many certificates like another, issued ``shift`` seconds after it, behind the service's back."""

    def unit(transaction: Transaction) -> None:
        for number in range(_MANY):
            changed = like._replace(
                serial=f"{2**100 + index + number:032x}",
                not_before=like.not_before + shift,
                not_after=like.not_after + shift,
                ledger_index=index + number,
                ocsp=0,
            )
            add_certificate(transaction, changed)

    service.write(unit)


@pytest.fixture
def restarted() -> Iterator[Restarted]:
    """Starts a service anew: whatever it does by itself has not counted what was put into its table before."""
    with ExitStack() as stack:

        def restart(service: RunningService) -> RunningService:
            service.stop()
            return stack.enter_context(serving(service.settings, clock=service.clock))

        yield restart


def place(client: AcmeClient, row: CertificateRow) -> float:
    """Where in the usual range the window begins, 0 to 1."""
    answer = client.request("GET", f"{client.directory['renewalInfo']}/{identifier_of(row)}")
    assert answer.status == 200
    start = datetime.fromisoformat(answer.json["suggestedWindow"]["start"]).timestamp()
    return _place(Lifetime(row.not_before, row.not_after), start)


def place_of(found: Suggestion) -> float:
    """The same of an answer that nobody sent."""
    return _place(found.certificate, found.window.start)


def _place(certificate: Lifetime, start: float) -> float:
    life = certificate.not_after - certificate.not_before
    spread = life / 6 * 7 / 8
    return (start - certificate.not_before - life * 5 / 12) / spread


def identifier_of(row: CertificateRow) -> str:
    return certificate_id(bytes.fromhex(row.issuer_id), int(row.serial, 16))


def test_ranks_come_from_the_table(start_service: StartService, new_client: NewClient, restarted: Restarted) -> None:
    service = start_service()
    row = row_of(service, new_client(service).issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-1_000_000)
    service = restarted(service)
    client = new_client(service)
    client.at_any_time = True
    service.clock.advance(8 * _HOUR)
    for _ in range(3):
        last = place(client, row)
    assert 0.99 < last < 1.01, "all the others were issued before it"
    put(service, row, shift=_HOUR, index=1_000_000)
    assert place(client, row) == last, "nothing is counted anew within a minute"
    service.clock.advance(61)
    assert abs(place(client, row) - 0.5) < 0.01, "as many were issued after it"


def test_what_has_expired_is_not_read_on(
    start_service: StartService, new_client: NewClient, restarted: Restarted
) -> None:
    """A whole batch that has expired ends the reading: older ones have expired, too."""
    service = start_service()
    row = row_of(service, new_client(service).issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-2_000_000)
    put(service, row, shift=-30 * 86400, index=-1_000_000)
    service = restarted(service)
    client = new_client(service)
    client.at_any_time = True
    service.clock.advance(8 * _HOUR)
    places = {place(client, row) for _ in range(5)}
    assert len(places) == 1
    assert places.pop() < 0.99, "those behind them are not counted"


def test_a_capacity_that_is_set_counts(
    start_service: StartService, new_client: NewClient, restarted: Restarted
) -> None:
    """One in two seconds: the usual range is too short for what falls due together, so it begins earlier."""
    service = start_service(renewal={"capacity": 1})
    row = row_of(service, new_client(service).issue("counted.test"))
    # Further than a bucket of the counts is wide: none of them falls due in the same one.
    put(service, row, shift=600, index=-1_000_000)
    service = restarted(service)
    client = new_client(service)
    client.at_any_time = True
    service.clock.advance(8 * _HOUR)
    for _ in range(3):
        first = place(client, row)
    assert first < -0.3


def test_the_first_window_after_a_restart_is_by_rank(start_service: StartService, new_client: NewClient) -> None:
    """More than an answer reads by itself: the job has read all of it before anybody asks."""
    service = start_service()
    client = new_client(service)
    client.at_any_time = True
    row = row_of(service, client.issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-1_000_000)
    put(service, row, shift=_HOUR, index=1_000_000)
    service.clock.advance(8 * _HOUR)
    # The table is full and nobody has asked: as after a restart.
    renewal = RenewalFlow(service.service.context)
    assert service.call(renewal.count()), "nothing is left"
    first = service.call(renewal.suggest(identifier_of(row)))
    assert abs(place_of(first) - 0.5) < 0.01, "it stands in the middle of all"


def test_counting_goes_on_where_it_stopped(start_service: StartService, new_client: NewClient) -> None:
    service = start_service()
    row = row_of(service, new_client(service).issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-1_000_000)
    service.clock.advance(8 * _HOUR)
    renewal = RenewalFlow(service.service.context)
    calls = [service.call(renewal.count(seconds=0)) for _ in range(4)]
    assert calls == [False, False, True, True], "a batch each time, and then there is nothing left"
    identifier = identifier_of(row)
    assert place_of(service.call(renewal.suggest(identifier))) > 0.99


def test_nothing_is_counted_twice(start_service: StartService, new_client: NewClient) -> None:
    """The job and answers at the same time; then certificates that came since, once a minute."""
    service = start_service()
    row = row_of(service, new_client(service).issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-1_000_000)
    service.clock.advance(8 * _HOUR)
    renewal = RenewalFlow(service.service.context)
    identifier = identifier_of(row)

    async def all_at_once() -> None:
        await asyncio.gather(renewal.count(), renewal.count(), *(renewal.suggest(identifier) for _ in range(5)))

    service.call(all_at_once())
    put(service, row, shift=_HOUR, index=1_000_000)
    assert service.call(renewal.count())
    assert service.call(renewal.count())
    assert abs(place_of(service.call(renewal.suggest(identifier))) - 0.5) < 0.01
