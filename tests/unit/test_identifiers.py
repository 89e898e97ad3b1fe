import string
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from privyseal_ca.errors import MalformedNameError, NameRefusedError, UnsupportedNameError
from privyseal_ca.identifiers import (
    Identifier,
    from_general_name,
    parse_dns,
    parse_email,
    parse_identifier,
    parse_ip,
    parse_uri,
    shown,
)

LABEL = st.from_regex(r"[a-z]([a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("web.corp.example", "web.corp.example"),
        ("WEB.Corp.EXAMPLE", "web.corp.example"),
        ("db1", "db1"),
        ("a-b--c.example", "a-b--c.example"),
        ("3com.example", "3com.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("0x7f.example", "0x7f.example"),
        ("*.corp.example", "*.corp.example"),
        ("*.local", "*.local"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("xn--fa-hia.example", "xn--fa-hia.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 49] * 5) + ".xyz", ".".join(["a" * 49] * 5) + ".xyz"),
    ],
)
def test_dns_names_become_canonical(text: str, canonical: str) -> None:
    assert parse_dns(text) == Identifier("dns", canonical)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (".", "dot"),
        ("corp.example.", "dot"),
        (".corp.example", "empty label"),
        ("a..b", "empty label"),
        ("a_b.example", "underscore"),
        ("-a.example", "DNS name"),
        ("a-.example", "DNS name"),
        ("a b.example", "DNS name"),
        ("a.example\n", "DNS name"),
        ("a.example\x00", "DNS name"),
        ("a/b.example", "DNS name"),
        ("a" * 64 + ".example", "63"),
        (".".join(["a" * 49] * 5) + ".xyzw", "253"),
        ("*", "wildcard"),
        ("*.", "dot"),
        ("a.*.example", "wildcard"),
        ("w*.example", "wildcard"),
        ("*.*.example", "wildcard"),
        ("**.example", "wildcard"),
        ("bücher.example", "ASCII"),
        ("\u0430pple.example", "ASCII"),
        ("corp。example", "ASCII"),
        ("10.0.0.1", "IP address"),
        ("::1", "IP address"),
        ("[::1]", "IP address"),
        ("*.10.0.0.1", "number"),
        ("10.1", "number"),
        ("127.0.0.0x1", "number"),
        ("0x7f000001", "number"),
        ("corp.42", "number"),
        ("ab--cd.example", "hyphens"),
        ("xn--.example", "DNS name"),
        ("xn--a.example", "A-label"),
        ("xn--abc.example", "A-label"),
        ("xn--bcher-kv.example", "A-label"),
        ("xn--99999999.example", "A-label"),
        ("xn--a-ecp.ru", "A-label"),  # decodes to an upper-case letter, which IDNA 2008 disallows
        ("xn--1ch.example", "A-label"),  # a symbol
    ],
)
def test_other_text_is_no_dns_name(text: str, reason: str) -> None:
    with pytest.raises(MalformedNameError, match=reason) as caught:
        parse_dns(text)
    assert caught.value.identifier_type == "dns"
    assert caught.value.hint


def test_a_refused_u_label_is_told_about_a_labels() -> None:
    with pytest.raises(MalformedNameError) as caught:
        parse_dns("bücher.example")
    assert "A-label" in caught.value.hint


@pytest.mark.parametrize("value", [None, 5, b"a.example", ["a"], {"a": 1}, True])
@pytest.mark.parametrize("kind", ["dns", "ip", "uri", "email"])
def test_what_is_no_text_is_refused(kind: str, value: object) -> None:
    with pytest.raises(MalformedNameError):
        parse_identifier(kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["DNS", "", "permanent-identifier", None, 7, ["dns"]])
def test_unknown_types_are_refused(kind: object) -> None:
    with pytest.raises(UnsupportedNameError, match="not certified"):
        parse_identifier(kind, "a.example")  # type: ignore[arg-type]


