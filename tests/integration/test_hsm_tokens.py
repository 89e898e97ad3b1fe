"""Tokens set up from nothing, as ``privyseal init`` does."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pkcs11
import pytest

from fakes.softhsm import SO_PIN, USER_PIN, SoftToken, make_hsm
from fakes.token_faults import Faults
from privyseal_ca.errors import SignerError, SignerMisconfiguredError
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.uri import KeyUri

pytest_plugins = ("fakes.softhsm",)
PINS = {"so_pin": Pin(SO_PIN), "user_pin": Pin(USER_PIN)}


async def test_setting_up_twice_keeps_the_token_and_its_keys(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    await soft_token.hsm.initialise_token(soft_token.module, soft_token.label, **PINS)
    await key.run(lambda private: private.public_key())
    other = make_hsm()
    await other.initialise_token(soft_token.module, soft_token.label, **PINS)
    assert (await other.attest(key.uri)).token_serial == (await soft_token.hsm.attest(key.uri)).token_serial
    await other.close()


async def test_an_existing_token_with_another_pin_is_refused_and_kept(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    await soft_token.hsm.close()
    modules = Modules()
    other = make_hsm(modules=modules)
    for _ in range(3):
        with pytest.raises(SignerMisconfiguredError, match="refused the PIN"):
            await other.initialise_token(
                soft_token.module, soft_token.label, so_pin=Pin(SO_PIN), user_pin=Pin("not-the-pin")
            )
    await other.close()
    restarted = make_hsm(modules=Modules())
    assert (await restarted.open_signing_key(key.uri)).public_key == key.public_key
    await restarted.close()


async def test_setting_up_that_was_interrupted_is_finished(softhsm_module: Path) -> None:
    label = f"interrupted-{os.getpid()}"
    faults = Faults()
    hsm = make_hsm(modules=Modules(load=faults.load))
    faults.fail("init_pin", pkcs11.PinTooWeak())
    with pytest.raises(SignerError):
        await hsm.initialise_token(softhsm_module, label, **PINS)
    await hsm.close()
    again = make_hsm()
    await again.initialise_token(softhsm_module, label, **PINS)
    uri = f"pkcs11:token={label}?module-path={softhsm_module}"
    assert (await again.generate_signing_key(uri, "key", "ec-p256", key_id=b"1")).algorithm == "ec-p256"
    await again.close()


@pytest.mark.parametrize("label", ["label with spaces; and %", "ü" * 16, "x" * 32])
async def test_labels(softhsm_module: Path, label: str) -> None:
    hsm = make_hsm()
    await hsm.initialise_token(softhsm_module, label, **PINS)
    uri = str(KeyUri(token=label, module_path=softhsm_module))
    attestation = await hsm.generate_signing_key(uri, label, "ec-p256", key_id=b"\0\xff;")
    assert KeyUri.parse(attestation.uri).object == label
    assert (await hsm.open_signing_key(attestation.uri)).uri == attestation.uri
    await hsm.close()


async def test_a_pin_that_the_token_does_not_take_is_explained_without_it(softhsm_module: Path) -> None:
    hsm = make_hsm(modules=Modules())
    with pytest.raises(SignerMisconfiguredError) as caught:
        await hsm.initialise_token(softhsm_module, f"short-{os.getpid()}", so_pin=Pin("abc"), user_pin=Pin("abc"))
    assert "CKR 0x" in str(caught.value)
    assert "abc" not in str(caught.value)
    await hsm.close()


async def test_a_token_made_by_another_process_is_found(soft_token: SoftToken, softhsm_module: Path) -> None:
    """Modules list their slots when they are initialised; a token that is not in the list is looked for anew."""
    key = await soft_token.signing_key()
    label = f"child-{os.getpid()}"
    await soft_token.hsm.initialise_token(softhsm_module, f"{label}-first", **PINS)
    program = (
        "import asyncio, sys; from pathlib import Path; from privyseal_ca.hsm.pin import Pin;"
        "from privyseal_ca.hsm.pkcs11 import Hsm;"
        "hsm = Hsm(pins=lambda uri: Pin('never'), queue=9, timeout=9, retry_after=9);"
        "pins = {'so_pin': Pin(sys.stdin.readline().strip()), 'user_pin': Pin(sys.stdin.readline().strip())};"
        "asyncio.run(hsm.initialise_token(Path(sys.argv[1]), sys.argv[2], **pins))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "ca")}
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(softhsm_module), label],
        input=f"{SO_PIN}\n{USER_PIN}\n",
        text=True,
        check=True,
        timeout=30,
        env=environment,
    )
    uri = f"pkcs11:token={label}?module-path={softhsm_module}"
    assert await soft_token.hsm.find_key(f"{uri.replace('?', ';object=none?')}") is None
    await soft_token.hsm.generate_signing_key(uri, "key", "ec-p256", key_id=b"1")
    assert (await soft_token.hsm.open_signing_key(key.uri)).public_key == key.public_key


@pytest.mark.parametrize(("algorithm", "bits"), [("rsa-3072", 3072), ("ec-p384", 384)])
async def test_sizes_are_what_was_asked_for(soft_token: SoftToken, algorithm: str, bits: int) -> None:
    key = await soft_token.signing_key(algorithm)  # type: ignore[arg-type]
    assert key.public_key.key_size == bits  # type: ignore[union-attr]
    assert (await soft_token.hsm.attest(key.uri)).algorithm == algorithm


async def test_a_generation_that_fails_says_so(soft_token: SoftToken) -> None:
    await soft_token.hsm.close()
    faults = Faults()
    hsm = make_hsm(modules=Modules(load=faults.load))
    faults.fail("generate_keypair", pkcs11.MechanismInvalid())
    with pytest.raises(SignerMisconfiguredError, match="MechanismInvalid"):
        await hsm.generate_signing_key(soft_token.uri, "key", "ec-p256", key_id=b"1")
    faults.fail("generate_keypair", pkcs11.SessionHandleInvalid())
    assert await hsm.generate_signing_key(soft_token.uri, "key", "ec-p256", key_id=b"1")
    await hsm.close()
