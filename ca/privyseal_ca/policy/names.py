"""Which names a requester may have (promise P11).

A policy is compiled once from its settings into sets that are looked up, never scanned: checking a DNS name costs one
look-up for each of its labels however many suffixes there are.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Final

from privyseal_ca.errors import ConfigurationError, MalformedNameError, NameRefusedError
from privyseal_ca.identifiers import Identifier, parse_dns, shown
from privyseal_ca.sections import IPNetwork, PolicySettings

MAX_STARS_IN_LABEL: Final = 2  # keeps a match of hostile names linear in practice (promise P12)

_PATTERN_LABEL = re.compile(r"[a-z0-9*](?:[a-z0-9*-]{0,61}[a-z0-9*])?")
_URI_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)(//[^/?#%@\s]*(?=/|$))?([^?#%\s]*)")
_URI_BOUNDARIES = frozenset("/?")


class NamePolicy:
    """The names that one kind of requester may have. Immutable; deny wins over allow, what neither names is refused."""

    __slots__ = ("_layers", "_name", "profiles")

    def __init__(self, settings: PolicySettings, *, name: str = "default") -> None:
        """Compile ``settings``; ``name`` is the policy's name there, used in hints.

        Raises:
            ConfigurationError: an entry that could never match, such as a malformed suffix.
        """
        self._name = name
        self._layers: tuple[_Layer, ...] = (
            _Layer(
                f"policy.{name}",
                allow_dns=settings.allow_dns,
                deny_dns=settings.deny_dns,
                single_labels=settings.allow_single_labels,
                wildcards=settings.allow_wildcards,
                allow_ip=settings.allow_ip,
                deny_ip=settings.deny_ip,
                allow_uri=settings.allow_uri,
                deny_uri=settings.deny_uri,
                allow_email=settings.allow_email,
            ),
        )
        self.profiles: tuple[str, ...] = settings.profiles
        """Profiles that may be used; all when empty."""

    def __repr__(self) -> str:
        return f"<NamePolicy {self._name}, {len(self._layers)} layers>"

    def check(self, identifier: Identifier) -> None:
        """Return when ``identifier`` is allowed.

        Raises:
            NameRefusedError: it is denied, or nothing allows it; the message names the rule, the hint the setting.
        """
        for layer in self._layers:
            layer.check(identifier)

    def narrowed(
        self,
        *,
        allow_dns: Collection[str] = (),
        allow_ip: Collection[IPNetwork | str] = (),
        allow_uri: Collection[str] = (),
    ) -> "NamePolicy":
        """This policy with a second condition on top, as an external account key carries it: a name must pass both.

        With no entries at all nothing is narrowed. As soon as there are some, a type of name without entries is refused
        altogether, mail addresses included, so that a key bound to one DNS suffix gives no addresses by oversight.

        Raises:
            ConfigurationError: an entry that could never match.
        """
        if not (allow_dns or allow_ip or allow_uri):
            return self
        layer = _Layer(
            "the external account key", allow_dns=allow_dns, allow_ip=allow_ip, allow_uri=allow_uri, wildcards=True
        )
        policy = object.__new__(NamePolicy)
        policy._name, policy.profiles = self._name, self.profiles
        policy._layers = (*self._layers, layer)
        return policy


class _Layer:
    """One set of rules, and where they are written."""

    def __init__(
        self,
        where: str,
        *,
        allow_dns: Iterable[str] = (),
        deny_dns: Iterable[str] = (),
        single_labels: bool | None = None,
        wildcards: bool,
        allow_ip: Iterable[IPNetwork | str] = (),
        deny_ip: Iterable[IPNetwork | str] = (),
        allow_uri: Iterable[str] = (),
        deny_uri: Iterable[str] = (),
        allow_email: Iterable[str] = (),
    ) -> None:
        self._where = where
        self._allow_dns = _DnsRules(f"{where} allow_dns", allow_dns)
        self._deny_dns = _DnsRules(f"{where} deny_dns", deny_dns)
        self._single_labels = single_labels
        self._wildcards = wildcards
        self._allow_ip = _IpRules(f"{where} allow_ip", allow_ip)
        self._deny_ip = _IpRules(f"{where} deny_ip", deny_ip)
        self._allow_uri = tuple(_uri_prefix(f"{where} allow_uri", entry) for entry in allow_uri)
        self._deny_uri = tuple(_uri_prefix(f"{where} deny_uri", entry) for entry in deny_uri)
        self._allow_email = frozenset(_dns_entry(f"{where} allow_email", entry) for entry in allow_email)

    def check(self, identifier: Identifier) -> None:
        match identifier.type:
            case "dns":
                self._check_dns(identifier)
            case "ip":
                address = ip_address(identifier.value)
                number = int(address)
                self._decide(
                    identifier,
                    denied=self._deny_ip.match(address.version, number),
                    allowed=bool(self._allow_ip.match(address.version, number)),
                )
            case "uri":
                self._decide(
                    identifier,
                    denied=_matching_prefix(self._deny_uri, identifier.value),
                    allowed=bool(_matching_prefix(self._allow_uri, identifier.value)),
                )
            case "email":
                domain = identifier.value.rpartition("@")[2]
                self._decide(identifier, denied="", allowed=domain in self._allow_email)

    def _check_dns(self, identifier: Identifier) -> None:
        name = identifier.base
        if identifier.wildcard:
            if not self._wildcards:
                raise self._refusal(identifier, "is a wildcard, which allow_wildcards forbids")
            denied = self._deny_dns.match(name) or self._deny_dns.match_below(name)
            allowed = bool(self._allow_dns.match_every_child(name))
        else:
            denied = self._deny_dns.match(name)
            allowed = bool(self._allow_dns.match(name))
            if "." not in name and self._single_labels is not None:
                if not self._single_labels:
                    raise self._refusal(identifier, "has a single label, which allow_single_labels forbids")
                allowed = True
        self._decide(identifier, denied=denied, allowed=allowed)

    def _decide(self, identifier: Identifier, *, denied: str, allowed: bool) -> None:
        if denied:
            raise self._refusal(identifier, f"is covered by the entry {denied} of deny_{identifier.type}")
        if not allowed:
            raise self._refusal(identifier, f"is not covered by allow_{identifier.type}")

    def _refusal(self, identifier: Identifier, why: str) -> NameRefusedError:
        return NameRefusedError(
            identifier.type,
            identifier.value,
            f"{shown(identifier.value)} {why} of {self._where}.",
            hint="Ask the administrators of this authority if you need the name.",
        )


class _DnsRules:
    """DNS suffixes in a set, and patterns by their number of labels."""

    def __init__(self, where: str, entries: Iterable[str]) -> None:
        suffixes: set[str] = set()
        patterns: defaultdict[int, dict[str, re.Pattern[str]]] = defaultdict(dict)
        parents: defaultdict[int, dict[str, re.Pattern[str]]] = defaultdict(dict)
        families: defaultdict[int, dict[str, re.Pattern[str]]] = defaultdict(dict)
        ancestors: dict[str, str] = {}
        for entry in entries:
            name = entry.lower().removesuffix(".")
            if "*" not in name:
                name = _dns_entry(where, name)
                suffixes.add(name)
                ancestors.update({ancestor: name for ancestor in _suffixes(name) if ancestor != name})
                continue
            labels = _pattern_labels(where, name)
            patterns[len(labels)][name] = _pattern(labels)
            if labels[0] == "*" and len(labels) > 1:
                families[len(labels) - 1][name] = _pattern(labels[1:])
            for skipped in range(1, len(labels)):
                parents[len(labels) - skipped][name] = _pattern(labels[skipped:])
        self._suffixes = frozenset(suffixes)
        self._patterns = dict(patterns)
        self._parents = dict(parents)
        self._families = dict(families)
        self._ancestors = ancestors

    def match(self, name: str) -> str:
        """The entry that covers ``name``, or an empty text."""
        return self._suffix_of(name) or _first_match(self._patterns, name)

    def match_every_child(self, name: str) -> str:
        """The entry that covers whatever label is put in front of ``name``, or an empty text.

        A pattern such as ``web-*.corp.example`` covers ``web-1.corp.example`` and no name below it, so it does not
        allow ``*.web-1.corp.example``.
        """
        return self._suffix_of(name) or _first_match(self._families, name)

    def match_below(self, name: str) -> str:
        """An entry that covers some name below ``name``, or an empty text."""
        return self._ancestors.get(name, "") or _first_match(self._parents, name)

    def _suffix_of(self, name: str) -> str:
        suffixes = self._suffixes
        return next((suffix for suffix in _suffixes(name) if suffix in suffixes), "") if suffixes else ""


class _IpRules:
    """Networks by version and prefix length: one set look-up for each length that occurs."""

    def __init__(self, where: str, entries: Iterable[IPNetwork | str]) -> None:
        networks: defaultdict[tuple[int, int], dict[int, str]] = defaultdict(dict)
        for entry in entries:
            try:
                network = ip_network(entry)
            except ValueError as error:
                raise _bad_entry(where, str(entry), str(error)) from None
            shift = network.max_prefixlen - network.prefixlen
            networks[network.version, shift][int(network.network_address) >> shift] = str(network)
        self._networks = tuple((version, shift, found) for (version, shift), found in networks.items())

    def match(self, version: int, address: int) -> str:
        """The network that holds ``address``, or an empty text."""
        for of_version, shift, networks in self._networks:
            if of_version == version and (found := networks.get(address >> shift)):
                return found
        return ""


def _suffixes(name: str) -> Iterator[str]:
    """``a.b.c``, ``b.c``, ``c``."""
    yield name
    dot = name.find(".")
    while dot >= 0:
        yield name[dot + 1 :]
        dot = name.find(".", dot + 1)


def _first_match(patterns: dict[int, dict[str, re.Pattern[str]]], name: str) -> str:
    if not patterns:
        return ""
    candidates = patterns.get(name.count(".") + 1, {})
    return next((entry for entry, pattern in candidates.items() if pattern.fullmatch(name)), "")


def _pattern_labels(where: str, entry: str) -> list[str]:
    labels = entry.split(".")
    for label in labels:
        if not _PATTERN_LABEL.fullmatch(label) or "**" in label or label.count("*") > MAX_STARS_IN_LABEL:
            raise _bad_entry(where, entry, f"the label {shown(label) or '(empty)'} is no pattern of a DNS label")
    return labels


def _pattern(labels: list[str]) -> re.Pattern[str]:
    return re.compile(r"\.".join(_pattern_of_label(label) for label in labels))


def _pattern_of_label(label: str) -> str:
    # A label is never empty, so a bare star stands for at least one character.
    return "[^.]+" if label == "*" else "[^.]*".join(re.escape(part) for part in label.split("*"))


def _dns_entry(where: str, entry: str) -> str:
    try:
        identifier = parse_dns(entry)
    except MalformedNameError as error:
        raise _bad_entry(where, entry, str(error)) from None
    if identifier.wildcard:
        raise _bad_entry(where, entry, "patterns are not possible here")
    return identifier.value


def _uri_prefix(where: str, entry: str) -> str:
    match = _URI_PREFIX.fullmatch(entry)
    if not match or (match[2] is None and match[3].startswith("//")):
        raise _bad_entry(where, entry, "it is no beginning of an absolute URI without user information and encoding")
    return match[1].lower() + (match[2] or "").lower() + match[3]


def _matching_prefix(prefixes: tuple[str, ...], uri: str) -> str:
    """The prefix that ``uri`` equals or continues at a boundary, so that ``spiffe://a/b`` does not cover ``.../bc``."""
    for prefix in prefixes:
        if uri.startswith(prefix) and (
            len(uri) == len(prefix) or prefix[-1] in "/:" or uri[len(prefix)] in _URI_BOUNDARIES
        ):
            return prefix
    return ""


def _bad_entry(where: str, entry: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The entry {shown(entry) or '(empty)'} of {where} cannot be used: {why}.",
        hint="Mend the entry; docs/configuration.md describes the forms.",
    )
