"""The ledger and its witnesses: cosignatures in time and late, witnesses that fail or lie, and what they have seen (P6, P8)."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fakes.checkpoints import ORIGIN, WatchedKey, grow, published
from fakes.dns import LOOPBACK, free_port
from fakes.softhsm import SoftToken
from fakes.witnessed import Signer, Turned, cosigned, peer_of, put_back, until
from fakes.witnesses import Handler, Witnessing, answering, witnessing
from privyseal_acme.listener import Listener
from privyseal_ca.errors import LedgerBehindError, LedgerError, SplitViewError, WitnessError
from privyseal_ca.ledger.checkpoints import Checkpointer, latest_checkpoint
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.ledger.note import encode_base64
from privyseal_ca.sections import WitnessSettings
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.witness.protocol import SIZE_TYPE

pytest_plugins = ("fakes.witness_fixtures",)


def refusing(code: int, body: bytes = b"", content_type: str = "text/plain") -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            raise web.HTTPNotFound
        await request.read()
        return web.Response(status=code, body=body, headers={"Content-Type": content_type})

    return handler


# Cosignatures.


async def test_a_checkpoint_is_published_with_its_cosignature(store: Store, served: Witnessing, signer: Signer) -> None:
    metrics = Metrics()
    signing = signer(served.settings, metrics=metrics, quorum=1)
    for count in (1, 6, 300, 1):
        await grow(store, count)
        assert await signing.sign_due()
        checkpoint = await published(store, signing)
        assert await cosigned(store, served.settings) == {served.settings.vkey.partition("+")[0]}
        assert served.state.newest(ORIGIN) == checkpoint
    assert not await signing.sign_due()
    assert signing.refused == ""
    value = metrics.registry.get_sample_value
    assert value("privyseal_checkpoint_cosignatures") == value("privyseal_checkpoint_quorum") == 1
    assert value("privyseal_witness_up", {"witness": "witness.example/w1"}) == 1
    assert value("privyseal_checkpoint_refused") == 0


async def test_another_process_begins_where_the_witness_is(store: Store, served: Witnessing, signer: Signer) -> None:
    await grow(store, 40)
    await signer(served.settings).sign_due()
    await grow(store, 3)
    assert await signer(served.settings).sign_due()
    assert await cosigned(store, served.settings)


async def test_a_witness_that_comes_later_cosigns_what_is_published(
    store: Store, served: Witnessing, signer: Signer
) -> None:
    await grow(store, 5)
    assert await signer().sign_due()
    row = await store.read(latest_checkpoint)
    assert row is not None
    signing = signer(served.settings)
    await until(lambda: cosigned(store, served.settings), signing)
    later = await store.read(latest_checkpoint)
    assert later is not None
    assert later.note.startswith(row.note)
    assert later.signed_at == row.signed_at
    assert not await signing.sign_due()


async def test_one_of_two_is_dead_and_nothing_waits_for_it(
    store: Store, served: Witnessing, signer: Signer, tmp_path: Path, soft_token: SoftToken
) -> None:
    port = free_port()
    second = WitnessSettings(
        vkey=CosignatureVerifier.for_key(
            "w2.example", (await soft_token.signing_key("ed25519", "w2")).public_key
        ).vkey(),
        url=f"http://{LOOPBACK}:{port}",
    )
    metrics = Metrics()
    signing = signer(served.settings, second, metrics=metrics)
    for _ in range(3):
        await grow(store, 2)
        began = time.monotonic()
        assert await signing.sign_due()
        assert time.monotonic() - began < 1.0
        assert await cosigned(store, served.settings, second) == {"witness.example/w1"}
    value = metrics.registry.get_sample_value
    assert value("privyseal_witness_up", {"witness": "w2.example"}) == 0
    assert value("privyseal_checkpoint_cosignatures") == 1
    # Back again, it is merged into what is published.
    home = tmp_path / "second"
    home.mkdir()
    key = await soft_token.hsm.open_signing_key(soft_token.key_uri("w2"))
    async with witnessing(home, key, name="w2.example", port=port) as back:
        back.state.add(signing.verifier.vkey())

        async def both() -> bool:
            return len(await cosigned(store, served.settings, second)) == 2

        await until(both, signing)


async def test_one_that_never_answers_delays_one_checkpoint_only(
    store: Store, signer: Signer, served: Witnessing
) -> None:
    release, asked = asyncio.Event(), 0

    async def hang(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        await release.wait()
        return web.Response(status=500)

    async with answering(hang) as url:
        mute = served.settings.model_copy(update={"url": url})
        signing = signer(mute, witness_timeout=0.3)
        signing._asked = True  # the first look at the witness waits as well
        spent = []
        for _ in range(4):
            await grow(store, 1)
            began = time.monotonic()
            assert await signing.sign_due()
            spent.append(time.monotonic() - began)
        assert spent[0] >= 0.3
        assert max(spent[1:]) < 0.25
        assert asked == 1, "one request at a time"
        release.set()


_NAME = b"\xe2\x80\x94 witness.example/w1 "
LIES: dict[str, tuple[Handler, str]] = {
    "nothing": (refusing(200), "signature lines"),
    "a page": (refusing(200, b"<html>\n"), "malformed"),
    "others' signatures": (refusing(200, b"\xe2\x80\x94 somebody AAAAAAAA\n"), "without its cosignature"),
    "too much": (refusing(200, b"x" * 100_000), "more than"),
    "a text behind": (refusing(200, b"other\n\n\xe2\x80\x94 somebody AAAAAAAA\n"), "signature lines"),
    "an unknown log": (refusing(404), "does not know this log"),
    "another key": (refusing(403), "another key"),
    "an error": (refusing(500), "500"),
    "another place": (refusing(307), "307"),
    "a larger size, without showing it": (refusing(409, b"1000000\n", SIZE_TYPE), "1000000 entries"),
    "a size that is none": (refusing(409, b"-1\n", SIZE_TYPE), "shows none"),
    "a size of another type": (refusing(409, b"1\n"), "shows none"),
    "ever the same size": (refusing(409, b"1\n", SIZE_TYPE), "shows none"),
    "a refusal": (refusing(422), "shows none"),
}


@pytest.mark.parametrize("case", LIES)
async def test_a_witness_alone_stops_nobody(store: Store, signer: Signer, served: Witnessing, case: str) -> None:
    handler, problem = LIES[case]
    async with answering(handler) as url:
        metrics = Metrics()
        signing = signer(served.settings.model_copy(update={"url": url}), metrics=metrics, quorum=1)
        await grow(store, 9)
        assert await signing.sign_due()
        assert not await signing.sign_due()
        assert signing.refused == ""
        cosigner: Any = signing._cosigner
        assert problem in cosigner.problems["witness.example/w1"]
        assert metrics.registry.get_sample_value("privyseal_checkpoint_quorum") == 0
        assert not await cosigned(store, served.settings)


async def test_a_wrong_cosignature_is_not_published(store: Store, signer: Signer, served: Witnessing) -> None:
    verifier = served.witness.verifier

    async def forge(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            raise web.HTTPNotFound
        return web.Response(body=_NAME + encode_base64(verifier.key_id + bytes(72)).encode() + b"\n")

    async with answering(forge) as url:
        signing = signer(served.settings.model_copy(update={"url": url}))
        await grow(store, 9)
        assert await signing.sign_due()
        assert not await cosigned(store, served.settings)
        assert "wrong cosignature" in signing._cosigner.problems[verifier.name]  # type: ignore[union-attr]


async def test_settings_that_name_witnesses_wrongly(signer: Signer, served: Witnessing) -> None:
    with pytest.raises(WitnessError, match="same name"):
        signer(served.settings, served.settings)
    with pytest.raises(LedgerError):
        signer(WitnessSettings(vkey="w+00000000+AAAA", url="http://w.example"))


# Quorum.


@pytest.mark.parametrize("required", [True, False])
async def test_a_quorum_that_is_missing(store: Store, signer: Signer, served: Witnessing, required: bool) -> None:
    turned, port = Turned(), free_port()
    gone = served.settings.model_copy(update={"url": f"http://{LOOPBACK}:{port}"})
    signing = signer(gone, quorum=1, quorum_required=required, quorum_patience=60, monotonic=turned)
    await grow(store, 2)
    assert await signing.sign_due()
    assert signing.refused == "", "it has not been missing for long"
    turned.now += 59
    assert not await signing.sign_due()
    assert signing.refused == ""
    turned.now += 2
    assert ("0 of the 1 witnesses" in signing.refused) == required
    await grow(store, 1)
    assert await signing.sign_due(), "checkpoints go on, so that witnesses can cosign them"

    async def proxied(request: web.Request) -> web.StreamResponse:
        answer = await served.witness.submit(await request.read())
        return web.Response(status=answer.status, text=answer.text, content_type=SIZE_TYPE)

    app = web.Application()
    app.router.add_post("/add-checkpoint", proxied)
    async with Listener(app, LOOPBACK, port, grace=1):
        turned.now += 100
        await until(lambda: cosigned(store, served.settings), signing)
        await signing.sign_due()
    assert signing.refused == ""


# What they have seen.


async def test_a_database_that_was_put_back_signs_nothing(
    store: Store, served: Witnessing, signer: Signer, key: WatchedKey
) -> None:
    await grow(store, 50)
    await signer(served.settings).sign_due()
    await put_back(store, 30)
    await grow(store, 5)
    before = len(key.signed)
    metrics = Metrics()
    signing = signer(served.settings, metrics=metrics)
    for _ in range(3):
        with pytest.raises(LedgerBehindError, match=r"35 entries.*witness\.example/w1.*50"):
            await signing.sign_due()
    assert "35 entries" in signing.refused
    assert len(key.signed) == before, "the token was not asked"
    assert await store.read(latest_checkpoint) is None
    assert metrics.registry.get_sample_value("privyseal_checkpoint_refused") == 1
    # The newer database comes back.
    await put_back(store, 30)
    await grow(store, 21)
    assert await signing.sign_due()
    assert signing.refused == ""
    assert await cosigned(store, served.settings)


@pytest.mark.parametrize("grown", [20, 25])
async def test_a_ledger_that_was_forked_is_found_and_not_published(
    store: Store, served: Witnessing, signer: Signer, grown: int
) -> None:
    """Of the same size as what was witnessed, and larger."""
    await grow(store, 50)
    await signer(served.settings).sign_due()
    witnessed = served.state.newest(ORIGIN)
    await put_back(store, 30)
    await grow(store, grown, salt="fork")
    signing = signer(served.settings)
    for _ in range(2):
        with pytest.raises(SplitViewError, match=r"first 50 of.*witness\.example/w1"):
            await signing.sign_due()
    assert "two ledgers" in signing.refused
    assert await store.read(latest_checkpoint) is None
    assert served.state.newest(ORIGIN) == witnessed


@pytest.mark.parametrize("looked", [True, False])
@pytest.mark.parametrize("grown", [2, 20, 25])
async def test_a_fork_that_the_witness_is_first_asked_about(
    store: Store, served: Witnessing, signer: Signer, grown: int, looked: bool
) -> None:
    """The witness could not be asked at the start, so that the token had signed before the fork was found."""
    await grow(store, 50)
    await signer(served.settings).sign_due()
    await put_back(store, 30)
    await grow(store, grown, salt="fork")
    signing = signer(served.settings)
    signing._asked = True
    peer_of(signing).looked = looked
    for _ in range(2):
        with pytest.raises((SplitViewError, LedgerBehindError)):
            await signing.sign_due()
    assert await store.read(latest_checkpoint) is None, "and nothing of it was published"
    conflicts = served.state.conflicts(ORIGIN)
    proven: dict[int, list[bool]] = {2: [], 20: [True], 25: [False]}
    assert [conflict.proven for conflict in conflicts] == (proven[grown] if looked else []), (
        "sent only when it was compared"
    )


async def test_a_later_checkpoint_of_another_process_is_no_contradiction(
    store: Store, served: Witnessing, signer: Signer
) -> None:
    first, second = signer(served.settings), signer(served.settings)
    await grow(store, 5)
    await first.sign_due()
    await asyncio.gather(*(_busy(store, each) for each in (first, second)))
    await until(lambda: cosigned(store, served.settings), first)
    assert (first.refused, second.refused) == ("", "")
    assert await published(store, first) == served.state.newest(ORIGIN)


async def _busy(store: Store, signing: Checkpointer) -> None:
    for _ in range(8):
        await grow(store, 3)
        await signing.sign_due()
