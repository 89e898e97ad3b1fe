"""What a database says of its own past: that it was restored and not settled, and which logs it gave up (promise P8)."""

from typing import Any, Final

import orjson

from privyseal_ca.errors import LedgerBehindError
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.statement import Transaction

#: The fact that a backup was restored, or an older database found, and nothing may be appended until that is settled: JSON
#: with ``at``, ``size``, ``root`` (hex) and ``by``, and ``manifest_sha256`` after `privyseal restore`.
RESTORE_FACT: Final = "restore"
#: The fact that names the logs which this authority had before, as JSON: a list of ``origin`` and ``vkey``.
FORMER_FACT: Final = "ledger-former"


def former_logs(transaction: Transaction) -> list[dict[str, str]]:
    """Origin and key of each log that was given up before this one, the oldest first."""
    text = find_fact(transaction, FORMER_FACT)
    return orjson.loads(text) if text else []


def restored_fact(transaction: Transaction) -> dict[str, Any] | None:
    """What the fact of a restore says; None when there is nothing to settle."""
    text = find_fact(transaction, RESTORE_FACT)
    found: dict[str, Any] | None = orjson.loads(text) if text else None
    return found


def unsettled(fact: dict[str, Any]) -> LedgerBehindError:
    """That a backup was restored, and nobody has said yet what it lacks."""
    return LedgerBehindError(
        f"A backup was restored into this database, with {fact.get('size')} entries, and it is not settled yet whether it "
        "lacks anything that happened after it: revocations may be missing.",
        hint="Nothing is issued, published or changed until then: privyseal recovery settle --entries URL|FOLDER|FILE "
        "--checkpoint FILE|URL. `privyseal recovery status` shows what is known.",
    )
