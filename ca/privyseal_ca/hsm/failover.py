"""Keys that several tokens hold: used in the first token that works, and in the preferred one again when it is back.

What one token certainly did not do, another is asked for within the same call. What it may have done is left at that:
:class:`~privyseal_ca.errors.SignatureUncertainError` goes to the caller, who starts anew, and the next call goes elsewhere.
Going back needs a probe that succeeds (:meth:`privyseal_ca.hsm.pkcs11.Hsm.probe`).
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from privyseal_ca.errors import (
    SignatureUncertainError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm.places import Place, plain
from privyseal_ca.hsm.signer import PrivateKey, PublicKey
from privyseal_ca.hsm.signing import TokenSigningKey
from privyseal_ca.hsm.wrapping import TokenWrappingKey

_log = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K", TokenSigningKey, TokenWrappingKey)
P = TypeVar("P", bound="_Placed")

_SAMPLE_CONTEXT = b"privyseal: the same key in two tokens"
_SAMPLE_OCTETS = 32


class _Placed(Protocol):
    @property
    def place(self) -> Place: ...


@dataclass
class Member(Generic[K]):
    """The key in one of its tokens."""

    place: Place
    key: K


class FailoverSigningKey:
    """A private key that several tokens hold, the preferred first; all have the same public half."""

    def __init__(self, members: Sequence[Member[TokenSigningKey]]) -> None:
        self._members = members

    @property
    def uri(self) -> str:
        """The RFC 7512 URI that is recorded of the key: where it was generated."""
        return self._members[0].key.uri

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._members[0].key.public_key

    @property
    def available(self) -> bool:
        """Whether a request made now is expected to reach one of the tokens. Never blocks."""
        return any(member.key.available for member in self._members)

    async def run(self, work: Callable[[PrivateKey], T]) -> T:
        """See :meth:`privyseal_ca.hsm.signer.SigningKey.run`."""

        async def attempt(member: Member[TokenSigningKey], begin: float | None) -> T:
            return await member.key.attempt(work, begin=begin)

        return await _first(self._members, attempt)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}>"


@dataclass
class WrappingMember(Member[TokenWrappingKey]):
    """The wrapping key in one of its tokens. What another key wrapped could be read nowhere else."""

    proven: bool = False
    """Whether it is known to be the same key as the recorded one, and so may wrap."""


class FailoverWrappingKey:
    """A secret key that several tokens hold, the preferred first. ``random`` gives that many random octets.

    A secret key cannot be compared as a public one can. It is the same when it opens what the other wrapped; before that
    is known, a token opens and does not wrap.
    """

    def __init__(self, members: Sequence[WrappingMember], *, random: Callable[[int], bytes]) -> None:
        self._members = members
        self._random = random

    @property
    def uri(self) -> str:
        """The RFC 7512 URI that is recorded of the key: where it was generated."""
        return self._members[0].key.uri

    async def wrap(self, secret: bytes, context: bytes) -> bytes:
        """See :meth:`privyseal_ca.hsm.signer.WrappingKey.wrap`."""

        async def attempt(member: WrappingMember, begin: float | None) -> bytes:
            return await member.key.wrap(secret, context, begin=begin)

        proven = [member for member in self._members if member.proven]
        if not proven:
            raise SignerUnavailableError(
                f"No token has shown yet that its wrapping key is {plain(self._members[0].place.held.uri)}.",
                hint="Bring back the token that the key was generated in.",
            )
        return await _first(proven, attempt)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See :meth:`privyseal_ca.hsm.signer.WrappingKey.unwrap`.

        Raises:
            SignerUnavailableError: also when a token cannot open it that may have another key, and the others are away.
        """

        async def attempt(member: WrappingMember, begin: float | None) -> bytes:
            try:
                secret = await member.key.unwrap(wrapped, context, begin=begin)
            except (SignerUnavailableError, SignerMisconfiguredError):
                raise
            except SignerError as error:
                if member.proven:
                    raise
                raise _NotOpenedError(error.message, hint=error.hint) from error
            if not member.proven:
                self._prove(member)
            return secret

        return await _first(self._members, attempt)

    async def compare(self) -> None:
        """Let a token whose key is not known to be the same show it, while another is there to compare with."""
        for member in self._members:
            reference = next((other for other in self._members if other.proven and other.place.serves), None)
            if reference is None:
                return
            if not member.proven and member.place.serves and member.place.held.found:
                await self._compare(member, reference)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}>"

    async def _compare(self, member: WrappingMember, reference: WrappingMember) -> None:
        sample = self._random(_SAMPLE_OCTETS)
        try:
            wrapped = await reference.key.wrap(sample, _SAMPLE_CONTEXT, begin=reference.place.begin)
            same = await member.key.unwrap(wrapped, _SAMPLE_CONTEXT, begin=member.place.begin) == sample
        except (SignerUnavailableError, SignerMisconfiguredError) as error:
            _log.info("the wrapping keys are compared later: %s", error.message)
            return
        except SignerError:
            same = False
        if same:
            self._prove(member)
            return
        refusal = SignerMisconfiguredError(
            f"The wrapping key {plain(member.place.held.uri)} is another one than {plain(reference.place.held.uri)}.",
            hint="Replicate the right key into that token, then restart.",
        )
        member.place.held.refuse(refusal)
        member.place.failed(refusal)

    def _prove(self, member: WrappingMember) -> None:
        member.proven = True
        _log.info("the wrapping key %s is the one that is recorded", plain(member.place.held.uri))


class _NotOpenedError(SignerUnavailableError):
    """A token did not open what was wrapped; whether that is because it has another key is not known."""


async def _first(members: Sequence[P], attempt: Callable[[P, float | None], Awaitable[T]]) -> T:
    """What ``attempt`` gives with the first of ``members`` that works.

    ``attempt`` is given how long it may wait for a token to begin when another could do the work as well.

    Raises:
        SignerUnavailableError: no token was reached, or some were and cannot be used; nothing was done.
        SignatureUncertainError: a token failed while signing.
        SignerMisconfiguredError: no token can be used before somebody has mended something.
    """
    order = sorted(members, key=lambda member: not member.place.serves)
    failures: list[SignerError] = []
    for position, member in enumerate(order):
        place = member.place
        if place.known is not None:
            failures.append(place.known)
            continue
        another = any(other.place.serves for other in order[position + 1 :])
        try:
            result = await attempt(member, place.begin if another else None)
        except SignatureUncertainError as error:
            place.failed(error)
            raise
        except _NotOpenedError as error:
            failures.append(error)
        except (SignerUnavailableError, SignerMisconfiguredError) as error:
            place.failed(error)
            failures.append(error)
        else:
            place.worked()
            return result
    raise together(failures)


def together(failures: Sequence[SignerError]) -> SignerError:
    """One error for what went wrong in each token of a key; unavailable when waiting may help with any of them."""
    if len(failures) == 1:
        return failures[0]
    chosen = next((error for error in failures if isinstance(error, SignerUnavailableError)), failures[0])
    messages = dict.fromkeys(error.message for error in failures)
    kind = SignerUnavailableError if isinstance(chosen, SignerUnavailableError) else SignerMisconfiguredError
    return kind(" ".join(messages), hint=chosen.hint)
