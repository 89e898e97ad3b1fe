"""What to do about a failed attempt: by stage, problem type, challenge and what was seen."""

from collections.abc import Callable, Mapping
from typing import Final

from privyseal_ca.fleet.failures import Failure, clean

_PATH: Final = "/.well-known/acme-challenge/"
_AGAIN: Final = "Then run the client again."
_UNKNOWN: Final = (
    "See what the client's log says of the refusal, mend that, and run it again. The operators of the authority find the "
    "request in their log."
)


def remedy(failure: Failure) -> str:
    """The next step of somebody who runs the client, in sentences. There is one for every failure."""
    of_check = _CHECKS.get(failure.type) if failure.stage == "validation" else None
    found = of_check or _REFUSALS.get(failure.type, _UNKNOWN)
    return found if isinstance(found, str) else found(failure)


def _check_dns(failure: Failure) -> str:
    lookups = failure.facts("dns")
    name = clean(lookups[-1].get("name")) if lookups else failure.name or "the name"
    failed = [fact for fact in lookups if fact.get("result") not in {"NOERROR", "NXDOMAIN", "no such record"}]
    if failed or (not lookups and "failed" in failure.detail) or "took longer" in failure.detail:
        last = failed[-1] if failed else {}
        return (
            f"The authority's DNS servers gave no usable answer for {clean(last.get('name')) or name} "
            f"({clean(last.get('result')) or 'no answer in time'}). See that the zone's servers answer (`dig {name}`), also "
            "when the authority's resolvers ask, and that its DNSSEC signatures are valid; the operators set the resolvers in "
            f"validation.resolvers. {_AGAIN}"
        )
    if failure.challenge.startswith("dns-"):
        return (
            f"Have the client's DNS hook or plug-in make the TXT record {name}, and wait until every server of the zone has "
            "it before it answers the challenge. See in its log that the update was accepted; where the name is a CNAME, the "
            f"record belongs at its target. `dig TXT {name}` shows what is there."
        )
    return (
        f"Add an A or AAAA record for {name} that the authority's DNS servers can see, or take the name out of the client's "
        f"settings if it is misspelt or gone. {_AGAIN}"
    )


def _check_connection(failure: Failure) -> str:
    if "redirect" in failure.detail:
        return f"Have the web server answer {_PATH} over plain HTTP itself, without redirects. {_AGAIN}"
    place = failure.place or f"{failure.name or 'the host'} port {_port(failure)}"
    if 300 <= failure.status < 400:
        return (
            f"A redirect led to {place}, where no connection could be made ({failure.result or 'nothing answers'}). Have the web "
            f"server answer {_PATH} over plain HTTP itself, without redirects, or mend what the redirect leads to. {_AGAIN}"
        )
    if failure.result == "connected":
        # It was taken, and what came then was not an answer.
        return (
            f"{place} takes connections but gives no complete HTTP answer. See in the log of the web server or proxy there "
            f"what becomes of requests for {_PATH}, and that it speaks plain HTTP on this port. {_AGAIN}"
        )
    listener = (
        "the web server, or the client while it waits for the check,"
        if failure.challenge == "http-01"
        else ("the client, or a proxy that passes acme-tls/1 on to it,")
    )
    # The time for the TLS handshake is a part of that for the connection.
    silent = ", or it does not speak TLS" if failure.challenge == "tls-alpn-01" else ""
    return {
        "refused": f"Nothing listens at {place}. See that {listener} runs there, and that the name leads to that address. "
        f"{_AGAIN}",
        "timed out": f"Nothing answers at {place}{silent}: most often a firewall drops what the authority sends. Let the authority "
        f"connect to that port, see that the host is up and that {listener} listens, or change to dns-01. {_AGAIN}",
        "host unreachable": f"The network knows no way to {place}. See that the host is up and that the address in DNS is "
        f"its present one. {_AGAIN}",
        "network unreachable": f"The authority has no route to {place}. See that the address in DNS is right (an AAAA record "
        f"counts as well); the operators of the authority can see to its routes. {_AGAIN}",
    }.get(
        failure.result,
        f"Connections to {place} break off. See in the log there, and of the firewall or proxy before it, who closes them, and "
        f"that {listener} listens there. {_AGAIN}",
    )


