"""Finalize requests that meet give one certificate (P4), and whoever comes second never touches the winner's order."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Response, b64, make_csr
from fakes.promises import check_promises
from fakes.service import NewClient, RunningService, StartService

_REPETITIONS = 50
_AT_ONCE = 4


class Meeting:
    """One account on several connections, which hand in CSRs for one order at the same moment."""

    def __init__(self, client: AcmeClient, pool: ThreadPoolExecutor) -> None:
        self.client = client
        self.twins = [client.twin() for _ in range(_AT_ONCE)]
        self._pool = pool

    def __call__(self, order: Response, csrs: list[bytes]) -> list[Response]:
        url = order.json["finalize"]
        barrier = threading.Barrier(len(csrs))

        def finalize(client: AcmeClient, csr: bytes) -> Response:
            body = json.dumps(client.sign(url, {"csr": b64(csr)})).encode()
            barrier.wait(10)
            return client.send(url, body)

        return list(self._pool.map(finalize, self.twins, csrs))


@pytest.fixture
def service(start_service: StartService) -> RunningService:
    return start_service()


@pytest.fixture
def meeting(service: RunningService, new_client: NewClient) -> Iterator[Meeting]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        meeting = Meeting(new_client(service), pool)
        yield meeting
        for twin in meeting.twins:
            twin.close()


def csr_for(name: str) -> tuple[bytes, bytes]:
    """A CSR, and its key as SubjectPublicKeyInfo."""
    key = ec.generate_private_key(ec.SECP256R1())
    return make_csr([name], key), spki(key.public_key())


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def check(service: RunningService, meeting: Meeting, orders: int) -> None:
    """One certificate for each order, and not one serial too many."""
    for client in (meeting.client, *meeting.twins):
        client.close()
    service.stop()
    report, histories = check_promises(service.settings.database_url)
    assert len(histories) == orders
    assert all(history.row.state == "valid" for history in histories.values())
    assert report.abandoned == 0
    assert all(len(history.serials) == 1 for history in histories.values())


def test_the_same_csr_many_times_at_once(service: RunningService, meeting: Meeting) -> None:
    for number in range(_REPETITIONS):
        order = meeting.client.ready_order(f"same{number}.test")
        csr, _ = csr_for(f"same{number}.test")
        answers = meeting(order, [csr] * _AT_ONCE)
        assert [answer.status for answer in answers] == [200] * _AT_ONCE, [answer.body for answer in answers]
        final = meeting.client.poll(order.headers["Location"], ("processing",))
        certificates = {answer.json.get("certificate", final.json["certificate"]) for answer in answers}
        assert certificates == {final.json["certificate"]}
    check(service, meeting, _REPETITIONS)


def test_different_csrs_at_once(service: RunningService, meeting: Meeting) -> None:
    """One wins, and the certificate is for its key; the others are told that the order is not ready."""
    for number in range(_REPETITIONS):
        order = meeting.client.ready_order(f"other{number}.test")
        csrs = [csr_for(f"other{number}.test") for _ in range(_AT_ONCE)]
        answers = meeting(order, [csr for csr, _ in csrs])
        winners = [index for index, answer in enumerate(answers) if answer.status == 200]
        assert len(winners) == 1, [answer.body for answer in answers]
        losers = {answer.refusal for index, answer in enumerate(answers) if index not in winners}
        assert losers == {(403, "orderNotReady")}
        final = meeting.client.poll(order.headers["Location"], ("processing",))
        certificate = meeting.client.download(final.json["certificate"])[0]
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert spki(key) == csrs[winners[0]][1]
    check(service, meeting, _REPETITIONS)


def test_a_bad_csr_beside_a_good_one(service: RunningService, meeting: Meeting) -> None:
    """The bad one is refused, whenever it comes, and the order is the good one's."""
    for number in range(_REPETITIONS):
        name = f"beside{number}.test"
        order = meeting.client.ready_order(name)
        good, bad = csr_for(name)[0], csr_for("another.test")[0]
        answers = meeting(order, [good, bad, b"no csr", good])
        assert [answers[0].status, answers[3].status] == [200, 200]
        assert {answers[1].status, answers[2].status} <= {400, 403}
        assert meeting.client.poll(order.headers["Location"], ("processing",)).json["status"] == "valid"
    check(service, meeting, _REPETITIONS)
