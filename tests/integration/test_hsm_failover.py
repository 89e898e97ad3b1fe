"""Two tokens with the same keys: what the first cannot do the second does, and what may have been done is not repeated."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.shim import CKR
from fakes.token_faults import ManualClock
from fakes.two_tokens import Keys, TwoTokens, back_at, sign, signed_by, until, verify
from privyseal_ca.errors import (
    SignatureUncertainError,
    SignerUnavailableError,
)
from privyseal_ca.hsm import places
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import PrivateKey

pytest_plugins = ("fakes.two_tokens_fixtures",)


async def test_the_preferred_token_signs_and_the_other_is_looked_at_by_the_probe(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    logins = tokens.a.logins
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    wrapping = await hsm.open_wrapping_key(keys.wrapping)
    assert (key.uri, wrapping.uri) == (keys.signing, keys.wrapping)
    assert key.available
    assert await signed_by(tokens.a, key)
    assert tokens.b.logins == 0, "an open key does not wait for its replica"
    await hsm.probe()
    a, b = hsm.tokens()
    assert (a.uri, a.up, a.signing, a.reason) == (tokens.uri_a, True, 2, "")
    assert (b.uri, b.up, b.signing, b.reason) == (tokens.uri_b, True, 0, "")
    assert set(a.keys) == set(b.keys) == {"issuer", "wrapping"}
    assert (tokens.a.logins, tokens.b.logins) == (logins + 1, 1), "one login for each token"


async def test_a_token_that_goes_away_is_replaced_within_the_same_call_and_used_again_when_it_is_back(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], caplog: pytest.LogCaptureFixture
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    tokens.a.fail("C_Sign", CKR.SESSION_HANDLE_INVALID)
    tokens.a.take_away(CKR.SESSION_HANDLE_INVALID)
    assert await signed_by(tokens.b, key)
    assert key.available
    with caplog.at_level(logging.WARNING):
        await hsm.probe()
    a, b = hsm.tokens()
    assert (a.up, a.signing, b.up, b.signing) == (False, 0, True, 1)
    assert a.reason
    calls = tokens.a.calls("C_OpenSession")
    assert await signed_by(tokens.b, key)
    assert tokens.a.calls("C_OpenSession") == calls, "no request is spent on it"
    tokens.a.bring_back()
    assert await signed_by(tokens.b, key), "only a probe leads back"
    await back_at(tokens.a, hsm, key)
    assert [state.up for state in hsm.tokens()] == [True, True]


async def test_a_signature_that_may_exist_is_not_made_again_elsewhere(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    for after in (True, False):
        signatures = tokens.b.signature_count
        tokens.a.fail("C_Sign", CKR.DEVICE_ERROR, after=after)
        with pytest.raises(SignatureUncertainError):
            await key.run(sign)
        assert tokens.b.signature_count == signatures
        assert await signed_by(tokens.b, key), "what is made anew is made elsewhere"
        await back_at(tokens.a, hsm, key)


async def test_work_that_signed_once_is_not_begun_anew(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    runs = []

    def twice(private: PrivateKey) -> bytes:
        runs.append(sign(private))
        return sign(private)

    for code in (CKR.MECHANISM_INVALID, CKR.TOKEN_NOT_PRESENT):
        tokens.a.fail("C_Sign", code, skip=1)
        before = tokens.b.signature_count
        with pytest.raises(SignatureUncertainError):
            await key.run(twice)
        assert tokens.b.signature_count == before
        await back_at(tokens.a, hsm, key)
        tokens.a.lift()
    assert len(runs) == 2


async def test_work_runs_anew_only_where_nothing_was_signed(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    runs = []

    def work(private: PrivateKey) -> bytes:
        runs.append(None)
        return sign(private)

    tokens.a.fail("C_Sign", CKR.TOKEN_NOT_PRESENT)
    verify(key, await key.run(work))
    assert (len(runs), tokens.a.signature_count, tokens.b.signature_count) == (2, 0, 1)

    def broken(_: PrivateKey) -> bytes:
        runs.append(None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await key.run(broken)
    assert len(runs) == 3, "an error of the work itself is no reason to ask another token"


def _sign(message: bytes, private: PrivateKey) -> bytes:
    return private.sign(message, ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg, union-attr]


async def test_a_token_that_hangs_costs_patience_once(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "BEGIN_SECONDS", 0.2)
    hsm = opened(timeout=0.8)
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    with tokens.a.hanging("C_Sign"):
        first = asyncio.create_task(key.run(sign))
        await asyncio.to_thread(tokens.a.wait_until_hanging, "C_Sign")
        # Handed over to the token behind the one that hangs: withdrawn, as it was not begun, and signed by the other.
        messages = [b"withdrawn %d" % number for number in range(5)]
        signed = await asyncio.gather(*(key.run(partial(_sign, message)) for message in messages))
        for message, signature in zip(messages, signed, strict=True):
            key.public_key.verify(signature, message, ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg, union-attr]
        assert tokens.b.signature_count == 5
        assert not first.done(), "what was begun is waited for"
        with pytest.raises(SignatureUncertainError):
            await first
        begun = time.monotonic()
        for _ in range(20):
            assert await signed_by(tokens.b, key)
        await hsm.probe()
        assert time.monotonic() - begun < 0.6, "nobody waits for it any more"
        a, b = hsm.tokens()
        assert (a.up, b.up) == (False, True)
    await back_at(tokens.a, hsm, key)
    made = {each.data for each in tokens.a.signatures}
    assert made, "the way back is one of them"
    assert made.isdisjoint({sha256(message).digest() for message in messages}), "what was withdrawn is not signed later"


async def test_a_start_while_the_token_hangs(tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]) -> None:
    hsm = opened(timeout=0.3)
    with tokens.a.hanging("C_OpenSession"):
        key = await hsm.open_signing_key(keys.signing)
        assert await signed_by(tokens.b, key)
    await back_at(tokens.a, hsm, key)


async def test_both_away_is_away_and_either_brings_it_back(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    tokens.a.take_away()
    tokens.b.take_away()
    for _ in range(2):
        with pytest.raises((SignerUnavailableError, SignatureUncertainError)):
            await key.run(sign)
    assert not key.available
    with pytest.raises(SignerUnavailableError) as caught:
        await hsm.probe()
    assert str(tokens.a.path) in caught.value.message
    assert str(tokens.b.path) in caught.value.message
    tokens.b.bring_back()

    async def available() -> bool:
        try:
            await hsm.probe()
        except SignerUnavailableError:
            return False
        return key.available

    await until(available)
    assert await signed_by(tokens.b, key)


async def test_a_start_with_the_preferred_token_away(tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]) -> None:
    hsm = opened()
    tokens.a.take_away()
    key = await hsm.open_signing_key(keys.signing)
    assert key.uri == keys.signing, "what is recorded stays"
    assert await signed_by(tokens.b, key)
    tokens.a.bring_back()
    await back_at(tokens.a, hsm, key)


async def test_a_start_with_all_away(tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]) -> None:
    hsm = opened()
    tokens.a.take_away()
    tokens.b.take_away()
    with pytest.raises(SignerUnavailableError):
        await hsm.open_signing_key(keys.signing)
    with pytest.raises(SignerUnavailableError):
        await hsm.open_wrapping_key(keys.wrapping)


@pytest.mark.parametrize("replicated", [True, False])
async def test_a_key_whose_public_half_is_known_is_opened_before_its_token_is_there(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], replicated: bool
) -> None:
    options = {} if replicated else {"replicas": ()}
    public_key = (await opened(**options).open_signing_key(keys.signing)).public_key
    tokens.a.take_away()
    tokens.b.take_away()
    hsm = opened(**options)
    key = await hsm.open_signing_key(keys.signing, public_key=public_key)
    assert not key.available
    with pytest.raises(SignerUnavailableError):
        await hsm.probe()
    tokens.a.bring_back()

    async def available() -> bool:
        try:
            await hsm.probe()
        except SignerUnavailableError:
            return False
        return key.available

    await until(available)
    assert await signed_by(tokens.a, key)


async def test_a_token_that_fails_again_and_again_is_left_alone_for_longer(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    """It answers the probe and refuses the work: without a growing pause every probe would cost a request."""
    clock = ManualClock()
    hsm = opened(retry_after=1, modules=Modules(monotonic=clock))
    key = await hsm.open_signing_key(keys.signing)
    # It refuses the request, not the session: its own breaker knows nothing of that.
    tokens.a.fail("C_Sign", CKR.MECHANISM_INVALID, times=None)
    before = tokens.a.calls("C_Sign")
    for _ in range(60):
        assert await signed_by(tokens.b, key)
        clock.now += 1
        await hsm.probe()
    assert tokens.a.calls("C_Sign") - before <= 8
