"""Tokens that lie, mistake one key for another, or fail once at the worst moment: what is believed of them, and for how long."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pkcs11
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from pkcs11 import Attribute, KeyType, ObjectClass

from fakes.shim import CKR
from fakes.softhsm import SoftToken, make_hsm
from fakes.token_faults import Faults, ManualClock
from fakes.two_tokens import Keys, TwoTokens, sign, signed_by, strange_twin, until
from privyseal_ca.errors import (
    SignatureUncertainError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.attributes import KeyAlgorithm
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.hsm.signing import TokenSigningKey

pytest_plugins = ("fakes.softhsm", "fakes.two_tokens_fixtures")

_P256 = bytes.fromhex("06082a8648ce3d030107")
RETRY_AFTER = 2.0


class Failing:
    """A process whose token fails on command."""

    def __init__(self) -> None:
        self.faults, self.clock = Faults(), ManualClock()
        self.modules = Modules(load=self.faults.load, monotonic=self.clock)
        self.hsm = make_hsm(modules=self.modules, retry_after=RETRY_AFTER)


@pytest_asyncio.fixture
async def failing(soft_token: SoftToken) -> AsyncIterator[Failing]:
    await soft_token.hsm.close()
    made = Failing()
    yield made
    await made.hsm.close()


async def signing_key(token: SoftToken, failing: Failing, algorithm: KeyAlgorithm = "ec-p256") -> TokenSigningKey:
    uri = (await failing.hsm.generate_signing_key(token.uri, "key", algorithm, key_id=b"key")).uri
    key = await failing.hsm.open_signing_key(uri)
    assert isinstance(key, TokenSigningKey)
    return key


def forge_public_half(session: pkcs11.Session, label: str, key_id: bytes, point: bytes) -> None:
    """Put another public key beside a private one."""
    for thing in list(session.get_objects({Attribute.LABEL: label, Attribute.CLASS: ObjectClass.PUBLIC_KEY})):
        thing.destroy()
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: KeyType.EC,
            Attribute.TOKEN: True,
            Attribute.LABEL: label,
            Attribute.ID: key_id,
            Attribute.EC_PARAMS: _P256,
            Attribute.EC_POINT: bytes((4, len(point))) + point,
        }
    )


# --- the key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-2048", "ed25519"])
async def test_the_first_signature_of_a_connection_is_checked(
    soft_token: SoftToken, failing: Failing, monkeypatch: pytest.MonkeyPatch, algorithm: KeyAlgorithm
) -> None:
    """The public half lies beside the private one, and proves nothing of it."""
    key = await signing_key(soft_token, failing, algorithm)
    honest = cryptoki.sign

    def spoiled(*arguments: Any) -> bytes:
        signature = honest(*arguments)
        return signature[:-1] + bytes((signature[-1] ^ 1,))

    def work(private: Any) -> bytes:
        message, sha256 = b"message", hashes.SHA256()
        if isinstance(private, ec.EllipticCurvePrivateKey):
            return private.sign(message, ec.ECDSA(sha256))
        if algorithm == "ed25519":
            return bytes(private.sign(message))
        pss = padding.PSS(padding.MGF1(sha256), padding.PSS.DIGEST_LENGTH)
        return bytes(private.sign(message, padding.PKCS1v15(), sha256) + private.sign(message, pss, sha256))

    assert await key.run(work)
    failing.faults.fail("sign", pkcs11.SessionHandleInvalid())
    monkeypatch.setattr(cryptoki, "sign", spoiled)
    pauses = []
    for _ in range(3):
        with pytest.raises(SignatureUncertainError):
            await key.run(work)
        assert not key.available
        begun = failing.clock.now
        while not key.available:
            failing.clock.now += 0.5
            try:
                await failing.hsm.probe()
            except SignerUnavailableError:
                continue
        pauses.append(failing.clock.now - begun)
    assert pauses == [2, 4, 8], "it is not asked for one signature after the other"
    monkeypatch.undo()
    assert await key.run(work)


async def test_a_replica_with_the_right_public_half_and_the_wrong_private_one(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
    numbers = key.public_key.public_numbers()
    await hsm.close()
    await strange_twin(tokens)
    module = Modules().acquire(tokens.b.path)

    def forge(_: object) -> None:
        token = module.library().get_slots(token_present=True)[0].get_token()
        session = token.open(rw=True, user_pin="user-pin-of-the-tests")
        forge_public_half(session, "issuer", b"\1", b"\4" + numbers.x.to_bytes(32) + numbers.y.to_bytes(32))
        session.close()

    await module.worker.call(forge, patience=10, limit=1)
    await module.worker.stop(module.finalise, 10)
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    tokens.a.take_away(CKR.SESSION_HANDLE_INVALID)
    with pytest.raises(SignatureUncertainError, match="SignatureInvalid"):
        await key.run(sign)
    tokens.a.bring_back()

    async def back() -> bool:
        with suppress(SignerUnavailableError):
            await hsm.probe()
            return await signed_by(tokens.a, key)
        return False

    await until(back)


async def test_a_public_half_that_is_none_is_refused_like_another_key(soft_token: SoftToken, failing: Failing) -> None:
    key = await signing_key(soft_token, failing)
    point = b"\4" + b"\xff" * 64
    await soft_token.directly(lambda session: forge_public_half(session, "key", b"key", point), failing.modules)
    failing.faults.fail("sign", pkcs11.SessionHandleInvalid())
    with pytest.raises(SignerMisconfiguredError, match="public half"):
        await key.run(sign)
    with pytest.raises(SignerMisconfiguredError, match="public half"):
        await failing.hsm.probe()
    with pytest.raises(SignerMisconfiguredError, match="public half"):
        await make_hsm(modules=failing.modules).open_signing_key(key.uri)


async def test_work_that_swallows_an_uncertain_signature_is_not_begun_anew(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_signing_key(keys.signing)
    runs = []

    def work(private: PrivateKey) -> bytes:
        runs.append(None)
        try:
            return sign(private)
        except SignerError:
            tokens.a.take_away()
            return sign(private)

    tokens.a.fail("C_Sign", CKR.FUNCTION_FAILED, after=True)
    with pytest.raises(SignatureUncertainError):
        await key.run(work)
    assert (len(runs), tokens.b.signature_count) == (1, 0)


@pytest.mark.parametrize("replicated", [True, False])
async def test_a_key_that_is_known_is_not_replaced_by_what_is_found(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm], replicated: bool
) -> None:
    """The log's key: whoever opens it knows which one it is, and the first token that has the name may have another."""
    options = {} if replicated else {"replicas": ()}
    hsm = opened(**options)
    public_key = (await hsm.open_signing_key(keys.signing)).public_key
    await hsm.close()
    tokens.make(tokens.a)
    hsm = tokens.hsm(replicas=())
    await hsm.generate_signing_key(tokens.uri_a, "issuer", "ec-p256", key_id=b"\1")
    await hsm.close()
    hsm = opened(**options)
    if replicated:
        key = await hsm.open_signing_key(keys.signing, public_key=public_key)
        assert await signed_by(tokens.b, key)
    else:
        with pytest.raises(SignerMisconfiguredError, match="another one"):
            await hsm.open_signing_key(keys.signing, public_key=public_key)


