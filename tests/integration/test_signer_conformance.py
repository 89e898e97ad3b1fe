"""What every SigningKey must do, shown on the one that ships over a real token (promise P1).

The second half is about the limits and refusals that the interface promises. Faults of the token itself are in
``test_hsm_faults.py``.
"""

import asyncio
import copy
import datetime as dt
import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509 import ocsp
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.util.ec import decode_ec_private_key, decode_ec_public_key, encode_named_curve_parameters

from fakes.softhsm import SO_PIN, USER_PIN, SoftToken, make_hsm
from privyseal_ca.errors import (
    ConfigurationError,
    SignatureUncertainError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm.attributes import PROTECTION, KeyAlgorithm
from privyseal_ca.hsm.signer import PrivateKey, PublicKey, SigningKey

pytest_plugins = ("fakes.softhsm",)

ALGORITHMS: tuple[KeyAlgorithm, ...] = ("ec-p256", "ec-p384", "rsa-2048", "ed25519")
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
HOUR = dt.timedelta(hours=1)
CA_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Conformance CA")])


def hash_for(key: PrivateKey | PublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()
    return hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) else None


def sign(message: bytes) -> Callable[[PrivateKey], bytes]:
    def work(key: PrivateKey) -> bytes:
        hash_ = hash_for(key)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(message, ec.ECDSA(hash_ or hashes.SHA256()))
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(message, padding.PKCS1v15(), hash_ or hashes.SHA256())
        return key.sign(message)

    return work


def verify(key: PublicKey, signature: bytes, message: bytes) -> None:
    hash_ = hash_for(key)
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, message, ec.ECDSA(hash_ or hashes.SHA256()))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, padding.PKCS1v15(), hash_ or hashes.SHA256())
    else:
        key.verify(signature, message)


def certificate(
    key: PrivateKey, issuer: PublicKey, subject: PublicKey, name: x509.Name, *, ca: bool
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(CA_NAME)
        .public_key(subject)
        .serial_number(1 if ca else 2)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(key, hash_for(key))
    )


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- what a signing key does ----------------------------------------------------------------------------------------


@each_algorithm
async def test_signatures_verify(soft_token: SoftToken, algorithm: KeyAlgorithm) -> None:
    key: SigningKey = await soft_token.signing_key(algorithm)
    assert key.available
    for message in (b"", b"message", bytes(100_000)):
        verify(key.public_key, await key.run(sign(message)), message)


@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
async def test_rsa_paddings_and_hashes(soft_token: SoftToken, hash_: hashes.HashAlgorithm) -> None:
    key = await soft_token.signing_key("rsa-2048")
    public = key.public_key
    assert isinstance(public, rsa.RSAPublicKey)
    for scheme in (padding.PKCS1v15(), padding.PSS(padding.MGF1(hash_), hash_.digest_size)):

        def work(private: PrivateKey, scheme: padding.AsymmetricPadding = scheme) -> bytes:
            assert isinstance(private, rsa.RSAPrivateKey)
            return private.sign(b"message", scheme, hash_)

        public.verify(await key.run(work), b"message", scheme, hash_)


