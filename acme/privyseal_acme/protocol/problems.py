"""Problem documents (RFC 8555 section 6.7, RFC 9457): the one table of errors at the edge.

Rooms below raise typed errors; :func:`problem_for` says once what a client gets to see of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privyseal_ca import errors

PREFIX = "urn:ietf:params:acme:error:"

#: The registered error types and the HTTP status that each has here.
STATUS: Mapping[str, int] = {
    "accountDoesNotExist": 400,
    "alreadyReplaced": 409,
    "alreadyRevoked": 400,
    "badCSR": 400,
    "badNonce": 400,
    "badPublicKey": 400,
    "badRevocationReason": 400,
    "badSignatureAlgorithm": 400,
    "caa": 403,
    "compound": 400,
    "connection": 400,
    "dns": 400,
    "externalAccountRequired": 403,
    "incorrectResponse": 403,
    "invalidContact": 400,
    "invalidProfile": 400,
    "malformed": 400,
    "orderNotReady": 403,
    "rateLimited": 429,
    "rejectedIdentifier": 400,
    "serverInternal": 500,
    "tls": 400,
    "unauthorized": 403,
    "unsupportedContact": 400,
    "unsupportedIdentifier": 400,
    "userActionRequired": 403,
}


@dataclass(frozen=True, slots=True)
class Subproblem:
    """A problem with one identifier (section 6.7.1)."""

    type: str
    detail: str
    identifier_type: str
    identifier_value: str

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "type": PREFIX + self.type,
            "detail": self.detail,
            "identifier": {"type": self.identifier_type, "value": self.identifier_value},
        }


#: Problems by which it is the policy that refuses.
_DENIED: Mapping[str, str] = {
    "rejectedIdentifier": "names",
    "invalidProfile": "profile",
    "badCSR": "csr",
    "badPublicKey": "key",
    "externalAccountRequired": "binding",
}


class Problem(Exception):  # noqa: N818 (the RFC's word)
    """A request that is refused, as the client gets to see it. ``type`` is the token after the ACME prefix."""

    def __init__(
        self,
        type: str,  # noqa: A002 (the member's name)
        detail: str,
        *,
        status: int | None = None,
        headers: Sequence[tuple[str, str]] = (),
        members: Mapping[str, Any] | None = None,
        subproblems: Sequence[Subproblem] = (),
        denied: str = "",
    ) -> None:
        super().__init__(detail)
        self.type = type
        self.detail = detail
        self.status = STATUS[type] if status is None else status
        self.headers = tuple(headers)
        self.members = dict(members or {})
        self.subproblems = tuple(subproblems)
        #: What refused the request, if that was a limit, a full queue or the policy: one of a few words, for the metrics.
        self.denied = denied or _DENIED.get(type, "")

    def document(self) -> dict[str, Any]:
        """The JSON object (RFC 9457)."""
        document: dict[str, Any] = {
            "type": PREFIX + self.type,
            "detail": self.detail,
            "status": self.status,
            **self.members,
        }
        if self.subproblems:
            document["subproblems"] = [subproblem.document() for subproblem in self.subproblems]
        return document


def malformed(detail: str, *, status: int = 400) -> Problem:
    """A request that cannot be understood."""
    return Problem("malformed", detail, status=status)


def unauthorized(detail: str, *, status: int = 403) -> Problem:
    """A request by somebody who may not make it."""
    return Problem("unauthorized", detail, status=status)


def try_again(detail: str, *, seconds: int = 5, denied: str = "") -> Problem:
    """Something the service needs is away: the client loses nothing by asking again (promise P5)."""
    headers = (("Retry-After", str(max(1, seconds))),)
    return Problem("serverInternal", detail, status=503, headers=headers, denied=denied)


def rate_limited(detail: str, *, limit: str, seconds: float, help_url: str) -> Problem:
    """Too many requests of a kind; ``seconds`` until the next one is accepted (section 6.6). ``limit`` is the setting's name."""
    return Problem(
        "rateLimited",
        detail,
        headers=(("Retry-After", str(max(1, int(seconds + 0.999)))), ("Link", f'<{help_url}>;rel="help"')),
        denied=limit,
    )


#: Typed errors of the authority and the problem type of each; a subclass stands before its base.
_TYPES: tuple[tuple[type[errors.PrivySealError], str], ...] = (
    (errors.MalformedNameError, "malformed"),
    (errors.UnsupportedNameError, "unsupportedIdentifier"),
    (errors.NameRefusedError, "rejectedIdentifier"),
    (errors.KeyRefusedError, "badCSR"),
    (errors.CsrRefusedError, "badCSR"),
    (errors.ProfileRefusedError, "invalidProfile"),
    (errors.AlreadyRevokedError, "alreadyRevoked"),
    (errors.RevocationReasonError, "badRevocationReason"),
)


def problem_for(error: errors.PrivySealError) -> Problem:
    """What a client is told of ``error``. Anything not in the table is internal, its detail withheld."""
    for kind, problem_type in _TYPES:
        if isinstance(error, kind):
            return Problem(problem_type, str(error))
    if isinstance(error, errors.StoreUnavailableError):
        return try_again("The database is not available at the moment; nothing was changed. Try again.")
    if isinstance(error, errors.IssuerNotValidError):
        return try_again(str(error), seconds=60)
    if isinstance(error, (errors.SignerUnavailableError, errors.SignatureUncertainError)):
        return try_again("The signing token is not available at the moment. Try again.")
    return Problem("serverInternal", "The server failed; its log says more under the id in X-Request-Id.")
