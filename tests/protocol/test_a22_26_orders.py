"""STANDARDS A 22 to 26: orders, identifiers, states, challenges (RFC 8555 sections 7.1, 7.4, 7.5 and 8)."""

import hashlib
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, b64, challenge_of, make_csr, unb64
from fakes.service import NewClient, RunningService, StartService
from privyseal_ca.clock import rfc3339


def at(seconds: float) -> str:
    """RFC 3339 in UTC."""
    return rfc3339(seconds)


def seconds(text: str) -> float:
    """The opposite."""
    return datetime.fromisoformat(text).timestamp()


# 22: times, and what an order has


def test_a22_validity_that_was_asked_for_is_honoured(service: RunningService, client: AcmeClient) -> None:
    start, end = service.clock.now() + 600, service.clock.now() + 7200
    issued = client.issue("a22.test", notBefore=at(start), notAfter=at(end))
    assert issued.certificate.not_valid_before_utc.timestamp() == start
    assert issued.certificate.not_valid_after_utc.timestamp() == end
    assert (issued.order.json["notBefore"], issued.order.json["notAfter"]) == (at(start), at(end))


def test_a22_times_with_an_offset_are_the_same_times(service: RunningService, client: AcmeClient) -> None:
    end = service.clock.now() + 7200
    text = datetime.fromtimestamp(end + 7200, UTC).strftime("%Y-%m-%dT%H:%M:%S") + "+02:00"
    assert client.order("a22.test", notAfter=text).json["notAfter"] == at(end)


