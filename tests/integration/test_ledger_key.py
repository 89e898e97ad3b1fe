"""The ledger's key: made once in the token of the preferred issuing CA, however often it is interrupted."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fakes.checkpoints import ORIGIN, checkpointer, grow, published
from fakes.home import MakeSettings, never_started
from fakes.service import FakeClock
from privyseal_acme.opening import open_hsm, open_store
from privyseal_ca.ceremony import ledger_key as module
from privyseal_ca.ceremony.ledger_key import ledger_key, ledger_origin
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, StoreUnavailableError
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, find_fact, set_fact, set_issuer_state
from privyseal_ca.store.migrate import migrate


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Store, Hsm]]:
    await asyncio.to_thread(migrate, settings.database_url)
    store, hsm = open_store(settings), open_hsm(settings)
    await store.open()
    try:
        yield store, hsm
    finally:
        await hsm.close()
        await store.close()


async def make(store: Store, hsm: Hsm) -> str:
    return await ledger_key(store, hsm, FakeClock(), os.urandom, actor="operator:tests", correlation="tests")


async def generated(store: Store, uri: str) -> int:
    ledger = await store.read(lambda tx: [decode_entry(row.entry) for row in entries(tx, count=10_000)])
    return sum(entry["kind"] == "key.generated" and entry["payload"]["uri"] == uri for entry in ledger)


async def test_it_is_ed25519_in_the_token_of_the_preferred_issuer_and_signs(make_settings: MakeSettings) -> None:
    async with opened(never_started(make_settings())) as (store, hsm):
        uri = await make(store, hsm)
        assert await make(store, hsm) == uri
        assert await store.read(lambda tx: find_fact(tx, "ledger-key")) == uri
        assert await generated(store, uri) == 1
        issuer = next(row for row in await store.read(all_issuers) if row.state == "active")
        parsed = KeyUri.parse(uri)
        assert parsed.token_uri == KeyUri.parse(issuer.key_uri).token_uri
        assert (parsed.object or "").startswith("ledger-")
        key = await hsm.open_signing_key(uri)
        assert isinstance(key.public_key, ed25519.Ed25519PublicKey)
        signer = checkpointer(store, key)
        assert await signer.sign_due()
        await published(store, signer)


async def test_p256_where_the_token_has_no_ed25519(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    supports = Hsm.supports

    async def older(self: Hsm, token_uri: str, algorithm: str) -> bool:
        return algorithm != "ed25519" and await supports(self, token_uri, algorithm)  # type: ignore[arg-type]

    monkeypatch.setattr(Hsm, "supports", older)
    async with opened(never_started(make_settings())) as (store, hsm):
        key = await hsm.open_signing_key(await make(store, hsm))
        assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
        signer = checkpointer(store, key)
        assert await signer.sign_due()
        await published(store, signer)


async def test_an_interruption_between_key_and_fact(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = []

    def fail(transaction: object, name: str, value: str) -> None:
        if name == "ledger-key":
            labels.append(KeyUri.parse(value).object)
            raise StoreUnavailableError("The disk is full.")
        set_fact(transaction, name, value)  # type: ignore[arg-type]

    async with opened(never_started(make_settings())) as (store, hsm):
        with monkeypatch.context() as patch:
            patch.setattr(module, "set_fact", fail)
            with pytest.raises(StoreUnavailableError):
                await make(store, hsm)
        uri = await make(store, hsm)
        assert [KeyUri.parse(uri).object] == labels
        assert await generated(store, uri) == 1


async def test_there_is_none_without_an_active_issuer(make_settings: MakeSettings) -> None:
    async with opened(never_started(make_settings())) as (store, hsm):
        for row in await store.read(all_issuers):
            await store.write(lambda tx, id_=row.id: set_issuer_state(tx, id_, "retired"))  # type: ignore[misc]
        with pytest.raises(ConfigurationError, match="No issuing CA"):
            await make(store, hsm)


async def test_the_origin_is_the_one_that_was_recorded(make_settings: MakeSettings) -> None:
    async with opened(never_started(make_settings())) as (store, hsm):
        assert await ledger_origin(store, ORIGIN) == ORIGIN
        assert await ledger_origin(store, "other.example") == "other.example"
        await grow(store, 1)
        assert await checkpointer(store, await hsm.open_signing_key(await make(store, hsm))).sign_due()
        assert await ledger_origin(store, "other.example") == ORIGIN
