"""Whether the owner of a domain lets this authority issue for it (RFC 8659, RFC 8657)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privyseal_acme.validation.attempt import Attempt
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.outcome import ValidationFailedError

_CRITICAL = 0x80
# RFC 8659 section 4, and RFC 9495: understood, even where they have no say about a name in a certificate.
_UNDERSTOOD = frozenset({"issue", "issuewild", "iodef", "issuemail"})
_LABEL = r"[A-Za-z0-9](?:-*[A-Za-z0-9])*"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_TAG = re.compile(_LABEL)
_VALUE = re.compile(r"[!-:<-~]*")
_WHITESPACE = " \t"


@dataclass(frozen=True, slots=True)
class Property:
    """One CAA record: flags byte, tag as written, value as written (``bytes`` when it is not ASCII)."""

    flags: int
    tag: str | bytes
    value: str | bytes


@dataclass(frozen=True, slots=True)
class Issuer:
    """The parsed value of ``issue`` or ``issuewild`` (RFC 8659 section 4.2); an empty domain matches no authority."""

    domain: str
    parameters: tuple[tuple[str, str], ...] = ()


_NOBODY = Issuer("")


async def check_caa(task: ChallengeTask, identities: Sequence[str], attempt: Attempt) -> None:
    """Return when the relevant records allow the certificate, or there are none. Addresses have none.

    Raises:
        ValidationFailedError: ``caa``, permanent, when they forbid it; ``dns`` when they could not be read, as then
            nobody knows (RFC 8659 section 3).
        TimeoutError: the attempt's time is over.
    """
    if task.identifier_type != "dns":
        return
    # RFC 8659 section 3: climb from the name to, not including, the root; the first set that is not empty counts.
    labels = task.value.split(".")
    for index in range(len(labels)):
        domain = ".".join(labels[index:])
        records = await attempt.lookup.caa(domain)
        if records:
            found = [Property(record.critical, record.tag, record.value) for record in records]
            attempt.evidence.note("caa", domain)
            if not permits(found, task, identities):
                raise ValidationFailedError(
                    "caa",
                    f"The CAA records of {domain} do not allow this authority to issue for {task.value} with {task.type}.",
                    permanent=True,
                )
            return


def permits(records: Iterable[Property], task: ChallengeTask, identities: Sequence[str]) -> bool:
    """Whether the relevant set of ``records`` lets an authority with these ``identities`` issue for ``task``."""
    issuers: dict[str, list[Issuer]] = {"issue": [], "issuewild": []}
    for record in records:
        tag = record.tag.lower() if isinstance(record.tag, str) else ""
        # RFC 8659 section 4.1: a critical property that is not understood forbids.
        if record.flags & _CRITICAL and tag not in _UNDERSTOOD:
            return False
        if tag in issuers:
            issuers[tag].append(parse_issuer(record.value))
    # RFC 8659 section 4.3: for a wildcard, issuewild replaces issue wherever it is present.
    relevant = issuers["issuewild"] if task.wildcard and issuers["issuewild"] else issuers["issue"]
    if not relevant:
        return True
    ours = {identity.lower().rstrip(".") for identity in identities}
    return any(issuer.domain.lower() in ours and _constraints_met(issuer, task) for issuer in relevant)


def parse_issuer(value: str | bytes) -> Issuer:
    """``value`` by the grammar of RFC 8659 section 4.2. What does not fit it names nobody."""
    if not isinstance(value, str):
        return _NOBODY
    domain, *rest = value.split(";", 1)
    domain = domain.strip(_WHITESPACE)
    if not _DOMAIN.fullmatch(domain):
        return _NOBODY
    # The last parameter may be followed by a semicolon of its own.
    texts = rest[0].strip(_WHITESPACE).removesuffix(";").split(";") if rest and rest[0].strip(_WHITESPACE) else []
    parameters = []
    for text in texts:
        tag, equals, content = text.partition("=")
        tag, content = tag.strip(_WHITESPACE), content.strip(_WHITESPACE)
        if not equals or not _TAG.fullmatch(tag) or not _VALUE.fullmatch(content):
            return _NOBODY
        parameters.append((tag.lower(), content))
    return Issuer(domain, tuple(parameters))


def _constraints_met(issuer: Issuer, task: ChallengeTask) -> bool:
    accounts = [value for tag, value in issuer.parameters if tag == "accounturi"]
    methods = [value for tag, value in issuer.parameters if tag == "validationmethods"]
    # RFC 8657 section 3: more than one account, or another one, is a property that nobody satisfies; section 4 likewise.
    if len(accounts) > 1 or len(methods) > 1:
        return False
    if accounts and accounts[0] != task.account_url:
        return False
    return not methods or task.type in methods[0].split(",")