def _check_tls(failure: Failure) -> str:
    place = failure.place or f"{failure.name or 'the host'} port {_port(failure)}"
    if failure.challenge == "http-01":
        return (
            f"A redirect led to https at {place}, where the TLS handshake failed. Have the web server answer {_PATH} over "
            f"plain HTTP without redirects, or mend TLS there. {_AGAIN}"
        )
    if "alpn" in failure.evidence:
        return (
            f"What answers at {place} is not the client: it chose {clean(failure.evidence['alpn']) or 'no protocol'} instead of "
            "acme-tls/1. Have the proxy or load balancer pass connections that ask for acme-tls/1 on to the client, or change "
            f"to http-01 or dns-01. {_AGAIN}"
        )
    return (
        f"The TLS handshake at {place} failed. See that the client, with TLS 1.2 or later, is what listens there while it "
        f"waits for the check, and that nothing before it refuses names (SNI) or protocols (ALPN) it does not know. {_AGAIN}"
    )


def _check_response(failure: Failure) -> str:
    if failure.challenge.startswith("dns-"):
        lookups = failure.facts("dns")
        name = clean(lookups[-1].get("name")) if lookups else f"_acme-challenge.{failure.name}"
        return (
            f"The TXT record {name} holds other values than the one asked for. Have the client wait longer for the zone's "
            "servers to have the new value, remove what earlier runs left, and see that no second client writes the same "
            f"record. {_AGAIN}"
        )
    if failure.challenge == "tls-alpn-01":
        return (
            f"{failure.place or failure.name} speaks acme-tls/1 but shows another certificate than that of this challenge. See "
            "that only one client answers for the name, and that every address of the name leads to the machine on which it "
            f"runs. {_AGAIN}"
        )
    return _http_status(failure)


def _http_status(failure: Failure) -> str:
    place, status = failure.place or failure.name or "the web server", failure.status
    if status == 404:
        return (
            f"{place} answers but has no file for the challenge. See that the directory into which the client writes (webroot) "
            f"is the one that the web server serves under {_PATH}, for this name and on every machine behind it. {_AGAIN}"
        )
    if status in {401, 403, 407}:
        return f"{place} asks for a login or forbids the request. Leave {_PATH} open to everybody. {_AGAIN}"
    if status >= 500:
        return (
            f"The web server or proxy at {place} is itself in trouble (status {status}). Mend that, or have {_PATH} answered "
            f"without what is behind it. {_AGAIN}"
        )
    if status != 200:
        return f"Have {place} answer requests for {_PATH} with status 200 and the client's file. {_AGAIN}"
    return (
        f"{place} answers {_PATH} with something else than the client wrote: a default page, another site, or another client's "
        "answer. See that the name leads to the machine on which the client runs, and that only one client answers for it. "
        f"{_AGAIN}"
    )


def _check_unauthorized(failure: Failure) -> str:
    outside = [fact for fact in failure.facts("connections") if "not in the allowed" in clean(fact.get("result"))]
    if outside or "outside the networks" in failure.detail:
        address = clean(outside[-1].get("address")) if outside else "that address"
        return (
            f"The authority does not connect to {address}. If DNS is wrong, mend the record of {failure.name or 'the name'}; if "
            "it is right, ask the operators to add its network to validation.allowed_networks, or change to dns-01. "
            f"{_AGAIN}"
        )
    return (
        "The challenge was answered too late: the authorization had expired. Run the client again, and see that it answers "
        "challenges as soon as it has made the order."
    )


def _check_caa(failure: Failure) -> str:
    domain = clean(failure.evidence.get("caa")) or failure.name or "the domain"
    return (
        f"The CAA records of {domain} forbid it. Have its administrators add a record `issue` (for wildcards `issuewild`, where "
        "there are such) with a name that the directory lists under meta.caaIdentities, and see that accounturi and "
        f"validationmethods in it fit this account and {failure.challenge or 'this challenge'}. {_AGAIN}"
    )


def _port(failure: Failure) -> str:
    return "443" if failure.challenge == "tls-alpn-01" else "80"


_INTERNAL: Final = (
    "The fault is the authority's: there is nothing to mend at the workload, and a client that runs regularly will succeed "
    "when it is over. Tell the operators if it lasts; `privyseal doctor` and the service's log show the cause."
)


def _rejected(failure: Failure) -> str:
    name = failure.name or "the name"
    return (
        f"The policy of the account does not have {name}. Take it out of the client's settings if it is wrong; otherwise ask "
        "the operators to allow it in the policy of this account (docs/policy.md), or use an account that may have it."
    )


def _malformed(failure: Failure) -> str:
    if "replaced" in failure.detail:
        return (
            "The client names a predecessor that this account cannot replace: it was issued elsewhere, to another account, or for "
            "other names. Have it order the certificate anew (with certbot: delete it and issue it again) with the account that "
            "it is to keep."
        )
    if "csr" in failure.detail.lower():
        return f"The client sends no well-formed request. Update it. {_AGAIN}"
    return (
        "The order is not as the protocol or the profile wants it: what was said of it shows where. Mend names and times in the "
        f"client's settings, or update the client. {_AGAIN}"
    )


