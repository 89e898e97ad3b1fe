"""Which addresses validation may connect to (promise P12): decided on the address itself, never on its name."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from privyseal_ca.sections import IPNetwork

IPAddress = IPv4Address | IPv6Address

MAX_ADDRESSES = 4

# RFC 6052 section 2.1: the well-known prefix behind which a translator reaches IPv4.
_NAT64 = ip_network("64:ff9b::/96")


def canonical(text: str) -> IPAddress:
    """The address ``text`` stands for; an IPv4-mapped IPv6 address is the IPv4 address it reaches.

    Raises:
        ValueError: it is not an address.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class TargetNetworks:
    """The allowed and denied networks. Denied wins."""

    def __init__(self, allowed: Iterable[IPNetwork], denied: Iterable[IPNetwork]) -> None:
        self._allowed = tuple(allowed)
        self._denied = tuple(denied)

    def permits(self, address: IPAddress) -> bool:
        """Whether validation may connect to ``address``, which is :func:`canonical`."""
        # Linux connects to the unspecified address as if it were loopback.
        if address.is_unspecified or address.is_multicast:
            return False
        if not any(address in network for network in self._allowed):
            return False
        reached = [address, *_embedded(address)]
        return not any(each in network for network in self._denied for each in reached)


def _embedded(address: IPAddress) -> list[IPv4Address]:
    """The IPv4 addresses that a tunnel or translator would reach for ``address``: 6to4, Teredo and NAT64."""
    if isinstance(address, IPv4Address):
        return []
    found = []
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found.extend(address.teredo)
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def in_order_of_preference(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """At most :data:`MAX_ADDRESSES`, IPv6 before IPv4, with room kept for half of each family."""
    six = [address for address in addresses if address.version == 6]
    four = [address for address in addresses if address.version == 4]
    kept = six[: max(MAX_ADDRESSES // 2, MAX_ADDRESSES - len(four))]
    return [*kept, *four[: MAX_ADDRESSES - len(kept)]]
