"""Tokens that fail: what is tried again, what never is, and that they come back by themselves.

The token is SoftHSM; single calls are made to fail before or after they reach it (``fakes/token_faults.py``), and the
token is taken away by moving its directory.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pkcs11
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute

from fakes.softhsm import USER_PIN, SoftToken, make_hsm
from fakes.token_faults import Faults, ManualClock
from privyseal_ca.errors import (
    SignatureUncertainError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.held import LOOK_AGAIN
from privyseal_ca.hsm.modules import PROCESS, Modules
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.hsm.signing import TokenSigningKey
from privyseal_ca.hsm.uri import KeyUri

pytest_plugins = ("fakes.softhsm",)

ECDSA = ec.ECDSA(hashes.SHA256())
RETRY_AFTER = 2.0


def sign(private: PrivateKey) -> bytes:
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private.sign(b"message", ECDSA)


@dataclass
class Failing:
    """A key in a real token that fails on command."""

    token: SoftToken
    hsm: Hsm
    key: TokenSigningKey
    faults: Faults
    clock: ManualClock
    modules: Modules

    async def works(self) -> None:
        """The key signs, and the signature verifies."""
        public = self.key.public_key
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(await self.key.run(sign), b"message", ECDSA)
        assert self.key.available

    async def uncertain(self) -> None:
        """The key may have signed."""
        with pytest.raises(SignatureUncertainError):
            await self.key.run(sign)

    async def away(self) -> None:
        """The key certainly did not sign."""
        with pytest.raises(SignerUnavailableError):
            await self.key.run(sign)


@pytest_asyncio.fixture
async def failing(soft_token: SoftToken) -> AsyncIterator[Failing]:
    uri = (await soft_token.signing_key()).uri
    await soft_token.hsm.close()
    faults, clock = Faults(), ManualClock()
    modules = Modules(load=faults.load, monotonic=clock)
    hsm = make_hsm(modules=modules, retry_after=RETRY_AFTER)
    yield Failing(soft_token, hsm, await hsm.open_signing_key(uri), faults, clock, modules)
    await hsm.close()


STALE = [
    pkcs11.SessionHandleInvalid,
    pkcs11.ObjectHandleInvalid,
    pkcs11.KeyHandleInvalid,
    pkcs11.UserNotLoggedIn,
    pkcs11.OperationActive,
    pkcs11.OperationNotInitialized,
]


@pytest.mark.parametrize("code", STALE)
async def test_stale_handles_are_renewed_and_the_signature_made(failing: Failing, code: type[Exception]) -> None:
    calls = failing.faults.calls
    calls.clear()
    failing.faults.fail("sign", code())
    await failing.works()
    assert calls["sign"] == 2
    assert calls["open"] == 1
    assert calls["get_attributes"] >= 1, "promise P1 is read back at every reconnect"
    assert calls["load"] == calls["reinitialize"] == 0


@pytest.mark.parametrize("code", STALE)
async def test_stale_twice_is_not_tried_a_third_time(failing: Failing, code: type[Exception]) -> None:
    failing.faults.calls.clear()
    failing.faults.fail("sign", code(), code())
    await failing.away()
    assert failing.faults.calls["sign"] == 2
    assert not failing.key.available
    failing.clock.now += RETRY_AFTER
    await failing.works()


UNCERTAIN = [
    pkcs11.SessionClosed,
    pkcs11.FunctionFailed,
    pkcs11.GeneralError,
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    pkcs11.DeviceMemory,
    pkcs11.HostMemory,
    pkcs11.PKCS11Error,
]


@pytest.mark.parametrize("after", [False, True], ids=["not signed", "signed"])
@pytest.mark.parametrize("code", UNCERTAIN)
async def test_what_may_have_signed_is_uncertain_and_asked_once(
    failing: Failing, code: type[Exception], after: bool
) -> None:
    failing.faults.calls.clear()
    failing.faults.fail("sign", code(), after=after)
    await failing.uncertain()
    assert failing.faults.calls["sign"] == 1
    failing.clock.now += RETRY_AFTER
    await failing.works()


@pytest.mark.parametrize("code", [pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised, pkcs11.SlotIDInvalid])
async def test_an_absent_token_did_not_sign(failing: Failing, code: type[Exception]) -> None:
    failing.faults.calls.clear()
    failing.faults.fail("sign", code())
    await failing.away()
    assert failing.faults.calls["sign"] == 1
    failing.clock.now += RETRY_AFTER
    await failing.works()
    assert failing.faults.calls["reinitialize"] == 1, "slots are looked at anew"


async def test_one_failed_function_does_not_stop_the_service_but_two_do(failing: Failing) -> None:
    failing.faults.fail("sign", pkcs11.FunctionFailed())
    await failing.uncertain()
    await failing.works()
    failing.faults.fail("sign", pkcs11.FunctionFailed(), pkcs11.FunctionFailed())
    await failing.uncertain()
    await failing.uncertain()
    assert not failing.key.available
    await failing.away()


async def test_while_it_is_away_the_token_is_left_alone_ever_longer(failing: Failing) -> None:
    failing.faults.fail("sign", pkcs11.DeviceError())
    await failing.uncertain()
    for pause in (2, 4, 8, 16, 32, 60, 60):
        failing.faults.calls.clear()
        failing.clock.now += pause - 0.5
        await failing.away()
        with pytest.raises(SignerUnavailableError):
            await failing.hsm.probe()
        assert not failing.faults.calls, "the token is not touched during the pause"
        assert not failing.key.available
        failing.faults.fail("get_slots", pkcs11.DeviceRemoved())
        failing.clock.now += 0.5
        await failing.away()
        assert failing.faults.calls["get_slots"] == 1
    failing.clock.now += 60
    await failing.works()
    failing.faults.fail("sign", pkcs11.DeviceError())
    await failing.uncertain()
    failing.clock.now += RETRY_AFTER
    await failing.works()


async def test_probing_does_not_shorten_the_pauses(failing: Failing) -> None:
    """A token that answers questions and fails signatures is not hammered."""
    for pause in (2, 4, 8):
        failing.faults.fail("sign", pkcs11.DeviceError())
        await failing.uncertain()
        failing.clock.now += pause - 0.5
        await failing.away()
        failing.clock.now += 0.5
        await failing.hsm.probe()
        assert failing.key.available


async def test_a_probe_brings_it_back_and_finds_it_gone(failing: Failing) -> None:
    await failing.hsm.probe()
    failing.faults.fail("__getitem__", pkcs11.DeviceRemoved())
    with pytest.raises(SignerUnavailableError):
        await failing.hsm.probe()
    assert not failing.key.available
    failing.clock.now += RETRY_AFTER
    await failing.hsm.probe()
    assert failing.key.available


async def test_requests_that_wait_when_it_fails_are_refused_without_touching_it(failing: Failing) -> None:
    failing.faults.calls.clear()
    failing.faults.fail("sign", pkcs11.DeviceRemoved())
    results = await asyncio.gather(*(failing.key.run(sign) for _ in range(50)), return_exceptions=True)
    assert [type(result) for result in results] == [SignatureUncertainError] + [SignerUnavailableError] * 49
    assert failing.faults.calls["sign"] == 1


async def test_after_a_signature_the_same_work_is_uncertain(failing: Failing) -> None:
    """``SignerUnavailableError`` promises that the work made no signature."""

    def twice(private: PrivateKey) -> bytes:
        first = sign(private)
        failing.faults.fail("sign", pkcs11.TokenNotPresent())
        return first + sign(private)

    with pytest.raises(SignatureUncertainError):
        await failing.key.run(twice)


async def test_work_that_swallows_the_failure_keeps_its_result(failing: Failing) -> None:
    def work(private: PrivateKey) -> str:
        try:
            sign(private)
        except SignerError:
            return "swallowed"
        return "signed"

    failing.faults.fail("sign", pkcs11.DeviceError())
    assert await failing.key.run(work) == "swallowed"
    assert not failing.key.available


@pytest.mark.parametrize("code", [pkcs11.MechanismInvalid, pkcs11.KeyTypeInconsistent])
async def test_a_token_that_refuses_the_request_is_not_away(failing: Failing, code: type[Exception]) -> None:
    failing.faults.fail("sign", code())
    with pytest.raises(SignerMisconfiguredError):
        await failing.key.run(sign)
    await failing.works()


@pytest.mark.parametrize("step", ["get_slots", "open", "get_objects", "get_attributes"])
@pytest.mark.parametrize(
    "code", [pkcs11.DeviceError, pkcs11.GeneralError, pkcs11.SessionHandleInvalid, pkcs11.SessionCount]
)
async def test_a_reconnect_may_fail_at_every_step(failing: Failing, step: str, code: type[Exception]) -> None:
    failing.faults.fail("sign", pkcs11.SessionHandleInvalid())
    failing.faults.fail(step, code())
    await failing.away()
    assert not failing.key.available
    failing.clock.now += RETRY_AFTER
    await failing.works()


async def test_a_module_that_cannot_be_initialised_is_tried_again(failing: Failing) -> None:
    failing.faults.fail("sign", pkcs11.GeneralError())
    await failing.uncertain()
    for _ in range(3):
        failing.clock.now += 60
        failing.faults.fail("reinitialize", pkcs11.GeneralError())
        await failing.away()
    failing.clock.now += 60
    await failing.works()


async def test_a_token_that_disappears_comes_back_without_a_restart(failing: Failing) -> None:
    directory = failing.token.directory
    hidden = failing.token.tokens.parent / "hidden"
    directory.rename(hidden)
    try:
        await failing.away()
        failing.clock.now += 60
        await failing.away()
        with pytest.raises(SignerUnavailableError):
            await failing.hsm.probe()
        assert not failing.key.available
    finally:
        hidden.rename(directory)
    failing.clock.now += 60
    await failing.works()


async def test_a_key_that_was_destroyed_is_missed_and_found_again(failing: Failing) -> None:
    """Only the key's file goes; the token stays."""
    directory = failing.token.directory
    hidden = failing.token.tokens.parent / "objects"
    hidden.mkdir()
    for path in directory.glob("*.object"):
        if path.name != "token.object":
            path.rename(hidden / path.name)
    with pytest.raises(SignerMisconfiguredError, match="no key"):
        await failing.key.run(sign)
    assert not failing.key.available
    for path in hidden.iterdir():
        path.rename(directory / path.name)
    hidden.rmdir()
    failing.clock.now += LOOK_AGAIN
    await failing.works()


