"""Whose a workload is: rules, accounts and keys, which counts, and where it is said to come from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.fleet.attributes import (
    Attributes,
    Origin,
    attribute,
    checked_attributes,
    parse_attributes,
)
from privyseal_ca.fleet_sections import MOST_LABELS, FleetRule

WEB = Origin(("dns:www.shop.corp.test", "dns:shop.corp.test"), "mtls", "one", policy="default", eab_kid="k1")


def owner_of(origin: Origin, *rules: FleetRule) -> str:
    return attribute(origin, rules=rules).attributes.owner


@pytest.mark.parametrize(
    ("names", "suffixes", "matches"),
    [
        (("dns:shop.corp.test",), ("shop.corp.test",), True),
        (("dns:www.shop.corp.test",), ("shop.corp.test",), True),
        (("dns:workshop.corp.test",), ("shop.corp.test",), False),
        (("dns:*.shop.corp.test",), ("shop.corp.test",), True),
        (("dns:shop.corp.test", "dns:pay.corp.test"), ("shop.corp.test",), False),
        (("dns:shop.corp.test", "dns:pay.corp.test"), ("shop.corp.test", "pay.corp.test"), True),
        (("dns:shop.corp.test", "ip:10.0.0.1"), ("shop.corp.test",), True),
        (("ip:10.0.0.1",), ("shop.corp.test",), False),
        (("dns:shop.corp.test",), (".Shop.Corp.Test.",), True),
    ],
    ids=str,
)
def test_a_rule_goes_by_the_dns_names(names: tuple[str, ...], suffixes: tuple[str, ...], matches: bool) -> None:
    rule = FleetRule(name="r", dns=suffixes, owner="shop")
    assert owner_of(Origin(names, "mtls", "one"), rule) == ("shop" if matches else "")


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ({"accounts": ("one",)}, True),
        ({"accounts": ("two",)}, False),
        ({"eab": ("k1", "k2")}, True),
        ({"eab": ("k2",)}, False),
        ({"policies": ("default",)}, True),
        ({"policies": ("other",)}, False),
        ({"profiles": ("mtls",)}, True),
        ({"profiles": ("server",)}, False),
        ({"profiles": ("mtls",), "accounts": ("two",)}, False),
        ({"profiles": ("mtls",), "dns": ("shop.corp.test",)}, True),
        ({"profiles": ("mtls",), "dns": ("pay.corp.test",)}, False),
    ],
    ids=str,
)
def test_every_condition_has_to_hold(conditions: dict[str, tuple[str, ...]], matches: bool) -> None:
    rule = FleetRule.model_validate({"name": "r", "owner": "shop", **conditions})
    assert owner_of(WEB, rule) == ("shop" if matches else "")


def test_a_condition_on_a_key_is_not_met_without_one() -> None:
    origin = Origin(("dns:a.test",), "mtls", "one")
    assert owner_of(origin, FleetRule(name="r", eab=("k1",), owner="shop")) == ""


def test_each_attribute_comes_from_the_first_that_says_it() -> None:
    rules = (
        FleetRule(name="first", dns=("corp.test",), team="web", labels={"tier": "1"}),
        FleetRule(name="second", dns=("shop.corp.test",), team="shop", owner="shop@corp.test", criticality="high"),
        FleetRule(name="elsewhere", dns=("other.test",), environment="production"),
    )
    account = Attributes(owner="somebody", service="cart", labels={"tier": "2", "cost": "7"}, renews=False)
    key = Attributes(owner="nobody", environment="staging", criticality="low", renews=True)
    found = attribute(WEB, rules=rules, account=account, eab=key)
    assert found.attributes == Attributes(
        owner="shop@corp.test",
        team="web",
        service="cart",
        environment="staging",
        criticality="high",
        labels={"tier": "1", "cost": "7"},
        renews=False,
    )
    assert found.sources == {
        "owner": "rule:second",
        "team": "rule:first",
        "service": "account",
        "environment": "eab:k1",
        "criticality": "rule:second",
        "renews": "account",
        "labels.tier": "rule:first",
        "labels.cost": "account",
    }
    assert not found.renews


def test_what_nobody_said() -> None:
    found = attribute(WEB, rules=())
    assert (found.criticality, found.renews, found.sources) == ("normal", True, {})
    assert not found.attributes


_word = st.text(st.characters(codec="ascii", exclude_characters="\x7f", min_codepoint=0x20), max_size=8).map(str.strip)
_attributes = st.builds(
    Attributes,
    owner=_word,
    team=_word,
    service=_word,
    environment=_word,
    criticality=st.sampled_from(["", "critical", "high", "normal", "low"]),
    labels=st.dictionaries(st.sampled_from([f"l{number}" for number in range(30)]), _word, max_size=20),
    renews=st.sampled_from([None, True, False]),
)


@given(_attributes)
def test_what_is_kept_is_read_as_it_was(attributes: Attributes) -> None:
    text = attributes.text()
    assert parse_attributes(text) == attributes
    assert (text is None) == (not attributes)


@given(_attributes, _attributes)
def test_everything_has_a_source_and_labels_are_bounded(account: Attributes, key: Attributes) -> None:
    found = attribute(WEB, rules=(), account=account, eab=key)
    said = found.attributes.document()
    labels = said.pop("labels", {})
    assert found.sources.keys() == {*said, *(f"labels.{name}" for name in labels)}
    assert len(labels) <= MOST_LABELS
    for name, value in said.items():
        by = account if found.sources[name] == "account" else key
        assert getattr(by, name) == value
        assert found.sources[name] == "account" or name not in account.document()


@pytest.mark.parametrize(
    "said",
    [
        {"criticality": "urgent"},
        {"owner": "a\nb"},
        {"team": "x" * 201},
        {"labels": ["no-value"]},
        {"labels": ["=value"]},
        {"labels": ["a b=value"]},
        {"labels": ["a=\x1b[0m"]},
        {"labels": [f"l{number}=1" for number in range(MOST_LABELS + 1)]},
    ],
    ids=lambda said: next(iter(said)) + str(len(str(said))),
)
def test_what_an_operator_may_not_say(said: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        checked_attributes(**said)  # type: ignore[arg-type]


def test_what_an_operator_says() -> None:
    found = checked_attributes(
        owner=" ops ", criticality="critical", labels=["cost/center=4 7", "empty="], renews=False
    )
    assert found == Attributes(
        owner="ops", criticality="critical", labels={"cost/center": "4 7", "empty": ""}, renews=False
    )
