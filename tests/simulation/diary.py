"""What leaders write of themselves, by which it shows whether two of them ever did at once."""

from typing import TYPE_CHECKING

from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, select
from sqlalchemy.schema import CreateTable

from privyseal_ca.store.statement import Statement, Transaction

if TYPE_CHECKING:
    from simulation.process import Process

_pages = Table(
    "simulation_diary",
    MetaData(),
    Column("page", Integer, primary_key=True),
    Column("fence", Integer, nullable=False),
    Column("holder", Text, nullable=False),
)
_CREATE = Statement(CreateTable(_pages, if_not_exists=True))
_WRITE = Statement(insert(_pages))
_READ = Statement(select(_pages.c.page, _pages.c.fence, _pages.c.holder).order_by(_pages.c.page))


def create(transaction: Transaction) -> None:
    """Make the table, which the product knows nothing of."""
    transaction.execute(_CREATE)


class Diary:
    """A job of the leader. Each page says who wrote it, and by which fence it had become the leader."""

    async def write(self, process: "Process") -> None:
        """Add a page."""
        fence = process.leadership.fence or 0
        await process.store.write(lambda tx: tx.execute(_WRITE, page=None, fence=fence, holder=process.name))

    async def faults(self, process: "Process") -> list[str]:
        """What shows that two led at once: a fence of two holders, or a page behind one of a later leader."""
        pages = [(int(row[1]), str(row[2])) for row in await process.store.read(lambda tx: tx.all(_READ))]
        holders = dict(pages)
        faults = [
            f"{holder} wrote as leader {fence}, who is {holders[fence]}"
            for fence, holder in pages
            if holders[fence] != holder
        ]
        newest = 0
        for fence, holder in pages:
            if fence < newest:
                faults.append(f"{holder} wrote as leader {fence} after leader {newest}")
            newest = max(newest, fence)
        return faults
