"""STANDARDS A 20 and 21: external account binding and key change (RFC 8555 sections 7.3.4 and 7.3.5)."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes.acme_client import ABSENT, AcmeClient, JwsKey, MacKey, Response, b64, make_jws, unb64
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.flow.eab import Narrowing, NewEabKey


@pytest.fixture(scope="module")
def bound_service(service_factory: Any) -> Iterator[RunningService]:
    """A service whose accounts must be bound."""
    with service_factory() as start:
        yield start(acme={"external_account_required": True})


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a20_a_binding(bound_service: RunningService, new_client: NewClient, alg: str) -> None:
    eab = bound_service.eab_key(label="team")
    client = new_client(bound_service, registered=False)
    binding = client.binding(eab.row.kid, eab.secret, alg=alg)
    answer = client.register(externalAccountBinding=binding)
    assert answer.status == 201
    assert answer.json["externalAccountBinding"] == binding
    assert client.post(client.account or "").json["externalAccountBinding"] == binding
    assert client.issue("a20.test").order.json["status"] == "valid"
    entry = next(item for item in reversed(bound_service.ledger()) if item["kind"] == "account.created")
    assert entry["payload"]["eab_kid"] == eab.row.kid


def test_a20_a_binding_is_required(bound_service: RunningService, new_client: NewClient) -> None:
    client = new_client(bound_service, registered=False)
    with bound_service.unchanged():
        assert client.new_account().refusal == (403, "externalAccountRequired")
        # A lookup makes nothing and needs none.
        assert client.new_account(onlyReturnExisting=True).refusal == (400, "accountDoesNotExist")


def test_a20_a_binding_that_is_not_required_is_verified_all_the_same(
    service: RunningService, new_client: NewClient
) -> None:
    eab = service.eab_key()
    client = new_client(service, registered=False)
    with service.unchanged():
        bad = client.new_account(externalAccountBinding=client.binding(eab.row.kid, b"x" * 32))
    assert bad.refusal == (403, "unauthorized")
    good = client.new_account(externalAccountBinding=client.binding(eab.row.kid, eab.secret))
    assert good.status == 201
    assert "externalAccountBinding" in good.json


def test_a20_nothing_is_echoed_that_was_not_verified(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    # The account is there already: the request, whatever it binds, is ignored (section 7.3.1).
    answer = client.new_account(externalAccountBinding=client.binding("nobody", b"x"))
    assert answer.status == 200
    assert "externalAccountBinding" not in answer.json


Wrong = Callable[[AcmeClient, NewEabKey], Any]


def _changed(**members: Any) -> Wrong:
    return lambda client, eab: client.binding(eab.row.kid, eab.secret, **members)


_BINDINGS: dict[str, tuple[Wrong, tuple[int, str]]] = {
    "no JWS": (lambda *_: {}, (400, "malformed")),
    "members are numbers": (lambda *_: {"protected": 1, "payload": 2, "signature": 3}, (400, "malformed")),
    "general serialisation": (
        lambda client, eab: {**client.binding(eab.row.kid, eab.secret), "signatures": []},
        (400, "malformed"),
    ),
    "unprotected header": (
        lambda client, eab: {**client.binding(eab.row.kid, eab.secret), "header": {}},
        (400, "malformed"),
    ),
    "padding": (
        lambda client, eab: {
            **(jws := client.binding(eab.row.kid, eab.secret)),
            "signature": jws["signature"] + "=",
        },
        (400, "malformed"),
    ),
    "crit": (_changed(crit=["x"], x=1), (400, "malformed")),
    "alg none": (_changed(alg="none"), (400, "badSignatureAlgorithm")),
    "alg ES256": (_changed(alg="ES256"), (400, "badSignatureAlgorithm")),
    "alg HS1": (_changed(alg="HS1"), (400, "badSignatureAlgorithm")),
    "alg of the wrong length": (
        lambda client, eab: make_jws(
            MacKey(eab.secret, "HS256"),
            client.key.jwk,
            {"alg": "HS512", "kid": eab.row.kid, "url": client.directory["newAccount"]},
        ),
        (403, "unauthorized"),
    ),
    "no kid": (_changed(kid=ABSENT), (400, "malformed")),
    "kid is a number": (_changed(kid=5), (400, "malformed")),
    "jwk instead of kid": (_changed(kid=ABSENT, jwk={"kty": "oct", "k": "AA"}), (400, "malformed")),
    "kid and jwk": (_changed(jwk={}), (400, "malformed")),
    "unknown kid": (_changed(kid="0" * 24), (403, "unauthorized")),
    "kid of another key": (lambda client, eab: client.binding("x", eab.secret), (403, "unauthorized")),
    "a nonce": (_changed(nonce="AAAA"), (400, "malformed")),
    "no url": (_changed(url=ABSENT), (400, "malformed")),
    "another url": (
        lambda client, eab: client.binding(eab.row.kid, eab.secret, url=client.directory["newOrder"]),
        (400, "malformed"),
    ),
    "another secret": (lambda client, eab: client.binding(eab.row.kid, bytes(32)), (403, "unauthorized")),
    "no secret": (lambda client, eab: client.binding(eab.row.kid, b""), (403, "unauthorized")),
    "the secret as text": (
        lambda client, eab: client.binding(eab.row.kid, eab.hmac_key.encode()),
        (403, "unauthorized"),
    ),
    "a truncated MAC": (
        lambda client, eab: {
            **(jws := client.binding(eab.row.kid, eab.secret)),
            "signature": b64(unb64(jws["signature"])[:16]),
        },
        (403, "unauthorized"),
    ),
    "no MAC": (
        lambda client, eab: {**client.binding(eab.row.kid, eab.secret), "signature": ""},
        (403, "unauthorized"),
    ),
    "another key": (
        lambda client, eab: client.binding(eab.row.kid, eab.secret, payload=JwsKey().jwk),
        (400, "malformed"),
    ),
    "payload is no key": (
        lambda client, eab: client.binding(eab.row.kid, eab.secret, payload={"a": 1}),
        (400, "badPublicKey"),
    ),
    "payload is no object": (
        lambda client, eab: client.binding(eab.row.kid, eab.secret, payload=[]),
        (400, "malformed"),
    ),
    "payload is empty": (
        lambda client, eab: client.binding(eab.row.kid, eab.secret, payload=b""),
        (400, "malformed"),
    ),
    "too long": (
        lambda client, eab: client.binding(eab.row.kid, eab.secret, payload={**client.key.jwk, "x5c": "A" * 14_000}),
        (400, "malformed"),
    ),
}


@pytest.mark.parametrize("kind", _BINDINGS)
def test_a20_every_failure_refuses_the_account(bound_service: RunningService, new_client: NewClient, kind: str) -> None:
    eab = bound_service.eab_key()
    client = new_client(bound_service, registered=False)
    wrong, refusal = _BINDINGS[kind]
    with bound_service.unchanged():
        answer = client.new_account(externalAccountBinding=wrong(client, eab))
    assert answer.refusal == refusal
    if answer.problem == "badSignatureAlgorithm":
        assert answer.json["algorithms"] == ["HS256", "HS384", "HS512"]
    # The key is not used up by it.
    assert client.new_account(externalAccountBinding=client.binding(eab.row.kid, eab.secret)).status == 201


def test_a20_keys_expire_end_and_are_used_up(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"external_account_required": True})
    expired, once = service.eab_key(lifetime=60), service.eab_key(max_uses=1)

    def bind(eab: NewEabKey) -> Response:
        client = new_client(service, registered=False)
        return client.new_account(externalAccountBinding=client.binding(eab.row.kid, eab.secret))

    assert bind(expired).status == bind(once).status == 201
    service.clock.advance(60)
    with service.unchanged():
        assert bind(expired).refusal == bind(once).refusal == (403, "unauthorized")


def test_a20_a_key_for_one_account_binds_one(bound_service: RunningService, new_client: NewClient) -> None:
    eab = bound_service.eab_key(max_uses=1)
    clients = [new_client(bound_service, registered=False) for _ in range(6)]
    bindings = [client.binding(eab.row.kid, eab.secret) for client in clients]
    for client in clients:
        assert client.fresh_nonce()
    with ThreadPoolExecutor(len(clients)) as threads:
        answers = list(
            threads.map(
                lambda pair: pair[0].new_account(externalAccountBinding=pair[1]), zip(clients, bindings, strict=True)
            )
        )
    assert sorted(answer.status for answer in answers) == [201] + [403] * 5


def test_a20_a_binding_narrows_the_names(bound_service: RunningService, new_client: NewClient) -> None:
    eab = bound_service.eab_key(narrowing=Narrowing(dns=("team.test",)))
    client = new_client(bound_service, registered=False)
    client.register(externalAccountBinding=client.binding(eab.row.kid, eab.secret))
    assert client.new_order("a.team.test").status == 201
    for name in ("a.test", "127.0.0.1"):
        assert client.new_order(name).refusal == (400, "rejectedIdentifier")


# Key change


def inner(client: AcmeClient, new: JwsKey, **changes: Any) -> dict[str, Any]:
    """The inner JWS of a keyChange; ``payload`` replaces its payload, ``signer`` its signature, the rest its header."""
    payload = changes.pop("payload", {"account": client.account, "oldKey": client.key.jwk})
    signer = changes.pop("signer", new)
    header = {"alg": new.alg, "jwk": new.jwk, "url": client.directory["keyChange"], **changes}
    return make_jws(signer, payload, header)


@pytest.mark.parametrize("alg", ["ES256", "ES384", "Ed25519", "RS256"])
def test_a21_a_key_change(service: RunningService, new_client: NewClient, alg: str) -> None:
    client = new_client(service)
    pending = client.order("a21.test")
    old, new = client.key, JwsKey(alg)
    answer = client.post(client.directory["keyChange"], inner(client, new))
    assert answer.status == 200
    assert answer.json["status"] == "valid"

    assert client.post(client.account or "").refusal in {(400, "malformed"), (400, "badSignatureAlgorithm")}
    old_key = new_client(service, registered=False)
    old_key.key = old
    assert old_key.new_account(onlyReturnExisting=True).refusal == (400, "accountDoesNotExist")

    client.key = new
    assert client.new_account(onlyReturnExisting=True).headers["Location"] == client.account
    # What was pending goes on, and its proof is of the new key.
    client.authorize(pending.json["authorizations"][0])
    assert client.post(pending.headers["Location"]).json["status"] == "ready"
    assert service.ledger()[-1]["kind"] == "authorization.validated"


def test_a21_the_old_key_can_be_used_again_later(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    first, second = client.key, JwsKey()
    client.post(client.directory["keyChange"], inner(client, second))
    client.key = second
    assert client.post(client.directory["keyChange"], inner(client, first)).status == 200
    client.key = first
    assert client.post(client.account or "").status == 200


def _payload(**members: Any) -> Callable[[AcmeClient, JwsKey], object]:
    def make(client: AcmeClient, new: JwsKey) -> object:
        payload = {"account": client.account, "oldKey": client.key.jwk, **members}
        return inner(client, new, payload={name: value for name, value in payload.items() if value is not ABSENT})

    return make


_CHANGES: dict[str, tuple[Callable[[AcmeClient, JwsKey], object], tuple[int, str]]] = {
    "no JWS": (lambda *_: {}, (400, "malformed")),
    "a list": (lambda *_: [], (400, "malformed")),
    "nothing": (lambda *_: b"", (400, "malformed")),
    "kid instead of jwk": (
        lambda client, new: inner(client, new, jwk=ABSENT, kid=client.account),
        (400, "malformed"),
    ),
    "kid and jwk": (lambda client, new: inner(client, new, kid=client.account), (400, "malformed")),
    "a nonce": (lambda client, new: inner(client, new, nonce=client.fresh_nonce()), (400, "malformed")),
    "another url": (lambda client, new: inner(client, new, url=client.account), (400, "malformed")),
    "no url": (lambda client, new: inner(client, new, url=ABSENT), (400, "malformed")),
    "alg none": (lambda client, new: inner(client, new, alg="none"), (400, "badSignatureAlgorithm")),
    "alg HS256": (lambda client, new: inner(client, new, alg="HS256"), (400, "badSignatureAlgorithm")),
    "alg of another key": (lambda client, new: inner(client, new, alg="ES384"), (400, "badSignatureAlgorithm")),
    "signed by the old key": (lambda client, new: inner(client, new, signer=client.key), (400, "malformed")),
    "signed by a stranger": (lambda client, new: inner(client, new, signer=JwsKey()), (400, "malformed")),
    "no signature": (lambda client, new: {**inner(client, new), "signature": ""}, (400, "malformed")),
    "unprotected header": (lambda client, new: {**inner(client, new), "header": {}}, (400, "malformed")),
    "a bad key": (lambda client, new: inner(client, new, jwk={"kty": "EC"}), (400, "badPublicKey")),
    "an empty payload": (lambda client, new: inner(client, new, payload=b""), (400, "malformed")),
    "no account": (_payload(account=ABSENT), (400, "malformed")),
    "another account": (_payload(account="https://ca.test/acme/account/x"), (400, "malformed")),
    "account is a number": (_payload(account=5), (400, "malformed")),
    "no oldKey": (_payload(oldKey=ABSENT), (400, "malformed")),
    "oldKey is text": (_payload(oldKey="x"), (400, "malformed")),
    "oldKey is no key": (_payload(oldKey={}), (400, "badPublicKey")),
    "oldKey is another": (_payload(oldKey=JwsKey().jwk), (400, "malformed")),
    "oldKey is the new one": (
        lambda client, new: inner(client, new, payload={"account": client.account, "oldKey": new.jwk}),
        (400, "malformed"),
    ),
}


@pytest.mark.parametrize("kind", _CHANGES)
def test_a21_every_failure_keeps_the_key(service: RunningService, client: AcmeClient, kind: str) -> None:
    wrong, refusal = _CHANGES[kind]
    jws = wrong(client, JwsKey())
    with service.unchanged():
        answer = client.post(client.directory["keyChange"], jws)
    assert answer.refusal == refusal
    assert client.post(client.account or "").status == 200


def test_a21_the_new_key_is_nobodys(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    other = new_client(service)
    with service.unchanged():
        taken = client.post(client.directory["keyChange"], inner(client, other.key))
        own = client.post(client.directory["keyChange"], inner(client, client.key))
    for answer, owner in ((taken, other), (own, client)):
        assert answer.refusal == (409, "malformed")
        assert answer.headers["Location"] == owner.account


def test_a21_a_weak_new_key(service: RunningService, client: AcmeClient) -> None:
    weak = JwsKey("RS256", rsa.generate_private_key(3, 2048))
    with service.unchanged():
        assert client.post(client.directory["keyChange"], inner(client, weak)).refusal == (400, "badPublicKey")


def test_a21_two_changes_that_meet(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    keys = [JwsKey() for _ in range(4)]
    twins = [client.twin() for _ in keys]
    for twin in twins:
        assert twin.fresh_nonce()
    bodies = [
        json.dumps(twin.sign(twin.directory["keyChange"], inner(client, key))).encode()
        for twin, key in zip(twins, keys, strict=True)
    ]
    with ThreadPoolExecutor(len(twins)) as threads:
        answers = list(
            threads.map(
                lambda pair: pair[0].send(pair[0].directory["keyChange"], pair[1]), zip(twins, bodies, strict=True)
            )
        )
    assert [answer.status for answer in answers].count(200) == 1
    client.key = keys[[answer.status for answer in answers].index(200)]
    assert client.post(client.account or "").status == 200
    for twin in twins:
        twin.close()
