"""The table of faults against the rules of PKCS#11 and STANDARDS section F."""

import inspect

import pkcs11.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm.attributes import PROTECTION, READ_BACK, RESTRICTION, require_protection
from privyseal_ca.hsm.faults import REACTIONS, Remedy, reaction_to

GOOD = {name: PROTECTION.get(name, name in {"SIGN", "TOKEN", "PRIVATE"}) for name in READ_BACK}


def reaction(name: str) -> tuple[Remedy, bool, bool]:
    found = reaction_to(getattr(pkcs11.exceptions, name)())
    return found.remedy, found.may_have_signed, found.again


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("SessionHandleInvalid ObjectHandleInvalid KeyHandleInvalid UserNotLoggedIn", (Remedy.REOPEN, False, True)),
        ("SessionClosed FunctionFailed", (Remedy.REOPEN, True, False)),
        ("TokenNotPresent NoSuchToken", (Remedy.RESTART, False, False)),
        ("DeviceRemoved DeviceError GeneralError", (Remedy.RESTART, True, False)),
        ("PinIncorrect PinLocked PinExpired", (Remedy.NEVER, False, False)),
        ("MechanismInvalid DataLenRange", (Remedy.NONE, False, False)),
    ],
)
def test_reactions(names: str, expected: tuple[Remedy, bool, bool]) -> None:
    for name in names.split():
        assert reaction(name) == expected, name


def test_what_may_have_signed_is_never_done_again() -> None:
    for error, found in REACTIONS.items():
        assert not (found.may_have_signed and found.again), error
        assert not (found.remedy is Remedy.NEVER and found.again), error


def test_codes_that_nobody_has_thought_of_are_taken_badly() -> None:
    base = pkcs11.exceptions.PKCS11Error
    classes = [code for _, code in inspect.getmembers(pkcs11.exceptions, inspect.isclass) if issubclass(code, base)]
    assert base in classes
    for code in set(classes) - set(REACTIONS):
        assert reaction_to(code()).may_have_signed
        assert not reaction_to(code()).again


def test_a_good_key_is_accepted() -> None:
    require_protection("pkcs11:", GOOD, ("SIGN",))


@given(st.sampled_from([*PROTECTION, "SIGN"]), st.sampled_from(["absent", "wrong"]))
def test_each_attribute_of_the_promise_counts(name: str, how: str) -> None:
    attributes = dict(GOOD)
    if how == "absent":
        del attributes[name]
    else:
        attributes[name] = not attributes[name]
    with pytest.raises(SignerMisconfiguredError, match=f"CKA_{name}"):
        require_protection("pkcs11:", attributes, ("SIGN",))


def test_a_key_that_asks_for_the_pin_each_time_is_refused() -> None:
    with pytest.raises(SignerMisconfiguredError, match="ALWAYS_AUTHENTICATE"):
        require_protection("pkcs11:", {**GOOD, "ALWAYS_AUTHENTICATE": True}, ("SIGN",))


def test_what_the_token_must_set_itself_is_not_in_the_template() -> None:
    assert not {"LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"} & set(RESTRICTION)
