"""Looking at routes and templates without sending anything."""

from typing import Final

from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, NotificationError
from privyseal_ca.notification_sections import RouteSettings
from privyseal_ca.notify.deliver import understood
from privyseal_ca.notify.targets import addressed, read_targets
from privyseal_ca.notify.templates import Templates

#: What to do where nobody is told of anything.
NO_ROUTES_HINT: Final = (
    "Add [[notifications.routes]] with name and url_file to privyseal.toml; docs/notifications.md shows how."
)


def open_templates(settings: Settings) -> Templates:
    """The texts of a home, all of which can be used.

    Raises:
        ConfigurationError: one of the operator's cannot.
    """
    templates = Templates(settings.home / settings.notifications.templates)
    templates.check()
    return templates


async def check_route(settings: Settings, route: RouteSettings) -> None:
    """Make sure that the URLs of a route can be read and are understood.

    Raises:
        ConfigurationError: they cannot. No URL is repeated.
    """
    targets = read_targets(settings.home, route)
    wrong = await understood(addressed(targets, "owner@example.com" if route.to_owner else ""))
    if wrong:
        lines = ", ".join(str(line) for line in wrong)
        raise ConfigurationError(
            f"Apprise does not understand the URL in line {lines} of the file of the route {route.name}.",
            hint="Apprise's documentation has the form of each service's URL.",
        )


def find_route(settings: Settings, name: str) -> RouteSettings:
    """The route called ``name``.

    Raises:
        NotificationError: there is none.
    """
    for route in settings.notifications.routes:
        if route.name == name:
            return route
    names = ", ".join(route.name for route in settings.notifications.routes)
    if not names:
        raise NotificationError("There are no routes, so nobody is told of anything.", hint=NO_ROUTES_HINT)
    raise NotificationError(
        f"There is no route {name[:64]!r}. There are: {names}.",
        hint="Take one of these, or add one to notifications.routes in the settings; docs/notifications.md shows how.",
    )
