"""Keys in PKCS#11 tokens: opened, generated, attested (promise P1).

::

    Hsm -> FailoverSigningKey, FailoverWrappingKey    a key that several tokens hold
        -> TokenSigningKey, TokenWrappingKey      a key in one token
        -> Place -> HeldKey -> Token -> Module -> Worker   found and checked; session, login, breaker; generation; thread
                            -> cryptoki           the only import of python-pkcs11
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from privyseal_ca.errors import ConfigurationError, SignerError, SignerMisconfiguredError, SignerUnavailableError
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.attributes import KeyAlgorithm, KeyAttestation
from privyseal_ca.hsm.failover import FailoverSigningKey, FailoverWrappingKey, Member, WrappingMember, together
from privyseal_ca.hsm.held import SIGNING, WRAPPING, HeldKey, Kind
from privyseal_ca.hsm.modules import PROCESS, Module, Modules
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.places import Place, TokenState, places_of, read_replicas, refuse_twins, states
from privyseal_ca.hsm.signer import PublicKey, SigningKey, WrappingKey
from privyseal_ca.hsm.signing import TokenSigningKey
from privyseal_ca.hsm.token import Token
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.hsm.worker import Start
from privyseal_ca.hsm.wrapping import TokenWrappingKey

__all__ = ["Hsm", "KeyAlgorithm", "KeyAttestation", "TokenState"]

T = TypeVar("T")

# Tokens take their time over a key pair or over being initialised; a request of a client does not wait for these.
_ADMINISTRATION_TIMEOUT = 120.0


class Hsm:
    """The keys that one owner has open, in any number of tokens and modules.

    ``pins`` gives the user PIN of a token and is called on the token's thread at every login. ``queue`` is how many
    requests may wait for one module, ``timeout`` how many seconds each of them may, ``retry_after`` the first pause in
    seconds after a token failed. ``random`` gives random octets. Nothing is loaded before the first call.

    ``replicas`` are further tokens that hold the same keys (setting ``hsm.replicas``): every key that is opened is used in
    the token that its URI names and, while that fails, in the first of them that has it. Keys are generated, found and
    attested only in the token that is named.

    Raises:
        ConfigurationError: ``replicas`` are not tokens with modules, each named once.

    Every method raises:
        ConfigurationError: the URI is malformed or names no module, or the replicas are only the token that it names.
        SignerUnavailableError: the token is away, or there is no such token.
        SignerMisconfiguredError: the PIN is missing or refused, the key is missing or breaks promise P1, or the token
            refuses what it is asked.
    """

    def __init__(
        self,
        *,
        pins: Callable[[KeyUri], Pin],
        queue: int,
        timeout: float,
        retry_after: float,
        random: Callable[[int], bytes] = os.urandom,
        modules: Modules = PROCESS,
        replicas: Sequence[str] = (),
    ) -> None:
        self._replicas = read_replicas(replicas)
        self._pins = pins
        self._queue = queue
        self._timeout = timeout
        self._retry_after = retry_after
        self._random = random
        self._loader = modules
        self._modules: dict[Path, Module] = {}
        self._tokens: dict[str, Token] = {}
        self._open: dict[str, list[Place]] = {}
        self._needed: dict[str, bool] = {}
        self._to_compare: dict[str, FailoverWrappingKey] = {}
        self._closed = False

    @property
    def replicated(self) -> bool:
        """Whether keys may be in more than one token."""
        return bool(self._replicas)

    @property
    def waiting(self) -> int:
        """How many requests wait for the modules."""
        return sum(module.worker.waiting for module in self._modules.values())

    async def open_signing_key(
        self, uri: str, *, public_key: PublicKey | None = None, needed: bool = True
    ) -> SigningKey:
        """The private key that ``uri`` names, found and checked.

        With replicas, one token that has the key is enough; the others are looked at when they are needed, or by
        :meth:`probe`. Where its ``public_key`` is known, no token is used that has another key, and none need be there now:
        the key can be used when one comes. One that is not ``needed`` is probed like the others, and does not count there.
        """
        places = self._places(uri, SIGNING)
        if public_key is not None:
            for place in places:
                place.held.expect(public_key)
        try:
            public_key = (await self._find(places)).held.public_key
        except SignerUnavailableError:
            if public_key is None:
                raise
        if public_key is None:
            raise SignerMisconfiguredError(f"The key {uri} has no public half.", hint="Restore it in the token.")
        members = []
        for place in places:
            if place.held.public_key is None:
                place.held.expect(public_key)
            key = TokenSigningKey(place.held, public_key, timeout=self._timeout, limit=self._queue)
            members.append(Member(place, key))
        name = str(places[0].held.uri)
        self._open[name] = places
        self._needed[name] = needed
        return members[0].key if len(members) == 1 else FailoverSigningKey(members)

    async def open_wrapping_key(self, uri: str) -> WrappingKey:
        """The secret key that ``uri`` names, found and checked in one token at least."""
        places = self._places(uri, WRAPPING)
        found = await self._find(places)
        members = []
        for place in places:
            key = TokenWrappingKey(place.held, random=self._random, timeout=self._timeout, limit=self._queue)
            # The key's own token is believed when it is there first; one that comes later has to show its key.
            members.append(WrappingMember(place, key, proven=place is found and place is places[0]))
        name = str(places[0].held.uri)
        self._open[name] = places
        if len(members) == 1:
            return members[0].key
        self._to_compare[name] = FailoverWrappingKey(members, random=self._random)
        return self._to_compare[name]

    async def find_key(self, uri: str) -> KeyAttestation | None:
        """What the token says of a private key, or ``None`` when there is no such key."""
        held = self._key(uri, SIGNING)
        return await self._ask(held.token, lambda: held.attestation() if held.find() else None)

    async def attest(self, uri: str) -> KeyAttestation:
        """What the token says of a private key, read anew."""
        held = self._key(uri, SIGNING)
        await self._ask(held.token, held.ready)
        return held.attestation()

    async def supports(self, token_uri: str, algorithm: KeyAlgorithm) -> bool:
        """Whether the token can generate and use keys of ``algorithm``."""
        token = self._token(KeyUri.parse(token_uri))
        return await self._ask(token, lambda: cryptoki.supports(token.handle(), algorithm))

    async def generate_signing_key(
        self, token_uri: str, label: str, algorithm: KeyAlgorithm, *, key_id: bytes
    ) -> KeyAttestation:
        """Generate a key pair in the token and read back what it became.

        When it times out, the key may have been made all the same: look with :meth:`find_key`.

        Raises:
            SignerMisconfiguredError: also when the label is taken.
        """
        uri = replace(KeyUri.parse(token_uri).token_uri, object=label, id=key_id, type="private")
        places_of(uri, self._replicas)  # what could not be opened afterwards is not made
        held = self._key(str(uri), SIGNING)
        await self._generate(
            held.token, label, lambda t: cryptoki.generate_signing_key(t, algorithm, label, key_id), unfinished=key_id
        )
        await self._ask(held.token, held.ready)
        return held.attestation()

    async def generate_wrapping_key(self, token_uri: str, label: str, *, key_id: bytes) -> str:
        """Generate an AES-256 key in the token, check what it became, and give its URI.

        Raises:
            SignerMisconfiguredError: also when the label is taken.
        """
        uri = replace(KeyUri.parse(token_uri).token_uri, object=label, id=key_id, type="secret-key")
        places_of(uri, self._replicas)
        held = self._key(str(uri), WRAPPING)
        await self._generate(held.token, label, lambda t: cryptoki.generate_wrapping_key(t, label, key_id))
        await self._ask(held.token, held.ready)
        return str(uri)

    async def initialise_token(self, module: Path, label: str, *, so_pin: Pin, user_pin: Pin) -> None:
        """Set up a blank token of ``module`` under ``label``.

        A token of that label is kept, provided that it takes ``user_pin``; one whose setting up was interrupted before
        its user PIN was set is finished.
        """
        token = Token(
            self._module(module), KeyUri(token=label, module_path=module), lambda _: user_pin, self._retry_after
        )

        def task(start: Start) -> None:
            start()
            _initialise(token, label, so_pin, user_pin)
            token.session()
            token.disconnect()

        await self._administer(token, task)

    async def probe(self) -> None:
        """Ask every open key's token whether it still has it. Costs some microseconds each, and signs nothing.

        A token that is away is tried again when its pause is over, so that calling this now and then brings it back
        without a request having to. Raises the first failure of a needed key that no token has now, after all have been asked.
        """
        keys = list(self._open.items())
        by_token: dict[int, list[Place]] = {}
        for place in (place for _, places in keys for place in places):
            by_token.setdefault(id(place.held.token), []).append(place)
        # One that hangs keeps nobody from looking after the others.
        await asyncio.gather(*(_probe(places) for places in by_token.values()))
        for key in list(self._to_compare.values()):
            await key.compare()
        for name, places in keys:
            refuse_twins(places)
            errors = [place.error for place in places if place.error is not None]
            if len(errors) == len(places) and self._needed.get(name, True):
                raise together(errors)

    def tokens(self) -> list[TokenState]:
        """What is known of the tokens of the open keys since they were last asked. Never blocks."""
        return states(self._open.values())

    async def close(self) -> None:
        """Take no more requests, let those that wait finish, log out and give the modules back.

        Waits at most ``timeout`` seconds for each module. May be called twice.
        """
        self._closed = True
        for token in self._tokens.values():
            token.close()
        while self._modules:
            _, module = self._modules.popitem()
            await self._loader.release(module, self._timeout)

    def _places(self, uri: str, kind: Kind) -> list[Place]:
        """The key in its own token, then in the replicas."""
        uris = places_of(KeyUri.parse(uri), self._replicas)
        return [
            Place(
                HeldKey(each, self._token(each), kind, self._random),
                alone=len(uris) == 1,
                retry_after=self._retry_after,
                timeout=self._timeout,
                limit=self._queue,
            )
            for each in uris
        ]

    async def _find(self, places: Sequence[Place]) -> Place:
        """The first of ``places`` that has the key, which has been checked then."""
        failures: list[SignerError] = []
        for place in places:
            try:
                await self._ask(place.held.token, place.held.ready)
            except (SignerUnavailableError, SignerMisconfiguredError) as error:
                place.failed(error)
                failures.append(error)
            else:
                return place
        raise together(failures)

    def _key(self, uri: str, kind: Kind) -> HeldKey:
        parsed = KeyUri.parse(uri)
        return HeldKey(parsed, self._token(parsed), kind, self._random)

    def _token(self, uri: KeyUri) -> Token:
        name = str(uri.token_uri)
        if name not in self._tokens:
            if uri.module_path is None:
                raise ConfigurationError(f"The URI {name} names no module.", hint="Add ?module-path=/FILE to it.")
            self._tokens[name] = Token(self._module(uri.module_path), uri, self._pins, self._retry_after)
        return self._tokens[name]

    def _module(self, path: Path) -> Module:
        if self._closed:
            raise SignerUnavailableError("The tokens were closed.", hint="The service is stopping.")
        if path not in self._modules:
            self._modules[path] = self._loader.acquire(path)
        return self._modules[path]

    async def _ask(self, token: Token, task: Callable[[], T]) -> T:
        """``task`` on the token's thread."""
        token.refuse_if_away()
        worker = token.module.worker
        return await worker.call(lambda _: token.use(task), patience=self._timeout, limit=self._queue)

    async def _administer(self, token: Token, task: Callable[[Start], None]) -> None:
        """``task``, which changes something, on the token's thread."""
        token.refuse_if_away()
        patience = max(self._timeout, _ADMINISTRATION_TIMEOUT)
        worker = token.module.worker
        await worker.call(lambda start: token.use(lambda: task(start)), patience=patience, limit=self._queue)

    async def _generate(
        self,
        token: Token,
        label: str,
        generate: Callable[[cryptoki.Token], None],
        *,
        unfinished: bytes | None = None,
    ) -> None:
        """``unfinished`` is the CKA_ID of a key pair whose generation may have been killed half way before."""

        def task(start: Start) -> None:
            taken = cryptoki.label_taken(token.session(), label)
            if taken and unfinished is not None:
                taken = not cryptoki.drop_public_half(token.handle(), label, unfinished)
            if taken:
                raise SignerMisconfiguredError(
                    f"The token {token.uri} has an object labelled {label!r} already.",
                    hint="Choose another label; keys are never replaced.",
                )
            start()
            generate(token.handle())

        await self._administer(token, task)


async def _probe(places: Sequence[Place]) -> None:
    """Probe places in one token, one after the other."""
    for place in places:
        await place.probe()


def _initialise(token: Token, label: str, so_pin: Pin, user_pin: Pin) -> None:
    """What is left to do until the token of ``label`` has a user PIN."""
    module = token.module
    found = cryptoki.find_token(module.library(), token.uri)
    if found is None:  # another process may have made it since this one looked
        module.rescan()
        found = cryptoki.find_token(module.library(), token.uri)
    if found is None:
        cryptoki.initialise_token(module.library(), module.path, label, so_pin)
        module.rescan()
        found = cryptoki.find_token(module.library(), token.uri)
    if found is None:
        raise SignerMisconfiguredError(
            f"The token {label} was initialised and is not there.", hint="Look at the module's own log."
        )
    if not cryptoki.has_user_pin(found):
        cryptoki.set_user_pin(found, so_pin, user_pin)