# --- the token ------------------------------------------------------------------------------------------------------


async def test_a_broken_token_in_another_slot_is_left_out(soft_token: SoftToken) -> None:
    uri = (await soft_token.signing_key()).uri
    await soft_token.hsm.close()

    class Broken:
        def get_token(self) -> None:
            raise pkcs11.DeviceError

    class Library:
        def __init__(self, path: Path) -> None:
            self._real = cryptoki.load(path)

        def get_slots(self, *, token_present: bool) -> list[Any]:
            return [Broken(), *self._real.get_slots(token_present=token_present)]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    hsm = make_hsm(modules=Modules(load=Library))  # type: ignore[arg-type]
    assert await (await hsm.open_signing_key(uri)).run(sign)
    with pytest.raises(SignerUnavailableError, match="DeviceError"):  # it may be the one that is looked for
        await hsm.open_signing_key(uri.replace(soft_token.label, "none"))
    await hsm.close()


async def test_a_module_that_hung_while_it_was_closed_can_be_opened_when_it_goes_on(soft_token: SoftToken) -> None:
    """A start that meets a hanging token gives up and begins anew, in the same process."""
    uri = (await soft_token.signing_key()).uri
    await soft_token.hsm.close()
    faults, release = Faults(), threading.Event()
    modules = Modules(load=faults.load)
    faults.hook("open", lambda: release.wait(20))
    first = make_hsm(modules=modules, timeout=0.1)
    with pytest.raises(SignerUnavailableError):
        await first.open_signing_key(uri)
    await first.close()
    second = make_hsm(modules=modules, timeout=0.1)
    with pytest.raises(SignerUnavailableError, match="being closed"):
        await second.open_signing_key(uri)
    release.set()
    faults.hook("open", lambda: None)
    third = make_hsm(modules=modules)

    async def opens() -> bool:
        try:
            return bool(await (await third.open_signing_key(uri)).run(sign))
        except SignerUnavailableError:
            return False

    await until(opens)
    for hsm in (second, third):
        await hsm.close()


