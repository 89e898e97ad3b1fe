"""JSON Web Signatures as ACME restricts them (RFC 8555 section 6.2): shape only, no key and no clock."""

from dataclasses import dataclass
from typing import Any

import orjson

from privyseal_acme.protocol.encoding import decode
from privyseal_acme.protocol.keys import ALGORITHMS, bad_algorithm
from privyseal_acme.protocol.problems import Problem, malformed

_MAX_HEADER = 16_384


@dataclass(frozen=True, slots=True)
class Jws:
    """A JWS in flattened JSON serialisation whose signature is not verified yet."""

    algorithm: str
    url: str
    #: As text; absent only where ACME forbids one (inner JWS).
    nonce: str | None
    #: Exactly one of both is there.
    jwk: dict[str, Any] | None
    kid: str | None
    payload: bytes
    signature: bytes
    signing_input: bytes


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    """JSON text as an object.

    Raises:
        Problem: malformed.
    """
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise malformed(f"The {what} is not valid JSON.") from None
    if not isinstance(members, dict):
        raise malformed(f"The {what} is not a JSON object.")
    return members


def parse_jws(body: bytes | dict[str, Any], *, algorithms: tuple[str, ...] = ALGORITHMS) -> Jws:
    """A request body, or an embedded JWS, taken apart.

    Raises:
        Problem: malformed, or badSignatureAlgorithm.
    """
    members = body if isinstance(body, dict) else parse_object(body, "request body")
    _check_shape(members)
    protected, payload, signature = (members[name] for name in ("protected", "payload", "signature"))
    if len(protected) > _MAX_HEADER:
        raise malformed("The protected header is too long.")
    header = parse_object(_decode(protected, "protected header"), "protected header")
    jwk, kid = _check_header(header)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str):
        raise malformed("The protected header has no alg.")
    if algorithm not in algorithms:
        raise bad_algorithm(f"The algorithm {algorithm[:32]!r} is not accepted.", algorithms)
    return Jws(
        algorithm=algorithm,
        url=header["url"],
        nonce=header.get("nonce"),
        jwk=jwk,
        kid=kid,
        payload=_decode(payload, "payload"),
        signature=_decode(signature, "signature"),
        signing_input=f"{protected}.{payload}".encode(),
    )


def _check_shape(members: dict[str, Any]) -> None:
    if "signatures" in members:
        raise malformed("The JWS must be in flattened form with one signature.")
    if "header" in members:
        raise malformed("The JWS has an unprotected header, which ACME does not allow.")
    for name in ("protected", "payload", "signature"):
        if not isinstance(members.get(name), str):
            raise malformed(f"The JWS has no text member {name}.")


def _check_header(header: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    if "crit" in header:
        raise malformed("The protected header has crit, and no critical extension is understood here.")
    if "b64" in header:
        raise malformed("The protected header has b64, which ACME does not allow.")
    if not isinstance(header.get("url"), str):
        raise malformed("The protected header has no url.")
    nonce = header.get("nonce")
    if nonce is not None and not isinstance(nonce, str):
        raise malformed("The nonce in the protected header is not text.")
    jwk, kid = header.get("jwk"), header.get("kid")
    if ("jwk" in header) == ("kid" in header):
        raise malformed("The protected header must have exactly one of jwk and kid.")
    if "jwk" in header and not isinstance(jwk, dict):
        raise Problem("badPublicKey", "The jwk in the protected header is not an object.")
    if "kid" in header and not isinstance(kid, str):
        raise malformed("The kid in the protected header is not text.")
    return jwk, kid


def _decode(text: str, what: str) -> bytes:
    try:
        return decode(text)
    except ValueError:
        raise malformed(f"The {what} is not base64url without padding.") from None
