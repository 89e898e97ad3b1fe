"""The options that choose workloads, and reading those that they choose."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import click
import orjson

from privyseal_ca.cli.text import duration
from privyseal_ca.config import Settings
from privyseal_ca.errors import PolicyError, ServiceAwayError
from privyseal_ca.fleet.states import State
from privyseal_ca.fleet.survey import STATES
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, page_of_lineages
from privyseal_ca.store.issuers import all_issuers
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.statement import Transaction

_OPTIONS: Final = (
    click.option("--state", multiple=True, type=click.Choice(STATES), help="Workloads in this state. Repeatable."),
    click.option("--owner", metavar="TEXT", help="Workloads of this owner."),
    click.option("--team", metavar="TEXT", help="Workloads of this team."),
    click.option("--service", metavar="TEXT", help="Workloads of this service."),
    click.option("--environment", metavar="TEXT", help="Workloads of this environment."),
    click.option("--criticality", type=click.Choice(CRITICALITIES), help="Workloads of this criticality."),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="Workloads with this label. Repeatable."),
    click.option("--name", metavar="TEXT", help="Workloads with this text in a name."),
    click.option("--issuer", metavar="NAME|ID", help="Workloads whose certificate this issuer signed."),
    click.option("--profile", metavar="NAME", help="Workloads of this profile."),
    click.option("--missed", is_flag=True, help="Workloads whose renewal was missed."),
    click.option("--unowned", is_flag=True, help="Workloads that nobody is known to own."),
    click.option(
        "--expires-within",
        type=duration,
        metavar="DURATION",
        help="Workloads whose certificate ends by then, such as 7d, or has ended.",
    ),
    click.option("--all", "retired_too", is_flag=True, help="Retired workloads too."),
)


def filter_options(command: Any) -> Any:
    """``--state`` and the others. A workload is chosen when it is as all of them say."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Choice:
    """What those options say; what is None, empty or false chooses everything."""

    states: frozenset[str]
    #: Columns and what they are to be.
    equal: Mapping[str, str]
    labels: Mapping[str, str]
    #: In lower case.
    name: str
    missed: bool
    unowned: bool
    #: The last moment at which the certificate may end.
    ends_by: int | None
    retired_too: bool

    def __contains__(self, row: LineageRow) -> bool:
        """Whether the workload is chosen."""
        if row.state not in self.states if self.states else row.state == State.RETIRED and not self.retired_too:
            return False
        if any(getattr(row, column) != value for column, value in self.equal.items()):
            return False
        if (self.missed and not row.missed_at) or (self.unowned and row.owner):
            return False
        if self.ends_by is not None and not 0 < row.not_after <= self.ends_by:
            return False
        if self.name and self.name not in row.names.lower():
            return False
        return not self.labels or self.labels.items() <= orjson.loads(row.labels).items()


def choice_of(transaction: Transaction, options: Mapping[str, Any], now: float) -> Choice:
    """What the options say.

    Raises:
        click.BadParameter: a label is none.
        PolicyError: there is no such issuer.
    """
    labels = {}
    for label in options["label"]:
        name, separator, value = label.partition("=")
        if not separator:
            raise click.BadParameter("write it as NAME=VALUE", param_hint="--label")
        labels[name] = value
    columns = ("owner", "team", "service", "environment", "criticality", "profile")
    equal = {column: options[column] for column in columns if options[column] is not None}
    if options["issuer"] is not None:
        equal["issuer_id"] = _issuer_id(transaction, options["issuer"])
    within = options["expires_within"]
    return Choice(
        states=frozenset(options["state"]),
        equal=equal,
        labels=labels,
        name=(options["name"] or "").lower(),
        missed=options["missed"],
        unowned=options["unowned"],
        ends_by=None if within is None else int(now) + within,
        retired_too=options["retired_too"],
    )


async def chosen(store: Store, choice: Choice) -> AsyncIterator[list[LineageRow]]:
    """The workloads that are chosen, by id, in pages some of which may be empty."""
    after = ""
    while rows := await store.read(partial(page_of_lineages, after=after)):
        yield [row for row in rows if row in choice]
        after = rows[-1].id


def issuer_names(transaction: Transaction) -> dict[str, str]:
    """The names of all issuers by id."""
    return {issuer.id: issuer.name for issuer in all_issuers(transaction)}


def require_schema(settings: Settings) -> None:
    """See that the database has the tables of this version.

    Raises:
        ServiceAwayError: no service of this version has used it yet.
    """
    if not schema_is_current(settings.database_url):
        raise ServiceAwayError(
            "No service of this version has used this database yet.", hint="Start `privyseal serve`, then try again."
        )


def _issuer_id(transaction: Transaction, wanted: str) -> str:
    for issuer in all_issuers(transaction):
        if wanted in {issuer.name, issuer.id}:
            return issuer.id
    raise PolicyError(
        f"There is no issuer {wanted[:64]!r}.", hint="`privyseal issuer list` shows those that there are."
    )