async def test_a_key_that_is_not_there_does_not_end_every_session_again_and_again(
    soft_token: SoftToken, failing: Failing
) -> None:
    """Absence is believed after a fresh look, which ends the sessions of all other keys in the module."""
    gone = await signing_key(soft_token, failing)
    uri = (await failing.hsm.generate_signing_key(soft_token.uri, "other", "ec-p256", key_id=b"other")).uri
    other = await failing.hsm.open_signing_key(uri)

    def destroy(session: pkcs11.Session) -> None:
        for thing in list(session.get_objects({Attribute.LABEL: "key"})):
            thing.destroy()

    await soft_token.directly(destroy, failing.modules)
    failing.faults.fail("sign", pkcs11.SessionHandleInvalid())
    failing.faults.calls.clear()
    for _ in range(20):
        with pytest.raises(SignerMisconfiguredError, match="no key"):
            await gone.run(sign)
        with pytest.raises(SignerMisconfiguredError, match="no key"):
            await failing.hsm.probe()
        assert await other.run(sign)
        failing.clock.now += 1
    assert failing.faults.calls["reinitialize"] <= 1
    failing.clock.now += 30
    with pytest.raises(SignerMisconfiguredError, match="no key"):
        await gone.run(sign)
    assert failing.faults.calls["reinitialize"] == 2


