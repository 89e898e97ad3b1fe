"""Entries of the ledger, applied to the tables that they are about: for entries that a restored database lacks.

``docs/ledger.md`` has the table of what each kind does here, and of what cannot be made from an entry. Whatever takes
something away from somebody (a revocation, a blocked key, the end of an account) is applied in full; what gives somebody
something (an account, an external account key) is not in entries, and is made anew by its owner.

Of a certificate the entry has every fact but the certificate: its row is kept without DER. It is answered for, revoked and
listed, and adopted when somebody shows the certificate again.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson

from privyseal_ca.ceremony.ledger_key import KEY_FACT, LABEL, LABEL_FACT
from privyseal_ca.errors import LedgerError
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.ledger.ca_entries import note_ca_entry
from privyseal_ca.ledger.entries import Kind, Payload, decode_entry
from privyseal_ca.ledger.log import entries, size
from privyseal_ca.store.certificates import (
    CertificateRow,
    IntentRow,
    RevocationRow,
    add_certificate,
    add_revocation,
    block_key,
    close_intent,
    find_certificate,
    open_intent,
    open_intents,
)
from privyseal_ca.store.issuers import all_issuers, find_fact, set_fact, set_issuer_state
from privyseal_ca.store.rebuilding import (
    account_thumbprint,
    count_eab_use,
    end_account,
    end_authorization,
    fail_order,
    revoke_eab_key,
    withdraw_crl,
)
from privyseal_ca.store.revoking import JobRow, add_job, count_revoked, end_job
from privyseal_ca.store.statement import Transaction

_PAGE: Final = 500
_PROBLEM: Final = "urn:ietf:params:acme:error:"
_ORDER: Final = "order:"
_ACCOUNT: Final = "account:"
#: CRLReason of abandoned serials: cessationOfOperation.
_ABANDONED_REASON: Final = 5


class _Intent(NamedTuple):
    """What an intent says that the entry of the certificate does not."""

    requester: str
    profile: str
    #: The order that it was for; empty for the authority's own certificates.
    order: str
    crl_shard: int | None
    ocsp: bool


class Pointing(NamedTuple):
    """Where certificates say that their revocation is told, for intents from before these said it."""

    profiles: Mapping[str, Profile]
    pointers: Pointers

    def of(self, payload: Payload) -> tuple[int | None, bool]:
        """The part of the CRL that the certificate of an intent names, and whether it names the OCSP responder."""
        profile = self.profiles.get(payload["profile"])
        if "crl_shard" in payload:
            return payload["crl_shard"], payload["ocsp"]
        if profile is None:
            return None, False
        shard = self.pointers.shard_of(int(payload["serial"], 16)) if profile.crl == "shard" else None
        return shard, profile.ocsp


class Rebuilder:
    """Applies entries in their order. What it remembers is what was in flight."""

    def __init__(self, pointing: Pointing) -> None:
        self._pointing = pointing
        self._intents: dict[str, _Intent] = {}
        #: The CRL numbers of this batch, by issuer and scope: the last one counts.
        self._numbers: dict[tuple[str, str], int] = {}
        self._apply: Mapping[Kind, Callable[[Transaction, int, dict[str, Any]], None]] = {
            Kind.INTENT: self._intent,
            Kind.ISSUED: self._issued,
            Kind.ABANDONED: self._abandoned,
            Kind.REVOKED: self._revoked,
            Kind.REVOCATION_RESTORED: _revocation_restored,
            Kind.KEY_BLOCKED: _key_blocked,
            Kind.REVOCATION_STARTED: _job_started,
            Kind.REVOCATION_FINISHED: _job_finished,
            Kind.CRL_PUBLISHED: self._crl_published,
            Kind.KEY_GENERATED: _key_generated,
            Kind.ISSUER_CERTIFIED: self._issuer_certified,
            Kind.ISSUER_ACTIVATED: _issuer_activated,
            Kind.ISSUER_RETIRED: _issuer_retired,
            Kind.ISSUER_REVOKED: _issuer_revoked,
            Kind.ACCOUNT_CREATED: _account_created,
            Kind.ACCOUNT_DEACTIVATED: _account_deactivated,
            Kind.ACCOUNT_KEY_CHANGED: _account_key_changed,
            Kind.AUTHORIZATION_DEACTIVATED: _authorization_deactivated,
            Kind.EAB_REVOKED: _eab_revoked,
        }

    def recall(self, transaction: Transaction) -> None:
        """Find the intents that are open in the tables: their entries are near the end of the ledger.

        Raises:
            LedgerError: one has no entry.
        """
        wanted = {row.serial for row in open_intents(transaction)}
        end = size(transaction)
        while wanted and end:
            first = max(0, end - _PAGE)
            for stored in entries(transaction, first=first, count=end - first):
                members = decode_entry(stored.entry)
                if members["kind"] == Kind.INTENT and members["payload"]["serial"] in wanted:
                    wanted.discard(members["payload"]["serial"])
                    self._remember(members)
            end = first
        if wanted:
            raise LedgerError(f"The intent for the serial {wanted.pop()} has no entry.", hint="Restore another backup.")

    def apply(self, transaction: Transaction, index: int, entry: bytes) -> None:
        """Do what the entry at ``index``, which was just appended in this transaction, says.

        Raises:
            LedgerError: it lacks what its kind has, or does not follow from the entries before it.
        """
        members = decode_entry(entry)
        apply = self._apply.get(Kind(members["kind"]))
        if apply is None:
            return
        try:
            apply(transaction, index, members)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(
                f"Entry {index} ({members['kind']}) lacks a member that its kind has, or one is malformed.",
                hint="A newer program may have written it: restore with that one.",
            ) from error

    def end_batch(self, transaction: Transaction) -> None:
        """Withdraw the CRLs that were replaced in this batch, which are lost: the next has a higher number (P8)."""
        for (issuer, scope), number in self._numbers.items():
            withdraw_crl(transaction, issuer, scope, number)
        self._numbers.clear()

    def _remember(self, members: dict[str, Any]) -> _Intent:
        payload: Payload = members["payload"]
        purpose = str(payload["purpose"])
        order = purpose.removeprefix(_ORDER) if purpose.startswith(_ORDER) else ""
        found = _Intent(members["actor"], payload["profile"], order, *self._pointing.of(payload))
        self._intents[payload["serial"]] = found
        return found

    def _intent(self, transaction: Transaction, _: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        found = self._remember(members)
        row = IntentRow(
            serial=payload["serial"],
            issuer_id=payload["issuer"],
            tbs_sha256=bytes.fromhex(payload["tbs_sha256"]),
            not_after=payload["not_after"],
            requester="ceremony" if payload["purpose"] == "ceremony" else found.requester,
            correlation=members["correlation"],
            crl_shard=found.crl_shard,
        )
        open_intent(transaction, row)

    def _close(self, transaction: Transaction, index: int, serial: str) -> _Intent:
        found = self._intents.pop(serial, None)
        if found is None or not close_intent(transaction, serial):
            raise LedgerError(f"Entry {index} ends an intent for the serial {serial} that there is not.")
        return found

    def _issued(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        intent = self._close(transaction, index, payload["serial"])
        row = CertificateRow(
            serial=payload["serial"],
            issuer_id=payload["issuer"],
            profile=intent.profile,
            requester=intent.requester,
            names=orjson.dumps(payload["names"]).decode(),
            not_before=payload["not_before"],
            not_after=payload["not_after"],
            spki_sha256=bytes.fromhex(payload["spki_sha256"]),
            ledger_index=index,
            der=b"",
            crl_shard=intent.crl_shard,
            ocsp=int(intent.ocsp),
        )
        add_certificate(transaction, row)
        if intent.order:
            # An order has at most one certificate (P4), and this one has had it.
            fail_order(transaction, intent.order, _problem("serverInternal", 500, _ORDER_LOST))

    def _abandoned(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        intent = self._close(transaction, index, payload["serial"])
        _add_revocation(transaction, index, members, reason=_ABANDONED_REASON, shard=intent.crl_shard)

    def _revoked(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        certificate = find_certificate(transaction, payload["serial"])
        if certificate is None:
            raise LedgerError(f"Entry {index} revokes the serial {payload['serial']}, which was not issued before.")
        _add_revocation(transaction, index, members, reason=payload["reason"], shard=certificate.crl_shard)

    def _crl_published(self, _transaction: Transaction, _index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        self._numbers[payload["issuer"], payload["scope"]] = payload["number"]

    def _issuer_certified(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        if not payload["imported"]:
            self._close(transaction, index, payload["serial"])
        note_ca_entry(transaction, payload["serial"], index)


_ORDER_LOST: Final = "The certificate of this order was issued, and the server lost it in a restore. Order anew."
_ENDED: Final = "The account was deactivated."
_KEY_CHANGED: Final = "The account's key was changed, and the server lost the new one in a restore. Make a new account."


def _problem(kind: str, status: int, detail: str) -> str:
    """The problem document (RFC 7807) that an order shows as its error."""
    return orjson.dumps({"type": _PROBLEM + kind, "detail": detail, "status": status}).decode()


def seconds_of(time: str) -> int:
    """The whole seconds since the epoch of an entry's time."""
    return int(datetime.fromisoformat(time.partition(".")[0] + "+00:00").timestamp())