def test_a22_without_times_the_profile_decides(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a22.test")
    assert "notBefore" not in issued.order.json
    assert "notAfter" not in issued.order.json
    lifetime = issued.certificate.not_valid_after_utc - issued.certificate.not_valid_before_utc
    assert lifetime.total_seconds() <= 86400 + 600


_TIMES: dict[str, dict[str, Any]] = {
    "too long": {"notAfter": 86400 * 400},
    "beyond the issuer": {"notAfter": 86400 * 365 * 20},
    "in the past": {"notAfter": -3600},
    "ends before it begins": {"notBefore": 7200, "notAfter": 3600},
    "begins when it ends": {"notBefore": 3600, "notAfter": 3600},
    "begins long ago": {"notBefore": -86400 * 30},
    "begins in years": {"notBefore": 86400 * 365 * 5},
}


@pytest.mark.parametrize("kind", _TIMES)
def test_a22_validity_that_cannot_be_honoured_is_refused(
    service: RunningService, client: AcmeClient, kind: str
) -> None:
    members = {name: at(service.clock.now() + offset) for name, offset in _TIMES[kind].items()}
    with service.unchanged():
        assert client.new_order("a22.test", **members).refusal == (400, "malformed")


@pytest.mark.parametrize(
    "value",
    [
        "tomorrow", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "", 5, 1e300, True, [], "9" * 400,
        "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59",
        "2026-01-01T00:00:00.123456789123456789Z", "-001-01-01T00:00:00Z",
    ],
)  # fmt: skip
@pytest.mark.parametrize("member", ["notBefore", "notAfter"])
def test_a22_times_that_are_none(service: RunningService, client: AcmeClient, member: str, value: object) -> None:
    with service.unchanged():
        assert client.new_order("a22.test", **{member: value}).refusal == (400, "malformed")


@pytest.mark.parametrize("until", [None, 7200])
def test_a22_a_promised_beginning_is_kept_however_long_the_proof_takes(
    fresh_service: RunningService, fresh_client: AcmeClient, until: int | None
) -> None:
    start = fresh_service.clock.now()
    members = {"notBefore": at(start)} | ({"notAfter": at(start + until)} if until else {})
    order = fresh_client.ready_order("a22.test", **members)
    fresh_service.clock.advance(3600)
    fresh_client.nonce = None
    fresh_client.finalize(order, make_csr(["a22.test"], ec.generate_private_key(ec.SECP256R1())))
    final = fresh_client.poll(order.headers["Location"], ("processing",)).json
    assert final["status"] == "valid"
    certificate = fresh_client.download(final["certificate"])[0]
    assert certificate.not_valid_before_utc.timestamp() == start
    assert certificate.not_valid_after_utc.timestamp() == start + (until or 86400 - 1)


def test_a22_a_validity_that_is_over_ends_the_order(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    order = fresh_client.ready_order("a22.test", notAfter=at(fresh_service.clock.now() + 1800))
    fresh_service.clock.advance(3600)
    fresh_client.nonce = None
    answer = fresh_client.finalize(order, make_csr(["a22.test"], ec.generate_private_key(ec.SECP256R1())))
    assert (answer.status, answer.json["status"]) == (200, "invalid")
    assert answer.json["error"]["type"].startswith("urn:ietf:params:acme:error:")
    assert "validity" in answer.json["error"]["detail"]
    assert fresh_client.post(order.headers["Location"]).json == answer.json
    assert "certificate.intent" not in {entry["kind"] for entry in fresh_service.ledger()[-3:]}


def test_a22_an_order_has_all_that_it_must(service: RunningService, client: AcmeClient) -> None:
    answer = client.order("b.a22.test", "a.a22.test", "127.0.0.1")
    assert answer.headers["Location"].startswith(f"{service.settings.server.public_https}/acme/order/")
    order = answer.json
    assert set(order) == {"status", "expires", "identifiers", "authorizations", "finalize", "profile"}
    assert order["status"] == "pending"
    assert seconds(order["expires"]) == service.clock.now() + service.settings.acme.order_lifetime
    assert order["identifiers"] == [
        {"type": "dns", "value": "b.a22.test"},
        {"type": "dns", "value": "a.a22.test"},
        {"type": "ip", "value": "127.0.0.1"},
    ]
    assert len(set(order["authorizations"])) == 3
    assert client.post(answer.headers["Location"]).json == order


def test_a22_identifiers_and_authorizations_never_change(client: AcmeClient) -> None:
    before = client.order("a22.test", "b22.test")
    names = ["a22.test", "b22.test"]
    for url in before.json["authorizations"]:
        client.authorize(url)
    key = ec.generate_private_key(ec.SECP256R1())
    client.finalize(before, make_csr(names, key))
    after = client.poll(before.headers["Location"], ("processing",)).json
    for member in ("identifiers", "authorizations", "finalize", "expires"):
        assert after[member] == before.json[member]
    assert after["status"] == "valid"


def test_a22_nothing_else_is_issued_than_was_ordered(client: AcmeClient) -> None:
    issued = client.issue("b.a22.test", "a.a22.test", "127.0.0.1")
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {"a.a22.test", "b.a22.test", "127.0.0.1"}
    # certbot reads a common name as a DNS name: there is none.
    assert not issued.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)


# 23: names


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("A23.TEST", "a23.test"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("XN--BCHER-KVA.test", "xn--bcher-kva.test"),
    ],
)
def test_a23_names_are_normalised(client: AcmeClient, given: str, canonical: str) -> None:
    order = client.order(given).json
    assert order["identifiers"] == [{"type": "dns", "value": canonical}]
    assert client.post(order["authorizations"][0]).json["identifier"] == {"type": "dns", "value": canonical}


def test_a23_names_are_ordered_once(client: AcmeClient) -> None:
    order = client.order("a23.test", "A23.test", "a23.TEST", "127.0.0.1", "127.0.0.1").json
    assert order["identifiers"] == [{"type": "dns", "value": "a23.test"}, {"type": "ip", "value": "127.0.0.1"}]
    assert len(order["authorizations"]) == 2


_BAD_NAMES = [
    "", ".", "..", ".test", "a..test", "-a.test", "a-.test", "a_b.test", "a b.test", "a.test/", "a.test:80", "a@b.test",
    "http://a.test", "a" * 64 + ".test", ".".join(["a" * 60] * 5) + ".test", "*", "*.", "**.test", "*.*.test", "a.*.test",
    "a*.test", "*a.test", "b\u00fccher.test", "xn--a.test", "xn--.test", "xn--0.test", "ab--c.test", "xn--bcher-kva\u0301.test",
    "XN--\u00fc.test", "xn--zzzzzzzzz.test", "127.0.0.1", "1.2.3.4.", "::1", "[::1]", "0x7f.1", "1.2.3", "2130706433",
    "a\0.test", "a.test\n", "\u0430.test", "a\u3002test", "\ufeffa.test",
]  # fmt: skip


