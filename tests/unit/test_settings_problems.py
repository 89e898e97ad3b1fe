"""What somebody is told whose settings are wrong: which key, and what it must be, in words that need no Python."""

from pathlib import Path

import pytest

from privyseal_ca.config import load_settings
from privyseal_ca.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[fleet.rules]]\nname = "web"\nteem = "x"', "fleet.rules.0.teem: there is no such key"),
        ('[[fleet.rules]]\ndns = ["a.test"]\nowner = "x"', "fleet.rules.0.name: must be set"),
        ('[[fleet.rules]]\nname = "web"\ndns = "a.test"', "fleet.rules.0.dns: must be a list"),
        ('[fleet.rules]\nname = "web"', "fleet.rules: must be a list"),
        ('[[fleet.rules]]\nname = "web"\nowner = "x"', "fleet.rules.0: the rule has no condition"),
        ('[retention]\norders = "30d"', "retention.orders: must be a whole number"),
        ("[retention]\norders = 1.5", "retention.orders: must be a whole number"),
        ("[fleet]\nusual_delay = 2", "fleet.usual_delay: must be less than or equal to 0.2"),
        ('[fleet]\nusual_delay = "much"', "fleet.usual_delay: must be a number"),
        ("fleet = 3", "fleet: must be a table"),
        ('[server]\nhttps = 8443', "server.https: must be text"),
        ('[acme]\nexternal_account_required = "maybe"', "acme.external_account_required: must be true or false"),
    ],
)  # fmt: skip
def test_in_plain_words(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "privyseal.toml").write_text(text + "\n")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(tmp_path)
    assert told in str(refused.value)
    assert "Input" not in str(refused.value)
    assert "Value error" not in str(refused.value)
    assert str(tmp_path / "privyseal.toml") in str(refused.value.hint)