def _add_revocation(
    transaction: Transaction, index: int, members: dict[str, Any], *, reason: int, shard: int | None
) -> None:
    payload: Payload = members["payload"]
    row = RevocationRow(
        issuer_id=payload["issuer"],
        serial=payload["serial"],
        revoked_at=seconds_of(members["time"]),
        reason=reason or None,
        not_after=payload["not_after"],
        crl_shard=shard,
        ledger_index=index,
    )
    add_revocation(transaction, row)


def _revocation_restored(transaction: Transaction, index: int, members: dict[str, Any]) -> None:
    payload: Payload = members["payload"]
    row = RevocationRow(
        issuer_id=payload["issuer"],
        serial=payload["serial"],
        revoked_at=payload["revoked_at"],
        reason=payload["reason"] or None,
        not_after=payload["not_after"],
        crl_shard=payload["crl_shard"],
        ledger_index=index,
    )
    add_revocation(transaction, row)


def _issuer_revoked(transaction: Transaction, index: int, members: dict[str, Any]) -> None:
    _add_revocation(transaction, index, members, reason=members["payload"]["reason"], shard=None)


def _key_blocked(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    payload: Payload = members["payload"]
    key = bytes.fromhex(payload["spki_sha256"])
    block_key(transaction, key, reason=payload["reason"], now=seconds_of(members["time"]))


def _key_generated(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    # A backup from before the log had a key: it goes on with the one that it was given then.
    payload: Payload = members["payload"]
    if payload["label"].startswith(LABEL) and find_fact(transaction, KEY_FACT) is None:
        set_fact(transaction, LABEL_FACT, payload["label"])
        set_fact(transaction, KEY_FACT, payload["uri"])


def _job_started(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    payload: Payload = members["payload"]
    row = JobRow(
        id=payload["job"],
        created=seconds_of(members["time"]),
        actor=members["actor"],
        correlation=members["correlation"],
        reason=payload["reason"],
        selection=orjson.dumps(payload["selection"]).decode(),
        state="running",
        # Whoever resumes it passes over what is revoked already.
        position="",
        total=payload["total"],
        revoked=0,
    )
    add_job(transaction, row)


def _job_finished(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    payload: Payload = members["payload"]
    count_revoked(transaction, payload["job"], payload["revoked"])
    end_job(transaction, payload["job"], payload["state"])


def _set_state(transaction: Transaction, issuer_id: str, state: str, *, was: tuple[str, ...]) -> None:
    for row in all_issuers(transaction):
        if row.id == issuer_id and row.state in was:
            set_issuer_state(transaction, issuer_id, state)


def _issuer_activated(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    _set_state(transaction, members["payload"]["id"], "active", was=("retired",))


def _issuer_retired(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    _set_state(transaction, members["payload"]["id"], "retired", was=("active", "pending"))


def _account_created(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    # The account is lost, and the right to make another with the same key is used up all the same.
    kid = members["payload"].get("eab_kid")
    if kid is not None:
        count_eab_use(transaction, kid)


def _account_deactivated(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    end_account(transaction, members["payload"]["account"], _problem("unauthorized", 403, _ENDED))


def _account_key_changed(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    # Whoever still has the old key may be the reason why it was changed.
    account = str(members["actor"]).removeprefix(_ACCOUNT)
    if account_thumbprint(transaction, account) == members["payload"]["from_thumbprint"]:
        end_account(transaction, account, _problem("unauthorized", 403, _KEY_CHANGED))


def _authorization_deactivated(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    end_authorization(transaction, members["payload"]["authorization"])


def _eab_revoked(transaction: Transaction, _: int, members: dict[str, Any]) -> None:
    revoke_eab_key(transaction, members["payload"]["kid"], seconds_of(members["time"]))
