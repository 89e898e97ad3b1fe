"""What follows from each error of a token: one table.

Two questions are answered for each code. May the token have made the signature that was asked for? And what is done
before the next request? The meanings are those of PKCS#11 v3.1 section 5.1: codes that speak of a state "at the time
that the function was invoked" say that nothing was done; codes that speak of what happened "during the execution of the
function", and the universal errors, leave it open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from privyseal_ca.hsm.cryptoki import CryptokiError, codes


class Remedy(Enum):
    """What is done before the token is used again."""

    NONE = auto()
    """The request was wrong, not the token."""
    REOPEN = auto()
    """A new session, a login where there is none, and a search for the key."""
    RESTART = auto()
    """The module is finalised and initialised, which also looks for tokens anew; then as ``REOPEN``."""
    NEVER = auto()
    """A person must look first: the PIN is not tried again in the life of the process."""


@dataclass(frozen=True)
class Reaction:
    """The answers for one code."""

    remedy: Remedy
    may_have_signed: bool
    again: bool = False
    """Whether the same operation is tried once more at once; only where nothing can have been signed."""
    tolerated: int = 0
    """Failures in a row that are let pass before the token is left alone for a while."""


_STALE = Reaction(Remedy.REOPEN, may_have_signed=False, again=True)
_ABSENT = Reaction(Remedy.RESTART, may_have_signed=False)
_LOST = Reaction(Remedy.RESTART, may_have_signed=True)
_INTERRUPTED = Reaction(Remedy.REOPEN, may_have_signed=True, tolerated=1)
_BUSY = Reaction(Remedy.REOPEN, may_have_signed=False)
_PIN = Reaction(Remedy.NEVER, may_have_signed=False)
_REQUEST = Reaction(Remedy.NONE, may_have_signed=False)

REACTIONS: Mapping[type[CryptokiError], Reaction] = {
    # The handle was dead before the call.
    codes.SessionHandleInvalid: _STALE,
    codes.ObjectHandleInvalid: _STALE,
    codes.KeyHandleInvalid: _STALE,
    codes.UserNotLoggedIn: _STALE,
    # The session is in the middle of something else, or of nothing: a new one is not.
    codes.OperationActive: _STALE,
    codes.OperationNotInitialized: _STALE,
    # The session or the function ended during the call.
    codes.SessionClosed: _INTERRUPTED,
    codes.FunctionFailed: _INTERRUPTED,
    codes.FunctionCancelled: _INTERRUPTED,
    # The token was not there before the call.
    codes.TokenNotPresent: _ABSENT,
    codes.TokenNotRecognised: _ABSENT,
    codes.SlotIDInvalid: _ABSENT,
    codes.NoSuchToken: _ABSENT,
    # It went away, or broke, during the call.
    codes.DeviceRemoved: _LOST,
    codes.DeviceError: _LOST,
    codes.DeviceMemory: _LOST,
    codes.GeneralError: _LOST,
    codes.HostMemory: _LOST,
    # Others keep it busy.
    codes.SessionCount: _BUSY,
    codes.AnotherUserAlreadyLoggedIn: _BUSY,
    codes.UserTooManyTypes: _BUSY,
    codes.FunctionRejected: _BUSY,
    # It refuses the PIN: each try brings it nearer to its lock.
    codes.PinIncorrect: _PIN,
    codes.PinLocked: _PIN,
    codes.PinExpired: _PIN,
    codes.PinInvalid: _PIN,
    codes.PinLenRange: _PIN,
    codes.PinTooWeak: _PIN,
    codes.UserPinNotInitialized: _PIN,
    # It cannot do what it was asked.
    codes.MechanismInvalid: _REQUEST,
    codes.MechanismParamInvalid: _REQUEST,
    codes.KeyTypeInconsistent: _REQUEST,
    codes.KeySizeRange: _REQUEST,
    codes.DataInvalid: _REQUEST,
    codes.DataLenRange: _REQUEST,
    codes.FunctionNotSupported: _REQUEST,
    codes.ArgumentsBad: _REQUEST,
    codes.AttributeTypeInvalid: _REQUEST,
    codes.AttributeValueInvalid: _REQUEST,
    codes.AttributeReadOnly: _REQUEST,
    codes.TemplateIncomplete: _REQUEST,
    codes.TemplateInconsistent: _REQUEST,
    codes.DomainParamsInvalid: _REQUEST,
    codes.SessionReadOnly: _REQUEST,
    codes.TokenWriteProtected: _REQUEST,
}


def reaction_to(error: CryptokiError) -> Reaction:
    """What follows from ``error``. A code that the table does not have is taken as badly as a general error."""
    return REACTIONS.get(type(error), _LOST)
