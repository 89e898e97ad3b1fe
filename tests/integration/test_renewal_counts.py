"""What windows are spread by is read from the certificates' table, piece by piece, and new certificates are counted."""

from datetime import datetime

from fakes.acme_client import AcmeClient, Issued
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.protocol.ari import certificate_id
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.certificates import CertificateRow, add_certificate, find_certificate
from privyseal_ca.store.statement import Transaction

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


def place(client: AcmeClient, row: CertificateRow) -> float:
    """Where in the usual range the window begins, 0 to 1."""
    identifier = certificate_id(bytes.fromhex(row.issuer_id), int(row.serial, 16))
    answer = client.request("GET", f"{client.directory['renewalInfo']}/{identifier}")
    assert answer.status == 200
    start = datetime.fromisoformat(answer.json["suggestedWindow"]["start"]).timestamp()
    life = row.not_after - row.not_before
    spread = life / 6 * 7 / 8
    return (start - row.not_before - life * 5 / 12) / spread


def test_ranks_come_from_the_table(start_service: StartService, new_client: NewClient) -> None:
    service = start_service()
    client = new_client(service)
    client.at_any_time = True
    row = row_of(service, client.issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-1_000_000)
    service.clock.advance(8 * _HOUR)
    for _ in range(3):
        last = place(client, row)
    assert 0.99 < last < 1.01, "all the others were issued before it"
    put(service, row, shift=_HOUR, index=1_000_000)
    assert place(client, row) == last, "nothing is counted anew within a minute"
    service.clock.advance(61)
    assert abs(place(client, row) - 0.5) < 0.01, "as many were issued after it"


def test_what_has_expired_is_not_read_on(start_service: StartService, new_client: NewClient) -> None:
    """A whole batch that has expired ends the reading: older ones have expired, too."""
    service = start_service()
    client = new_client(service)
    client.at_any_time = True
    row = row_of(service, client.issue("counted.test"))
    put(service, row, shift=-_HOUR, index=-2_000_000)
    put(service, row, shift=-30 * 86400, index=-1_000_000)
    service.clock.advance(8 * _HOUR)
    places = {place(client, row) for _ in range(5)}
    assert len(places) == 1
    assert places.pop() < 0.99, "those behind them are not counted"


def test_a_capacity_that_is_set_counts(start_service: StartService, new_client: NewClient) -> None:
    """One in two seconds: the usual range is too short for what falls due together, so it begins earlier."""
    service = start_service(renewal={"capacity": 1})
    client = new_client(service)
    client.at_any_time = True
    row = row_of(service, client.issue("counted.test"))
    put(service, row, shift=60, index=-1_000_000)
    service.clock.advance(8 * _HOUR)
    for _ in range(3):
        first = place(client, row)
    assert first < -0.3
