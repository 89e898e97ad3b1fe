"""How many OCSP responses are kept ready."""

from typing import NamedTuple

from sqlalchemy import func, select

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import OcspResponse

_response = OcspResponse.__table__  # type: ignore[attr-defined]

_COUNTS = Statement(
    select(_response.c.issuer_id, func.count(), func.min(_response.c.next_update)).group_by(_response.c.issuer_id)
)


class KeptResponses(NamedTuple):
    """The responses that are kept for an issuer: how many, and the earliest nextUpdate in seconds since the epoch."""

    issuer_id: str
    responses: int
    next_update: int


def count_responses(transaction: Transaction) -> list[KeptResponses]:
    """What is kept, by issuer."""
    return [KeptResponses(*row) for row in transaction.all(_COUNTS)]
