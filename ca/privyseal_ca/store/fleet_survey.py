"""What a survey of the fleet reads of each workload: the few columns that figures are made of."""

from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, select

from privyseal_ca.store.certificates import COUNTED
from privyseal_ca.store.fleet_tables import Lineage
from privyseal_ca.store.statement import Statement, Transaction

_lineage = Lineage.__table__  # type: ignore[attr-defined]

#: Rows in a page: a millisecond or two.
SURVEY_PAGE: Final = 500


class SurveyRow(NamedTuple):
    """Columns of a workload; see :class:`privyseal_ca.store.fleet_tables.Lineage`."""

    id: str
    issuer_id: str
    profile: str
    owner: str
    criticality: str
    renews: int
    not_before: int
    not_after: int
    certificates: int
    renewed_at: int
    #: The last failed attempt as JSON.
    attempt: str
    state: str
    missed_at: int
    revoked_at: int
    retired_at: int


_PAGE: Final = Statement(
    select(*(_lineage.c[name] for name in SurveyRow._fields))
    .where(_lineage.c.id > bindparam("after"), _lineage.c.retired_at == 0)
    .order_by(_lineage.c.id)
    .limit(bindparam("count"))
)
_retired = select(_lineage.c.criticality).where(_lineage.c.retired_at > 0).limit(COUNTED).subquery()
_RETIRED: Final = Statement(select(_retired.c.criticality, func.count()).group_by(_retired.c.criticality))


def survey_page(transaction: Transaction, *, after: str = "", count: int = SURVEY_PAGE) -> list[SurveyRow]:
    """Up to ``count`` workloads whose id is after ``after``, by id, without those that are retired."""
    return list(map(SurveyRow._make, transaction.all(_PAGE, after=after, count=count)))


def count_retired(transaction: Transaction) -> dict[str, int]:
    """How many workloads are retired, by criticality; together up to 100,000 of them are counted."""
    return {str(row[0]): int(row[1]) for row in transaction.all(_RETIRED)}
