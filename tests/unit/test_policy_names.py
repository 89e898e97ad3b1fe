from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_ca.errors import ConfigurationError, NameRefusedError
from privyseal_ca.identifiers import parse_dns, parse_identifier
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.sections import PolicySettings

NOTHING: dict[str, Any] = {"allow_dns": (), "allow_ip": (), "allow_single_labels": False}


def policy(**settings: Any) -> NamePolicy:
    return NamePolicy(PolicySettings(**{**NOTHING, **settings}))


def allows(policy: NamePolicy, text: str) -> bool:
    try:
        policy.check(parse_identifier(*text.split(":", 1)))
    except NameRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("settings", "allowed", "refused"),
    [
        pytest.param(
            {"allow_dns": ("corp.example",)},
            [
                "dns:corp.example",
                "dns:a.corp.example",
                "dns:a.b.corp.example",
                "dns:*.corp.example",
                "dns:*.a.corp.example",
            ],
            ["dns:evilcorp.example", "dns:corp.example.net", "dns:example", "dns:*.example", "ip:10.0.0.1"],
            id="suffix",
        ),
        pytest.param(
            {"allow_dns": ("web-*.corp.example",)},
            ["dns:web-1.corp.example", "dns:web-a.corp.example"],
            [
                "dns:web.corp.example",
                "dns:web-1.x.corp.example",
                "dns:a.web-1.corp.example",
                "dns:*.web-1.corp.example",
                "dns:*.corp.example",
                "dns:corp.example",
            ],
            id="pattern inside a label",
        ),
        pytest.param(
            {"allow_dns": ("*.corp.example",)},
            ["dns:a.corp.example", "dns:*.corp.example"],
            ["dns:corp.example", "dns:a.b.corp.example", "dns:*.a.corp.example"],
            id="pattern of one label",
        ),
        pytest.param(
            {"allow_dns": ("*.*.corp.example",)},
            ["dns:a.b.corp.example", "dns:*.b.corp.example"],
            ["dns:a.corp.example", "dns:*.corp.example"],
            id="pattern of two labels",
        ),
        pytest.param(
            {"allow_dns": ("*",)}, [], ["dns:a.b", "dns:db1"], id="single labels forbidden outweigh a pattern"
        ),
        pytest.param({"allow_single_labels": True}, ["dns:db1"], ["dns:db1.example", "dns:*.db1"], id="single labels"),
        pytest.param(
            {"allow_dns": ("corp.example",), "allow_wildcards": False},
            ["dns:a.corp.example"],
            ["dns:*.corp.example"],
            id="no wildcards",
        ),
        pytest.param(
            {"allow_dns": ("corp.example",), "deny_dns": ("secret.corp.example",)},
            ["dns:a.corp.example", "dns:*.a.corp.example", "dns:asecret.corp.example"],
            [
                "dns:secret.corp.example",
                "dns:x.secret.corp.example",
                "dns:*.secret.corp.example",
                "dns:*.x.secret.corp.example",
                "dns:*.corp.example",
            ],
            id="deny below allow",
        ),
        pytest.param(
            {"allow_dns": ("corp.example",), "deny_dns": ("a.b.corp.example",)},
            ["dns:b.corp.example"],
            ["dns:*.b.corp.example", "dns:*.corp.example"],
            id="wildcards above a denied name",
        ),
        pytest.param(
            {"allow_dns": ("corp.example",), "deny_dns": ("adm-*.corp.example",)},
            ["dns:admin.corp.example", "dns:*.a.corp.example", "dns:x.adm-1.corp.example"],
            ["dns:adm-1.corp.example", "dns:*.corp.example", "dns:*.adm-1.corp.example"],
            id="deny pattern",
        ),
        pytest.param(
            {"allow_single_labels": True, "deny_dns": ("localhost",)},
            ["dns:db1"],
            ["dns:localhost", "dns:x.localhost"],
            id="denied single label",
        ),
        pytest.param(
            {"allow_ip": ("10.0.0.0/8", "fd00::/8", "192.0.2.7/32"), "deny_ip": ("10.1.0.0/16",)},
            ["ip:10.0.0.1", "ip:10.255.255.255", "ip:fd12::1", "ip:192.0.2.7"],
            ["ip:11.0.0.1", "ip:10.1.2.3", "ip:fe00::1", "ip:192.0.2.8", "dns:a.example"],
            id="networks",
        ),
        pytest.param(
            {"allow_ip": ("0.0.0.0/0",)}, ["ip:203.0.113.9"], ["ip:2001:db8::1"], id="all of IPv4 is nothing of IPv6"
        ),
        pytest.param(
            {
                "allow_uri": ("spiffe://corp.example/ns/prod", "urn:x:"),
                "deny_uri": ("spiffe://corp.example/ns/prod/adm",),
            },
            ["uri:spiffe://corp.example/ns/prod", "uri:spiffe://CORP.example/ns/prod/sa/a", "uri:urn:x:1"],
            [
                "uri:spiffe://corp.example/ns/production",
                "uri:spiffe://corp.example/ns",
                "uri:spiffe://corp.example/ns/prod/adm/x",
                "uri:spiffe://corp.example/ns/prod/adm",
                "uri:spiffe://corp.example2/ns/prod",
                "uri:urn:y:1",
            ],
            id="URI prefixes end at boundaries",
        ),
        pytest.param(
            {"allow_uri": ("https://corp.example",)},
            ["uri:https://corp.example/x", "uri:https://corp.example", "uri:https://corp.example?x"],
            ["uri:https://corp.example.evil.example/x", "uri:https://corp.example:8443/x", "uri:http://corp.example/x"],
            id="hosts in URI prefixes",
        ),
        pytest.param(
            {"allow_email": ("Corp.example",)},
            ["email:a@corp.example"],
            ["email:a@x.corp.example", "email:a@evilcorp.example", "dns:corp.example"],
            id="mail domains",
        ),
        pytest.param(
            {}, [], ["dns:a.example", "dns:db1", "ip:10.0.0.1", "uri:urn:x:y", "email:a@b.example"], id="empty"
        ),
    ],
)
def test_rules(settings: dict[str, Any], allowed: list[str], refused: list[str]) -> None:
    made = policy(**settings)
    assert [name for name in allowed if not allows(made, name)] == []
    assert [name for name in refused if allows(made, name)] == []


