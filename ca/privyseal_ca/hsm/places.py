"""Where keys are: each key in each token that is to hold it, whether it can be used there, and what is told of that."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from privyseal_ca.errors import (
    ConfigurationError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm.held import LOOK_AGAIN, HeldKey
from privyseal_ca.hsm.uri import KeyUri

_log = logging.getLogger(__name__)

#: A token that has been busy with one task for longer hangs, where another one has the key. Seconds.
BEGIN_SECONDS = 1.0
_LONGEST_PAUSE = 60.0
_MOST_REASONS = 3


@dataclass(frozen=True)
class TokenState:
    """What is known of one token since it was last asked."""

    uri: str
    """Its RFC 7512 URI, without any PIN."""
    up: bool
    """Whether any of the open keys can be used in it."""
    keys: tuple[str, ...]
    """The names of the open keys that can be used in it."""
    signing: int
    """How many open keys are used in this token now, and in no other."""
    reason: str
    """What is wrong with it, or with which of its keys; empty when nothing is."""


def read_replicas(replicas: Iterable[str]) -> tuple[KeyUri, ...]:
    """The tokens that ``hsm.replicas`` names.

    Raises:
        ConfigurationError: a URI is malformed, names no token, no module or a single key, or one token is named twice.
    """
    found: dict[str, KeyUri] = {}
    for text in replicas:
        uri = KeyUri.parse(text)
        shown = plain(uri)
        if uri.module_path is None:
            raise ConfigurationError(
                f"hsm.replicas names {shown} without a module.", hint="Add ?module-path=/FILE to the URI."
            )
        if uri != uri.token_uri:
            raise ConfigurationError(
                f"hsm.replicas names a key, {shown}.", hint="Name the token alone, without object, id and type."
            )
        if uri.token is None and uri.serial is None:
            raise ConfigurationError(
                f"hsm.replicas names no token: {shown}.", hint="Add token=LABEL or serial=NUMBER to the URI."
            )
        if shown in found:
            raise ConfigurationError(f"hsm.replicas names {shown} twice.", hint="Name each token once.")
        found[shown] = uri
    return tuple(found.values())


def places_of(key: KeyUri, replicas: Sequence[KeyUri]) -> list[KeyUri]:
    """The URIs of ``key`` in its own token and then in each of ``replicas``.

    Raises:
        ConfigurationError: there are replicas, and all of them are the token that the key is in.
    """
    own = plain(key.token_uri)
    others = [
        replace(replica, object=key.object, id=key.id, type=key.type) for replica in replicas if plain(replica) != own
    ]
    if replicas and not others:
        raise ConfigurationError(
            f"hsm.replicas names only {own}, which is the token that has the key {key.object!r} itself.",
            hint="Name another token that holds the same keys, or remove the setting.",
        )
    return [key, *others]


def plain(uri: KeyUri) -> str:
    """``uri`` without the place of its PIN, for people and for comparisons."""
    return str(replace(uri, pin_source=None))


class Place:
    """One key in one token. Used on the event loop.

    A place that failed is used no more until a probe has found it in order, so that one request pays for a failure and not
    each. The first pause lasts ``retry_after`` seconds at least; each further failure doubles it, up to a minute, until the
    place has worked again. ``limit`` and ``timeout`` bound the probe. A key that has no other place is used whenever its
    token lets it.
    """

    def __init__(self, held: HeldKey, *, alone: bool, retry_after: float, timeout: float, limit: int) -> None:
        self.held = held
        self.error: SignerError | None = None
        """Why it is not used; ``None`` when it is, or was not tried yet."""
        self.begin = timeout if alone else min(BEGIN_SECONDS, timeout)
        """Seconds that a request waits for the token to begin, and one task may take it."""
        self._alone = alone
        self._retry_after = retry_after
        self._timeout = timeout
        self._limit = limit
        self._pauses = 0
        self._until = 0.0
        self._look_at = 0.0

    @property
    def serves(self) -> bool:
        """Whether the key is expected to be used here at once."""
        worker = self.held.token.module.worker
        return self.error is None and self.held.usable and worker.serves(self.begin)

    @property
    def known(self) -> SignerError | None:
        """What was said when the key was not there a moment ago; then it is not looked for again."""
        return self.error if self.held.missing and self._now < self._look_at else None

    def failed(self, error: SignerError) -> None:
        """The place could not do what it was asked: leave it alone, unless it just has too much to do."""
        if self._alone:
            self.error = error
            return
        worker = self.held.token.module.worker
        if isinstance(error, SignerUnavailableError) and self.held.usable and worker.serves(self.begin):
            return
        if self.held.missing:
            self._look_at = self._now + LOOK_AGAIN
        if self.error is None:
            self._until = self._now + min(self._retry_after * 2.0 ** min(self._pauses, 30), _LONGEST_PAUSE)
            self._pauses += 1
        # Of a token that stays away the first word says most; the later ones are about the pause.
        if (
            self.error is None
            or not isinstance(self.error, SignerUnavailableError)
            or type(error) is not type(self.error)
        ):
            if self.error is None or self.error.message != error.message:
                _log.warning("the key %s is not used for now: %s", plain(self.held.uri), error.message)
            self.error = error

    def worked(self) -> None:
        """The place did real work: earlier failures are forgotten. Of one that was asked for want of a better it proves no more
        than a probe does.
        """
        if self.error is None:
            self._pauses = 0
        else:
            self._succeeded()

    async def probe(self) -> None:
        """Ask the token whether it still has the key, where it may be asked now."""
        try:
            if not self._alone:
                if self.known is not None:
                    return
                self._refuse_if_hanging()
            self.held.refuse_if_unusable()
            await self.held.token.module.worker.call(
                lambda _: self.held.token.use(self.held.probe),
                patience=self.begin,
                limit=self._limit,
            )
        except (SignerUnavailableError, SignerMisconfiguredError) as error:
            self.failed(error)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self.error is not None and (self._alone or self._now >= self._until):
            self.error = None
            if not self._alone:
                _log.warning("the key %s can be used again", plain(self.held.uri))

    def _refuse_if_hanging(self) -> None:
        if not self.held.token.module.worker.serves(self.begin):
            raise SignerUnavailableError(
                f"The token {plain(self.held.token.uri)} has not answered for more than {self.begin:g} seconds.",
                hint="Look at the token or its network; it is used again when it answers.",
            )

    @property
    def _now(self) -> float:
        return self.held.token.module.monotonic()


def refuse_twins(places: Sequence[Place]) -> None:
    """Refuse a token that the settings name a second time by other words: it would be gone together with itself."""
    known: dict[tuple[int, str], Place] = {}
    for place in places:
        token = place.held.token
        if not (token.identity and place.held.found):
            continue
        first = known.setdefault((id(token.module), token.identity), place)
        if first is not place:
            error = SignerMisconfiguredError(
                f"{plain(token.uri)} is the same token as {plain(first.held.token.uri)}.",
                hint="Name another token in hsm.replicas that holds the same keys, then restart.",
            )
            place.held.refuse(error)
            place.failed(error)


def states(keys: Iterable[Sequence[Place]]) -> list[TokenState]:
    """What is known of the tokens of ``keys``, each with its places, the preferred first."""
    by_token: dict[str, list[Place]] = {}
    signing: dict[str, int] = {}
    for places in keys:
        for place in places:
            by_token.setdefault(plain(place.held.token.uri), []).append(place)
        used = next((place for place in places if place.serves and place.held.found), None)
        if used is not None:
            name = plain(used.held.token.uri)
            signing[name] = signing.get(name, 0) + 1
    return [_state(token, places, signing.get(token, 0)) for token, places in by_token.items()]


def _state(token: str, places: Sequence[Place], signing: int) -> TokenState:
    good = [place for place in places if place.serves and place.held.found]
    messages = list(dict.fromkeys(place.error.message for place in places if place.error is not None))
    if not messages and not good:
        messages = ["It is away, or was not asked yet."]
    reason = " ".join(messages[:_MOST_REASONS])
    if len(messages) > _MOST_REASONS:
        reason += f" And {len(messages) - _MOST_REASONS} more."
    return TokenState(token, bool(good), tuple(place.held.uri.object or "" for place in good), signing, reason)
