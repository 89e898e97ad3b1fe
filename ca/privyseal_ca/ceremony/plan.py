"""What a ceremony is to make. It is written down when the ceremony begins, so that a second run continues the first."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from cryptography import x509

from privyseal_ca.errors import ConfigurationError, MalformedNameError
from privyseal_ca.hsm.attributes import KeyAlgorithm
from privyseal_ca.identifiers import parse_dns, parse_email

ROOT_LIFETIME = timedelta(days=3650)
ISSUING_LIFETIME = timedelta(days=1095)
#: How long before its making a CA certificate is valid, for clocks that are behind.
BACKDATE = timedelta(minutes=2)

ROOT_NAME = "root"
ISSUING_NAME = "issuing-1"
WRAPPING_NAME = "wrapping-1"

_MAX_COMMON_NAME = 64  # RFC 5280 appendix A.1: ub-common-name and ub-organization-name


@dataclass(frozen=True, slots=True)
class NameSpace:
    """Name constraints (RFC 5280 section 4.2.1.10), each as ``type:value``. A type that is not permitted is not limited."""

    permitted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def extension(self) -> x509.NameConstraints | None:
        """The extension, or None when nothing is constrained.

        Raises:
            ConfigurationError: an entry is malformed.
        """
        if not self.permitted and not self.excluded:
            return None
        # An empty list would be an empty sequence on the wire, which section 4.2.1.10 forbids.
        return x509.NameConstraints(_general_names(self.permitted) or None, _general_names(self.excluded) or None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a ceremony is to make."""

    organization: str
    root_common_name: str
    issuing_common_name: str
    root_key: KeyAlgorithm
    issuing_key: KeyAlgorithm
    #: The root is elsewhere: the ceremony ends with a request for the intermediate's certificate.
    offline_root: bool
    names: NameSpace
    module: Path
    root_token: str
    issuing_token: str

    def __post_init__(self) -> None:
        for text in (self.organization, self.root_common_name, self.issuing_common_name):
            if not text.strip() or len(text) > _MAX_COMMON_NAME or not text.isprintable():
                raise ConfigurationError(
                    "A name of a CA is empty, has control characters or is longer than 64 characters.",
                    hint="Give shorter names to --organization, --root-name and --issuing-name.",
                )
        if self.root_common_name == self.issuing_common_name:
            raise ConfigurationError(
                "Root and intermediate would have the same name.", hint="Give another --root-name or --issuing-name."
            )
        if self.root_token == self.issuing_token and not self.offline_root:
            raise ConfigurationError(
                "Root and intermediate would share one token.", hint="Name two tokens, or use --offline-root."
            )
        self.names.extension()

    def payload(self) -> dict[str, Any]:
        """The plan as the ledger and the resumed ceremony read it."""
        members = asdict(self)
        members["module"] = str(self.module)
        members["names"] = {"permitted": list(self.names.permitted), "excluded": list(self.names.excluded)}
        return members


def subject(organization: str, common_name: str) -> x509.Name:
    """The name of a CA."""
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_names(entries: Sequence[str]) -> list[x509.GeneralName]:
    return [_constraint(*entry.split(":", 1)) for entry in entries]


def _constraint(kind: str, value: str) -> x509.GeneralName:
    """The base of a subtree, in the form that RFC 5280 section 4.2.1.10 gives each type."""
    try:
        match kind:
            case "dns":
                return x509.DNSName(_domain(value))
            case "ip":
                return x509.IPAddress(ip_network(value))
            case "uri":
                # A leading dot means hosts below the domain; without it exactly the host is meant.
                return x509.UniformResourceIdentifier(_domain(value, dot=True))
            case "email":
                return x509.RFC822Name(parse_email(value).value if "@" in value else _domain(value, dot=True))
    except (ValueError, MalformedNameError) as error:
        raise ConfigurationError(
            f"The {kind} name constraint {value!r} is malformed: {str(error).rstrip('.')}.",
            hint="DNS and mail take a domain, URI a host or .domain, IP a network such as 10.0.0.0/8.",
        ) from error
    raise ConfigurationError(f"There are no name constraints of type {kind}.", hint="Use dns, ip, uri or email.")


def _domain(value: str, *, dot: bool = False) -> str:
    bare = value.removeprefix(".") if dot else value
    name = parse_dns(bare)
    if name.wildcard:
        raise ValueError("a constraint covers every name below it, so it has no wildcard")
    return ("." if bare != value else "") + name.value