@each_algorithm
async def test_certificates_crls_and_ocsp(soft_token: SoftToken, algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    """Built and signed by cryptography's builders inside ``run``, verified by cryptography and by OpenSSL's commands."""
    key = await soft_token.signing_key(algorithm)
    leaf_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])

    def issue(private: PrivateKey) -> tuple[x509.Certificate, x509.Certificate]:
        return (
            certificate(private, key.public_key, key.public_key, CA_NAME, ca=True),
            certificate(private, key.public_key, leaf_key, leaf_name, ca=False),
        )

    ca, leaf = await key.run(issue)
    leaf.verify_directly_issued_by(ca)
    revoked = x509.RevokedCertificateBuilder().serial_number(99).revocation_date(NOW - HOUR).build()
    crl = await key.run(
        lambda private: (
            x509.CertificateRevocationListBuilder()
            .issuer_name(CA_NAME)
            .last_update(NOW - HOUR)
            .next_update(NOW + HOUR)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key), critical=False)
            .add_revoked_certificate(revoked)
            .sign(private, hash_for(private))
        )
    )
    assert crl.is_signature_valid(key.public_key)
    response = await key.run(
        lambda private: (
            ocsp.OCSPResponseBuilder()
            .add_response(leaf, ca, hashes.SHA256(), ocsp.OCSPCertStatus.GOOD, NOW, NOW + HOUR, None, None)
            .responder_id(ocsp.OCSPResponderEncoding.HASH, ca)
            .sign(private, hash_for(private))
        )
    )

    files = {name: tmp_path / name for name in ("ca.pem", "leaf.pem", "crl.pem", "ocsp.der")}
    files["ca.pem"].write_bytes(ca.public_bytes(Encoding.PEM))
    files["leaf.pem"].write_bytes(leaf.public_bytes(Encoding.PEM))
    files["crl.pem"].write_bytes(crl.public_bytes(Encoding.PEM))
    files["ocsp.der"].write_bytes(response.public_bytes(Encoding.DER))
    assert "OK" in openssl(
        "verify", "-CAfile", files["ca.pem"], "-crl_check", "-CRLfile", files["crl.pem"], files["leaf.pem"]
    )
    assert "verify OK" in openssl("crl", "-in", files["crl.pem"], "-CAfile", files["ca.pem"], "-noout")
    said = openssl(
        *("ocsp", "-respin", files["ocsp.der"], "-issuer", files["ca.pem"]),
        *("-sha256", "-cert", files["leaf.pem"], "-CAfile", files["ca.pem"]),
    )
    assert "Response verify OK" in said
    assert ": good" in said


@each_algorithm
async def test_attestation(soft_token: SoftToken, algorithm: KeyAlgorithm) -> None:
    assert await soft_token.hsm.supports(soft_token.uri, algorithm)
    key = await soft_token.signing_key(algorithm)
    attestation = await soft_token.hsm.attest(key.uri)
    assert attestation.algorithm == algorithm
    assert {name: attestation.attributes[name] for name in PROTECTION} == PROTECTION
    for use in ("DECRYPT", "UNWRAP", "DERIVE", "MODIFIABLE", "COPYABLE"):
        assert attestation.attributes[use] is False
    spki = key.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert attestation.spki_sha256 == hashlib.sha256(spki).hexdigest()
    assert attestation.module == str(soft_token.module)
    assert attestation.token_serial
    found = await soft_token.hsm.find_key(soft_token.key_uri("key"))
    assert found is not None
    assert found.spki_sha256 == attestation.spki_sha256
    again = await soft_token.hsm.open_signing_key(soft_token.key_uri("key"))
    assert again.public_key == key.public_key


@each_algorithm
async def test_hundreds_of_tasks_at_once(soft_token: SoftToken, algorithm: KeyAlgorithm) -> None:
    key = await soft_token.signing_key(algorithm)
    messages = [str(number).encode() for number in range(300)]
    signatures = await asyncio.gather(*(key.run(sign(message)) for message in messages))
    for signature, message in zip(signatures, messages, strict=True):
        verify(key.public_key, signature, message)


@each_algorithm
async def test_nothing_but_signatures_leaves_the_token(soft_token: SoftToken, algorithm: KeyAlgorithm) -> None:
    key = await soft_token.signing_key(algorithm)
    for attempt in (
        lambda private: private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        copy.copy,
    ):
        with pytest.raises(SignerError, match="never leaves"):
            await key.run(attempt)


@each_algorithm
async def test_a_key_that_escapes_from_its_work_is_useless(soft_token: SoftToken, algorithm: KeyAlgorithm) -> None:
    key = await soft_token.signing_key(algorithm)
    private = await key.run(lambda private: private)
    with pytest.raises(SignerError, match="outside the work"):
        sign(b"message")(private)


