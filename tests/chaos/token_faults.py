"""What befalls the token: the shim between the service and SoftHSM fails on command."""

import random
from typing import Final

from chaos.record import Record
from chaos.world import World
from fakes.process import CommandFailedError
from fakes.shim import CKR, Shim

#: These say that the call did nothing.
_NOT_DONE: Final = (
    CKR.SESSION_HANDLE_INVALID,
    CKR.OBJECT_HANDLE_INVALID,
    CKR.KEY_HANDLE_INVALID,
    CKR.USER_NOT_LOGGED_IN,
    CKR.OPERATION_ACTIVE,
    CKR.OPERATION_NOT_INITIALIZED,
    CKR.TOKEN_NOT_PRESENT,
)
#: These leave open whether it did.
_OPEN: Final = (
    CKR.SESSION_CLOSED,
    CKR.FUNCTION_FAILED,
    CKR.DEVICE_REMOVED,
    CKR.DEVICE_ERROR,
    CKR.DEVICE_MEMORY,
    CKR.GENERAL_ERROR,
    CKR.HOST_MEMORY,
)
#: What the service calls besides C_Sign when it uses a token. Not C_Login: a PIN that was refused waits for a person.
_OTHERS: Final = ("C_SignInit", "C_OpenSession", "C_FindObjectsInit", "C_GetAttributeValue")


class _TokenFault:
    """Whatever was set is set back."""

    name: str
    lasts = (0.1, 1.5)

    def lift(self, world: World) -> None:
        _shim(world).lift()


class SignFails(_TokenFault):
    """C_Sign fails with one of the codes: once, a few times, or until it is lifted."""

    def __init__(self, *, signed: bool) -> None:
        self.name = "token signs, and says that it failed" if signed else "token fails to sign"
        self._signed = signed

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        code = chance.choice(_OPEN if self._signed else _OPEN + _NOT_DONE)
        _shim(world).fail("C_Sign", code, times=chance.choice((1, 2, 5, None)), after=self._signed)


class OtherCallFails(_TokenFault):
    """A call that finds, opens or begins fails."""

    name = "token fails another call"

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        shim = _shim(world)
        # Sessions are opened and keys are found after sessions were lost.
        shim.lose_sessions()
        shim.fail(chance.choice(_OTHERS), chance.choice(_OPEN + _NOT_DONE), times=chance.choice((1, 2, 5, None)))


class SignHangs(_TokenFault):
    """C_Sign does not come back, before or after it signed, for longer than anybody waits."""

    name = "token hangs"
    lasts = (0.5, 3.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        _shim(world).hang("C_Sign", after=chance.random() < 0.5)


class Slow(_TokenFault):
    """Every signature takes long."""

    name = "token is slow"
    lasts = (0.5, 2.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        _shim(world).delay("C_Sign", chance.uniform(0.05, 0.4))


class Gone(_TokenFault):
    """The token is pulled out and comes back."""

    name = "token disappears"
    lasts = (0.1, 3.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        _shim(world).take_away(chance.choice((CKR.DEVICE_REMOVED, CKR.TOKEN_NOT_PRESENT, CKR.SESSION_HANDLE_INVALID)))


class SessionsLost(_TokenFault):
    """The sessions are closed behind the service's back, or the user is logged out."""

    name = "token loses its sessions"
    lasts = (0.0, 0.5)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        shim = _shim(world)
        chance.choice((shim.lose_sessions, shim.log_out))()


def _shim(world: World) -> Shim:
    if world.shim is None:
        raise CommandFailedError("this fault needs a token behind the shim")
    return world.shim