async def test_attributes_that_change_end_every_signature(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reconnect reads back decides, and a key that broke promise P1 once is never used again."""
    honest = cryptoki.read_attributes
    monkeypatch.setattr(cryptoki, "read_attributes", lambda key: {**honest(key), "EXTRACTABLE": True})
    await failing.works()
    failing.faults.fail("sign", pkcs11.SessionHandleInvalid())
    with pytest.raises(SignerMisconfiguredError, match="CKA_EXTRACTABLE"):
        await failing.key.run(sign)
    monkeypatch.undo()
    failing.faults.calls.clear()
    with pytest.raises(SignerMisconfiguredError, match="CKA_EXTRACTABLE"):
        await failing.key.run(sign)
    assert not failing.faults.calls
    assert not failing.key.available


async def test_another_key_under_the_same_name_ends_every_signature(failing: Failing) -> None:
    by_label = await failing.hsm.open_signing_key(failing.token.key_uri("key"))

    def destroy(session: pkcs11.Session) -> None:
        for thing in list(session.get_objects({Attribute.LABEL: "key"})):
            thing.destroy()

    await failing.token.directly(destroy, failing.modules)
    await failing.hsm.generate_signing_key(failing.token.uri, "key", "ec-p256", key_id=b"new")
    failing.faults.calls.clear()
    for _ in range(3):
        with pytest.raises(SignerMisconfiguredError, match="another one"):
            await by_label.run(sign)
    assert failing.faults.calls["sign"] <= 1, "the destroyed key's handle was tried, the new key never"
    assert not by_label.available
    with pytest.raises(SignerMisconfiguredError, match="no key"):
        await failing.key.run(sign)


# --- the PIN --------------------------------------------------------------------------------------------------------


async def test_a_wrong_pin_is_tried_once_in_the_life_of_the_process(soft_token: SoftToken) -> None:
    """Not with another key, another URI, another Hsm or a corrected PIN: only a restart tries again."""
    uri = (await soft_token.signing_key()).uri
    other = (await soft_token.signing_key(label="other")).uri
    by_serial = f"pkcs11:serial={(await soft_token.hsm.attest(uri)).token_serial}?module-path={soft_token.module}"
    await soft_token.hsm.close()
    faults = Faults()
    modules = Modules(load=faults.load)
    asked: list[str] = []

    def wrong(uri: KeyUri) -> Pin:
        asked.append(str(uri))
        return Pin("wrong-pin")

    hsm = make_hsm(pins=wrong, modules=modules)
    for attempt in (uri, uri, other):
        with pytest.raises(SignerMisconfiguredError, match="refused the PIN") as caught:
            await hsm.open_signing_key(attempt)
        assert "wrong-pin" not in str(caught.value)
    right = make_hsm(modules=modules)
    for attempt in (uri, by_serial, f"{other}&pin-source=/somewhere/else"):
        with pytest.raises(SignerMisconfiguredError, match="refused the PIN"):
            await right.open_signing_key(attempt)
    assert faults.calls["open"] == 1
    assert len(asked) == 1
    await hsm.close()
    await right.close()
    assert await user_pin_tries_left(soft_token)


async def user_pin_tries_left(token: SoftToken) -> bool:
    """The token remembers one failure (USER_PIN_COUNT_LOW), is not locked, and a new process gets in."""
    flags: list[pkcs11.TokenFlag] = []

    def look(_: object) -> None:
        for slot in module.library().get_slots(token_present=True):
            found = slot.get_token()
            if found.label == token.label:
                flags.append(found.flags)

    module = PROCESS.acquire(token.module)
    try:
        await module.worker.call(look, patience=10, limit=10)
    finally:
        await PROCESS.release(module, 10)
    assert len(flags) == 1
    restarted = make_hsm(modules=Modules())
    await restarted.open_signing_key(token.key_uri("key"))
    await restarted.close()
    return pkcs11.TokenFlag.USER_PIN_COUNT_LOW in flags[0] and pkcs11.TokenFlag.USER_PIN_LOCKED not in flags[0]


async def test_a_pin_that_is_refused_at_a_reconnect_is_not_tried_again(failing: Failing) -> None:
    for code in (pkcs11.SessionHandleInvalid(), pkcs11.SessionHandleInvalid()):
        failing.faults.fail("sign", code)
    failing.faults.fail("open", pkcs11.PinIncorrect())
    with pytest.raises(SignerMisconfiguredError, match="refused the PIN"):
        await failing.key.run(sign)
    failing.faults.calls.clear()
    failing.clock.now += 3600
    for _ in range(5):
        with pytest.raises(SignerMisconfiguredError, match="refused the PIN"):
            await failing.key.run(sign)
    with pytest.raises(SignerMisconfiguredError):
        await failing.hsm.probe()
    assert not failing.faults.calls
    assert not failing.key.available


async def test_a_pin_that_cannot_be_read_is_asked_for_again(soft_token: SoftToken) -> None:
    """A missing file cost the token nothing: once it is there, no restart is needed."""
    uri = (await soft_token.signing_key()).uri
    await soft_token.hsm.close()
    answers = [None, USER_PIN]

    def pins(_: KeyUri) -> Pin:
        answer = answers.pop(0)
        if answer is None:
            raise SignerMisconfiguredError("no PIN yet", hint="wait")
        return Pin(answer)

    hsm = make_hsm(pins=pins)
    with pytest.raises(SignerMisconfiguredError, match="no PIN yet"):
        await hsm.open_signing_key(uri)
    assert (await hsm.open_signing_key(uri)).available
    await hsm.close()


async def test_a_login_made_by_others_in_the_process_is_welcome(failing: Failing) -> None:
    failing.faults.fail("sign", pkcs11.SessionHandleInvalid())
    failing.faults.fail("open", pkcs11.UserAlreadyLoggedIn(), after=True)
    await failing.works()


# --- processes ------------------------------------------------------------------------------------------------------


async def test_a_fork_leaves_the_parent_its_keys_and_the_child_none(failing: Failing) -> None:
    """What a child does with its parent's initialisation is undefined, so it is refused; the parent goes on."""
    await failing.works()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover (another process)
        verdict = b"unexpected"
        try:
            loop = asyncio.new_event_loop()
            asyncio.events._set_running_loop(None)
            verdict = loop.run_until_complete(_in_the_child(failing))
        finally:
            os.write(writer, verdict)
            os._exit(0)
    os.close(writer)
    said = await asyncio.to_thread(_read_all, reader)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert said == b"inherited key: SignerUnavailableError; new key: SignerMisconfiguredError; closed"
    await failing.works()


async def _in_the_child(failing: Failing) -> bytes:
    said = []
    assert not failing.key.available
    try:
        await failing.key.run(sign)
    except SignerError as error:
        said.append(f"inherited key: {type(error).__name__}")
    try:
        await make_hsm(modules=failing.modules).open_signing_key(failing.key.uri)
    except SignerError as error:
        said.append(f"new key: {type(error).__name__}")
    await failing.hsm.close()
    said.append("closed")
    return "; ".join(said).encode()


async def test_keys_are_opened_after_a_fork(soft_token: SoftToken) -> None:
    """The way workers start: the parent has nothing open, each child opens for itself."""
    uri = (await soft_token.signing_key()).uri
    await soft_token.hsm.close()
    pipes = []
    for _ in range(2):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover (another process)
            verdict = b"failed"
            try:
                loop = asyncio.new_event_loop()
                asyncio.events._set_running_loop(None)
                verdict = loop.run_until_complete(_opens_and_signs(uri))
            finally:
                os.write(writer, verdict)
                os._exit(0)
        os.close(writer)
        pipes.append((child, reader))
    for child, reader in pipes:
        assert await asyncio.to_thread(_read_all, reader) == b"signed"
        await asyncio.to_thread(os.waitpid, child, 0)


async def _opens_and_signs(uri: str) -> bytes:
    hsm = make_hsm(retry_after=0.02)
    deadline = time.monotonic() + 20
    while True:
        try:
            key = await hsm.open_signing_key(uri)
            break
        except SignerUnavailableError:
            # SoftHSM writes the token's file at a login; another process that reads it then gets CKR_GENERAL_ERROR.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    public = key.public_key
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(await key.run(sign), b"message", ECDSA)
    await hsm.close()
    return b"signed"


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


async def test_a_hung_token_does_not_hold_up_the_close(failing: Failing) -> None:
    release = threading.Event()
    hasty = make_hsm(timeout=0.2, modules=failing.modules)
    key = await hasty.open_signing_key(failing.key.uri)
    failing.faults.hook("sign", lambda: release.wait(20))
    with pytest.raises(SignatureUncertainError):
        await key.run(sign)
    await failing.hsm.close()
    await hasty.close()
    assert not key.available
    release.set()
