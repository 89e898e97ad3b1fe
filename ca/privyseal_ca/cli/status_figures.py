"""What `privyseal status` knows: the home, the database's figures, and how old what is published is."""

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple

from cryptography import x509

from privyseal_ca.ceremony.certificates import subject_key_identifier
from privyseal_ca.ceremony.roots import roots
from privyseal_ca.cli.home import opened_store
from privyseal_ca.cli.jobs import held
from privyseal_ca.cli.text import moment
from privyseal_ca.cli.version import program_version
from privyseal_ca.clock import rfc3339
from privyseal_ca.config import Settings
from privyseal_ca.doctor import service_state
from privyseal_ca.fleet.survey import FleetFigures
from privyseal_ca.fleet.survey_store import survey_fleet
from privyseal_ca.ledger.audit_tables import count_certificates
from privyseal_ca.ledger.checkpoint_rows import latest_checkpoint
from privyseal_ca.ledger.log import entries, size
from privyseal_ca.store.crls import all_crls
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.notifications import waiting
from privyseal_ca.store.ocsp import all_responders, count_due
from privyseal_ca.store.scheduling import JobRow, all_jobs, find_lease
from privyseal_ca.store.statement import Transaction

#: OCSP responses that are to be made anew are counted up to here.
MOST_DUE: Final = 10_000
#: What of the figures of the fleet is in the document; `privyseal report` and `privyseal fleet` tell the rest.
_FLEET: Final = ("at", "workloads", "states", "missed", "unowned", "failing", "renewals")
_FOLDER_SECONDS: Final = 2.0
_MOST_FILES: Final = 100_000


Surveying = Callable[[Store, float], Awaitable[FleetFigures]]


class CrlAge(NamedTuple):
    """The CRLs of one CA, its parts included. Times are seconds since the epoch."""

    issuer_id: str
    name: str
    #: How many there are.
    lists: int
    #: When the oldest of them was made, and when the first of them ends.
    made: int
    ends: int
    #: When the CA's own certificate ends, and whether somebody may still ask for the CRL.
    not_after: int
    wanted: bool


async def status_document(settings: Settings, now: float, *, survey: Surveying = survey_fleet) -> dict[str, Any]:
    """The state of the authority at ``now``, in seconds since the epoch, as JSON has it; ``survey`` gives figures of the fleet.

    Raises:
        ConfigurationError: there is no authority.
        StoreError: the database is away.
    """
    async with opened_store(settings) as store:
        # The schema of an older program lacks the tables of jobs and of the fleet.
        current = schema_is_current(settings.database_url)
        document = _surroundings(settings, now, current=current) | await store.read(lambda tx: _figures(tx, now))
        if not current:
            return document
        document |= await store.read(lambda tx: _work(tx, now))
        document["fleet"] = _fleet(await survey(store, now))
        mark = await store.read(_mark) if settings.backup.folder else ""
    document["backup"] = _backup(settings.backup.folder, mark, now) if settings.backup.folder else None
    return document


def crl_ages(transaction: Transaction, now: float) -> list[CrlAge]:
    """The CRLs of all CAs that have published any, as the database has them; those of issuers first."""
    cas: dict[str, tuple[str, int, bool]] = {}
    for row in all_issuers(transaction):
        end = int(certificate_end(chains(transaction, row.id)) or 0)
        cas[row.id] = (row.name, end, end > now and row.state in {"active", "retired"})
    for root in roots(transaction):
        found_id, end = subject_key_identifier(root).digest.hex(), int(root.not_valid_after_utc.timestamp())
        names = root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        own = str(names[0].value) if names else "root"
        cas[found_id] = (cas[found_id][0] if found_id in cas else own, end, end > now)
    found: dict[str, list[tuple[int, int]]] = {}
    for crl in all_crls(transaction):
        if crl.number and crl.issuer_id in cas:
            found.setdefault(crl.issuer_id, []).append((crl.this_update, crl.next_update))
    return [
        CrlAge(
            issuer, name, len(times), min(made for made, _ in times), min(end for _, end in times), not_after, wanted
        )
        for issuer, (name, not_after, wanted) in cas.items()
        if (times := found.get(issuer))
    ]


def certificate_end(pems: list[str]) -> float | None:
    """When the certificate that the first of these chains begins with ends; None without one."""
    return x509.load_pem_x509_certificates(pems[0].encode())[0].not_valid_after_utc.timestamp() if pems else None


