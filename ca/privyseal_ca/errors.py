"""The errors of every room of the authority.

Each has a message for the person who reads it (what happened and why) and a hint (what to do next). Neither ever holds
a PIN, a key, a token or a body that a stranger sent (promise P10). The front doors turn them into problem documents or
exit codes in one place each.
"""


class PrivySealError(Exception):
    """What happened and why; ``hint`` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ConfigurationError(PrivySealError):
    """A setting, a profile or a home that cannot be used as it is."""


class StoreError(PrivySealError):
    """The database did not do what it was asked."""


class StoreUnavailableError(StoreError):
    """The database is away, full, read-only or overloaded. Nothing was acknowledged; the caller may try again."""


class StoreConflictError(StoreError):
    """A uniqueness or integrity rule refused the unit of work, which was undone as a whole."""


class DatabaseInUseError(StoreUnavailableError):
    """Another service has claimed the database."""


class ServiceLockLostError(StoreError):
    """Another service has the database that this one had claimed: this one must stop."""


class LeaseLostError(StoreError):
    """Another process leads the scheduled work: what this one began as the leader is not written."""


class ServiceAwayError(PrivySealError):
    """No service is there to do what it was asked to, or it went away meanwhile."""


class JobFailedError(PrivySealError):
    """A job ran on somebody's request and failed, or there is none of that name."""


class SignerError(PrivySealError):
    """A token did not do what it was asked."""


class SignerUnavailableError(SignerError):
    """The token is away, or its queue is full: nothing was signed, and the same request may be made again later."""


class SignatureUncertainError(SignerError):
    """The token failed while it was signing: it may or may not have made a signature.

    The caller must treat what was to be signed as spent and never ask for the same bytes again (promise P5).
    """


class SignerMisconfiguredError(SignerError):
    """A wrong PIN, a missing key, or attributes that break promise P1. Never tried again without a person."""


class PinRefusedError(SignerMisconfiguredError):
    """The token refused the PIN, or would lock by one more that is wrong. Not tried again in the life of the process."""


class PolicyError(PrivySealError):
    """A name, a key or a request that policy or profile does not allow (promise P11)."""


class NameRefusedError(PolicyError):
    """An identifier that the requester may not have."""

    def __init__(self, identifier_type: str, value: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.identifier_type = identifier_type
        self.value = value


class MalformedNameError(NameRefusedError):
    """Text that is not a well-formed identifier of its type."""


class UnsupportedNameError(NameRefusedError):
    """A type of identifier that this authority or profile does not certify."""


class KeyRefusedError(PolicyError):
    """A public key that is weak, of a kind the profile does not allow, known as compromised, or used elsewhere."""


class CsrRefusedError(PolicyError):
    """A certificate request (RFC 2986) that is malformed, badly signed, or asks for something else than was ordered."""


class ProfileRefusedError(PolicyError):
    """A profile that does not exist, or that does not fit what is asked of it."""


class IssuerNotValidError(PrivySealError):
    """The issuer's certificate is not valid at the time that the clock says: either of them has to be put right first."""


class AlreadyRevokedError(PolicyError):
    """The certificate was revoked before."""


class RevocationReasonError(PolicyError):
    """A CRLReason (RFC 5280 section 5.3.1) that the requester may not give."""


class StatusUnavailableError(PrivySealError):
    """A CRL or an OCSP response that was asked for cannot be given now."""


class LintError(PrivySealError):
    """A certificate that would break a rule was stopped before it was signed."""


class LedgerError(PrivySealError):
    """The ledger is not what it must be."""


class LedgerBehindError(LedgerError):
    """The database has less than a checkpoint, a CRL or a witness outside shows that it had (promise P8)."""


class BackupError(PrivySealError):
    """A backup that cannot be made, opened or restored."""


class WitnessError(PrivySealError):
    """A witness did not cosign, or what it is asked for cannot be done."""


class SplitViewError(LedgerError):
    """Two checkpoints of one log that contradict each other: somebody shows different ledgers to different people."""


class ExportError(PrivySealError):
    """Entries could not be handed on."""


class NotificationError(PrivySealError):
    """A message could not be delivered, or a route or template cannot be used as it is."""
