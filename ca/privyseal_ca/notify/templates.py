"""The texts of messages: Jinja2 templates, the built-in ones or those of the operator, in a sandbox.

The first line of what a template gives is the title, the rest is the body. Templates see the variables of
:class:`~privyseal_ca.notify.compose.Content` and nothing else: no settings, no URLs.
"""

from pathlib import Path
from typing import Final, NamedTuple

import structlog
from jinja2 import ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError
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
    """The texts of one home: those in ``folder`` before the built-in ones."""

    def __init__(self, folder: Path) -> None:
        built_in = FileSystemLoader(_BUILT_IN)
        self._folder = folder
        self._own = _environment(ChoiceLoader([FileSystemLoader(folder), built_in]))
        self._built_in = _environment(built_in)

    def check(self) -> tuple[str, ...]:
        """Render everything once; the names of the files that replace built-in ones.

        Raises:
            ConfigurationError: a file in the folder is no template, or uses what there is not.
        """
        known = {path.name for path in _BUILT_IN.glob("*.j2")}
        own = sorted(path for path in self._folder.glob("*.j2")) if self._folder.is_dir() else []
        for path in own:
            if path.name not in known:
                raise ConfigurationError(
                    f"{path} replaces no text.", hint=f"Call it one of {', '.join(sorted(known))}, or remove it."
                )
            if path.stat().st_size > _MOST_SOURCE:
                raise ConfigurationError(f"{path} has more than {_MOST_SOURCE} bytes.", hint="Shorten it.")
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
        return tuple(path.name for path in own)

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


def _environment(loader: FileSystemLoader | ChoiceLoader) -> ImmutableSandboxedEnvironment:
    # Plain text: what turns it into HTML escapes it.
    return ImmutableSandboxedEnvironment(loader=loader, undefined=StrictUndefined, autoescape=False)


def _told(error: Exception) -> str:
    said = error.message if isinstance(error, TemplateError) and error.message else str(error)
    return f"{type(error).__name__}, {' '.join(said.split())[:_MOST_PROBLEM]}".rstrip(" .,")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 2].rstrip() + " …"