@pytest.mark.parametrize("name", _BAD_NAMES)
def test_a23_bad_dns_names(service: RunningService, client: AcmeClient, name: str) -> None:
    identifiers = [{"type": "dns", "value": name}]
    with service.unchanged():
        answer = client.post(client.directory["newOrder"], {"identifiers": identifiers})
        ahead = client.post(client.directory["newAuthz"], {"identifier": identifiers[0]})
    assert answer.status == 400
    assert answer.problem in {"malformed", "rejectedIdentifier"}
    assert ahead.status in {400, 403}
    assert ahead.problem in {"malformed", "rejectedIdentifier"}


@pytest.mark.parametrize(
    "identifiers",
    [
        None, [], {}, "a.test", 5, [5], [None], ["a.test"], [[]], [{}], [{"type": "dns"}], [{"value": "a.test"}],
        [{"type": 5, "value": "a.test"}], [{"type": "dns", "value": 5}], [{"type": "dns", "value": None}],
        [{"type": "dns", "value": ["a.test"]}], [{"type": "d" * 65, "value": "a.test"}],
        [{"type": "dns", "value": "a" * 2049}],
    ],
)  # fmt: skip
def test_a23_identifiers_of_another_form(service: RunningService, client: AcmeClient, identifiers: object) -> None:
    with service.unchanged():
        answer = client.post(client.directory["newOrder"], {"identifiers": identifiers})
    assert answer.refusal == (400, "malformed")


@pytest.mark.parametrize("kind", ["", "DNS", "email", "uri", "permanent-identifier", "TNAuthList"])
def test_a23_other_types_of_identifiers(service: RunningService, client: AcmeClient, kind: str) -> None:
    with service.unchanged():
        answer = client.post(client.directory["newOrder"], {"identifiers": [{"type": kind, "value": "a.test"}]})
    assert answer.refusal == (400, "unsupportedIdentifier")
    assert answer.json["subproblems"][0]["identifier"] == {"type": kind, "value": "a.test"}


def test_a23_too_many_names(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"max_identifiers": 3})
    client = new_client(service)
    names = [f"{number}.a23.test" for number in range(4)]
    with service.unchanged():
        assert client.new_order(*names).refusal == (400, "malformed")
    assert client.new_order(*names[:3]).status == 201


def test_a23_wildcards(client: AcmeClient) -> None:
    order = client.order("*.a23.test", "a23.test").json
    assert [item["value"] for item in order["identifiers"]] == ["*.a23.test", "a23.test"]
    wildcard, plain = (client.post(url).json for url in order["authorizations"])
    assert wildcard["identifier"] == plain["identifier"] == {"type": "dns", "value": "a23.test"}
    assert wildcard["wildcard"] is True
    assert "wildcard" not in plain
    assert {item["type"] for item in wildcard["challenges"]} == {"dns-01", "dns-account-01"}
    assert {item["type"] for item in plain["challenges"]} == {"http-01", "dns-01", "tls-alpn-01", "dns-account-01"}


def test_a23_a_wildcard_is_issued_after_dns_01(client: AcmeClient) -> None:
    issued = client.issue("*.wild.a23.test")
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["*.wild.a23.test"]


