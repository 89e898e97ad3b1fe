"""The shim itself: what it passes on, that copies of it do not meet, and what it refuses."""

import threading
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import KeyType, Mechanism

from fakes.shim import CKF, CKR, FUNCTIONS, Shim, make_tokens
from fakes.softhsm import make_hsm
from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm import cryptoki, softhsm
from privyseal_ca.hsm.pin import Pin

_PIN = "user-pin"


def made(folder: Path, label: str) -> Shim:
    shim = Shim(folder / label, softhsm_conf=softhsm.embed(folder / f"{label}-home"))
    make_tokens(shim, label, pin=_PIN)
    return shim


def labels(library: cryptoki.Library) -> set[str]:
    return {slot.get_token().label for slot in library.get_slots(token_present=True)} - {""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shims")


@pytest.fixture(scope="module")
def shims(folder: Path) -> tuple[Shim, Shim]:
    return made(folder, "one"), made(folder, "two")


def test_every_function_of_2_40_is_there() -> None:
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) == 68


def test_two_copies_have_two_stores_in_one_process(shims: tuple[Shim, Shim]) -> None:
    one, two = (cryptoki.load(shim.path) for shim in shims)
    try:
        assert labels(one) == {"one"}
        assert labels(two) == {"two"}
        shims[0].take_away()
        assert labels(one) == set()
        assert labels(two) == {"two"}
    finally:
        shims[0].lift()
        one.finalize()
        two.finalize()


def test_what_is_signed_is_kept_with_its_key(shims: tuple[Shim, Shim]) -> None:
    shim, _ = shims
    library = cryptoki.load(shim.path)
    try:
        (token,) = [
            slot.get_token() for slot in library.get_slots(token_present=True) if slot.get_token().label == "one"
        ]
        session = token.open(rw=True, user_pin=_PIN)
        _, private = session.generate_keypair(KeyType.RSA, 2048, label="a key")
        before = shim.signature_count
        private.sign(b"first", mechanism=Mechanism.RSA_PKCS)
        shim.fail("C_Sign", CKR.DEVICE_ERROR, after=True, key="another key")
        private.sign(b"second", mechanism=Mechanism.RSA_PKCS)
        shim.fail("C_Sign", CKR.DEVICE_ERROR, after=True, key="a key")
        with pytest.raises(pkcs11.DeviceError):
            private.sign(b"third", mechanism=Mechanism.RSA_PKCS)
        shim.fail("C_Sign", CKR.HOST_MEMORY)
        with pytest.raises(pkcs11.exceptions.HostMemory):
            private.sign(b"fourth", mechanism=Mechanism.RSA_PKCS)
        # The operation ended with the failure, as PKCS#11 says: the next one can begin.
        private.sign(b"fifth", mechanism=Mechanism.RSA_PKCS)
        made = shim.signatures[before:]
        assert [(each.data, each.told) for each in made] == [
            (b"first", 0),
            (b"second", 0),
            (b"third", CKR.DEVICE_ERROR),
            (b"fifth", 0),
        ]
        assert {(each.key, each.mechanism) for each in made} == {("a key", Mechanism.RSA_PKCS)}
    finally:
        shim.lift()
        library.finalize()


def test_a_module_that_hangs_at_its_end_leaves_other_threads_alone(shims: tuple[Shim, Shim]) -> None:
    """python-pkcs11 would hold the interpreter, and nobody here could let it go on."""
    shim, _ = shims
    library = cryptoki.load(shim.path)
    thread = threading.Thread(target=library.reinitialize)
    with shim.hanging("C_Finalize"):
        thread.start()
        shim.wait_until_hanging("C_Finalize")
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
    assert labels(library) == {"one"}
    library.finalize()


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done"])
@pytest.mark.parametrize("function", ["C_Initialize", "C_Finalize"])
def test_a_module_that_fails_to_begin_or_to_end_can_be_used_later(
    shims: tuple[Shim, Shim], function: str, after: bool
) -> None:
    shim, _ = shims
    library = cryptoki.load(shim.path)
    try:
        shim.fail(function, CKR.GENERAL_ERROR, after=after)
        try:
            library.reinitialize()
        except cryptoki.CryptokiError:
            assert function == "C_Initialize"
            library.reinitialize()
        assert not shim.pending(function)
        assert labels(library) == {"one"}
    finally:
        shim.lift()
        library.finalize()


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done"])
def test_a_first_start_that_fails_can_be_repeated(shims: tuple[Shim, Shim], after: bool) -> None:
    _, shim = shims
    shim.fail("C_Initialize", CKR.FUNCTION_FAILED, after=after)
    with pytest.raises(cryptoki.codes.FunctionFailed):
        cryptoki.load(shim.path)
    library = cryptoki.load(shim.path)
    assert labels(library) == {"two"}
    library.finalize()


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (CKF.USER_PIN_COUNT_LOW, True),
        (CKF.USER_PIN_COUNT_LOW | CKF.USER_PIN_FINAL_TRY, False),
        (CKF.USER_PIN_LOCKED, False),
    ],
)
async def test_a_token_with_one_try_left_is_not_asked(shims: tuple[Shim, Shim], flags: CKF, asked: bool) -> None:
    """That an earlier try was wrong is no reason to give up; that the next one would be the last is."""
    shim, _ = shims
    hsm = make_hsm(pins=lambda _: Pin(_PIN), retry_after=0.01)
    logins = shim.logins
    shim.flag(flags)
    try:
        for _ in range(2):
            with pytest.raises(SignerMisconfiguredError) as caught:
                await hsm.attest(f"pkcs11:token=one;object=nothing?module-path={shim.path}")
            assert ("There is no key" if asked else "says that its PIN is locked, or would be") in str(caught.value)
        assert (shim.logins > logins) is asked
    finally:
        shim.lift()
        await hsm.close()


@pytest.mark.parametrize("content", [b"", b"too short"])
def test_a_control_file_of_another_layout_is_refused(folder: Path, content: bytes) -> None:
    shim = Shim(folder / f"broken{len(content)}")
    control = shim.path.with_name("control")
    control.unlink()  # what is mapped here stays as it is
    control.write_bytes(content)
    with pytest.raises(cryptoki.CryptokiError):
        cryptoki.load(shim.path)
