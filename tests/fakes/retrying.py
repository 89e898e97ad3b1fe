"""A client that only ever does what it is told to: try again (promises P4, P5 and P7)."""

import itertools
from time import monotonic, sleep

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Response, b64, make_csr
from fakes.promises import check_promises

_PATIENCE = 20.0
_numbers = itertools.count(1)


class Retrying:
    """A client that does what a 503 asks for, only sooner."""

    def __init__(self, client: AcmeClient) -> None:
        self.client = client
        self.refused = 0

    def post(self, url: str, payload: object = None) -> Response:
        deadline = monotonic() + _PATIENCE
        while (answer := self.client.post(url, payload)).status == 503:
            check_try_again(answer)
            self.refused += 1
            assert monotonic() < deadline
            sleep(0.02)
        return answer

    def poll(self, url: str, waiting: tuple[str, ...]) -> Response:
        deadline = monotonic() + _PATIENCE
        while (answer := self.post(url)).json.get("status") in waiting:
            assert monotonic() < deadline, answer.body
        return answer

    def issue(self) -> tuple[str, x509.Certificate]:
        """A certificate by a new order, and the order's id."""
        name = f"database-{next(_numbers)}.test"
        order = self.post(self.client.directory["newOrder"], {"identifiers": [{"type": "dns", "value": name}]})
        assert order.status == 201, order.body
        url = order.headers["Location"]
        for authorization_url in order.json["authorizations"]:
            authorization = self.post(authorization_url).json
            challenge = next(each for each in authorization["challenges"] if each["type"] == "http-01")
            self.client.prepare(name, challenge)
            self.post(challenge["url"], {})
            assert self.poll(authorization_url, ("pending",)).json["status"] == "valid"
        csr = make_csr([name], ec.generate_private_key(ec.SECP256R1()))
        while True:
            final = self.post(order.json["finalize"], {"csr": b64(csr)})
            assert final.status == 200, final.body
            final = self.poll(url, ("processing",))
            if final.json["status"] != "ready":
                break
        assert final.json["status"] == "valid", final.body
        certificate = x509.load_pem_x509_certificates(self.post(final.json["certificate"]).body)[0]
        return url.rpartition("/")[2], certificate


def check_try_again(answer: Response) -> None:
    assert answer.refusal == (503, "serverInternal")
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Replay-Nonce"]


def check_issued(url: str, issued: dict[str, x509.Certificate]) -> int:
    """Every certificate that was handed out is recorded; how many serials were abandoned."""
    report, histories = check_promises(url)
    for order_id, certificate in issued.items():
        recorded = histories[order_id].certificate
        assert recorded is not None
        assert int(recorded.serial, 16) == certificate.serial_number
    return report.abandoned