def _csr(failure: Failure) -> str:
    detail = failure.detail.lower()
    if "names of the order" in detail or "a name" in detail or "common name" in detail:
        return (
            "Have the client make the request for exactly the names that it orders: all of them in subjectAltName, no others, and "
            "no other common name. Where it uses a request of your own (--csr), make that anew."
        )
    if "key of an account" in detail or "blocked" in detail or "publicly known" in detail or "weak" in detail:
        return (
            "Have the client make a new key for the certificate: this one may not be used. With certbot, do not use --reuse-key; "
            "with others, delete the key file first."
        )
    if "key" in detail or "rsa" in detail or "ed25519" in detail:
        return (
            "Have the client use another kind or size of key: ECDSA on P-256 is always fit (certbot --key-type ecdsa); the profile "
            "says what else is."
        )
    return (
        "Have the client make a plain request: signed by its own key, with the ordered names as its only extension. Update the "
        "client, or make a request of your own anew (--csr)."
    )


_PROFILE: Final = (
    "Have the client ask for a profile that the directory lists under meta.profiles and that this account may use, or for "
    "none. The operators can allow the profile in the account's policy (`privyseal profile list` shows which there are)."
)


def _limited(failure: Failure) -> str:
    if "failed validations" in failure.detail.lower():
        return (
            "So many checks of this account failed that it has to wait. Mend their cause first (the ledger has each as "
            "authorization.failed), then let the client run as usual: the limit recovers by itself (limits.failed_validations)."
        )
    return (
        "The account asks too often. See that the client runs once or twice a day instead of in a loop, and that not too many "
        "machines share the account; the operators can raise the limit (the section [limits] of the settings)."
    )


def _unauthorized(failure: Failure) -> str:
    if "policy" in failure.detail.lower():
        return "Ask the operators: the policy that this account belongs to is no longer in the settings, so it may have no name."
    return (
        "The account may not do this, most often because it was deactivated. Register the client anew with an external account "
        "key from the operators (`privyseal eab create`), and run it again."
    )


_ACCOUNT: Final = (
    "Register the client anew at this server with an external account key from the operators (`privyseal eab create`), "
    f"accepting the terms if there are any. {_AGAIN}"
)

_CLIENT: Final = (
    f"The client does not speak the protocol as it has to. Update it, and see that only one runs at a time. {_AGAIN}"
)

_CONTACT: Final = "Give the client one plain mail address as its contact, or none, and run it again."


_REVOKING: Final = "The revocation that the client asked for is done already, or its reason cannot be used. Have it order a new certificate."


_REFUSALS: Final[Mapping[str, str | Callable[[Failure], str]]] = {
    "accountDoesNotExist": _ACCOUNT,
    "alreadyReplaced": (
        "Another order replaces the same certificate. See that only one client renews it; one that runs again after the other "
        "order has ended, or orders without naming a predecessor, is served."
    ),
    "alreadyRevoked": _REVOKING,
    "badCSR": _csr,
    "badNonce": _CLIENT,
    "badPublicKey": (
        "The client's account key cannot be used. Register it anew with another key: ECDSA on P-256 is always fit."
    ),
    "badRevocationReason": _REVOKING,
    "badSignatureAlgorithm": _CLIENT,
    "caa": _check_caa,
    "compound": (
        "Several names were refused, each for a reason of its own that the client's log shows. Take wrong ones out of its "
        "settings, and ask the operators to allow the others in the policy of this account (docs/policy.md)."
    ),
    "connection": _check_connection,
    "dns": _check_dns,
    "externalAccountRequired": _ACCOUNT,
    "incorrectResponse": _check_response,
    "invalidContact": _CONTACT,
    "invalidProfile": _PROFILE,
    "malformed": _malformed,
    "orderNotReady": (
        "The client finalized the order before its checks were done, or twice. Update it, see that only one runs at a time, and "
        "run it again."
    ),
    "rateLimited": _limited,
    "rejectedIdentifier": _rejected,
    "serverInternal": _INTERNAL,
    "tls": _check_tls,
    "unauthorized": _unauthorized,
    "unsupportedContact": _CONTACT,
    "unsupportedIdentifier": (
        "Only DNS names and IP addresses can be certified. Take other names out of the client's settings, and run it again."
    ),
    "userActionRequired": (
        "The terms of service have to be agreed to: the client's log has their address. Agree to them (certbot --agree-tos), and "
        "run it again."
    ),
}

#: Problem types that mean something else of a check than of an order.
_CHECKS: Final[Mapping[str, str | Callable[[Failure], str]]] = {"unauthorized": _check_unauthorized}
