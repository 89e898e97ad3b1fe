"""The names that certificates are issued for: parsed once, kept in one canonical form, compared as plain values.

Everything behind the front door works on :class:`Identifier`; text that did not come out of a parser here is never put
into a certificate. Two spellings of the same name give the same identifier, so that policy, orders and requests can be
compared with ``==``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Literal, get_args

import idna
from cryptography import x509

from privyseal_ca.errors import MalformedNameError, UnsupportedNameError

IdentifierType = Literal["dns", "ip", "uri", "email"]
IDENTIFIER_TYPES: frozenset[str] = frozenset(get_args(IdentifierType))

MAX_DNS = 253  # RFC 1035 section 2.3.4: 255 octets on the wire
MAX_URI = 2048  # the longest SPIFFE ID (SPIFFE-ID section 2.3)
MAX_EMAIL = 254  # RFC 5321 section 4.5.3.1.3: a path of 256 with its angle brackets
MAX_EMAIL_LOCAL = 64  # RFC 5321 section 4.5.3.1.1
_SHOWN = 100

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
# What URL parsers take for an IPv4 address: the last label is a number, decimal or hexadecimal.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_EMAIL_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}):"
    r"(?://(?P<authority>[^/?#]*))?"
    r"(?P<path>(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*)"
    r"(?:\?(?P<query>(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*))?"
)
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_SPIFFE_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SPIFFE_PATH = re.compile(r"(?:/[A-Za-z0-9._-]+)+")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Octets that a reader may take for a separator or the end of the text when it decodes them.
_NEVER_ENCODED = _UNRESERVED | frozenset(range(0x20)) | frozenset(b"\x7f/\\?#")
_MAPPED = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True, order=True)
class Identifier:
    """A name in canonical form: lower-case A-labels for ``dns``, RFC 5952 text for ``ip``."""

    type: IdentifierType
    value: str

    def __str__(self) -> str:
        return self.value

    @property
    def wildcard(self) -> bool:
        """Whether this is a DNS name with ``*`` as its leftmost label."""
        return self.type == "dns" and self.value.startswith("*.")

    @property
    def base(self) -> str:
        """The value without ``*.``: what an authorization is made for (RFC 8555 section 7.1.4)."""
        return self.value[2:] if self.wildcard else self.value

    def general_name(self) -> x509.GeneralName:
        """This name as a subject alternative name carries it (RFC 5280 section 4.2.1.6)."""
        match self.type:
            case "dns":
                return x509.DNSName(self.value)
            case "ip":
                return x509.IPAddress(ip_address(self.value))
            case "uri":
                return x509.UniformResourceIdentifier(self.value)
            case "email":
                return x509.RFC822Name(self.value)


def parse_identifier(type: str, value: str) -> Identifier:  # noqa: A002 (the field's name in RFC 8555 section 7.1.3)
    """The identifier that ``type`` and ``value`` of an ACME object mean.

    Raises:
        UnsupportedNameError: a type that is not one of :data:`IDENTIFIER_TYPES`.
        MalformedNameError: text that is not a well-formed name of its type.
    """
    parser = _PARSERS.get(type) if isinstance(type, str) else None
    if parser is None:
        raise UnsupportedNameError(
            shown(type),
            shown(value),
            f"Identifiers of type {shown(type)} are not certified here.",
            hint=f"Use one of the types {', '.join(sorted(IDENTIFIER_TYPES))}.",
        )
    return parser(value)


def parse_dns(value: str) -> Identifier:
    """A DNS name in the form that certificates carry: letters, digits and hyphens, ``*.`` allowed in front.

    Upper case is folded. Refused: a trailing dot, empty labels, underscores, non-ASCII text (A-labels are wanted),
    labels that begin like an A-label and are none (IDNA 2008, RFC 5891 section 4), and what is or looks like an IP
    address.

    Raises:
        MalformedNameError: as said above.
    """
    name = value.lower() if isinstance(value, str) and value.isascii() else ""
    if len(name) > MAX_DNS or not _DNS.fullmatch(name):
        raise _malformed("dns", value, *_why_not_dns(value))
    if name[-1].isdigit() or "0x" in name:
        _refuse_numeric_end(name)
    if "--" in name:
        _check_reserved_labels(name)
    return Identifier("dns", name)


def parse_ip(value: str) -> Identifier:
    """An IPv4 or IPv6 address (RFC 8738 section 3), kept in RFC 5952 form.

    Zone identifiers are refused: they mean something on one machine only. So are IPv4-mapped IPv6 addresses
    (``::ffff:192.0.2.1``), which would be a second name for an IPv4 address and slip past rules about that.

    Raises:
        MalformedNameError: as said above, or no address at all.
    """
    if not isinstance(value, str) or len(value) > 45 or "%" in value:
        raise _malformed("ip", value, "is no IP address", "Give an address without zone, port, prefix or brackets.")
    try:
        address = ip_address(value)
    except ValueError:
        raise _malformed(
            "ip", value, "is no IP address", "Give an address without zone, port, prefix or brackets."
        ) from None
    return _ip_identifier(address)


def parse_uri(value: str) -> Identifier:
    """An absolute URI (RFC 3986) without user information and fragment; a SPIFFE ID when its scheme is ``spiffe``.

    Scheme and host are folded to lower case. The path must be normalised already, because a URI is compared octet by
    octet: dot segments, empty segments, and percent-encodings of unreserved characters, separators or controls are
    refused.

    Raises:
        MalformedNameError: as said above.
    """
    match = _URI.fullmatch(value) if isinstance(value, str) and len(value) <= MAX_URI else None
    if match is None:
        raise _malformed(
            "uri", value, "is no absolute URI of RFC 3986", "Percent-encode in upper case, leave out the fragment."
        )
    scheme, authority, path, query = match["scheme"].lower(), match["authority"], match["path"], match["query"]
    if scheme == "spiffe":
        return _spiffe_id(value, authority, path, query)
    if authority is None and not path.strip("/"):
        raise _malformed("uri", value, "names nothing behind its scheme", "Give a complete URI.")
    segments = path.split("/")
    if {".", ".."} & set(segments) or "" in segments[1:-1]:
        raise _malformed("uri", value, "has empty or dot segments in its path", "Give the URI in normal form.")
    if any(int(hexadecimal, 16) in _NEVER_ENCODED for hexadecimal in re.findall("%(..)", path + (query or ""))):
        raise _malformed("uri", value, "hides characters behind percent-encoding", "Give the URI in normal form.")
    canonical = scheme + ":"
    if authority is not None:
        canonical += "//" + _canonical_authority(value, authority)
    canonical += path
    if query is not None:
        canonical += "?" + query
    return Identifier("uri", canonical)


def parse_email(value: str) -> Identifier:
    """A mail address (RFC 5280 section 4.2.1.6: a ``Mailbox``) with a dot-atom before the ``@`` and a DNS name after it.

    The domain is folded to lower case, the local part is kept as it is.

    Raises:
        MalformedNameError: anything else, such as quoted local parts, comments and address literals.
    """
    local, at, domain = value.rpartition("@") if isinstance(value, str) and len(value) <= MAX_EMAIL else ("", "", "")
    if not at or len(local) > MAX_EMAIL_LOCAL or not _EMAIL_LOCAL.fullmatch(local):
        raise _malformed("email", value, "is no mail address", "Give it as local@domain, without name or quotes.")
    try:
        host = parse_dns(domain)
    except MalformedNameError as error:
        raise _malformed("email", value, "has no DNS name behind its @", error.hint) from None
    if host.wildcard:
        raise _malformed("email", value, "has a wildcard behind its @", "Give one domain.")
    return Identifier("email", f"{local}@{host.value}")


def from_general_name(name: x509.GeneralName) -> Identifier:
    """The identifier in a subject alternative name of a request or a certificate.

    Raises:
        UnsupportedNameError: a kind of name without identifier type here, such as otherName, or a network.
        MalformedNameError: a name of a known kind that is not well-formed.
    """
    if isinstance(name, x509.DNSName):
        return parse_dns(name.value)
    if isinstance(name, x509.IPAddress) and isinstance(name.value, IPv4Address | IPv6Address):
        return _ip_identifier(name.value)
    if isinstance(name, x509.UniformResourceIdentifier):
        return parse_uri(name.value)
    if isinstance(name, x509.RFC822Name):
        return parse_email(name.value)
    kind = type(name).__name__
    raise UnsupportedNameError(
        kind,
        "",
        f"Subject alternative names of the kind {kind} are not certified here.",
        hint=f"Use only names of the types {', '.join(sorted(IDENTIFIER_TYPES))}.",
    )


def shown(text: object) -> str:
    """``text`` for a message: printable ASCII, cut to a bounded length, whatever a stranger sent (promises P10, P12)."""
    plain = text if isinstance(text, str) else type(text).__name__
    cut = plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "..."
    return cut if cut.isascii() and cut.isprintable() else ascii(cut)[1:-1]


def _malformed(kind: str, value: object, why: str, hint: str) -> MalformedNameError:
    return MalformedNameError(kind, shown(value), f"{shown(value) or 'An empty name'} {why}.", hint=hint)


def _ip_identifier(address: IPv4Address | IPv6Address) -> Identifier:
    if address.version == 6 and address in _MAPPED:
        raise _malformed("ip", str(address), "is an IPv4 address in IPv6 clothes", "Give the IPv4 address itself.")
    return Identifier("ip", str(address))


def _why_not_dns(value: object) -> tuple[str, str]:
    """What the reader of the refusal needs to know: the first reason that applies, and what helps."""
    if not isinstance(value, str):
        return "is no text", "Give the name as a string."
    labels = value.split(".")
    ladder: tuple[tuple[bool, str, str], ...] = (
        (not value.isascii(), "has letters outside ASCII", "Give its A-labels (`xn--...`, RFC 5891)."),
        (_is_address(value), "is an IP address", "Use an identifier of type ip."),
        (value.endswith("."), "ends with a dot", "Leave the last dot out."),
        (
            "*" in value,
            "has a wildcard in a wrong place",
            "`*` may only be the whole leftmost label, with a name below.",
        ),
        ("_" in value, "has an underscore", "Host names have letters, digits and hyphens only (RFC 1123 section 2.1)."),
        ("" in labels, "has an empty label", "Give the whole name."),
        (len(value) > MAX_DNS, f"is longer than {MAX_DNS} characters", "Give a shorter name."),
        (max(map(len, labels)) > 63, "has a label of more than 63 characters", "Give shorter labels."),
    )
    for applies, why, hint in ladder:
        if applies:
            return why, hint
    return "is no DNS name", "Labels are letters, digits and hyphens, with no hyphen at either end."


def _is_address(text: str) -> bool:
    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _refuse_numeric_end(name: str) -> None:
    if _NUMERIC_END.fullmatch(name):
        raise _malformed(
            "dns", name, "ends in a number, as IP addresses do", "For an address use an identifier of type ip."
        )


def _check_reserved_labels(name: str) -> None:
    for label in name.split("."):
        if label[2:4] != "--":
            continue
        if not label.startswith("xn--"):
            raise _malformed(
                "dns",
                name,
                "has a label with hyphens in third and fourth place",
                "RFC 5890 section 2.3.1 reserves them.",
            )
        if not _is_a_label(label):
            raise _malformed(
                "dns", name, "has a label that is no valid A-label", "Encode the name by IDNA 2008 (RFC 5891)."
            )


@lru_cache(maxsize=2048)
def _is_a_label(label: str) -> bool:
    """Whether ``label`` survives the way to its U-label and back (RFC 5891 section 5.4)."""
    try:
        return idna.alabel(idna.ulabel(label)) == label.encode("ascii")
    except UnicodeError:  # IDNAError is one
        return False


def _spiffe_id(value: str, authority: str | None, path: str, query: str | None) -> Identifier:
    """SPIFFE-ID section 2, and X.509-SVID section 2: the path of a workload's ID is not empty."""
    trust_domain = (authority or "").lower()
    if query is not None or not _SPIFFE_TRUST_DOMAIN.fullmatch(trust_domain):
        raise _malformed(
            "uri", value, "is no SPIFFE ID", "Its form is spiffe://TRUST-DOMAIN/PATH, without port and query."
        )
    if not _SPIFFE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise _malformed(
            "uri",
            value,
            "has no path that a SPIFFE ID may have",
            "Segments are letters, digits, dots, hyphens, underscores.",
        )
    return Identifier("uri", f"spiffe://{trust_domain}{path}")


def _canonical_authority(value: str, authority: str) -> str:
    """Host in canonical form and port (RFC 5280 section 4.2.1.6: a name or an address must be the host)."""
    host, colon, port = authority.rpartition(":") if re.search(r":[0-9]*$", authority) else (authority, "", "")
    if colon and (not _PORT.fullmatch(port) or int(port) > 65535):
        raise _malformed("uri", value, "has no usable port", "Leave the colon out or give 1 to 65535.")
    try:
        if host.startswith("[") and host.endswith("]"):
            identifier = parse_ip(host[1:-1])
            canonical = f"[{identifier.value}]" if ":" in identifier.value else ""
        elif host.replace(".", "").isdigit():
            canonical = parse_ip(host).value
        else:
            identifier = parse_dns(host)
            canonical = "" if identifier.wildcard else identifier.value
    except MalformedNameError as error:
        raise _malformed("uri", value, "has no name or address as its host", error.hint) from None
    if not canonical:
        raise _malformed("uri", value, "has no name or address as its host", "Give one host, without user information.")
    return canonical + colon + port


_PARSERS: dict[str, Callable[[str], Identifier]] = {
    "dns": parse_dns,
    "ip": parse_ip,
    "uri": parse_uri,
    "email": parse_email,
}
