"""Which addresses validation may connect to (promise P12)."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_acme.validation.targets import MAX_ADDRESSES, TargetNetworks, canonical, in_order_of_preference
from privyseal_ca.sections import NEVER_VALIDATED_NETWORKS, PRIVATE_NETWORKS

DEFAULT = TargetNetworks(PRIVATE_NETWORKS, NEVER_VALIDATED_NETWORKS)
EVERYTHING = TargetNetworks((ip_network("0.0.0.0/0"), ip_network("::/0")), NEVER_VALIDATED_NETWORKS)


@pytest.mark.parametrize("text", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "172.31.0.1", "100.64.0.1", "::1", "fd00::7"])
def test_private_networks_are_allowed_by_default(text: str) -> None:
    assert DEFAULT.permits(canonical(text))


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "100.100.100.200",
        "fd00:ec2::254",
        "fe80::1",
        "0.0.0.0",  # noqa: S104
        "::",
        "224.0.0.1",
        "ff02::1",
        "8.8.8.8",
        "2001:4860:4860::8888",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
    ],
)
def test_all_else_is_refused_by_default(text: str) -> None:
    assert not DEFAULT.permits(canonical(text))


@pytest.mark.parametrize(
    "text",
    [
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "2001:0:808:808:0:ffff:5601:5601",
        "::",
        "ff0e::1",
        "0.1.2.3",
    ],
    ids=["mapped", "nat64", "6to4", "teredo-server", "teredo-client", "unspecified", "multicast", "this-network"],
)
def test_denied_networks_are_not_reached_in_disguise(text: str) -> None:
    """Even where everything is allowed."""
    assert not EVERYTHING.permits(canonical(text))


def test_where_everything_is_allowed_public_addresses_are() -> None:
    assert EVERYTHING.permits(canonical("8.8.8.8"))
    assert EVERYTHING.permits(canonical("2001:4860:4860::8888"))


@given(st.ip_addresses(v=4))
def test_an_ipv4_mapped_address_is_the_ipv4_address(address: IPv4Address) -> None:
    assert canonical(f"::ffff:{address}") == address


@given(st.ip_addresses())
def test_denied_always_wins(address: IPv4Address | IPv6Address) -> None:
    own = ip_network(f"{address}/{address.max_prefixlen}")
    assert not TargetNetworks((own,), (own,)).permits(canonical(str(address)))


@given(st.lists(st.ip_addresses(), unique=True, max_size=12))
def test_few_are_tried_and_both_families_get_their_turn(addresses: list[IPv4Address | IPv6Address]) -> None:
    chosen = in_order_of_preference(addresses)
    assert len(chosen) == min(MAX_ADDRESSES, len(addresses))
    assert [each.version for each in chosen] == sorted((each.version for each in chosen), reverse=True)
    assert {each.version for each in chosen} == {each.version for each in addresses}
    assert set(chosen) <= set(addresses)


def test_a_scope_makes_no_difference() -> None:
    assert not DEFAULT.permits(canonical("fe80::1%lo"))
    assert ip_address("::1%lo").version == 6
