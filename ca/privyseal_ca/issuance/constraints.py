"""Name constraints of an issuer (RFC 5280 section 4.2.1.10), asked before a name is promised and again after signing."""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from cryptography import x509

from privyseal_ca.errors import NameRefusedError
from privyseal_ca.identifiers import Identifier, shown

_NAME_TYPES: dict[str, type[x509.GeneralName]] = {
    "dns": x509.DNSName,
    "ip": x509.IPAddress,
    "uri": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
}


def is_permitted(identifier: Identifier, constraints: x509.NameConstraints | None) -> bool:
    """Whether every relying party accepts ``identifier`` in a certificate below an issuer with ``constraints``.

    Where the RFC leaves room the answer is no: a wildcard that covers one excluded name is excluded, and a URI without a
    DNS name as its host fits no constraint on URIs.
    """
    if constraints is None:
        return True
    kind = _NAME_TYPES[identifier.type]
    permitted = [base.value for base in constraints.permitted_subtrees or () if isinstance(base, kind)]
    excluded = [base.value for base in constraints.excluded_subtrees or () if isinstance(base, kind)]
    if identifier.type == "uri" and (permitted or excluded) and not _uri_host(identifier.value):
        return False
    if any(_overlaps(identifier, base) for base in excluded):
        return False
    return not permitted or any(_lies_within(identifier, base) for base in permitted)


def check_constraints(identifier: Identifier, constraints: x509.NameConstraints | None) -> None:
    """Return when :func:`is_permitted`.

    Raises:
        NameRefusedError: the issuer's certificate does not let it issue for ``identifier``.
    """
    if not is_permitted(identifier, constraints):
        raise NameRefusedError(
            identifier.type,
            identifier.value,
            f"{shown(identifier.value)} is outside the name constraints of the issuer's certificate.",
            hint="Order a name inside them, or ask for an issuer without this constraint.",
        )


def is_permitted_subject(subject: x509.Name, constraints: x509.NameConstraints | None) -> bool:
    """Whether a subject fits the constraints on directory names; an empty subject always does."""
    if constraints is None or not subject.rdns:
        return True
    permitted = [base.value for base in constraints.permitted_subtrees or () if isinstance(base, x509.DirectoryName)]
    excluded = [base.value for base in constraints.excluded_subtrees or () if isinstance(base, x509.DirectoryName)]
    if any(_begins_with(subject, base) for base in excluded):
        return False
    return not permitted or any(_begins_with(subject, base) for base in permitted)


def _begins_with(subject: x509.Name, base: x509.Name) -> bool:
    rdns: Sequence[x509.RelativeDistinguishedName] = subject.rdns
    return list(rdns[: len(base.rdns)]) == list(base.rdns)


def _lies_within(identifier: Identifier, base: object) -> bool:
    match identifier.type:
        case "dns":
            # All names that `*.x` stands for lie below x, so a constraint on what is below x is met too.
            return _dns_within(("any." if identifier.wildcard else "") + identifier.base, str(base))
        case "ip":
            return ip_address(identifier.value) in base  # type: ignore[operator]  # a network
        case "uri":
            return _host_within(_uri_host(identifier.value), str(base))
        case "email":
            return _email_within(identifier.value, str(base))


def _overlaps(identifier: Identifier, base: object) -> bool:
    if _lies_within(identifier, base):
        return True
    # `*.x` is also spoilt by an excluded name below x.
    return identifier.wildcard and _dns_within(str(base).lower().lstrip("."), identifier.base)


def _dns_within(name: str, base: str) -> bool:
    """Zero or more labels added on the left; at least one when ``base`` begins with a dot, as common practice has it."""
    base = base.lower()
    if not base:
        return True
    if base.startswith("."):
        return name.endswith(base)
    return name == base or name.endswith("." + base)


def _host_within(host: str, base: str) -> bool:
    """URI and mail constraints: a host means that host only, a leading dot means one or more labels on the left."""
    base = base.lower()
    return host.endswith(base) if base.startswith(".") else host == base


def _email_within(address: str, base: str) -> bool:
    if "@" in base:
        local, _, host = base.rpartition("@")
        return address == f"{local}@{host.lower()}"
    return _host_within(address.rpartition("@")[2], base)


def _uri_host(uri: str) -> str:
    """The DNS name that is the host of ``uri``, or an empty text."""
    host = urlsplit(uri).hostname or ""
    return "" if ":" in host or host.replace(".", "").isdigit() else host