async def test_a_token_that_is_named_twice_is_no_redundancy(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    serial = (await opened().attest(keys.signing)).token_serial
    hsm = opened(replicas=(f"pkcs11:serial={serial}?module-path={tokens.a.path}",))
    key = await hsm.open_signing_key(keys.signing)
    await hsm.probe()
    assert await signed_by(tokens.a, key)
    a, again = hsm.tokens()
    assert a.up
    assert not again.up
    assert "the same token" in again.reason


async def test_work_brings_a_token_back_where_none_was_left(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    """Whoever waits for a token asks with work that signs nothing; the next probe may be seconds away."""
    clock = ManualClock()
    hsm = opened(retry_after=1, modules=Modules(monotonic=clock))
    key = await hsm.open_signing_key(keys.signing)
    for shim in (tokens.a, tokens.b):
        shim.take_away(CKR.SESSION_HANDLE_INVALID)
    with pytest.raises(SignerUnavailableError):
        await key.run(sign)
    assert not key.available
    tokens.lift()
    clock.now += 1.5
    await key.run(lambda _: None)
    assert key.available
    assert await signed_by(tokens.a, key)
    assert {state.signing for state in hsm.tokens()} == {0, 1}


async def test_a_key_that_is_not_needed_is_probed_and_does_not_count(soft_token: SoftToken, failing: Failing) -> None:
    needed = (await signing_key(soft_token, failing)).uri
    key = await failing.hsm.open_signing_key(needed, needed=False)
    failing.faults.fail("__getitem__", pkcs11.DeviceRemoved())
    await failing.hsm.probe()
    assert not key.available
    assert "DeviceRemoved" in failing.hsm.tokens()[0].reason


# --- the wrapping key -----------------------------------------------------------------------------------------------


async def test_a_token_that_fails_once_while_unwrapping_opens_it_all_the_same(
    soft_token: SoftToken, failing: Failing
) -> None:
    uri = await failing.hsm.generate_wrapping_key(soft_token.uri, "wrapping", key_id=b"w")
    key = await failing.hsm.open_wrapping_key(uri)
    wrapped = await key.wrap(b"secret", b"context")
    failing.faults.fail("decrypt", pkcs11.GeneralError())
    assert await key.unwrap(wrapped, b"context") == b"secret"


async def test_a_replica_that_fails_once_while_it_is_compared_is_not_refused(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    hsm = opened()
    key = await hsm.open_wrapping_key(keys.wrapping)
    tokens.b.fail("C_Decrypt", CKR.GENERAL_ERROR)
    await hsm.probe()
    await hsm.probe()
    tokens.a.take_away()
    assert await key.unwrap(await key.wrap(b"secret", b""), b"") == b"secret"
    assert hsm.tokens()[1].reason == ""


async def test_a_wrapping_key_that_was_replaced_wraps_nothing(soft_token: SoftToken, failing: Failing) -> None:
    """What it wrapped could be read by nobody who restores the token."""
    uri = await failing.hsm.generate_wrapping_key(soft_token.uri, "wrapping", key_id=b"w")
    key = await failing.hsm.open_wrapping_key(uri)
    wrapped = await key.wrap(b"secret", b"context")

    def destroy(session: pkcs11.Session) -> None:
        for thing in list(session.get_objects({Attribute.LABEL: "wrapping"})):
            thing.destroy()

    await soft_token.directly(destroy, failing.modules)
    assert await failing.hsm.generate_wrapping_key(soft_token.uri, "wrapping", key_id=b"w") == uri
    failing.faults.fail("encrypt", pkcs11.SessionHandleInvalid())
    for attempt in (key.wrap(b"more", b"context"), key.unwrap(wrapped, b"context"), failing.hsm.probe()):
        with pytest.raises(SignerMisconfiguredError, match="another one"):
            await attempt


async def test_the_preferred_token_comes_back_with_another_wrapping_key(
    tokens: TwoTokens, keys: Keys, opened: Callable[..., Hsm]
) -> None:
    """It was away at the start, and the replica has shown that it is the right one: the preferred one has not."""
    alone = opened(replicas=())
    wrapped = await (await alone.open_wrapping_key(keys.wrapping)).wrap(b"secret", b"context")
    await alone.close()
    tokens.a.take_away()
    modules = Modules()
    hsm = opened(modules=modules)
    key = await hsm.open_wrapping_key(keys.wrapping)
    assert await key.unwrap(wrapped, b"context") == b"secret"
    other = tokens.hsm(replicas=(), modules=modules)
    tokens.a.bring_back()
    tokens.make(tokens.a)
    await other.generate_wrapping_key(tokens.uri_a, "wrapping", key_id=b"\2")
    await other.close()

    b_alone = tokens.hsm(replicas=(), modules=modules)
    in_b = await b_alone.open_wrapping_key(keys.wrapping.replace(str(tokens.a.path), str(tokens.b.path)))

    async def refused() -> bool:
        # Before the comparison as well as after it.
        assert await in_b.unwrap(await key.wrap(b"more", b"context"), b"context") == b"more"
        await hsm.probe()
        return "another one" in hsm.tokens()[0].reason

    await until(refused)
    await b_alone.close()
