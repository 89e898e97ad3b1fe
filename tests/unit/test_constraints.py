from ipaddress import ip_network

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from fakes.issuing import names
from privyseal_ca.errors import NameRefusedError
from privyseal_ca.issuance.constraints import check_constraints, is_permitted, is_permitted_subject

DNS, URI, MAIL = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name


def address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ip_network(text))


def constraints(
    permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None
) -> x509.NameConstraints:
    return x509.NameConstraints(permitted or None, excluded or None)


@pytest.mark.parametrize(
    ("permitted", "excluded", "fits", "does_not"),
    [
        pytest.param(
            [DNS("corp.example")],
            [],
            ["dns:corp.example", "dns:a.corp.example", "dns:*.corp.example", "dns:*.a.corp.example", "ip:10.0.0.1"],
            ["dns:example", "dns:xcorp.example", "dns:*.example", "dns:db1"],
            id="a DNS subtree constrains DNS names only",
        ),
        pytest.param(
            [DNS(".corp.example")],
            [],
            ["dns:a.corp.example", "dns:*.corp.example"],
            ["dns:corp.example"],
            id="a leading dot means below",
        ),
        pytest.param(
            [DNS("a.example"), DNS("B.example")],
            [],
            ["dns:x.a.example", "dns:b.example"],
            ["dns:c.example"],
            id="either",
        ),
        pytest.param(
            [],
            [DNS("secret.corp.example")],
            ["dns:corp.example", "dns:*.a.corp.example", "dns:b.example"],
            ["dns:secret.corp.example", "dns:x.secret.corp.example", "dns:*.corp.example", "dns:*.secret.corp.example"],
            id="a wildcard above an excluded name",
        ),
        pytest.param(
            [DNS("corp.example")], [DNS("corp.example")], [], ["dns:a.corp.example"], id="excluded outweighs permitted"
        ),
        pytest.param([DNS("")], [], ["dns:a.example"], [], id="the empty DNS constraint is everything"),
        pytest.param([], [DNS("")], ["ip:10.0.0.1"], ["dns:a.example", "dns:*.example"], id="no DNS names at all"),
        pytest.param(
            [address("10.0.0.0/8"), address("fd00::/8")],
            [address("10.1.0.0/16")],
            ["ip:10.0.0.1", "ip:fd00::1", "dns:a.example"],
            ["ip:10.1.0.1", "ip:11.0.0.1", "ip:fe80::1"],
            id="networks",
        ),
        pytest.param(
            [], [address("0.0.0.0/0"), address("::/0")], ["dns:a.example"], ["ip:10.0.0.1", "ip:::1"], id="no addresses"
        ),
        pytest.param(
            [URI("corp.example")],
            [],
            ["uri:spiffe://corp.example/a", "uri:https://corp.example:8443/a", "dns:any.example"],
            ["uri:spiffe://a.corp.example/a", "uri:urn:x:y", "uri:https://10.0.0.1/", "uri:https://[::1]/"],
            id="a URI host is exact",
        ),
        pytest.param(
            [URI(".corp.example")],
            [],
            ["uri:spiffe://a.corp.example/a", "uri:https://b.a.corp.example"],
            ["uri:spiffe://corp.example/a", "uri:https://evilcorp.example/a"],
            id="a leading dot in a URI constraint",
        ),
        pytest.param(
            [],
            [URI("corp.example")],
            ["uri:https://a.example/"],
            ["uri:https://corp.example/", "uri:urn:x:y", "uri:https://10.0.0.1/"],
            id="excluded URIs refuse those without a DNS host",
        ),
        pytest.param([MAIL("corp.example")], [], ["email:a@corp.example"], ["email:a@x.corp.example"], id="mail host"),
        pytest.param(
            [MAIL(".corp.example")], [], ["email:a@x.corp.example"], ["email:a@corp.example"], id="mail domain"
        ),
        pytest.param(
            [MAIL("Ada@corp.example")], [], ["email:Ada@corp.example"], ["email:ada@corp.example"], id="one mailbox"
        ),
    ],
)
def test_subtrees(
    permitted: list[x509.GeneralName], excluded: list[x509.GeneralName], fits: list[str], does_not: list[str]
) -> None:
    rule = constraints(permitted, excluded)
    assert [name for name in names(*fits) if not is_permitted(name, rule)] == []
    assert [name for name in names(*does_not) if is_permitted(name, rule)] == []


def test_without_constraints_everything_fits() -> None:
    assert is_permitted(names("dns:a.example")[0], None)
    assert is_permitted_subject(x509.Name([]), None)


def test_the_refusal_is_a_name_refusal() -> None:
    rule = constraints([DNS("corp.example")])
    check_constraints(names("dns:a.corp.example")[0], rule)
    with pytest.raises(NameRefusedError, match="outside the name constraints"):
        check_constraints(names("dns:a.example")[0], rule)


def test_subjects() -> None:
    def name(*texts: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text) for text in texts])

    rule = constraints([x509.DirectoryName(name("Corp"))], [x509.DirectoryName(name("Corp", "Lab"))])
    assert is_permitted_subject(name(), rule)
    assert is_permitted_subject(name("Corp", "Web"), rule)
    assert not is_permitted_subject(name("Corp", "Lab", "x"), rule)
    assert not is_permitted_subject(name("Other"), rule)
    assert is_permitted_subject(name("Other"), constraints([DNS("a.example")]))
