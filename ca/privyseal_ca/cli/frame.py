"""What every command shares: where the home is, how results and errors are written, and how commands are found.

Commands are imported when they are called, so that ``privyseal --help`` costs nothing. With ``--json`` standard output
carries one document, the result or the error; without it, the result for people. Progress and errors for people go to
standard error. The exit code is 0 only on success, 1 for a failure, 2 for a call that makes no sense.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import click

from privyseal_ca.errors import PrivySealError

T = TypeVar("T")

FAILURE = 1
_HOME = "privyseal.home"
_JSON = "privyseal.json"


class Invocation:
    """One call of a command."""

    def __init__(self, context: click.Context) -> None:
        #: The value of ``--home``.
        self.home: str | None = context.meta.get(_HOME)
        self.json: bool = context.meta.get(_JSON, False)

    def progress(self, text: str) -> None:
        """Tell people on standard error what is going on."""
        click.echo(text, err=True)

    def result(self, document: Mapping[str, Any] | Sequence[Any], text: str) -> None:
        """Write the result: ``document`` with ``--json``, else ``text``."""
        click.echo(json.dumps(document, indent=2) if self.json else text)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something that cannot be undone, unless ``yes``, or nobody is there to answer.

        Raises:
            click.Abort: the answer was no.
        """
        if not yes and not self.json and sys.stdin.isatty():
            click.confirm(question, abort=True, err=True)


def pass_invocation(command: Callable[..., T]) -> Callable[..., T]:
    """Give ``command`` its :class:`Invocation` as the first argument."""

    def wrapper(*args: Any, **options: Any) -> T:
        return command(Invocation(click.get_current_context()), *args, **options)

    return update_wrapper(wrapper, command)


class Command(click.Command):
    """A command with ``--home`` and ``--json``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_common_options())


class Deferred(NamedTuple):
    """A command that is imported when it is called."""

    module: str
    attribute: str
    #: The line of ``--help``; a test holds it to the command's own.
    help: str


@contextmanager
def _imports() -> Iterator[None]:
    """Spares a start the looking for garbage, a seventh of its time, while so much is made that stays."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Group(click.Group):
    """A group of commands, which takes ``--home`` and ``--json`` as its commands do."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, deferred: Mapping[str, Deferred] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.deferred = dict(deferred or {})
        self.params.extend(_common_options())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return sorted({*super().list_commands(ctx), *self.deferred})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self.deferred:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self.deferred[cmd_name]
        with _imports():
            command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' list, without importing them."""
        if not self.deferred:
            super().format_commands(ctx, formatter)
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.deferred[name].help) for name in self.list_commands(ctx)])


class Root(Group):
    """The outermost group: the one place where errors become text, or a document, and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            click.exceptions.Exit: with the exit code, after an error was reported.
        """
        try:
            return super().invoke(ctx)
        except PrivySealError as error:
            report(error, as_json=ctx.meta.get(_JSON, False))
            ctx.exit(FAILURE)


def report(error: PrivySealError, *, as_json: bool) -> None:
    """Write ``error``: on standard output as a document, or on standard error for people."""
    if as_json:
        click.echo(json.dumps({"error": error.message, "hint": error.hint}, indent=2))
        return
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["--home"],
            metavar="DIR",
            expose_value=False,
            callback=_remember(_HOME),
            help="The home. Default: $PRIVYSEAL_HOME, else ~/.privyseal.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_remember(_JSON),
            help="Write the result as JSON.",
        ),
    ]


def _remember(key: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    # Meta data is shared by a command and the groups above it, and the innermost option is read last.
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            context.meta[key] = value

    return callback
