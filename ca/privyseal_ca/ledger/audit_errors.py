"""What a check of the ledger says when it finds something wrong."""

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import Kind


class AuditError(LedgerError):
    """The first thing that was found wrong; ``index`` is that of the entry, if it is about one."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(
            message,
            hint="Keep the database as it is, stop issuing, and compare with backups and earlier checks.",
        )
        self.index = index


def wrong(index: int, what: str) -> AuditError:
    """Something about the entry with ``index``."""
    return AuditError(f"Entry {index} {what}.", index=index)


def wrong_about(index: int, kind: Kind, serial: str, what: str) -> AuditError:
    """Something about what an entry says of a serial."""
    return wrong(index, f"({kind}, serial {serial}) {what}")
