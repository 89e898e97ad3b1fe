"""``privyseal notify``: whether routes work, what would be told now, and what became of what was told."""

from typing import Any, Final

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.text import moment, table, when
from privyseal_ca.clock import rfc3339
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, NotificationError, ServiceAwayError
from privyseal_ca.notification_sections import RouteSettings
from privyseal_ca.notify.checking import NO_ROUTES_HINT, check_route, find_route, open_templates
from privyseal_ca.notify.compose import Content, plain
from privyseal_ca.notify.deliver import deliver
from privyseal_ca.notify.news import address_of
from privyseal_ca.notify.newsroom import Draft, Newsroom
from privyseal_ca.notify.targets import addressed, read_targets
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.notifications import DELIVERED, GIVEN_UP, WAITING, NotificationRow, newest_notifications

_DAY: Final = 86_400
_MOST_TITLE: Final = 60


@click.group("notify", cls=Group)
def notify() -> None:
    """Try routes, and show what is told and what waits."""


@notify.command("test")
@click.argument("route")
@click.option("--to", "recipient", metavar="ADDRESS", help="The owner to write to, for routes that go to owners.")
@pass_invocation
def test_command(invocation: Invocation, route: str, recipient: str | None) -> None:
    """Send a test message by ROUTE now. The exit code is 1, and it is said why, when a receiver does not take it.

    It needs neither the service nor the database.
    """
    settings = settings_of(invocation)
    found = find_route(settings, route)
    now = rfc3339(surroundings_of(invocation).clock.now())
    content = Content("test", settings.server.public_https, now, route=found.name)
    lines = run(_send(settings, found, _recipient(found, recipient), content))
    document = {"route": found.name, "delivered": lines}
    invocation.result(document, f"{found.name}: delivered to {lines} receiver{'' if lines == 1 else 's'}")


def _recipient(route: RouteSettings, recipient: str | None) -> str:
    if route.to_owner != (recipient is not None):
        raise click.UsageError(
            "this route goes to owners: name one with --to"
            if route.to_owner
            else "this route does not go to owners: leave --to out"
        )
    if recipient and not address_of(recipient):
        raise click.BadParameter("this is no plain mail address", param_hint="--to")
    return recipient or ""


async def _send(settings: Settings, route: RouteSettings, recipient: str, content: Content) -> int:
    """Send it to every receiver; how many there are.

    Raises:
        ConfigurationError: the route's file cannot be used.
        NotificationError: some did not take it.
    """
    await check_route(settings, route)
    text = open_templates(settings).render(content)
    targets = addressed(read_targets(settings.home, route), recipient)
    problems = []
    for target in targets:
        try:
            await deliver(target, text, urgent=False)
        except NotificationError as error:
            problems.append(error.message)
    if problems:
        raise NotificationError(
            f"The route {route.name} does not work: {' '.join(problems)}",
            hint=f"{len(targets) - len(problems)} of {len(targets)} receivers took the message.",
        )
    return len(targets)


@notify.command("list")
@click.option(
    "--state", type=click.Choice([WAITING, DELIVERED, GIVEN_UP]), help="Only those that wait, that were delivered, ..."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@pass_invocation
def list_command(invocation: Invocation, state: str | None, limit: int) -> None:
    """List messages, the newest first: what waits and why, and what was delivered or given up in the last 30 days."""
    settings = settings_of(invocation)

    async def work() -> list[NotificationRow]:
        async with opened_store(settings) as store:
            _require_schema(settings)
            return await store.read(lambda tx: newest_notifications(tx, state=state or "", count=limit))

    rows = run(work())
    header = ("MADE", "ROUTE", "KIND", "WORKLOADS", "STATE", "ATTEMPTS", "NEXT", "TITLE", "PROBLEM")
    lines = [
        (
            when(row.created),
            f"{row.route} ({row.recipient})" if row.recipient else row.route,
            row.kind,
            str(row.workloads),
            row.state,
            str(row.attempts),
            when(row.next_attempt if row.state == WAITING else None),
            plain(row.title)[:_MOST_TITLE],
            row.problem,
        )
        for row in rows
    ]
    invocation.result([_document(row) for row in rows], table(header, lines))


@notify.command("preview")
@click.option("--digest", is_flag=True, help="Show the daily digest as it would be now.")
@pass_invocation
def preview_command(invocation: Invocation, digest: bool) -> None:
    """Show what would be sent now, to whom, and send it to nobody.

    Without --digest it is what the next run of the job `notifications` tells: news that nobody was told of yet.
    """
    settings = settings_of(invocation)
    now = surroundings_of(invocation).clock.now()

    async def work() -> list[Draft]:
        async with opened_store(settings) as store:
            _require_schema(settings)
            newsroom = Newsroom(store, settings, open_templates(settings))
            if digest:
                return list(await newsroom.digest(now, moment=now, since=now - _DAY))
            system, _ = await newsroom.system(now)
            return [*(await newsroom.news(now)).drafts, *system]

    if not settings.notifications.routes:
        raise ConfigurationError("There are no routes, so nobody is told of anything.", hint=NO_ROUTES_HINT)
    drafts = run(work())
    parts = [
        f"--- {draft.route}{f' to {draft.recipient}' if draft.recipient else ''}: {draft.title}\n\n{draft.body}"
        for draft in drafts
    ]
    invocation.result([draft._asdict() for draft in drafts], "\n\n".join(parts) or "There is nothing to tell.")


def _require_schema(settings: Settings) -> None:
    if not schema_is_current(settings.database_url):
        raise ServiceAwayError(
            "No service of this version has used this database yet.", hint="Start `privyseal serve`, then try again."
        )


def _document(row: NotificationRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "route": row.route,
        "recipient": row.recipient or None,
        "kind": row.kind,
        "title": row.title,
        "body": row.body,
        "workloads": row.workloads,
        "created": moment(row.created),
        "state": row.state,
        "attempts": row.attempts,
        "next_attempt": moment(row.next_attempt if row.state == WAITING else None),
        "finished": moment(row.finished or None),
        "problem": row.problem or None,
    }
