"""A key that is open: found in its token, checked against promise P1, and found and checked anew after each reconnect."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.attributes import KeyAttestation, algorithm_of, require_protection, spki_sha256
from privyseal_ca.hsm.sealing import seal, unseal
from privyseal_ca.hsm.signer import PublicKey
from privyseal_ca.hsm.token import Token
from privyseal_ca.hsm.uri import KeyUri

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: A key that a fresh look did not find is not looked for afresh again for this many seconds: each such look ends the
#: sessions of all other keys in the module.
LOOK_AGAIN = 30.0
_SAMPLE_CONTEXT = b"privyseal: the same key as before"
_SAMPLE_OCTETS = 32


@dataclass(frozen=True)
class Kind:
    """What differs between keys that sign and keys that wrap."""

    find: Callable[[cryptoki.Session, KeyUri], cryptoki.Key | None]
    uses: tuple[str, ...]
    """The CKA_ attributes without which the key is of no use."""
    public_half: Callable[[cryptoki.Session, cryptoki.Key], PublicKey] | None
    """``None`` for secret keys: they are told apart by what they open."""


SIGNING = Kind(cryptoki.find_signing_key, ("SIGN",), cryptoki.read_public_key)
WRAPPING = Kind(cryptoki.find_wrapping_key, ("ENCRYPT", "DECRYPT"), None)


class HeldKey:
    """One key. Used on its module's thread, but for ``usable`` and ``refuse_if_unusable``. ``random`` gives random octets."""

    def __init__(self, uri: KeyUri, token: Token, kind: Kind, random: Callable[[int], bytes]) -> None:
        self.uri = uri
        self.token = token
        self.public_key: PublicKey | None = None
        self.attributes: dict[str, bool] = {}
        self._kind = kind
        self._random = random
        self._sample = b""
        self._sealed = b""
        self._fresh_at = 0.0
        self._key: cryptoki.Key | None = None
        self._epoch = -1
        self._missing = False
        self._expected = False
        self._refused: SignerMisconfiguredError | None = None

    @property
    def usable(self) -> bool:
        """Whether the key was there when last looked for, and is one that may be used."""
        return self._refused is None and not self._missing and self.token.available

    @property
    def missing(self) -> bool:
        """Whether the key was not there when last looked for."""
        return self._missing

    @property
    def found(self) -> bool:
        """Whether the key was there and checked when last looked for."""
        return self._epoch >= 0 and not self._missing and self._refused is None

    def expect(self, public_key: PublicKey) -> None:
        """Take no other key than ``public_key`` for this one, which may not have been looked for yet."""
        self._expected = True
        self.public_key = public_key

    def refuse(self, error: SignerMisconfiguredError) -> None:
        """Never use the key again in the life of the process, because of ``error``."""
        self._refused = SignerMisconfiguredError(error.message, hint=error.hint)
        _log.error("%s", error)

    def refuse_if_unusable(self) -> None:
        """Fail at once where the token need not be asked.

        Raises:
            SignerUnavailableError: the token is left alone for a while.
            SignerMisconfiguredError: the key broke promise P1 when it was last looked at, or the PIN was refused.
        """
        if self._refused is not None:
            raise SignerMisconfiguredError(self._refused.message, hint=self._refused.hint)
        self.token.refuse_if_away()

    def ready(self) -> cryptoki.Key:
        """The key in the token, found and checked since the last reconnect.

        Raises:
            SignerUnavailableError: the token is away.
            SignerMisconfiguredError: wrong PIN, key gone or another one, or attributes that break promise P1.
        """
        if self._refused is not None:
            raise SignerMisconfiguredError(self._refused.message, hint=self._refused.hint)
        session = self.token.session()
        if self._epoch != self.token.epoch:
            with self.token.faults():
                self._look(session)
        return self._key

    def find(self) -> bool:
        """Whether the key is there. When it is, it has been checked. Raises as :meth:`ready`."""
        with self.token.faults():
            if self._kind.find(self.token.session(), self.uri) is None:
                # Whoever shares this process may have logged out, and then private keys are hidden.
                self.token.disconnect()
                if self._kind.find(self.token.session(), self.uri) is None:
                    return False
        self.ready()
        return True

    def use(self, operation: Callable[[cryptoki.Key], T], *, signing: bool = False) -> T:
        """The result of ``operation`` with the key, tried a second time where the first cannot have done anything.

        Raises:
            SignerUnavailableError: the token is away; no signature was made.
            SignatureUncertainError: the token failed while ``signing``.
            SignerMisconfiguredError: as :meth:`ready`, or the token refuses the operation.
        """
        result = self.token.use(lambda: operation(self.ready()), signing=signing)
        self.token.succeeded()
        return result

    def probe(self) -> None:
        """Ask the token for the key's identifier. Raises as :meth:`use`."""
        self.token.use(lambda: cryptoki.identifier_of(self.ready()))

    def attestation(self) -> KeyAttestation:
        """What the token says of the key, as it was last looked at.

        Raises:
            SignerMisconfiguredError: it has no public half that could be named.
        """
        if self.public_key is None:
            raise SignerMisconfiguredError(f"{self.uri} has no public key.", hint="Only signing keys are attested.")
        return KeyAttestation(
            uri=str(self.uri),
            algorithm=algorithm_of(self.public_key),
            spki_sha256=spki_sha256(self.public_key),
            module=str(self.token.module.path),
            token_serial=self.token.serial,
            attributes=dict(self.attributes),
        )

    def _look(self, session: cryptoki.Session) -> None:
        """Find the key and check it."""
        key = self._kind.find(session, self.uri)
        if key is None and (now := self.token.module.monotonic()) >= self._fresh_at:
            # What the module remembers of a token that was away may be wrong: absence is believed after a fresh look.
            self.token.module.rescan()
            session = self.token.session()
            key = self._kind.find(session, self.uri)
            self._fresh_at = now + LOOK_AGAIN if key is None else 0.0
        self._missing = key is None
        if key is None:
            raise SignerMisconfiguredError(
                f"There is no key {self.uri} in its token.", hint="Check object and id in the URI, or restore the key."
            )
        try:
            self._check(session, key)
        except SignerMisconfiguredError as error:
            self.refuse(error)
            raise
        self._key, self._epoch = key, self.token.epoch

    def _another(self) -> SignerMisconfiguredError:
        if self._expected:
            return SignerMisconfiguredError(
                f"The key {self.uri} is another one than the key of that name that this authority uses.",
                hint="Find out which token has the right key, and restore or replicate it from there; then restart.",
            )
        return SignerMisconfiguredError(
            f"The key {self.uri} is another one than when it was opened.",
            hint="Find out who changed the token before anything is signed again.",
        )

    def _check(self, session: cryptoki.Session, key: cryptoki.Key) -> None:
        attributes = cryptoki.read_attributes(key)
        require_protection(str(self.uri), attributes, self._kind.uses)
        if self._kind.public_half is not None:
            public_key = self._public_half(self._kind.public_half, session, key)
            if self.public_key is not None and public_key != self.public_key:
                raise self._another()
            self.public_key = public_key
        elif not self._sealed:
            self._sample = self._random(_SAMPLE_OCTETS)
            self._sealed = seal(key, self._sample, _SAMPLE_CONTEXT, self._random)
        elif unseal(key, self._sealed, _SAMPLE_CONTEXT, self._random) != self._sample:
            raise self._another()
        self.attributes = attributes

    def _public_half(
        self,
        read: Callable[[cryptoki.Session, cryptoki.Key], PublicKey],
        session: cryptoki.Session,
        key: cryptoki.Key,
    ) -> PublicKey:
        try:
            return read(session, key)
        except ValueError as error:
            raise SignerMisconfiguredError(
                f"The public half of the key {self.uri} is no public key.",
                hint="Find out who changed the token, and restore the key.",
            ) from error
