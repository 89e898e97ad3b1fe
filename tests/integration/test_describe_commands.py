"""`describe` of accounts and of keys: what is said takes the place of what was said, and nothing is lost by just looking."""

import json

import pytest
from click.testing import CliRunner, Result

from fakes.acme_client import AcmeClient
from fakes.service import RunningService
from privyseal_acme.cli import cli


def run(service: RunningService, *arguments: str, expect: int = 0) -> Result:
    environment = {
        "PRIVYSEAL_HOME": str(service.settings.home),
        "PRIVYSEAL_DATABASE__URL": service.settings.database_url,
    }
    result = CliRunner().invoke(cli, arguments, env=environment)
    assert result.exit_code == expect, (arguments, result.output)
    return result


def test_an_account(service: RunningService, client: AcmeClient) -> None:
    account = (client.account or "")[-22:]

    def said() -> object:
        return json.loads(run(service, "account", "show", account, "--json").stdout)["attributes"]

    describe = ("account", "describe", account)
    run(service, *describe, "--owner", "web@corp.test", "--set", "tier=1")
    assert said() == {"owner": "web@corp.test", "labels": {"tier": "1"}}
    shown = run(service, "account", "show", account).stdout
    assert "owner         web@corp.test\nlabel         tier=1" in shown
    assert "{" not in shown
    assert "None" not in shown

    for nothing in ((), ("--owner", ""), ("--clear", "--team", "web")):
        assert "--clear" in run(service, *describe, *nothing, expect=2).output
    assert said() == {"owner": "web@corp.test", "labels": {"tier": "1"}}

    run(service, *describe, "--team", "web")
    assert said() == {"team": "web"}
    run(service, *describe, "--clear")
    assert said() == {}


def test_a_key(service: RunningService) -> None:
    made = json.loads(run(service, "eab", "create", "--owner", "web@corp.test", "--json").stdout)
    kid = made["kid"]
    assert "web@corp.test" in run(service, "eab", "list").stdout
    run(service, "eab", "describe", kid, expect=2)
    assert "web@corp.test" in run(service, "eab", "list").stdout
    run(service, "eab", "describe", kid, "--clear")
    assert "web@corp.test" not in run(service, "eab", "list").stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--owner", "x" * 201), "The owner cannot be used"),
        (("--set", "tier"), "'tier' is no label"),
        (("--set", "=1"), "The name of the label '' cannot be used"),
        (("--set", "tier=1", "--set", "tier=2"), "The label tier is given twice"),
    ],
    ids=["long", "no value", "no name", "twice"],
)
def test_what_cannot_be_said(service: RunningService, client: AcmeClient, options: tuple[str, ...], told: str) -> None:
    account = (client.account or "")[-22:]
    assert told in run(service, "account", "describe", account, *options, expect=1).output
