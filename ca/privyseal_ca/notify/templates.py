"""The texts of messages: Jinja2 templates, the built-in ones or those of the operator, in a sandbox.

The first line of what a template gives is the title, the rest is the body. Templates see the variables of
:class:`~privyseal_ca.notify.compose.Content` and nothing else: no settings, no URLs. They are read once, and what is used has
been tried: what somebody writes into the folder later is not run by a service that is at work.
"""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from jinja2 import ChoiceLoader, DictLoader, FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.notify.compose import MOST_BODY, MOST_TITLE, Content, sample

_log = structlog.get_logger("notifications")

_BUILT_IN: Final = Path(__file__).parent / "templates"
#: By kind of message; every other kind is news.
_NAMES: Final = {"digest": "digest.j2", "system": "system.j2", "test": "test.j2"}
_NEWS: Final = "news.j2"
#: Characters of a file, and of what is said of one that cannot be used.
_MOST_SOURCE: Final = 100_000
_MOST_PROBLEM: Final = 200


class Text(NamedTuple):
    """A message as it is read."""

    title: str
    body: str


class Templates:
    """The texts of one home: those in ``folder`` before the built-in ones.

    Raises:
        ConfigurationError: a file in the folder is not regular, or too long, or replaces nothing, or others may change it.
    """

    def __init__(self, folder: Path) -> None:
        built_in = FileSystemLoader(_BUILT_IN)
        self._folder = folder
        known = {path.name for path in _BUILT_IN.glob("*.j2")}
        found = sorted(folder.glob("*.j2")) if folder.is_dir() else []
        self._files = {path.name: _read(path, known) for path in found}
        self._own = _environment(ChoiceLoader([DictLoader(self._files), built_in]))
        self._built_in = _environment(built_in)

    def check(self) -> tuple[str, ...]:
        """Render everything once; the names of the files that replace built-in ones.

        Raises:
            ConfigurationError: one is no template, or uses what there is not.
        """
        for kind in ("missed", *_NAMES):
            # A digest may have nothing to say; what else is sent has.
            nothing = [Content(kind, "https://ca.corp.example", "1970-01-01T00:00:00Z")] if kind == "digest" else []
            for content in (sample(kind), *nothing):
                try:
                    self._render(self._own, content)
                except Exception as error:
                    raise ConfigurationError(
                        f"The template {_NAMES.get(kind, _NEWS)} in {self._folder} cannot be used: {_told(error)}.",
                        hint="Mend or remove it; docs/notifications.md lists what templates are given.",
                    ) from error
        return tuple(self._files)

    def render(self, content: Content) -> Text:
        """The message. Where the operator's template fails, the built-in one is used, and says so."""
        try:
            return self._render(self._own, content)
        except Exception as error:  # noqa: BLE001 (whatever a template does, its news have to be told)
            name, problem = _NAMES.get(content.kind, _NEWS), _told(error)
            _log.warning("a template cannot be used", template=name, error=problem)
            text = self._render(self._built_in, content)
            return Text(text.title, f"{text.body}\n\nThe template {name} of this home could not be used: {problem}.")

    def _render(self, environment: ImmutableSandboxedEnvironment, content: Content) -> Text:
        written = environment.get_template(_NAMES.get(content.kind, _NEWS)).render(content.variables())
        title, _, body = written.strip().partition("\n")
        return Text(_cut(title.strip(), MOST_TITLE), _cut(body.strip("\n"), MOST_BODY) or title)


def _read(path: Path, known: set[str]) -> str:
    if path.name not in known:
        raise ConfigurationError(
            f"{path} replaces no text.", hint=f"Call it one of {', '.join(sorted(known))}, or remove it."
        )
    try:
        # O_NONBLOCK: a FIFO in its place must not stop us.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{path} is not a regular file.", hint="Make it one, or remove it.")
            if status.st_uid not in {os.geteuid(), 0} or status.st_mode & 0o022:
                raise ConfigurationError(
                    f"{path} can be changed by others, and would be run by the service.",
                    hint=f"Give it to the user that runs privyseal, and run: chmod go-w {path}",
                )
            content = file.read(_MOST_SOURCE + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    if len(content) > _MOST_SOURCE:
        raise ConfigurationError(f"{path} has more than {_MOST_SOURCE} bytes.", hint="Shorten it.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text.", hint="Write it as such.") from None


def _environment(loader: FileSystemLoader | ChoiceLoader) -> ImmutableSandboxedEnvironment:
    # Plain text: what turns it into HTML escapes it.
    return ImmutableSandboxedEnvironment(loader=loader, undefined=StrictUndefined, autoescape=False)


def _told(error: Exception) -> str:
    said = error.message if isinstance(error, TemplateError) and error.message else str(error)
    return f"{type(error).__name__}, {' '.join(said.split())[:_MOST_PROBLEM]}".rstrip(" .,")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 2].rstrip() + " …"