def test_a23_policy(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(
        policy={"default": {"allow_dns": ("test",), "deny_dns": ("secret.test",), "allow_wildcards": False}}
    )
    client = new_client(service)
    assert client.new_order("a.test").status == 201
    for name in ("a.local", "secret.test", "x.secret.test", "*.a.test", "example.com", "8.8.8.8"):
        with service.unchanged():
            assert client.new_order(name).refusal == (400, "rejectedIdentifier"), name


# 24: states


def test_a24_an_order_from_pending_to_valid(service: RunningService, client: AcmeClient) -> None:
    order = client.order("a24.test", "b24.test")
    url, names = order.headers["Location"], ["a24.test", "b24.test"]
    first, second = order.json["authorizations"]
    authorization = client.post(first).json
    assert authorization["status"] == "pending"
    assert {item["status"] for item in authorization["challenges"]} == {"pending"}
    assert client.authorize(first).json["status"] == "valid"
    assert client.post(url).json["status"] == "pending"
    client.authorize(second)
    assert client.post(url).json["status"] == "ready"
    client.finalize(order, make_csr(names, ec.generate_private_key(ec.SECP256R1())))
    final = client.poll(url, ("processing",)).json
    assert final["status"] == "valid"
    assert "certificate" in final
    assert "expires" in final


def test_a24_a_valid_authorization(service: RunningService, client: AcmeClient) -> None:
    url = client.order("a24.test").json["authorizations"][0]
    authorization = client.authorize(url).json
    now = service.clock.now()
    assert authorization["status"] == "valid"
    assert seconds(authorization["expires"]) == now + service.settings.acme.authorization_lifetime
    assert [item["type"] for item in authorization["challenges"]] == ["http-01"]
    challenge = authorization["challenges"][0]
    assert challenge["status"] == "valid"
    assert seconds(challenge["validated"]) == now
    assert "error" not in challenge


def test_a24_a_failed_validation(service: RunningService, client: AcmeClient) -> None:
    order = client.order("a24.test")
    url = order.json["authorizations"][0]
    client.post(challenge_of(client.post(url).json, "http-01")["url"], {})
    authorization = client.poll(url).json
    assert authorization["status"] == "invalid"
    assert [item["type"] for item in authorization["challenges"]] == ["http-01"]
    challenge = authorization["challenges"][0]
    assert challenge["status"] == "invalid"
    assert challenge["error"]["type"].startswith("urn:ietf:params:acme:error:")
    assert challenge["error"]["detail"]
    assert "validated" not in challenge
    assert client.post(order.headers["Location"]).json["status"] == "invalid"
    entry = service.ledger()[-1]
    assert (entry["kind"], entry["payload"]["identifier"]) == ("authorization.failed", "dns:a24.test")


def test_a24_what_has_ended_stays_as_it_is(service: RunningService, client: AcmeClient) -> None:
    order = client.order("a24.test")
    url = order.json["authorizations"][0]
    challenges = {item["type"]: item["url"] for item in client.post(url).json["challenges"]}
    client.post(challenges["http-01"], {})
    ended = client.poll(url)
    client.prepare("a24.test", challenge_of(ended.json, "http-01"))
    with service.unchanged():
        assert client.post(challenges["http-01"], {}).json["status"] == "invalid"
        assert client.post(challenges["tls-alpn-01"], {}).refusal == (400, "malformed")
        assert client.post(url, {"status": "deactivated"}).refusal == (400, "malformed")
        assert client.finalize(order, b"0\0").refusal == (403, "orderNotReady")
    assert client.post(url).json == ended.json


def test_a24_an_order_runs_out(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    pending, ready = fresh_client.order("a24.test"), fresh_client.ready_order("b24.test")
    fresh_service.clock.advance(fresh_service.settings.acme.order_lifetime)
    fresh_client.nonce = None
    for order in (pending, ready):
        assert fresh_client.post(order.headers["Location"]).json["status"] == "invalid"
        assert fresh_client.finalize(order, b"0\0").refusal == (403, "orderNotReady")
    url = pending.json["authorizations"][0]
    authorization = fresh_client.post(url).json
    assert authorization["status"] in {"invalid", "expired"}
    challenge = challenge_of(authorization, "http-01")["url"]
    with fresh_service.unchanged():
        assert fresh_client.post(challenge, {}).refusal == (400, "malformed")


def test_a24_what_time_has_ended_is_not_changed_by_anything(
    fresh_service: RunningService, fresh_client: AcmeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation that ends too late, and a deactivation that comes too late."""
    assert fresh_client.http01 is not None
    asked, answer = threading.Event(), threading.Event()

    def hold_back() -> None:
        asked.set()
        answer.wait(10)

    monkeypatch.setattr(fresh_client.http01, "before", hold_back)
    url = fresh_client.order("a24.test").json["authorizations"][0]
    challenge = challenge_of(fresh_client.post(url).json, "http-01")
    fresh_client.prepare("a24.test", challenge)
    fresh_client.post(challenge["url"], {})
    assert asked.wait(10)
    fresh_service.clock.advance(fresh_service.settings.acme.order_lifetime)
    fresh_client.nonce = None
    assert fresh_client.post(url).json["status"] == "invalid"
    answer.set()
    ended = fresh_client.poll(challenge["url"]).json
    assert ended["status"] == "invalid"
    assert ended["error"]["type"].startswith("urn:ietf:params:acme:error:")
    assert fresh_client.post(url).json["status"] == "invalid"

    pending, valid = fresh_client.order("b24.test"), fresh_client.ready_order("c24.test")
    fresh_service.clock.advance(fresh_service.settings.acme.order_lifetime)
    fresh_client.nonce = None
    with fresh_service.unchanged():
        for order in (pending, valid):
            late = fresh_client.post(order.json["authorizations"][0], {"status": "deactivated"})
            assert late.refusal == (400, "malformed")


def test_a24_a_valid_authorization_expires_and_takes_the_order_along(
    fresh_service: RunningService, fresh_client: AcmeClient
) -> None:
    order = fresh_client.ready_order("a24.test")
    url = order.json["authorizations"][0]
    assert fresh_client.post(order.headers["Location"]).json["status"] == "ready"
    fresh_service.clock.advance(fresh_service.settings.acme.authorization_lifetime - 1)
    fresh_client.nonce = None
    assert fresh_client.post(order.headers["Location"]).json["status"] == "ready"
    fresh_service.clock.advance(1)
    assert fresh_client.post(url).json["status"] == "expired"
    assert challenge_of(fresh_client.post(url).json, "http-01")["status"] == "valid"
    assert fresh_client.post(order.headers["Location"]).json["status"] == "invalid"
    key = ec.generate_private_key(ec.SECP256R1())
    with fresh_service.unchanged():
        assert fresh_client.finalize(order, make_csr(["a24.test"], key)).refusal == (403, "orderNotReady")


def test_a24_a_valid_order_stays_valid(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    issued = fresh_client.issue("a24.test")
    fresh_service.clock.advance(90 * 86400)
    fresh_client.nonce = None
    assert fresh_client.post(issued.url).json["status"] == "valid"


def test_a24_a_deactivated_authorization_ends_its_order(service: RunningService, client: AcmeClient) -> None:
    pending, ready = client.order("a24.test"), client.ready_order("b24.test")
    for order in (pending, ready):
        url = order.json["authorizations"][0]
        answer = client.post(url, {"status": "deactivated"})
        assert (answer.status, answer.json["status"]) == (200, "deactivated")
        assert client.post(order.headers["Location"]).json["status"] == "invalid"
        assert client.post(url, {"status": "deactivated"}).refusal == (400, "malformed")
    assert service.ledger()[-1]["kind"] == "authorization.deactivated"
    key = ec.generate_private_key(ec.SECP256R1())
    with service.unchanged():
        assert client.finalize(ready, make_csr(["b24.test"], key)).refusal == (403, "orderNotReady")


def test_a24_a_challenge_that_was_valid_stays_so_when_its_authorization_is_given_up(client: AcmeClient) -> None:
    url = client.ready_order("a24.test").json["authorizations"][0]
    before = challenge_of(client.post(url).json, "http-01")
    after = challenge_of(client.post(url, {"status": "deactivated"}).json, "http-01")
    assert after == before
    assert before["status"] == "valid"
    assert client.post(before["url"]).json == before


@pytest.mark.parametrize("status", ["valid", "revoked", "expired", "", 5, None])
def test_a24_other_changes_of_an_authorization(service: RunningService, client: AcmeClient, status: object) -> None:
    url = client.order("a24.test").json["authorizations"][0]
    with service.unchanged():
        assert client.post(url, {"status": status}).refusal == (400, "malformed")
        assert client.post(url, {}).refusal == (400, "malformed")


def test_a24_reused_authorizations_make_a_ready_order(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"reuse_authorizations": True})
    client = new_client(service)
    first = client.ready_order("a24.test")
    second = client.order("a24.test")
    assert second.json["status"] == "ready"
    assert second.json["authorizations"] == first.json["authorizations"]
    assert client.order("a24.test", "b24.test").json["status"] == "pending"
    assert client.order("*.a24.test").json["status"] == "pending"
    assert new_client(service).order("a24.test").json["status"] == "pending"
    # What is about to end is not reused.
    service.clock.advance(service.settings.acme.authorization_lifetime - 30)
    client.nonce = None
    assert client.order("a24.test").json["status"] == "pending"


def test_a24_authorizations_are_not_reused_without_being_asked_to(client: AcmeClient) -> None:
    first = client.ready_order("a24.test")
    second = client.order("a24.test")
    assert second.json["status"] == "pending"
    assert second.json["authorizations"] != first.json["authorizations"]


def test_a24_a_given_up_authorization_is_not_reused(start_service: StartService, new_client: NewClient) -> None:
    client = new_client(start_service(acme={"reuse_authorizations": True}))
    first = client.ready_order("a24.test")
    client.post(first.json["authorizations"][0], {"status": "deactivated"})
    assert client.order("a24.test").json["status"] == "pending"


# 25: challenges


def test_a25_tokens(client: AcmeClient) -> None:
    tokens = []
    for _ in range(4):
        authorization = client.post(client.order("a25.test").json["authorizations"][0]).json
        for challenge in authorization["challenges"]:
            tokens.append(challenge["token"])
            assert set(challenge) == {"type", "url", "status", "token"}
    assert len(set(tokens)) == len(tokens) == 16
    assert all(len(unb64(token)) >= 16 and b64(unb64(token)) == token for token in tokens)


def test_a25_a_response_starts_validation(client: AcmeClient) -> None:
    url = client.order("a25.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    client.prepare("a25.test", challenge)
    answer = client.post(challenge["url"], {"keyAuthorization": "old clients", "unknown": [1]})
    assert answer.status == 200
    assert answer.json["url"] == challenge["url"]
    assert answer.json["status"] in {"processing", "valid"}
    assert "error" not in answer.json
    if answer.json["status"] == "processing":
        assert int(answer.headers["Retry-After"]) >= 1
    assert client.poll(url).json["status"] == "valid"


def test_a25_retry_after_while_validation_goes_on(start_service: StartService, new_client: NewClient) -> None:
    # Nothing is behind the port: the second of two attempts comes late enough to look meanwhile.
    service = start_service(validation={"attempts": 2, "retry_delay": 30, "http_port": 1})
    client = new_client(service)
    url = client.order("a25.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    answer = client.post(challenge["url"], {})
    for again in (answer, client.post(challenge["url"]), client.post(challenge["url"], {}), client.post(url)):
        assert int(again.headers["Retry-After"]) >= 1
        assert "error" not in again.json
        assert again.json["status"] in {"processing", "pending"}
    assert challenge_of(client.post(url).json, "http-01")["status"] == "processing"
    other = challenge_of(client.post(url).json, "dns-01")
    assert other["status"] == "pending"
    assert client.post(other["url"], {}).refusal == (400, "malformed")
    # Given up meanwhile, it ends; whatever the validation finds later does not count.
    assert client.post(url, {"status": "deactivated"}).json["status"] == "deactivated"
    assert challenge_of(client.post(url).json, "http-01")["status"] == "invalid"


@pytest.mark.parametrize("payload", [b"x", b"[]", b"null", b'"x"', b"5"])
def test_a25_a_response_is_an_object(service: RunningService, client: AcmeClient, payload: bytes) -> None:
    url = client.order("a25.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    with service.unchanged():
        assert client.post(challenge["url"], payload).refusal == (400, "malformed")


def test_a25_a_second_response_changes_nothing(service: RunningService, client: AcmeClient) -> None:
    url = client.ready_order("a25.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    with service.unchanged():
        assert client.post(challenge["url"], {}).json == challenge


# 26: validation, as the client sees it


@pytest.mark.parametrize("challenge_type", ["http-01", "dns-01"])
def test_a26_validation(service: RunningService, client: AcmeClient, challenge_type: str) -> None:
    name = f"{challenge_type}.a26.test"
    url = client.order(name).json["authorizations"][0]
    assert client.authorize(url, challenge_type).json["status"] == "valid"
    entry = service.ledger()[-1]
    assert entry["kind"] == "authorization.validated"
    assert entry["payload"]["challenge"] == challenge_type
    assert entry["payload"]["identifier"] == f"dns:{name}"
    assert entry["payload"]["evidence"]


def test_a26_http_01_asks_at_the_well_known_place(service: RunningService, client: AcmeClient) -> None:
    url = client.order("host.a26.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    client.authorize(url)
    assert client.http01 is not None
    host, path = next(item for item in client.http01.requests if item[1].endswith(challenge["token"]))
    assert path == f"/.well-known/acme-challenge/{challenge['token']}"
    assert host.partition(":")[0] == "host.a26.test"


@pytest.mark.parametrize("suffix", ["\n", "\r\n", " ", "\t \n"])
def test_a26_trailing_whitespace_is_ignored(client: AcmeClient, suffix: str) -> None:
    url = client.order("a26.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    assert client.http01 is not None
    client.http01.serve(challenge["token"], client.key_authorization(challenge) + suffix)
    client.post(challenge["url"], {})
    assert client.poll(url).json["status"] == "valid"


@pytest.mark.parametrize("wrong", ["x", "", "{0}x", "{1}", "{1}.x", "{0}\nx", " {0}"])
def test_a26_a_wrong_answer_is_not_repeated_to_anybody(client: AcmeClient, wrong: str) -> None:
    url = client.order("a26.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    body = (
        "SECRET-BODY " + wrong
        if wrong == "x"
        else wrong.format(client.key_authorization(challenge), challenge["token"])
    )
    assert client.http01 is not None
    client.http01.serve(challenge["token"], body)
    client.post(challenge["url"], {})
    answer = client.poll(url)
    ended = answer.json
    assert ended["status"] == "invalid"
    assert challenge_of(ended, "http-01")["error"]["type"].rpartition(":")[2] in {"incorrectResponse", "unauthorized"}
    assert b"SECRET-BODY" not in answer.body


def test_a26_any_matching_txt_record_suffices(client: AcmeClient) -> None:
    name = "many.a26.test"
    url = client.order(name).json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "dns-01")
    digest = b64(hashlib.sha256(client.key_authorization(challenge).encode()).digest())
    assert client.set_txt is not None
    client.set_txt(f"_acme-challenge.{name}", "other", digest, "another")
    client.post(challenge["url"], {})
    assert client.poll(url).json["status"] == "valid"


def test_a26_apex_and_wildcard_at_one_name(client: AcmeClient) -> None:
    order = client.order("both.a26.test", "*.both.a26.test")
    challenges = [challenge_of(client.post(url).json, "dns-01") for url in order.json["authorizations"]]
    digests = [b64(hashlib.sha256(client.key_authorization(item).encode()).digest()) for item in challenges]
    assert client.set_txt is not None
    client.set_txt("_acme-challenge.both.a26.test", *digests)
    for challenge, url in zip(challenges, order.json["authorizations"], strict=True):
        client.post(challenge["url"], {})
        assert client.poll(url).json["status"] == "valid"
    assert client.post(order.headers["Location"]).json["status"] == "ready"


def test_a26_challenges_can_be_turned_off(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(validation={"challenges": ("dns-01",)})
    client = new_client(service)
    authorization = client.post(client.order("a26.test").json["authorizations"][0]).json
    assert [item["type"] for item in authorization["challenges"]] == ["dns-01"]
    url = authorization["challenges"][0]["url"].replace("dns-01", "http-01")
    with service.unchanged():
        assert client.post(url, {}).refusal == (404, "malformed")
