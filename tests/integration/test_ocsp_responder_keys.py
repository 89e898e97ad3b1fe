"""The responders' keys: made in the issuer's token, once, however often it is interrupted."""

import asyncio
import os
import secrets

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fakes.home import MakeSettings, never_started
from fakes.ocsp_desk import ocsp_desk
from fakes.service import FakeClock
from privyseal_acme.cli import cli
from privyseal_acme.opening import open_hsm, open_store
from privyseal_ca.ceremony import responders
from privyseal_ca.ceremony.responders import responder_keys
from privyseal_ca.config import Settings
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.store.issuers import all_issuers, find_issuer, set_issuer_state
from privyseal_ca.store.migrate import migrate


async def keys(settings: Settings) -> dict[str, str]:
    migrate(settings.database_url)
    store, hsm = open_store(settings), open_hsm(settings)
    await store.open()
    try:
        return dict(
            await responder_keys(store, hsm, FakeClock(), os.urandom, actor="operator:tests", correlation="tests")
        )
    finally:
        await hsm.close()
        await store.close()


async def test_one_for_each_active_issuer_in_the_issuers_own_token(make_settings: MakeSettings) -> None:
    settings = make_settings()
    uris = await keys(settings)
    assert await keys(settings) == uris
    store = open_store(settings)
    await store.open()
    rows = await store.read(all_issuers)
    await store.close()
    assert uris.keys() == {row.id for row in rows if row.state == "active"}
    for row in rows:
        if row.state == "active":
            own, responder = KeyUri.parse(row.key_uri), KeyUri.parse(uris[row.id])
            assert own.token_uri == responder.token_uri
            assert own.object != responder.object


async def test_an_interruption_between_key_and_row(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = never_started(make_settings())

    def fail(*_: object) -> None:
        raise StoreUnavailableError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(responders, "add_responder", fail)
        with pytest.raises(StoreUnavailableError):
            await keys(settings)
    uris = await keys(settings)
    store = open_store(settings)
    await store.open()
    ledger = await store.read(lambda tx: [decode_entry(row.entry) for row in entries(tx, count=10_000)])
    await store.close()
    made = [entry["payload"]["uri"] for entry in ledger if entry["kind"] == "key.generated"]
    assert [uri for uri in made if uri in uris.values()] == list(uris.values())
    # The home has been started once before.
    assert sum("-ocsp-" in uri for uri in made) == 2 * len(uris)


async def test_a_database_that_was_restored_to_before_there_was_one(make_settings: MakeSettings) -> None:
    """The label in the token is taken, and that keeps nobody from starting."""
    first, again = await keys(never_started(make_settings())), await keys(never_started(make_settings()))
    assert first.keys() == again.keys()
    assert set(first.values()).isdisjoint(again.values())


@pytest.mark.parametrize(("kind", "expected"), [("rsa-2048", rsa.RSAPublicKey), ("ec-p384", ec.EllipticCurvePublicKey)])
async def test_the_kind_of_key_and_retirement(make_settings: MakeSettings, kind: str, expected: type) -> None:
    settings = make_settings()
    name = f"key-{secrets.token_hex(4)}"
    environment = {"PRIVYSEAL_HOME": str(settings.home), "PRIVYSEAL_DATABASE__URL": settings.database_url}
    command = ["issuer", "create", name, "--key-type", kind]
    result = await asyncio.to_thread(CliRunner().invoke, cli, command, env=environment)
    assert result.exit_code == 0, result.output
    async with ocsp_desk(settings) as desk:
        issuer = next(each for each in desk.authority.issuers if each.identity.name == name)
        responder = desk.responders.find(issuer.id)
        assert responder is not None
        assert isinstance(responder.key.public_key, expected)
        assert responder.key.public_key.key_size in {256, 2048}  # type: ignore[union-attr]
        row = await desk.issue(issuer=issuer)

        def retire(transaction: object) -> None:
            found = find_issuer(transaction, name)  # type: ignore[arg-type]
            assert found is not None
            set_issuer_state(transaction, found.id, "retired")  # type: ignore[arg-type]

        await desk.store.write(retire)
    # A retired issuer answers for what it issued.
    async with ocsp_desk(settings, clock=desk.clock) as again:
        assert await again.status(row.serial, issuer_id=issuer.id) == "good"
        await again.revoke(row)
        assert await again.status(row.serial, issuer_id=issuer.id) == "revoked"
