"""Numbers that the CRLs of a restored database go on above, so that none comes twice (RFC 5280 section 5.2.3, promise P8).

Even who has every entry up to the newest checkpoint that is kept outside does not have those of the time after it, and in
that time CRLs were published as well.
"""

from math import ceil
from typing import Final

from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.recovery.crl_evidence import all_cas
from privyseal_ca.recovery.rebuild import seconds_of
from privyseal_ca.store.crls import CrlRow, Part, add_part, all_crls, newest_part
from privyseal_ca.store.statement import Transaction

#: Numbers that are left out beyond those that lost CRLs can have had.
_GAP: Final = 1000


def time_of(transaction: Transaction, index: int) -> int | None:
    """When the entry at ``index`` was written, in seconds since the epoch; None where there is none."""
    stored = next(entries(transaction, first=index, count=1), None) if index >= 0 else None
    return None if stored is None else seconds_of(decode_entry(stored.entry)["time"])


def number_beyond(known: int, row: CrlRow | None, *, known_at: int | None, now: float, interval: float) -> int:
    """A number that no CRL of a scope has, when ``known`` is the highest that is known, and ``row`` its current CRL.

    ``known_at`` is when the last entry was written that is known. Each scope gets at most one number in every ``interval``.
    """
    since = row.this_update if row is not None and row.number else known_at
    past = 0.0 if since is None else max(0.0, now - since)
    return known + _GAP + ceil(past / interval)


def reserve_numbers(transaction: Transaction, *, end: int, now: float, interval: float) -> None:
    """Have the next CRL of every scope of this database's own CAs go on above what a lost one can have had.

    What is served stays so: an empty piece has the number, above which every builder goes. ``end`` is the ledger's size.
    """
    own = {ca.id for ca in all_cas(transaction) if ca.own}
    known_at = time_of(transaction, end - 1)
    for row in all_crls(transaction):
        known = max(row.number, newest_part(transaction, row.issuer_id, row.scope))
        if row.issuer_id in own and known:
            number = number_beyond(known, row, known_at=known_at, now=now, interval=interval)
            add_part(transaction, Part(row.issuer_id, row.scope, number, 0, 0, b""))
