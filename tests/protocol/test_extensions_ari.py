"""RFC 9773: renewal information, and orders that replace a certificate."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Issued, Response, b64, challenge_of, make_csr
from fakes.service import FakeClock, NewClient, RunningService, StartService
from privyseal_ca.clock import rfc3339
from privyseal_ca.store.issuers import set_issuer_state


def certificate_id(issued: Issued) -> str:
    """RFC 9773 section 4.1, computed as its appendix A does."""
    key_id = issued.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    number = issued.certificate.serial_number
    assert key_id is not None
    return f"{b64(key_id)}.{b64(number.to_bytes(number.bit_length() // 8 + 1, 'big'))}"


def renewal_info(client: AcmeClient, identifier: str) -> Response:
    """An unauthenticated GET, as certbot and mod_md make it."""
    return client.request("GET", f"{client.directory['renewalInfo']}/{identifier}")


def window(answer: Response) -> tuple[float, float]:
    """Both ends of the suggested window."""
    found = answer.json["suggestedWindow"]
    return tuple(datetime.fromisoformat(found[end]).timestamp() for end in ("start", "end"))  # type: ignore[return-value]


def test_ari_the_window(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("ari.test")
    with service.unchanged():
        answer = renewal_info(client, certificate_id(issued))
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    start, end = window(answer)
    certificate = issued.certificate
    assert certificate.not_valid_before_utc.timestamp() < start < end < certificate.not_valid_after_utc.timestamp()
    assert set(answer.json) <= {"suggestedWindow", "explanationURL"}
    assert set(answer.json["suggestedWindow"]) == {"start", "end"}
    assert all(text.endswith("Z") for text in answer.json["suggestedWindow"].values())


def test_ari_the_poll_interval(client: AcmeClient) -> None:
    answer = renewal_info(client, certificate_id(client.issue("ari.test")))
    assert 60 <= int(answer.headers["Retry-After"]) <= 86400


def test_ari_the_answer_stays_the_same(client: AcmeClient) -> None:
    identifier = certificate_id(client.issue("ari.test"))
    assert renewal_info(client, identifier).json == renewal_info(client, identifier).json


def test_ari_the_window_is_not_the_same_for_all(client: AcmeClient) -> None:
    windows = {window(renewal_info(client, certificate_id(client.issue("ari.test")))) for _ in range(4)}
    assert len(windows) > 1


def test_ari_a_revoked_certificate_is_due(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("ari.test")
    client.revoke(issued.der)
    start, end = window(renewal_info(client, certificate_id(issued)))
    assert start < end <= service.clock.now()


def test_ari_everybody_may_ask(client: AcmeClient) -> None:
    answer = renewal_info(client, certificate_id(client.issue("ari.test")))
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Replay-Nonce"] is None


@pytest.mark.parametrize(
    "identifier",
    # The first is that of RFC 9773 appendix A, of another authority.
    ["aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", "AAAA.AQ"],
)
def test_ari_certificates_of_others(client: AcmeClient, identifier: str) -> None:
    assert renewal_info(client, identifier).refusal == (404, "malformed")


def test_ari_the_issuer_must_fit(client: AcmeClient) -> None:
    serial = certificate_id(client.issue("ari.test")).partition(".")[2]
    assert renewal_info(client, f"{b64(bytes(20))}.{serial}").refusal == (404, "malformed")


_MALFORMED = [
    "x",
    ".",
    "AAAA.",
    ".AQ",
    "AAAA.AQ.AQ",
    "AAAA.AQ==",
    "AAAA=.AQ",
    "AAAA.AAAB",
    "AAAA._w",
    "AAAA.AA",
    "AAAA.AR",
]


@pytest.mark.parametrize("identifier", _MALFORMED)
def test_ari_malformed_identifiers(service: RunningService, client: AcmeClient, identifier: str) -> None:
    with service.unchanged():
        assert renewal_info(client, identifier).refusal == (400, "malformed")
        answer = client.new_order("ari.test", replaces=identifier)
    assert answer.refusal == (400, "malformed")


@pytest.mark.parametrize("identifier", ["", "a" * 200 + ".AQ", "AAAA.AQ/x", "%2e%2e"])
def test_ari_paths_that_are_none(client: AcmeClient, identifier: str) -> None:
    answer = renewal_info(client, identifier)
    assert answer.status in {400, 404}
    assert answer.problem == "malformed"


def test_ari_is_read_by_get_only(client: AcmeClient) -> None:
    url = f"{client.directory['renewalInfo']}/{certificate_id(client.issue('ari.test'))}"
    assert client.post(url).refusal == (405, "malformed")


def test_ari_the_window_leaves_time_for_retries(client: AcmeClient) -> None:
    issued = client.issue("ari.test")
    _, end = window(renewal_info(client, certificate_id(issued)))
    begin, over = (
        moment.timestamp()
        for moment in (issued.certificate.not_valid_before_utc, issued.certificate.not_valid_after_utc)
    )
    assert over - end >= (over - begin) / 4


def test_ari_the_window_moves_once_at_most(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    """Until a third of the life is over others may be issued that come before it or after it; then it stays."""
    fresh_client.at_any_time = True
    identifier = certificate_id(fresh_client.issue("ari.test"))
    seen = []
    for hour in range(24):
        seen.append(window(renewal_info(fresh_client, identifier)))
        if hour < 6:
            fresh_client.issue(f"h{hour}.ari.test")
        fresh_service.clock.advance(3600)
        fresh_client.nonce = None
    assert len(set(seen[:7])) == 1
    assert len(set(seen[8:])) == 1
    assert seen[8] != seen[0]


def test_ari_who_was_issued_first_is_renewed_first(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    fresh_client.at_any_time = True
    identifiers = []
    for number in range(4):
        identifiers.append(certificate_id(fresh_client.issue(f"n{number}.ari.test")))
        fresh_service.clock.advance(600)
        fresh_client.nonce = None
    fresh_service.clock.advance(9 * 3600)
    starts = [window(renewal_info(fresh_client, identifier))[0] for identifier in identifiers]
    assert starts == sorted(starts)
    assert starts[-1] - starts[0] > 3600, "further apart than they were issued"


def test_ari_a_key_that_is_blocked_is_due(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    issued = fresh_client.issue("ari.test")
    fresh_client.revoke(issued.der, reason=1)
    answer = renewal_info(fresh_client, certificate_id(issued))
    assert window(answer)[1] <= fresh_service.clock.now()
    assert "key is compromised" in page_of(fresh_client, answer).body.decode()
    fresh_service.clock.advance(3600)
    assert renewal_info(fresh_client, certificate_id(issued)).json == answer.json, "it stays from poll to poll"


def test_ari_an_issuer_that_is_retired(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    issued = fresh_client.issue("ari.test")
    key_id = issued.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert key_id is not None
    issuer_id = key_id.hex()
    before = renewal_info(fresh_client, certificate_id(issued))
    assert window(before)[0] > fresh_service.clock.now()
    fresh_service.write(lambda tx: set_issuer_state(tx, issuer_id, "retired"))
    answer = renewal_info(fresh_client, certificate_id(issued))
    start, end = window(answer)
    assert start < end <= fresh_service.clock.now()
    assert "no longer in use" in page_of(fresh_client, answer).body.decode()


def test_ari_closed_periods(start_service: StartService, new_client: NewClient) -> None:
    """Everything is closed but the time from a third of the life to 0.4 of it, which nobody has by default."""
    clock = FakeClock()
    closed = "/".join(rfc3339(clock.now() + share * 86400) for share in (0.4, 2))
    service = start_service(parts={"clock": clock}, renewal={"closed": (closed,)})
    client = new_client(service)
    answer = renewal_info(client, certificate_id(client.issue("ari.test")))
    start, end = window(answer)
    assert clock.now() + 0.3 * 86400 < start < end <= clock.now() + 0.4 * 86400
    assert "because of maintenance" in page_of(client, answer).body.decode()


# The page behind explanationURL


def page_of(client: AcmeClient, answer: Response) -> Response:
    """The page that an answer names."""
    page = client.request("GET", answer.json["explanationURL"])
    assert page.status == 200
    return page


def test_ari_the_explanation_is_a_page_for_people(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("ari.test")
    answer = renewal_info(client, certificate_id(issued))
    with service.unchanged():
        page = page_of(client, answer)
    headers, text = page.headers, page.body.decode()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "public, max-age=300"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    for moment in answer.json["suggestedWindow"].values():
        assert moment in text
    assert "Regular renewal" in text
    assert "ari.test" not in text, "names are not told to whoever asks"


@pytest.mark.parametrize("identifier", ["x", "AAAA.AQ", "a.b", "%3Cscript%3E.AQ"])
def test_ari_no_explanation_of_what_is_not_there(client: AcmeClient, identifier: str) -> None:
    url = client.directory["renewalInfo"].replace("renewal-info", "renewal-explained")
    answer = client.request("GET", f"{url}/{identifier}")
    assert answer.problem == "malformed"
    assert answer.status in {400, 404}


# replaces


def test_ari_a_renewal_names_what_it_replaces(client: AcmeClient) -> None:
    first = client.issue("ari.test")
    identifier = certificate_id(first)
    order = client.ready_order("ari.test", replaces=identifier)
    assert order.json["replaces"] == identifier
    assert client.post(order.headers["Location"]).json["replaces"] == identifier
    key = ec.generate_private_key(ec.SECP256R1())
    assert client.finalize(order, make_csr(["ari.test"], key)).json["replaces"] == identifier
    assert client.poll(order.headers["Location"], ("processing",)).json["replaces"] == identifier


def test_ari_without_replaces_there_is_none(client: AcmeClient) -> None:
    assert "replaces" not in client.order("ari.test").json


@pytest.mark.parametrize("finished", [False, True])
def test_ari_a_certificate_is_replaced_once(service: RunningService, client: AcmeClient, finished: bool) -> None:
    identifier = certificate_id(client.issue("ari.test"))
    if finished:
        client.issue("ari.test", replaces=identifier)
    else:
        client.order("ari.test", replaces=identifier)
    with service.unchanged():
        assert client.new_order("ari.test", replaces=identifier).refusal == (409, "alreadyReplaced")
    assert client.new_order("ari.test").status == 201


def test_ari_renewals_that_meet(client: AcmeClient) -> None:
    identifier = certificate_id(client.issue("ari.test"))
    twins = [client.twin() for _ in range(5)]
    for twin in twins:
        assert twin.fresh_nonce()
    with ThreadPoolExecutor(len(twins)) as threads:
        answers = list(threads.map(lambda twin: twin.new_order("ari.test", replaces=identifier), twins))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 4
    for twin in twins:
        twin.close()


@pytest.mark.parametrize("end", ["failed", "given up", "expired"])
def test_ari_an_order_that_failed_replaces_nothing(
    fresh_service: RunningService, fresh_client: AcmeClient, end: str
) -> None:
    client = fresh_client
    identifier = certificate_id(client.issue("ari.test"))
    order = client.order("ari.test", replaces=identifier)
    url = order.json["authorizations"][0]
    if end == "failed":
        client.post(challenge_of(client.post(url).json, "http-01")["url"], {})
        client.poll(url)
    elif end == "given up":
        client.post(url, {"status": "deactivated"})
    else:
        fresh_service.clock.advance(fresh_service.settings.acme.order_lifetime)
        client.nonce = None
    assert client.post(order.headers["Location"]).json["status"] == "invalid"
    again = client.new_order("ari.test", replaces=identifier)
    assert again.status == 201
    assert client.new_order("ari.test", replaces=identifier).refusal == (409, "alreadyReplaced")


def test_ari_another_accounts_certificate(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    identifier = certificate_id(client.issue("ari.test"))
    other = new_client(service)
    with service.unchanged():
        assert other.new_order("ari.test", replaces=identifier).refusal == (403, "unauthorized")


def test_ari_a_name_must_be_shared(service: RunningService, client: AcmeClient) -> None:
    identifier = certificate_id(client.issue("a.ari.test", "b.ari.test"))
    with service.unchanged():
        assert client.new_order("c.ari.test", replaces=identifier).refusal == (400, "malformed")
    assert client.new_order("b.ari.test", "c.ari.test", replaces=identifier).status == 201


def test_ari_an_unknown_certificate(service: RunningService, client: AcmeClient) -> None:
    with service.unchanged():
        answer = client.new_order("ari.test", replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")
    assert answer.problem in {"malformed", "unauthorized"}


@pytest.mark.parametrize("value", [5, [], {}, True, "a" * 300])
def test_ari_replaces_is_text(service: RunningService, client: AcmeClient, value: object) -> None:
    with service.unchanged():
        assert client.new_order("ari.test", replaces=value).refusal == (400, "malformed")
