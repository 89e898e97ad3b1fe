"""Two tokens with the same keys, as an HSM's own replication makes them, each behind a shim of its own.

The fixtures are in :mod:`fakes.two_tokens_fixtures`.

SoftHSM has no replication: the folder of a token is copied to a second store, with all attributes of its keys. A shim for
each store makes them two modules in one process, which fail one by one (:mod:`fakes.shim`).
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.shim import Shim, make_tokens
from privyseal_ca.hsm import softhsm
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import PrivateKey, SigningKey
from privyseal_ca.hsm.uri import KeyUri

PIN = "user-pin-of-the-tests"
LABEL = "issuing"
_ECDSA = ec.ECDSA(hashes.SHA256())
_PATIENCE = 20.0


class TwoTokens:
    """The preferred token ``a`` and its replica ``b``."""

    def __init__(self, folder: Path) -> None:
        self._stores = {name: folder / f"softhsm-{name}" for name in "ab"}
        self.a, self.b = (Shim(folder / name, softhsm_conf=softhsm.embed(self._stores[name])) for name in "ab")

    @property
    def uri_a(self) -> str:
        """The URI of the preferred token."""
        return str(KeyUri(token=LABEL, module_path=self.a.path))

    @property
    def uri_b(self) -> str:
        """The URI of the replica."""
        return str(KeyUri(token=LABEL, module_path=self.b.path))

    def replicate(self) -> None:
        """Make ``b`` what ``a`` is."""
        source, target = (self._stores[name] / softhsm.TOKENS_DIRECTORY for name in "ab")
        shutil.rmtree(target)
        shutil.copytree(source, target)

    def make(self, shim: Shim) -> None:
        """An empty token of the same name, in the place of what was there."""
        tokens = self._stores["a" if shim is self.a else "b"] / softhsm.TOKENS_DIRECTORY
        shutil.rmtree(tokens)
        tokens.mkdir(mode=0o700)
        make_tokens(shim, LABEL, pin=PIN)

    def hsm(
        self,
        *,
        pins: Callable[[KeyUri], Pin] = lambda _: Pin(PIN),
        timeout: float = 5,
        retry_after: float = 0.02,
        replicas: tuple[str, ...] | None = None,
        modules: Modules | None = None,
    ) -> Hsm:
        """Both tokens, ``a`` preferred. ``modules`` is a process of its own unless it is given."""
        return Hsm(
            pins=pins,
            queue=64,
            timeout=timeout,
            retry_after=retry_after,
            modules=modules or Modules(),
            replicas=(self.uri_b,) if replicas is None else replicas,
        )

    def lift(self) -> None:
        """No more faults."""
        self.a.lift()
        self.b.lift()


def sign(private: PrivateKey) -> bytes:
    """Work for a key."""
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private.sign(b"message", _ECDSA)


def verify(key: SigningKey, signature: bytes) -> None:
    """What :func:`sign` made verifies."""
    assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
    key.public_key.verify(signature, b"message", _ECDSA)


@dataclass
class Keys:
    """What a ceremony made in the preferred token, and the HSM replicated."""

    signing: str
    wrapping: str


async def signed_by(shim: Shim, key: SigningKey) -> bool:
    """Whether ``shim`` made the next signature, which verifies."""
    before = shim.signature_count
    verify(key, await key.run(sign))
    return shim.signature_count == before + 1


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Poll until ``true()``."""
    deadline = time.monotonic() + _PATIENCE
    while not await true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def back_at(shim: Shim, hsm: Hsm, key: SigningKey) -> None:
    """Probe as the service does until the key is used in ``shim``."""

    async def back() -> bool:
        await hsm.probe()
        return await signed_by(shim, key)

    await until(back)


async def strange_twin(tokens: TwoTokens) -> None:
    """Put keys of the same names, made there, into the replica."""
    tokens.make(tokens.b)
    hsm = tokens.hsm(replicas=())
    await hsm.generate_signing_key(tokens.uri_b, "issuer", "ec-p256", key_id=b"\1")
    await hsm.generate_wrapping_key(tokens.uri_b, "wrapping", key_id=b"\2")
    await hsm.close()
