"""What every command shares: help that costs nothing, options anywhere, one place for errors, honest exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from privyseal_acme.cli import cli
from privyseal_ca.cli.frame import Command, Deferred, Group, Invocation, Root, pass_invocation
from privyseal_ca.cli.text import duration, table
from privyseal_ca.errors import ConfigurationError

runner = CliRunner()


@click.command("fail", cls=Command)
@pass_invocation
def fail(invocation: Invocation) -> None:
    """Fail as expected."""
    raise ConfigurationError(f"Nothing at {invocation.home}.", hint="Look elsewhere.")


@click.group("inner", cls=Group)
def inner() -> None:
    """Hold a command."""


@inner.command("echo")
@pass_invocation
def echo(invocation: Invocation) -> None:
    """Say what was asked."""
    invocation.progress("working")
    invocation.result({"home": invocation.home}, f"home {invocation.home}")


root = Root("test")
root.add_command(fail)
root.add_command(inner)


def run(*arguments: str) -> Result:
    return runner.invoke(root, arguments)


def test_an_expected_error_has_a_message_a_hint_and_a_code() -> None:
    result = run("fail", "--home", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: Nothing at x.\nhint: Look elsewhere.\n"


@pytest.mark.parametrize("arguments", [("--json", "fail", "--home", "x"), ("fail", "--home", "x", "--json")])
def test_an_expected_error_is_one_document_with_json(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout) == {"error": "Nothing at x.", "hint": "Look elsewhere."}


def test_an_unexpected_error_is_not_hidden() -> None:
    @click.command("bug", cls=Command)
    @pass_invocation
    def bug(_: Invocation) -> None:
        raise ZeroDivisionError

    group = Root("test")
    group.add_command(bug)
    result = runner.invoke(group, ["bug"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inner", "echo", "--home", "x"),
        ("inner", "--home", "x", "echo"),
        ("--home", "x", "inner", "echo"),
        ("--home", "y", "inner", "--home", "z", "echo", "--home", "x"),
    ],
)
def test_the_home_may_stand_anywhere_and_the_innermost_wins(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.stdout == "home x\n"
    assert result.stderr == "working\n"


@pytest.mark.parametrize("arguments", [("nothing",), ("inner", "nothing"), ("fail", "extra"), ("fail", "--no")])
def test_a_call_that_makes_no_sense_has_its_own_code(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_the_line_in_the_list_is_that_of_the_command() -> None:
    for name, deferred in cli.deferred.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == deferred.help, name


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def visit(group: click.Group, path: tuple[str, ...]) -> None:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                visit(command, (*path, name))
            else:
                found.append((*path, name))

    visit(cli, ())
    return found


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_has_help_a_home_and_json(path: tuple[str, ...]) -> None:
    result = runner.invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert "--home" in result.stdout
    assert "--json" in result.stdout
    command: click.Command | None = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from privyseal_acme.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'aiohttp', 'sqlalchemy', 'pydantic', 'cryptography', 'alembic', 'pkcs11'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "init" in done.stdout


def test_a_deferred_command_is_found() -> None:
    group = Root("test", deferred={"version": Deferred("privyseal_ca.cli.version", "version_command", "Show it.")})
    assert "Show it." in runner.invoke(group, ["--help"]).stdout
    assert json.loads(runner.invoke(group, ["version", "--json"]).stdout).keys() == {"privyseal", "python"}


def test_commands_without_an_authority_say_so(tmp_path: Path) -> None:
    for path in (
        ("ledger", "verify"),
        ("ledger", "show"),
        ("cert", "list"),
        ("cert", "show", "01"),
        ("cert", "revoke", "01"),
        ("issuer", "list"),
        ("issuer", "show", "x"),
        ("issuer", "create", "x"),
        ("issuer", "retire", "x"),
        ("account", "list"),
        ("account", "show", "x"),
        ("account", "deactivate", "x"),
        ("eab", "create"),
        ("eab", "list"),
        ("eab", "revoke", "x"),
        ("job", "list"),
        ("job", "run", "x"),
        ("status",),
    ):
        result = runner.invoke(cli, [*path, "--home", str(tmp_path / "none")], env={"PRIVYSEAL_DATABASE__URL": None})
        assert result.exit_code == 1, (path, result.output)
        assert "privyseal init" in result.stderr, path
    assert not list(tmp_path.iterdir())


def test_settings_that_are_not_valid_are_told_without_values(tmp_path: Path) -> None:
    (tmp_path / "privyseal.toml").write_text('[database]\nurl = "postgresql://u:s3cret@h/n"\ntypo = "s3cret"\n')
    result = runner.invoke(cli, ["status", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "database.typo" in result.stderr
    assert "s3cret" not in result.output


def test_the_settings_in_force_are_shown_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "privyseal.toml").write_text('[database]\nurl = "postgresql://u:s3cret@h/n"\n')
    environment = {"PRIVYSEAL_HSM__PIN": "s3cret", "PRIVYSEAL_LOG__LEVEL": "debug", "PRIVYSEAL_DATABASE__URL": None}
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        result = runner.invoke(cli, [*arguments, "--home", str(tmp_path)], env=environment)
        assert result.exit_code == 0
        assert "s3cret" not in result.output
        assert "postgresql://u:***@h/n" in result.stdout
        assert "debug" in result.stdout


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43200), ("30d", 2592000), ("2w", 1209600)]
)
def test_durations(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5h", "1y", "9999999999d"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        duration(text)


def test_a_table_lines_up() -> None:
    assert table(("A", "B"), [("long", "x"), ("s", "y")]) == "A     B\nlong  x\ns     y"
    assert table(("A",), []) == "none"