def _surroundings(settings: Settings, now: float, *, current: bool) -> dict[str, Any]:
    return {
        "at": rfc3339(now),
        "version": program_version(),
        "home": str(settings.home),
        "directory": f"{settings.server.public_https}/acme/directory",
        "service": service_state(settings) or "not running",
        "schema": "current" if current else "outdated",
    }


def _figures(transaction: Transaction, now: float) -> dict[str, Any]:
    """What databases of every schema have."""
    count = size(transaction)
    return {
        "ledger": count,
        "certificates": count_certificates(transaction, count),
        "issuers": [_issuer(row.name, row.state, chains(transaction, row.id), now) for row in all_issuers(transaction)],
    }


def _work(transaction: Transaction, now: float) -> dict[str, Any]:
    """The jobs, and what they keep fresh."""
    rows = all_jobs(transaction)
    failing = [row.name for row in rows if row.failures_in_row]
    checkpoint = latest_checkpoint(transaction)
    late = waiting(transaction)
    return {
        "jobs": {"known": len(rows), "led": held(find_lease(transaction), now), "failing": failing},
        "job_runs": [_job(row) for row in rows],
        "crls": [_crl(each, now) for each in crl_ages(transaction, now)],
        "ocsp": {
            "responders": [_responder(row.issuer_id, row.not_after, now) for row in all_responders(transaction)],
            "due": count_due(transaction, now=int(now), most=MOST_DUE),
        },
        "checkpoint": checkpoint
        and {"size": checkpoint.size, "signed": rfc3339(checkpoint.signed_at), "age": int(now) - checkpoint.signed_at},
        "notifications": {"waiting": late.messages, "age": int(now) - late.oldest if late.messages else 0},
    }


def _fleet(figures: FleetFigures) -> dict[str, Any]:
    document = figures.document()
    overall = next((each for each in document["survival"] if each["by"] == "all"), None)
    return {name: document[name] for name in _FLEET} | {"survival": overall}


def _issuer(name: str, state: str, pems: list[str], now: float) -> dict[str, Any]:
    not_after = certificate_end(pems)
    return {
        "name": name,
        "state": state,
        "not_after": moment(not_after),
        "days_left": None if not_after is None else int((not_after - now) // 86400),
    }


def _job(row: JobRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "last_finished": moment(row.last_finished or None),
        "next_due": moment(row.next_due or None),
        "failures_in_row": row.failures_in_row,
        "problem": row.problem,
    }


def _crl(crl: CrlAge, now: float) -> dict[str, Any]:
    return {
        "issuer": crl.name,
        "lists": crl.lists,
        "made": rfc3339(crl.made),
        "age": int(now) - crl.made,
        "ends": rfc3339(crl.ends),
        "left": crl.ends - int(now),
        "over": crl.wanted and crl.ends <= now,
    }


def _responder(issuer_id: str, not_after: int, now: float) -> dict[str, Any]:
    """``left`` is None before the responder has a certificate."""
    return {
        "issuer_id": issuer_id,
        "not_after": moment(not_after or None),
        "left": not_after - int(now) if not_after else None,
    }


def _mark(transaction: Transaction) -> str:
    """What the names of this authority's scheduled backups begin with."""
    first = next(entries(transaction, count=1), None)
    return first.leaf_hash.hex()[:12] if first else ""


def _backup(folder: Path, mark: str, now: float) -> Mapping[str, Any]:
    """The newest file of scheduled backups, by its name; a folder on a machine that is away holds up nobody for long."""
    answer: SimpleQueue[float | str | None] = SimpleQueue()
    Thread(target=lambda: answer.put(_newest(folder, mark)), daemon=True).start()
    try:
        found = answer.get(timeout=_FOLDER_SECONDS)
    except Empty:
        found = "it does not answer"
    made = found if isinstance(found, float) else None
    return {
        "folder": str(folder),
        "last": moment(made),
        "age": None if made is None else int(now - made),
        "problem": found if isinstance(found, str) else "",
    }


def _newest(folder: Path, mark: str) -> float | str | None:
    """When the newest backup was made; None when there is none, and text when the folder cannot be read."""
    pattern = re.compile(rf"privyseal-{mark}-([0-9]{{8}}T[0-9]{{6}}Z)\.age")
    try:
        with os.scandir(folder) as there:
            names = [found[1] for each in islice(there, _MOST_FILES) if (found := pattern.fullmatch(each.name))]
        made = datetime.strptime(max(names), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if names else None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None if made is None else made.timestamp()
