"""What entries that were brought back say and no table can have again: for the people who settle a restore."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import StoredEntry, entries
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import chains
from privyseal_ca.store.rebuilding import account_thumbprint
from privyseal_ca.store.statement import Transaction

_PAGE: Final = 500
#: How many of a kind are named.
_NAMED: Final = 100


@dataclass(slots=True)
class Summary:
    """Of the entries that a backup did not have. Lists name at most 100."""

    certificates: int = 0
    revoked: int = 0
    #: Accounts whose keys nobody has: their clients register again. How many, and which.
    accounts_lost: int = 0
    accounts: list[str] = field(default_factory=list)
    #: Accounts that were ended because their key had been changed.
    accounts_ended: list[str] = field(default_factory=list)
    #: External account keys whose secrets are gone.
    eab_lost: list[str] = field(default_factory=list)
    #: CAs that were certified, and of which nothing but that is known.
    issuers_lost: list[str] = field(default_factory=list)
    #: Settings, policies and profiles that were changed: the restored files are older.
    changed: list[str] = field(default_factory=list)
    #: The last number of each CRL, by issuer and scope.
    crls: dict[tuple[str, str], int] = field(default_factory=dict)

    def numbers(self) -> list[tuple[str, str, int]]:
        """The CRLs as issuer, scope and number."""
        return [(issuer, scope, number) for (issuer, scope), number in sorted(self.crls.items())]


async def summarise(store: Store, first: int, end: int) -> Summary:
    """What the entries from index ``first`` to before ``end`` say.

    Raises:
        StoreError: the database failed.
    """
    summary = Summary()
    while first < end:
        count = min(_PAGE, end - first)
        await store.read(partial(_page, first, count, summary))
        first += count
    return summary


def _page(first: int, count: int, summary: Summary, transaction: Transaction) -> None:
    _add_all(summary, entries(transaction, first=first, count=count), transaction)


def _add_all(summary: Summary, found: Iterable[StoredEntry], transaction: Transaction) -> None:
    for stored in found:
        members = decode_entry(stored.entry)
        _add(summary, Kind(members["kind"]), members, transaction)


def _add(summary: Summary, kind: Kind, members: dict[str, Any], transaction: Transaction) -> None:
    payload = members["payload"]
    match kind:
        case Kind.ISSUED:
            summary.certificates += 1
        case Kind.REVOKED:
            summary.revoked += 1
        case Kind.ACCOUNT_CREATED:
            summary.accounts_lost += 1
            _name(summary.accounts, members["actor"])
        case Kind.ACCOUNT_KEY_CHANGED if account_thumbprint(transaction, members["actor"][8:]) is None:
            _name(summary.accounts_ended, members["actor"])
        case Kind.EAB_CREATED:
            _name(summary.eab_lost, f"{payload['kid']} {payload['label']}".strip())
        case Kind.ISSUER_CERTIFIED if not _has_certificate(transaction, payload):
            _name(summary.issuers_lost, f"{payload['id']} {payload['subject']}")
        case Kind.SETTINGS_CHANGED:
            for name in payload["changed"]:
                _name(summary.changed, name)
        case Kind.POLICY_CHANGED:
            _name(summary.changed, f"policy {payload['name']}")
        case Kind.PROFILE_CHANGED:
            _name(summary.changed, f"profile {payload['name']}")
        case Kind.CRL_PUBLISHED:
            summary.crls[payload["issuer"], payload["scope"]] = payload["number"]
        case _:
            pass


def _has_certificate(transaction: Transaction, payload: dict[str, Any]) -> bool:
    """Whether the CA certificate that an entry is about is here. A CA that waited for it then is here without."""
    return any(
        x509.load_pem_x509_certificates(pem.encode())[0].fingerprint(hashes.SHA256()).hex()
        == payload["certificate_sha256"]
        for pem in chains(transaction, payload["id"])
    )


def _name(names: list[str], name: str) -> None:
    if len(names) < _NAMED and name not in names:
        names.append(name)
