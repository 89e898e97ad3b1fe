"""Bad input again, where the database is PostgreSQL: it refuses values that SQLite takes, and every refusal must be ours."""

from collections.abc import Iterator
from typing import Any

import pytest

from fakes.acme_client import AcmeClient, b64
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.service import NewClient, RunningService

pytestmark = pytest.mark.postgresql

#: NUL, which its text cannot hold; a lone continuation; numbers beyond 64 bits.
ODD = ["\0", "a\0b.test", "\x7f", "\u0080", "\U0010ffff", "'; DROP TABLE acme_order; --", "%s", "a" * 2000]


@pytest.fixture(scope="module")
def service(service_factory: Any, make_settings: Any, postgresql: Postgresql) -> Iterator[RunningService]:
    """A service on PostgreSQL, in place of the one on SQLite."""
    url = copy_to_postgresql(make_settings().database_url, postgresql)
    with service_factory() as start:
        yield start(database={"url": url})


def test_a_certificate(client: AcmeClient) -> None:
    assert client.issue("postgresql.test", "127.0.0.1").order.json["status"] == "valid"


@pytest.mark.parametrize("text", ODD)
def test_odd_text_everywhere(service: RunningService, client: AcmeClient, new_client: NewClient, text: str) -> None:
    stranger = new_client(service, registered=False)
    directory = client.directory
    names = [{"type": "dns", "value": "a.test"}]
    before = {**service.state(), "used_nonce": []}
    answers = [
        client.post(directory["newOrder"], {"identifiers": [{"type": "dns", "value": text}]}),
        client.post(directory["newOrder"], {"identifiers": [{"type": text, "value": "a.test"}]}),
        client.post(directory["newOrder"], {"identifiers": names, "profile": text}),
        client.post(directory["newOrder"], {"identifiers": names, "replaces": text}),
        client.post(directory["newAuthz"], {"identifier": {"type": "dns", "value": text}}),
        client.post(client.account or "", {"contact": [f"mailto:{text}@b.test"]}),
        client.post(client.account or "", {"status": text}),
        client.post(client.account or "", None, kid=f"{client.account}{text}"),
        client.post(f"{client.account}/orders?cursor={b64(f'1:{text}'.encode())}"),
        client.post(f"{client.account}/orders?cursor={b64(b'9' * 40 + b':x')}"),
        stranger.new_account(externalAccountBinding=stranger.binding(text, b"x" * 32)),
        client.revoke(b"0\0", reason=2**70),
    ]
    for number, answer in enumerate(answers):
        assert answer.status < 500, (number, answer.body)
    assert {**service.state(), "used_nonce": []} == before
    assert client.post(client.account or "").status == 200


def test_a_nonce_is_good_once(client: AcmeClient) -> None:
    nonce = client.fresh_nonce()
    assert client.post(client.account or "", None, nonce=nonce).status == 200
    assert client.post(client.account or "", None, nonce=nonce).refusal == (400, "badNonce")
