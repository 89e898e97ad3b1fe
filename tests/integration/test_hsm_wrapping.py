"""Wrapping keys in a real token (promise P10)."""

import asyncio

import pkcs11
import pytest
from pkcs11 import Attribute

from fakes.softhsm import SoftToken, make_hsm
from fakes.token_faults import Faults, ManualClock
from privyseal_ca.errors import SignerError, SignerMisconfiguredError, SignerUnavailableError
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.wrapping import TokenWrappingKey

pytest_plugins = ("fakes.softhsm",)


async def wrapping_key(token: SoftToken) -> TokenWrappingKey:
    uri = await token.hsm.generate_wrapping_key(token.uri, "wrapping", key_id=b"wrapping")
    return await token.hsm.open_wrapping_key(uri)


@pytest.mark.parametrize("secret", [b"", b"s", b"secret" * 10, bytes(65536)], ids=len)
@pytest.mark.parametrize("context", [b"", b"eab:kid-1"])
async def test_what_is_wrapped_is_unwrapped(soft_token: SoftToken, secret: bytes, context: bytes) -> None:
    key = await wrapping_key(soft_token)
    wrapped = await key.wrap(secret, context)
    assert wrapped[0] == 1
    assert len(wrapped) == 1 + 12 + len(secret) + 16
    assert await key.unwrap(wrapped, context) == secret
    assert await key.wrap(secret, context) != wrapped


async def test_every_changed_octet_is_noticed(soft_token: SoftToken) -> None:
    """And none of it looks like a failing token, though SoftHSM tells a wrong tag as a general error."""
    key = await wrapping_key(soft_token)
    wrapped = await key.wrap(b"secret", b"context")
    for place in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[place] ^= 1
        with pytest.raises(SignerError, match="not wrapped by") as caught:
            await key.unwrap(bytes(changed), b"context")
        assert type(caught.value) is SignerError
    for short in (b"", wrapped[:1], wrapped[:28], wrapped[:-1], wrapped + b"\0"):
        with pytest.raises(SignerError, match="not wrapped by"):
            await key.unwrap(short, b"context")
    assert await key.unwrap(wrapped, b"context") == b"secret"


async def test_context_and_key_are_bound(soft_token: SoftToken) -> None:
    key = await wrapping_key(soft_token)
    wrapped = await key.wrap(b"secret", b"context")
    with pytest.raises(SignerError, match="not wrapped by"):
        await key.unwrap(wrapped, b"other")
    uri = await soft_token.hsm.generate_wrapping_key(soft_token.uri, "second", key_id=b"second")
    with pytest.raises(SignerError, match="not wrapped by"):
        await (await soft_token.hsm.open_wrapping_key(uri)).unwrap(wrapped, b"context")


async def test_long_secrets_are_refused(soft_token: SoftToken) -> None:
    key = await wrapping_key(soft_token)
    with pytest.raises(SignerError, match="65537"):
        await key.wrap(bytes(65537), b"")
    with pytest.raises(SignerError, match="not wrapped by"):
        await key.unwrap(b"\1" + bytes(70000), b"")


async def test_many_at_once(soft_token: SoftToken) -> None:
    key = await wrapping_key(soft_token)
    secrets = [str(number).encode() for number in range(200)]
    wrapped = await asyncio.gather(*(key.wrap(secret, secret) for secret in secrets))
    assert await asyncio.gather(*map(key.unwrap, wrapped, secrets)) == secrets
    assert len({one[1:13] for one in wrapped}) == len(secrets)


async def test_it_only_encrypts_and_stays_in_the_token(soft_token: SoftToken) -> None:
    key = await wrapping_key(soft_token)

    def look(session: pkcs11.Session) -> dict[Attribute, bool]:
        (found,) = list(session.get_objects({Attribute.LABEL: "wrapping"}))
        names = "ENCRYPT DECRYPT SENSITIVE NEVER_EXTRACTABLE EXTRACTABLE WRAP UNWRAP SIGN VERIFY DERIVE LOCAL"
        told: dict[Attribute, bool] = found.get_attributes([Attribute[name] for name in names.split()])
        return told

    told = await soft_token.directly(look)
    true = {Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.SENSITIVE, Attribute.NEVER_EXTRACTABLE, Attribute.LOCAL}
    assert {name for name, value in told.items() if value} == true
    with pytest.raises(SignerMisconfiguredError, match="no key"):
        await soft_token.hsm.open_signing_key(key.uri)


async def test_an_extractable_key_does_not_wrap(soft_token: SoftToken) -> None:
    def make(session: pkcs11.Session) -> None:
        session.generate_key(
            pkcs11.KeyType.AES, 256, label="loose", id=b"l", store=True, template={Attribute.EXTRACTABLE: True}
        )

    await soft_token.directly(make)
    with pytest.raises(SignerMisconfiguredError, match="CKA_EXTRACTABLE"):
        await soft_token.hsm.open_wrapping_key(soft_token.key_uri("loose"))


async def test_a_token_that_fails_while_unwrapping_is_told_from_bad_data(soft_token: SoftToken) -> None:
    key = await wrapping_key(soft_token)
    wrapped = await key.wrap(b"secret", b"context")
    await soft_token.hsm.close()
    faults, clock = Faults(), ManualClock()
    hsm = make_hsm(modules=Modules(load=faults.load, monotonic=clock))
    again = await hsm.open_wrapping_key(key.uri)
    faults.fail("decrypt", pkcs11.GeneralError(), pkcs11.GeneralError())
    with pytest.raises(SignerUnavailableError):
        await again.unwrap(wrapped, b"context")
    with pytest.raises(SignerUnavailableError):
        await again.unwrap(wrapped, b"context")
    clock.now += 60
    assert await again.wrap(b"more", b"")  # connected again, where the key has shown that it is the same
    faults.fail("decrypt", pkcs11.SessionHandleInvalid())
    assert await again.unwrap(wrapped, b"context") == b"secret"
    faults.fail("encrypt", pkcs11.KeyHandleInvalid())
    assert await again.unwrap(await again.wrap(b"more", b""), b"") == b"more"
    await hsm.close()