def test_defaults_are_private_names_only() -> None:
    made = NamePolicy(PolicySettings())
    for name in ("dns:a.internal", "dns:db1", "dns:web.default.svc.cluster.local", "ip:10.1.2.3", "ip:fd00::1"):
        assert allows(made, name), name
    for name in ("dns:example.com", "dns:a.example", "ip:8.8.8.8", "ip:169.254.169.254", "uri:spiffe://a.example/x"):
        assert not allows(made, name), name


def test_the_refusal_names_rule_and_setting() -> None:
    made = NamePolicy(PolicySettings(allow_dns=("corp.example",), deny_dns=("x.corp.example",)), name="teams")
    with pytest.raises(NameRefusedError, match=r"x\.corp\.example of deny_dns of policy\.teams") as denied:
        made.check(parse_dns("a.x.corp.example"))
    assert (denied.value.identifier_type, denied.value.value) == ("dns", "a.x.corp.example")
    with pytest.raises(NameRefusedError, match=r"allow_dns of policy\.teams") as refused:
        made.check(parse_dns("a.example"))
    assert "administrators" in refused.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"allow_dns": ("",)},
        {"allow_dns": ("a..b",)},
        {"allow_dns": ("10.0.0.1",)},
        {"allow_dns": ("bücher.example",)},
        {"allow_dns": ("a**b.example",)},
        {"allow_dns": ("*a*b*.example",)},
        {"deny_dns": ("-*.example",)},
        {"deny_dns": ("a_b.example",)},
        {"allow_uri": ("corp.example/x",)},
        {"deny_uri": ("https://user@host/",)},
        {"allow_email": ("*.example",)},
        {"allow_email": ("a@b.example",)},
    ],
)
def test_entries_that_could_never_match_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        policy(**settings)


def test_narrowing_needs_both() -> None:
    wide = policy(allow_dns=("corp.example",), allow_ip=("10.0.0.0/8",), allow_single_labels=True)
    narrow = wide.narrowed(allow_dns=("team.corp.example", "other.example"), allow_ip=["10.2.0.0/16"])
    for name in ("dns:a.team.corp.example", "dns:*.team.corp.example", "ip:10.2.3.4"):
        assert allows(narrow, name), name
    for name in ("dns:a.corp.example", "dns:a.other.example", "dns:db1", "ip:10.3.0.1", "ip:192.168.0.1"):
        assert not allows(narrow, name), name
    assert allows(wide, "dns:a.corp.example")


def test_narrowing_by_one_kind_refuses_the_others() -> None:
    narrow = policy(allow_dns=("corp.example",), allow_ip=("10.0.0.0/8",), allow_email=("corp.example",)).narrowed(
        allow_dns=("corp.example",)
    )
    assert allows(narrow, "dns:corp.example")
    assert not allows(narrow, "ip:10.0.0.1")
    assert not allows(narrow, "email:a@corp.example")


def test_narrowing_by_nothing_changes_nothing() -> None:
    wide = policy(allow_dns=("corp.example",))
    assert wide.narrowed() is wide


def test_narrowing_twice_and_single_labels() -> None:
    wide = policy(allow_single_labels=True, allow_dns=("a.example",))
    narrow = wide.narrowed(allow_dns=("db*", "a.example")).narrowed(allow_dns=("db1", "a.example"))
    assert allows(narrow, "dns:db1")
    assert not allows(narrow, "dns:db2")
    assert allows(narrow, "dns:x.a.example")


def test_narrowing_with_bad_entries_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="external account key"):
        policy().narrowed(allow_dns=("a..b",))
    with pytest.raises(ConfigurationError):
        policy().narrowed(allow_ip=("10.0.0.1/8",))


def test_profiles_are_kept() -> None:
    made = policy(profiles=("mtls", "server"), allow_dns=("a.example",))
    assert made.profiles == ("mtls", "server")
    assert made.narrowed(allow_dns=("a.example",)).profiles == ("mtls", "server")


LABELS = st.lists(st.sampled_from(["a", "b", "c", "ab", "web-1", "corp"]), min_size=1, max_size=4)


@given(st.lists(LABELS, max_size=4), st.lists(LABELS, max_size=3), LABELS, st.booleans())
def test_suffixes_mean_what_a_plain_scan_says(
    allow: list[list[str]], deny: list[list[str]], name: list[str], wildcard: bool
) -> None:
    allowed, denied = [".".join(labels) for labels in allow], [".".join(labels) for labels in deny]
    base = ".".join(name)
    made = policy(allow_dns=tuple(allowed), deny_dns=tuple(denied))

    def below(child: str, parent: str) -> bool:
        return child == parent or child.endswith("." + parent)

    expected = any(below(base, suffix) for suffix in allowed) and not any(below(base, suffix) for suffix in denied)
    if wildcard:
        expected = expected and not any(below(suffix, base) for suffix in denied)
    elif len(name) == 1:
        expected = False  # NOTHING forbids single labels
    assert allows(made, f"dns:{'*.' if wildcard else ''}{base}") is expected
