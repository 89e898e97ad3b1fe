"""One token as this process uses it: one session, one login, and a breaker while the token is away."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from privyseal_ca.errors import (
    PinRefusedError,
    SignatureUncertainError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.faults import Reaction, Remedy, reaction_to
from privyseal_ca.hsm.modules import Module
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.uri import KeyUri

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_PAUSE = 60.0


class Token:
    """A token that ``uri`` names. Used on its module's thread, but for ``available`` and ``refuse_if_away``.

    One session serves all its keys: one thread can use no second one. The first pause after a failure lasts
    ``retry_after`` seconds, and each further failure doubles it, up to a minute.
    """

    def __init__(self, module: Module, uri: KeyUri, pins: Callable[[KeyUri], Pin], retry_after: float) -> None:
        self.module = module
        self.uri = uri.token_uri
        self.serial = ""
        self.identity = ""
        """Its label and serial number, once it was found."""
        self.epoch = 0
        """Counts connections: objects found in an earlier one are to be found anew."""
        self._pins = pins
        self._retry_after = retry_after
        self._session: cryptoki.Session | None = None
        self._handle: cryptoki.Token | None = None
        self._generation = -1
        self._failures = 0
        self._pauses = 0
        self._away_until: float | None = None
        self._refused: tuple[str, str] | None = None
        self._closed = False

    @property
    def available(self) -> bool:
        """Whether the token was there when last asked, and took the PIN."""
        return self._away_until is None and self._refused is None and not self._closed

    def refuse_if_away(self) -> None:
        """Fail at once, without touching the token, while it is to be left alone.

        Raises:
            SignerUnavailableError: it failed, and the pause after that is not over.
            PinRefusedError: it refused the PIN in the life of this process.
        """
        if self._closed:
            raise SignerUnavailableError(f"The token {self.uri} was closed.", hint="The service is stopping.")
        if self._refused is not None:
            message, hint = self._refused
            raise PinRefusedError(message, hint=hint)
        if self._away_until is not None and (rest := self._away_until - self.module.monotonic()) > 0:
            raise SignerUnavailableError(
                f"The token {self.uri} failed, and is tried again in {rest:.1f} seconds.",
                hint="Check the token; nothing has to be restarted when it is back.",
            )

    def session(self) -> cryptoki.Session:
        """A session on which the user is logged in, opened if need be.

        Raises:
            SignerUnavailableError: the token is away.
            SignerMisconfiguredError: the PIN is missing or was refused, or several tokens match.
        """
        if self._session is not None and self._generation == self.module.generation:
            return self._session
        self.refuse_if_away()
        with self.faults():
            self._handle = self._found()
            self.serial = cryptoki.serial_of(self._handle)
            self.identity = f"{self._handle.label}/{self.serial}"
            session = self._logged_in(self._handle)
        self._session, self._generation = session, self.module.generation
        self.epoch += 1
        if self._away_until is not None:
            self._away_until = None
            _log.warning("the token %s is back", self.uri)
        return session

    def handle(self) -> cryptoki.Token:
        """The token itself, for what needs no key. Raises as :meth:`session`."""
        self.session()
        return self._handle

    def disconnect(self) -> None:
        """Close the session. It may be dead already."""
        session, self._session = self._session, None
        if session is not None and self._generation == self.module.generation:
            try:
                session.close()
            except cryptoki.CryptokiError as error:
                _log.info("a session on %s did not close: %s", self.uri, type(error).__name__)

    @contextmanager
    def faults(self, *, signing: bool = False) -> Iterator[None]:
        """Act on the token's errors inside, which is not tried a second time, and raise what they mean to callers."""
        try:
            yield
        except cryptoki.CryptokiError as error:
            raise self.failed(error, signing=signing, retried=True) from error

    def close(self) -> None:
        """Take no more requests. Those that wait already find their session."""
        self._closed = True

    def use(self, operation: Callable[[], T], *, signing: bool = False) -> T:
        """The result of ``operation``, which is tried a second time where the first cannot have done anything.

        Raises:
            SignerUnavailableError: the token is away; nothing was signed.
            SignatureUncertainError: the token failed while ``signing``.
            SignerMisconfiguredError: the PIN was refused, or the token refuses the operation.
        """
        try:
            result = operation()
        except cryptoki.CryptokiError as error:
            failure = self.failed(error, signing=signing)
            if not reaction_to(error).again:
                raise failure from error
            with self.faults(signing=signing):
                result = operation()
        return result

    def succeeded(self) -> None:
        """The token did real work: earlier failures are forgotten."""
        self._failures = self._pauses = 0

    def failed(self, error: cryptoki.CryptokiError, *, signing: bool = False, retried: bool = False) -> SignerError:
        """Do what the table of faults says, and give the error to raise.

        ``signing``: the token was asked for a signature. ``retried``: this was the second try.
        """
        reaction = reaction_to(error)
        code = type(error).__name__
        if reaction.remedy is Remedy.NONE:
            return SignerMisconfiguredError(
                f"The token {self.uri} refuses what it was asked ({code}).",
                hint="The key or the token is not made for this; `privyseal doctor` tells what the token offers.",
            )
        if reaction.remedy is Remedy.NEVER:
            return self._refuse_pin(code)
        if reaction.remedy is Remedy.RESTART:
            self.module.distrust()
            self._session = None
        self.disconnect()
        self._failures += 1
        if self._failures > reaction.tolerated and (retried or not reaction.again):
            self._leave_alone(code)
        return self._error(reaction, code, signing=signing)

    def _error(self, reaction: Reaction, code: str, *, signing: bool) -> SignerError:
        if signing and reaction.may_have_signed:
            return SignatureUncertainError(
                f"The token {self.uri} failed while it was signing ({code}); it may have made a signature.",
                hint="Treat what was to be signed as spent.",
            )
        return SignerUnavailableError(
            f"The token {self.uri} cannot be used ({code}).",
            hint="Check the token; it is tried again by itself.",
        )

    def _leave_alone(self, code: str) -> None:
        pause = min(self._retry_after * 2.0 ** min(self._pauses, 30), _LONGEST_PAUSE)
        self._pauses += 1
        self._away_until = self.module.monotonic() + pause
        _log.warning("the token %s failed (%s); it is tried again in %.1f seconds", self.uri, code, pause)

    def _found(self) -> cryptoki.Token:
        token = cryptoki.find_token(self.module.library(), self.uri)
        if token is None:
            # The list of slots may be as old as the initialisation.
            self.module.rescan()
            token = cryptoki.find_token(self.module.library(), self.uri)
        if token is None:
            raise cryptoki.codes.NoSuchToken
        return token

    def _logged_in(self, token: cryptoki.Token) -> cryptoki.Session:
        code = self.module.refused_pins.get(self.identity)
        if code is not None:
            raise self._refuse_pin(code)
        if cryptoki.one_try_left(token):
            # However often something starts this process anew, it is not what locks a token.
            raise self._refuse(
                f"The token {self.uri} says that its PIN is locked, or would be by one more that is wrong.",
                "Log in once with the token's own tool and the right PIN, or unlock it; correct the PIN, then restart.",
            )
        return cryptoki.open_session(token, self._pins(self.uri))

    def _refuse_pin(self, code: str) -> PinRefusedError:
        """Remember that the PIN was refused: a token locks itself after a few tries."""
        if self.identity:
            self.module.refused_pins[self.identity] = code
        return self._refuse(
            f"The token {self.uri} refused the PIN ({code}); it is not tried again, so that the token does not lock.",
            "Correct the PIN, then restart.",
        )

    def _refuse(self, message: str, hint: str) -> PinRefusedError:
        self._refused = message, hint
        error = PinRefusedError(message, hint=hint)
        _log.error("%s", error)
        return error
