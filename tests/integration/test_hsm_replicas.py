"""Tokens that are said to hold the same keys, and do not, or not as they must; and settings that name none."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.shim import CKA, CKR
from fakes.token_faults import ManualClock
from fakes.two_tokens import PIN, Keys, TwoTokens, sign, signed_by, strange_twin, until
from privyseal_ca.errors import (
    ConfigurationError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.places import plain, read_replicas
from privyseal_ca.hsm.uri import KeyUri

pytest_plugins = ("fakes.two_tokens_fixtures",)


async def test_another_key_of_the_same_name_is_refused_and_named(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], caplog: pytest.LogCaptureFixture
) -> None:
    await strange_twin(tokens)
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    with caplog.at_level(logging.WARNING):
        await hsm.probe()
    assert f"module-path={tokens.b.path} is another one" in caplog.text
    a, b = hsm.tokens()
    assert (a.up, b.up) == (True, False)
    assert "another one" in b.reason
    tokens.a.take_away(CKR.SESSION_HANDLE_INVALID)
    with pytest.raises(SignerUnavailableError):
        await key.run(sign)
    assert tokens.b.signature_count == 0
    assert not key.available


async def test_another_key_is_refused_also_while_the_right_one_is_away(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    public_key = (await opened(replicas=()).open_signing_key(keys.signing)).public_key
    await strange_twin(tokens)
    tokens.a.take_away()
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing, public_key=public_key)
    assert not key.available
    with pytest.raises(SignerUnavailableError):
        await key.run(sign)
    assert tokens.b.signature_count == 0


async def test_the_right_key_comes_with_a_public_half_that_is_not_the_replicas(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    """Without anything to compare with, the first key that was met is the one; the other is refused when it comes."""
    await strange_twin(tokens)
    tokens.a.take_away()
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    tokens.a.bring_back()
    await asyncio.sleep(0.05)
    await hsm.probe()
    a, b = hsm.tokens()
    assert (a.up, b.up) == (False, True)
    assert "another one" in a.reason
    assert await signed_by(tokens.b, key)


async def test_a_wrong_pin_of_one_token_is_tried_once_and_the_other_serves(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    def pins(uri: KeyUri) -> Pin:
        return Pin("wrong" if uri.module_path == tokens.b.path else PIN)

    hsm = opened(pins=pins)
    key = await hsm.open_signing_key(keys.signing)
    for _ in range(3):
        await hsm.probe()
    assert tokens.b.logins == 1
    assert "PIN" in hsm.tokens()[1].reason
    assert await signed_by(tokens.a, key)
    tokens.a.take_away(CKR.SESSION_HANDLE_INVALID)
    with pytest.raises(SignerUnavailableError):
        await key.run(sign)
    assert tokens.b.logins == 1


async def test_a_wrong_pin_of_the_preferred_token_leaves_the_other(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    def pins(uri: KeyUri) -> Pin:
        return Pin("wrong" if uri.module_path == tokens.a.path else PIN)

    hsm = opened(pins=pins)
    before = tokens.a.logins
    key = await hsm.open_signing_key(keys.signing)
    await hsm.open_wrapping_key(keys.wrapping)
    await hsm.probe()
    assert tokens.a.logins == before + 1
    assert await signed_by(tokens.b, key)


async def test_each_tokens_pin_is_asked_for_by_its_own_uri(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    asked: list[KeyUri] = []

    def pins(uri: KeyUri) -> Pin:
        asked.append(uri)
        return Pin(PIN)

    hsm = opened(pins=pins, replicas=(f"{tokens.uri_b}&pin-source=/run/pin-b",))
    await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    assert [uri.pin_source for uri in asked] == [None, "/run/pin-b"]
    assert [state.uri for state in hsm.tokens()] == [tokens.uri_a, tokens.uri_b], "no PIN's place is shown"


async def test_a_key_that_breaks_the_promise_in_one_token_is_refused_there(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    tokens.b.lie(CKA.EXTRACTABLE, value=True)
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    assert "CKA_EXTRACTABLE" in hsm.tokens()[1].reason
    assert await signed_by(tokens.a, key)
    tokens.a.take_away(CKR.SESSION_HANDLE_INVALID)
    with pytest.raises(SignerUnavailableError):
        await key.run(sign)
    assert tokens.b.signature_count == 0


async def test_nothing_signs_when_the_key_is_broken_everywhere(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    tokens.a.lie(CKA.EXTRACTABLE, value=True)
    tokens.b.lie(CKA.NEVER_EXTRACTABLE, value=False)
    with pytest.raises(SignerMisconfiguredError) as caught:
        await opened().open_signing_key(keys.signing)
    assert "CKA_EXTRACTABLE" in caught.value.message
    assert "CKA_NEVER_EXTRACTABLE" in caught.value.message


async def test_a_key_that_was_not_replicated_yet_is_looked_for_now_and_then(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    clock = ManualClock()
    hsm = opened(modules=Modules(monotonic=clock))
    uri = (await hsm.generate_signing_key(tokens.uri_a, "responder", "ec-p256", key_id=b"\3")).uri
    issuer, responder = await hsm.open_signing_key(keys.signing), await hsm.open_signing_key(uri)
    await hsm.probe()
    b = hsm.tokens()[1]
    assert (b.up, b.keys) == (True, ("issuer",))
    assert "responder" in b.reason
    scans = tokens.b.calls("C_Initialize")
    for _ in range(5):
        await hsm.probe()
        with pytest.raises(ZeroDivisionError):
            await responder.run(lambda _: 1 // 0)
    assert tokens.b.calls("C_Initialize") == scans
    tokens.replicate()
    clock.now += 31
    await hsm.probe()
    assert hsm.tokens()[1].keys == ("issuer", "responder")
    tokens.a.take_away(CKR.SESSION_HANDLE_INVALID)
    assert await signed_by(tokens.b, responder)
    assert await signed_by(tokens.b, issuer)


async def test_a_key_that_no_token_has(tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]) -> None:
    with pytest.raises(SignerMisconfiguredError):
        await opened().open_signing_key(keys.signing.replace("object=issuer", "object=none"))
    tokens.b.take_away()
    with pytest.raises(SignerUnavailableError):  # it may be in the one that is away
        await opened().open_signing_key(keys.signing.replace("object=issuer", "object=none"))


# --- the wrapping key -----------------------------------------------------------------------------------------------


async def test_secrets_are_wrapped_and_opened_in_either_token(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_wrapping_key(keys.wrapping)
    by_a = await key.wrap(b"secret", b"context")
    await hsm.probe()
    tokens.a.take_away()
    await asyncio.sleep(0)
    assert await key.unwrap(by_a, b"context") == b"secret"
    by_b = await key.wrap(b"other", b"context")
    tokens.a.bring_back()

    async def back() -> bool:
        await hsm.probe()
        return hsm.tokens()[0].signing == 1

    await until(back)
    assert await key.unwrap(by_b, b"context") == b"other"
    with pytest.raises(SignerError, match="not wrapped by"):
        await key.unwrap(by_b, b"another context")


async def test_a_token_that_has_not_shown_its_key_opens_and_does_not_wrap(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    wrapped = await (await opened(replicas=()).open_wrapping_key(keys.wrapping)).wrap(b"secret", b"context")
    tokens.a.take_away()
    hsm = opened()
    key = await hsm.open_wrapping_key(keys.wrapping)
    with pytest.raises(SignerUnavailableError):
        await key.wrap(b"secret", b"context")
    with pytest.raises(SignerUnavailableError):  # the value or the key may be wrong
        await key.unwrap(wrapped, b"another context")
    assert await key.unwrap(wrapped, b"context") == b"secret"
    assert await key.unwrap(await key.wrap(b"more", b"context"), b"context") == b"more", "what it opened has shown it"


async def test_another_wrapping_key_wraps_nothing(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = await (await opened(replicas=()).open_wrapping_key(keys.wrapping)).wrap(b"secret", b"context")
    await strange_twin(tokens)
    hsm = opened()
    key = await hsm.open_wrapping_key(keys.wrapping)
    with caplog.at_level(logging.WARNING):
        await hsm.probe()
    assert "is another one than" in caplog.text
    assert "another one" in hsm.tokens()[1].reason
    tokens.a.take_away()
    for attempt in (key.wrap(b"secret", b"context"), key.unwrap(wrapped, b"context")):
        with pytest.raises(SignerUnavailableError):
            await attempt


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "said"),
    [
        (("pkcs11:token=b",), "without a module"),
        (("pkcs11:token=b;object=key?module-path=/b.so",), "names a key"),
        (("pkcs11:?module-path=/b.so",), "names no token"),
        (("pkcs11:token=b?module-path=/b.so", "pkcs11:token=b?module-path=/b.so&pin-source=/pin"), "twice"),
        (("token=b",), "PKCS #11 URI is refused"),
    ],
)
def test_settings_that_make_no_sense(replicas: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_replicas(replicas)
    assert caught.value.hint
    assert "pin-source" not in caught.value.message


async def test_a_token_is_not_its_own_replica(tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]) -> None:
    with pytest.raises(ConfigurationError, match="names only"):
        await opened(replicas=(tokens.uri_a,)).open_signing_key(keys.signing)
    # Where keys are at home in different tokens, each of them is named.
    hsm = opened(replicas=(tokens.uri_a, tokens.uri_b))
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    assert [state.uri for state in hsm.tokens()] == [tokens.uri_a, tokens.uri_b]
    assert plain(KeyUri.parse(key.uri)) == keys.signing


async def test_a_replica_whose_module_is_not_there_is_a_mistake(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], tmp_path: Path
) -> None:
    hsm = opened(replicas=(f"pkcs11:token=b?module-path={tmp_path}/none.so",))
    with pytest.raises(SignerMisconfiguredError, match="no PKCS#11 module"):
        await hsm.open_signing_key(keys.signing)