async def test_work_may_use_its_key_many_times_and_give_anything(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    signatures = await key.run(lambda private: [sign(bytes([n]))(private) for n in range(5)])
    for number, signature in enumerate(signatures):
        verify(key.public_key, signature, bytes([number]))


class OwnError(Exception):
    """An error of the work's own."""


@pytest.mark.parametrize("error", [OwnError("own"), ValueError("own"), SignerError("own"), RuntimeError("own")])
async def test_errors_of_the_work_pass_unchanged(soft_token: SoftToken, error: Exception) -> None:
    key = await soft_token.signing_key()

    def work(private: PrivateKey) -> bytes:
        sign(b"first")(private)
        raise error

    with pytest.raises(type(error)) as caught:
        await key.run(work)
    assert caught.value is error
    assert key.available
    verify(key.public_key, await key.run(sign(b"after")), b"after")


async def test_stop_iteration_of_the_work_does_not_hang(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    with pytest.raises(RuntimeError) as caught:
        await key.run(lambda _: next(iter(())))
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_two_keys_of_one_token_and_two_tokens(soft_token: SoftToken, second_token: SoftToken) -> None:
    keys = [
        await soft_token.signing_key("ec-p256", "one"),
        await soft_token.signing_key("ed25519", "two"),
        await second_token.signing_key("ec-p256", "one"),
    ]
    messages = [str(number).encode() for number in range(30)]
    for key in keys:
        signatures = await asyncio.gather(*(key.run(sign(message)) for message in messages))
        for signature, message in zip(signatures, messages, strict=True):
            verify(key.public_key, signature, message)
    assert len({key.uri for key in keys}) == 3


# --- limits ---------------------------------------------------------------------------------------------------------


@contextmanager
def blocked(key: SigningKey) -> Iterator[tuple["asyncio.Task[bytes]", threading.Event, threading.Event]]:
    """A task that holds the token's thread until the last event is set; the first tells that it does."""
    begun, release = threading.Event(), threading.Event()

    def work(private: PrivateKey) -> bytes:
        begun.set()
        assert release.wait(20)
        return sign(b"held")(private)

    task = asyncio.ensure_future(key.run(work))
    try:
        yield task, begun, release
    finally:
        release.set()


async def passed(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


async def test_a_full_queue_refuses(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    small = make_hsm(queue=3)
    narrow = await small.open_signing_key(key.uri)
    with blocked(narrow) as (held, begun, release):
        await passed(begun)
        waiting = [asyncio.ensure_future(narrow.run(sign(b"waits"))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(SignerUnavailableError, match="wait for the token already"):
            await narrow.run(sign(b"too many"))
        release.set()
        verify(key.public_key, await held, b"held")
        for task in waiting:
            verify(key.public_key, await task, b"waits")
    verify(key.public_key, await narrow.run(sign(b"room again")), b"room again")
    await small.close()


async def test_a_timeout_tells_what_had_started(soft_token: SoftToken) -> None:
    """Started: uncertain. Not started: unavailable, and never run. The token is back when its call returns."""
    key = await soft_token.signing_key()
    hasty = make_hsm(timeout=0.2)
    short = await hasty.open_signing_key(key.uri)
    ran = threading.Event()
    with blocked(short) as (held, begun, release):
        await passed(begun)
        waiting = asyncio.ensure_future(short.run(lambda _: ran.set()))
        with pytest.raises(SignatureUncertainError):
            await held
        with pytest.raises(SignerUnavailableError):
            await waiting
        assert not short.available
        with pytest.raises(SignerUnavailableError, match="not answered"):
            await short.run(sign(b"while it hangs"))
        release.set()
        # The patient key shares the token's thread: its answer shows that the thread is free again.
        await key.run(sign(b"flush"))
    assert short.available
    verify(key.public_key, await short.run(sign(b"back")), b"back")
    assert not ran.is_set()
    await hasty.close()


async def test_who_is_cancelled_before_the_start_is_not_served(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    ran = threading.Event()
    with blocked(key) as (held, begun, release):
        await passed(begun)
        waiting = asyncio.ensure_future(key.run(lambda _: ran.set()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        await held
    await key.run(sign(b"flush"))
    assert not ran.is_set()


async def test_close_lets_finish_what_waits(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    with blocked(key) as (held, begun, release):
        await passed(begun)
        waiting = asyncio.ensure_future(key.run(sign(b"waits")))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(soft_token.hsm.close())
        await asyncio.sleep(0)
        assert not key.available
        with pytest.raises(SignerUnavailableError, match="closed"):
            await key.run(sign(b"too late"))
        release.set()
        verify(key.public_key, await held, b"held")
        verify(key.public_key, await waiting, b"waits")
        await closing
    with pytest.raises(SignerUnavailableError, match="closed"):
        await key.run(sign(b"closed"))
    for call in (soft_token.hsm.open_signing_key, soft_token.hsm.find_key, soft_token.hsm.attest):
        with pytest.raises(SignerUnavailableError, match="closed"):
            await call(key.uri)
    await soft_token.hsm.close()


async def test_another_hsm_of_the_process_is_not_disturbed_by_a_close(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    other = make_hsm()
    twin = await other.open_signing_key(key.uri)
    await asyncio.gather(*(one.run(sign(b"both")) for one in (key, twin) * 20))
    await soft_token.hsm.close()
    verify(key.public_key, await twin.run(sign(b"alone")), b"alone")
    assert await other.find_key(key.uri) is not None
    await other.close()


async def test_two_event_loops_share_a_token(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()

    async def elsewhere() -> list[bytes]:
        return await asyncio.gather(*(key.run(sign(b"there")) for _ in range(50)))

    there = asyncio.ensure_future(asyncio.to_thread(asyncio.run, elsewhere()))
    here = await asyncio.gather(*(key.run(sign(b"here")) for _ in range(50)))
    for signature in here:
        verify(key.public_key, signature, b"here")
    for signature in await there:
        verify(key.public_key, signature, b"there")


# --- refusals -------------------------------------------------------------------------------------------------------


async def test_missing_keys_tokens_and_modules(soft_token: SoftToken, tmp_path: Path) -> None:
    hsm = soft_token.hsm
    missing = soft_token.key_uri("missing")
    assert await hsm.find_key(missing) is None
    for call in (hsm.open_signing_key, hsm.open_wrapping_key, hsm.attest):
        with pytest.raises(SignerMisconfiguredError, match="no key"):
            await call(missing)
    with pytest.raises(SignerUnavailableError, match="NoSuchToken"):
        await hsm.open_signing_key(f"pkcs11:token=nobody;object=key?module-path={soft_token.module}")
    with pytest.raises(SignerMisconfiguredError, match="no PKCS#11 module"):
        await hsm.open_signing_key(f"pkcs11:token=nobody?module-path={tmp_path}/none.so")
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(SignerMisconfiguredError, match="cannot be loaded"):
        await hsm.open_signing_key(f"pkcs11:token=nobody?module-path={tmp_path}/text.so")
    with pytest.raises(ConfigurationError, match="no module"):
        await hsm.open_signing_key("pkcs11:token=nobody")


async def test_keys_of_another_token_are_not_found(soft_token: SoftToken, second_token: SoftToken) -> None:
    key = await second_token.signing_key(label="elsewhere")
    assert await soft_token.hsm.find_key(soft_token.key_uri("elsewhere")) is None
    wrong_id = key.uri.replace("id=", "id=%FF")
    assert await soft_token.hsm.find_key(wrong_id) is None


async def test_a_label_is_used_once(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key(label="once")
    with pytest.raises(SignerMisconfiguredError, match="already"):
        await soft_token.hsm.generate_signing_key(soft_token.uri, "once", "ec-p256", key_id=b"other")
    with pytest.raises(SignerMisconfiguredError, match="already"):
        await soft_token.hsm.generate_wrapping_key(soft_token.uri, "once", key_id=b"other")
    assert (await soft_token.hsm.open_signing_key(soft_token.key_uri("once"))).public_key == key.public_key


async def test_a_pair_whose_generation_was_killed_half_way_is_made_again(soft_token: SoftToken) -> None:
    await soft_token.hsm.generate_signing_key(soft_token.uri, "half", "ec-p256", key_id=b"half")

    def lose_private_half(session: Any) -> None:
        (private,) = session.get_objects({Attribute.LABEL: "half", Attribute.CLASS: ObjectClass.PRIVATE_KEY})
        private.destroy()

    await soft_token.directly(lose_private_half)
    with pytest.raises(SignerMisconfiguredError, match="already"):
        await soft_token.hsm.generate_signing_key(soft_token.uri, "half", "ec-p256", key_id=b"another")
    await soft_token.hsm.generate_signing_key(soft_token.uri, "half", "ec-p256", key_id=b"half")
    assert await soft_token.hsm.open_signing_key(soft_token.key_uri("half"))
    with pytest.raises(SignerMisconfiguredError, match="already"):
        await soft_token.hsm.generate_signing_key(soft_token.uri, "half", "ec-p256", key_id=b"half")


@pytest.mark.parametrize("how", ["extractable", "imported", "not sensitive"])
async def test_keys_that_break_the_promise_are_refused(soft_token: SoftToken, how: str) -> None:
    def make(session: Any) -> None:
        if how == "imported":
            software = ec.generate_private_key(ec.SECP256R1())
            common = {Attribute.TOKEN: True, Attribute.LABEL: "bad", Attribute.ID: b"bad"}
            der = software.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
            session.create_object(
                {
                    **decode_ec_private_key(der),
                    **common,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.SIGN: True,
                    Attribute.PRIVATE: True,
                }
            )
            spki = software.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            session.create_object({**decode_ec_public_key(spki), **common})
            return
        parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        session.create_domain_parameters(KeyType.EC, parameters, local=True).generate_keypair(
            label="bad",
            id=b"bad",
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={
                Attribute.EXTRACTABLE: how == "extractable",
                Attribute.SENSITIVE: how != "not sensitive",
            },
        )

    await soft_token.directly(make)
    says = {"extractable": "CKA_EXTRACTABLE", "imported": "CKA_LOCAL", "not sensitive": "CKA_SENSITIVE"}[how]
    for call in (soft_token.hsm.open_signing_key, soft_token.hsm.attest, soft_token.hsm.find_key):
        with pytest.raises(SignerMisconfiguredError, match=says):
            await call(soft_token.key_uri("bad"))


async def test_several_keys_of_one_label_are_ambiguous(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key(label="twice")
    other = await soft_token.signing_key(label="other")

    def relabel(session: Any) -> None:
        parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        session.create_domain_parameters(KeyType.EC, parameters, local=True).generate_keypair(
            label="twice", id=b"second", store=True, capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY
        )

    await soft_token.directly(relabel)
    with pytest.raises(SignerMisconfiguredError, match="2 keys match"):
        await soft_token.hsm.open_signing_key(soft_token.key_uri("twice"))
    assert (await soft_token.hsm.open_signing_key(key.uri)).public_key == key.public_key
    assert other.available


async def test_secrets_are_in_no_repr_and_no_error(soft_token: SoftToken) -> None:
    key = await soft_token.signing_key()
    wrapping = await soft_token.hsm.open_wrapping_key(
        await soft_token.hsm.generate_wrapping_key(soft_token.uri, "wrapping", key_id=b"w")
    )
    texts = [repr(thing) for thing in (key, wrapping, soft_token.hsm, key.uri, await soft_token.hsm.attest(key.uri))]
    texts += [repr(await key.run(lambda private: private))]
    for call in (
        soft_token.hsm.open_signing_key(soft_token.key_uri("none")),
        soft_token.hsm.open_signing_key(f"pkcs11:token=t?pin-value={USER_PIN}"),
        wrapping.unwrap(await wrapping.wrap(b"the stored secret", b"a"), b"b"),
    ):
        with pytest.raises((SignerError, ConfigurationError)) as caught:
            await call
        error: BaseException | None = caught.value
        while error is not None:
            texts += [str(error), repr(error), repr(vars(error))]
            error = error.__cause__ or error.__context__
    for secret in (USER_PIN, SO_PIN, "the stored secret"):
        assert not any(secret in text for text in texts)