def test_huge_and_hostile_text_is_not_repeated_in_full() -> None:
    with pytest.raises(MalformedNameError) as caught:
        parse_dns("\x1b[31m\u202e" + "a" * 100_000)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(caught.value.value) < 600


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::1", "::1"),
        ("fd00::0:1", "fd00::1"),
    ],
)
def test_addresses_become_canonical(text: str, canonical: str) -> None:
    assert parse_ip(text) == Identifier("ip", canonical)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "010.0.0.1",
        "10.0.0.1/32",
        "10.0.0.1:80",
        " 10.0.0.1",
        "10.0.0.256",
        "[::1]",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "::ffff:0a00:0001",
        "1.2.3.4.in-addr.arpa",
        "٣.1.1.1",
    ],
)
def test_other_text_is_no_address(text: str) -> None:
    with pytest.raises(MalformedNameError):
        parse_ip(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("spiffe://corp.example/ns/prod/sa/web", "spiffe://corp.example/ns/prod/sa/web"),
        ("SPIFFE://Corp.Example/Web", "spiffe://corp.example/Web"),
        ("https://Host.Example:8443/A/b?q=1", "https://host.example:8443/A/b?q=1"),
        ("https://[2001:DB8::1]/x", "https://[2001:db8::1]/x"),
        ("https://10.0.0.1/x", "https://10.0.0.1/x"),
        ("https://db1", "https://db1"),
        ("https://a.example/", "https://a.example/"),
        ("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
        ("https://a.example/caf%C3%A9", "https://a.example/caf%C3%A9"),
    ],
)
def test_uris_become_canonical(text: str, canonical: str) -> None:
    assert parse_uri(text) == Identifier("uri", canonical)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "corp.example",
        "/path",
        "urn:",
        "file:///",
        "https:///path",
        "https://",
        "https://user@host.example/",
        "https://host.example/#fragment",
        "https://host.example/a/../b",
        "https://host.example/./b",
        "https://host.example//b",
        "https://host.example/%2e%2e/b",
        "https://host.example/%2E%2E/b",
        "https://host.example/a%2Fb",
        "https://host.example/a%00",
        "https://host.example/%41",
        "https://host.example/%c3",
        "https://host.example/a b",
        "https://host.example/ü",
        "https://host.example:/",
        "https://host.example:0/",
        "https://host.example:65536/",
        "https://host.example:080/",
        "https://*.example/",
        "https://a_b.example/",
        "https://[::1/",
        "https://[10.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://999.1.1.1/",
        "https://host.example/\n",
        "spiffe://corp.example",
        "spiffe://corp.example/",
        "spiffe://corp.example/a/",
        "spiffe://corp.example/a//b",
        "spiffe://corp.example/a/../b",
        "spiffe://corp.example/a/.",
        "spiffe://corp.example:443/a",
        "spiffe://user@corp.example/a",
        "spiffe://corp.example/a?b=c",
        "spiffe://corp.example/a%41",
        "spiffe:///a",
        "spiffe:corp/a",
        "spiffe://" + "a" * 256 + "/a",
        "spiffe://corp.example/" + "a" * 2048,
    ],
)
def test_other_text_is_no_uri(text: str) -> None:
    with pytest.raises(MalformedNameError):
        parse_uri(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("Ada.L+x@Corp.Example", "Ada.L+x@corp.example"), ("root@db1", "root@db1")],
)
def test_mail_addresses_become_canonical(text: str, canonical: str) -> None:
    assert parse_email(text) == Identifier("email", canonical)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@a.example",
        "a@",
        ".a@b.example",
        "a.@b.example",
        "a..b@c.example",
        "a b@c.example",
        '"a b"@c.example',
        "Ada <a@b.example>",
        "a@[10.0.0.1]",
        "a@10.0.0.1",
        "a@*.example",
        "a@b@c.example",
        "ü@b.example",
        "a" * 65 + "@b.example",
        "a@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 63 + "." + "e" * 63,
        "a@b.example\n",
    ],
)
def test_other_text_is_no_mail_address(text: str) -> None:
    with pytest.raises(MalformedNameError):
        parse_email(text)


def test_only_a_leftmost_star_makes_a_wildcard() -> None:
    assert parse_dns("*.a.example").wildcard
    assert parse_dns("*.a.example").base == "a.example"
    assert not parse_dns("a.example").wildcard
    assert parse_dns("a.example").base == "a.example"
    assert not parse_uri("https://a.example/*.x").wildcard


@pytest.mark.parametrize(
    "identifier",
    [
        Identifier("dns", "*.a.example"),
        Identifier("ip", "10.0.0.1"),
        Identifier("ip", "2001:db8::1"),
        Identifier("uri", "spiffe://corp.example/web"),
        Identifier("email", "a@b.example"),
    ],
)
def test_general_names_and_back(identifier: Identifier) -> None:
    assert from_general_name(identifier.general_name()) == identifier


def test_general_names_of_other_kinds_are_refused() -> None:
    for name in (
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.DirectoryName(x509.Name([])),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
        x509.IPAddress(ip_network("10.0.0.0/8")),
    ):
        with pytest.raises(UnsupportedNameError):
            from_general_name(name)


def test_mapped_addresses_are_refused_in_binary_too() -> None:
    with pytest.raises(MalformedNameError):
        from_general_name(x509.IPAddress(IPv6Address("::ffff:10.0.0.1")))
    assert from_general_name(x509.IPAddress(IPv4Address("10.0.0.1"))).value == "10.0.0.1"


def test_identifiers_sort_and_serve_as_keys() -> None:
    unsorted = [parse_dns("b.example"), parse_ip("10.0.0.1"), parse_dns("a.example")]
    assert [name.value for name in sorted(unsorted)] == ["a.example", "b.example", "10.0.0.1"]
    assert {parse_dns("A.example"), parse_dns("a.example")} == {parse_dns("a.example")}


@given(st.lists(LABEL, min_size=1, max_size=6), st.booleans())
def test_every_host_name_is_accepted_in_any_case(labels: list[str], upper: bool) -> None:
    name = ".".join([*labels, "example"])
    assert parse_dns(name.upper() if upper else name).value == name


@settings(max_examples=300)
@given(
    st.text(alphabet=string.printable + "ü。é\u200d", max_size=80) | st.from_regex(r"(xn--[a-z0-9-]{1,20}\.)+[a-z]+")
)
def test_what_is_accepted_is_a_fixed_point(text: str) -> None:
    for kind in ("dns", "ip", "uri", "email"):
        try:
            identifier = parse_identifier(kind, text)
        except NameRefusedError:
            continue
        assert parse_identifier(kind, identifier.value) == identifier
        assert identifier.value.isascii()
        assert identifier.value.isprintable()
        assert " " not in identifier.value
        assert from_general_name(identifier.general_name()) == identifier


@given(st.ip_addresses())
def test_addresses_survive(address: IPv4Address | IPv6Address) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return
    assert ip_address(parse_ip(address.exploded).value) == address


@given(st.text(max_size=300))
def test_shown_text_is_printable_and_short(text: str) -> None:
    result = shown(text)
    assert result.isascii()
    assert len(result) < 1100
    assert result.isprintable()
