"""Checking what the ledger says of revocations against the tables: certificates, issuers, keys, jobs."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import orjson

from privyseal_ca.ledger.audit_errors import AuditError, wrong, wrong_about
from privyseal_ca.ledger.audit_tables import (
    Revoked,
    blocked_keys_after,
    jobs_after,
    revocation_agrees,
    revocations_after,
)
from privyseal_ca.ledger.entries import Kind, Payload
from privyseal_ca.store.certificates import blocked_key_reason, find_certificate, find_revocation
from privyseal_ca.store.engine import Store
from privyseal_ca.store.revoking import find_job
from privyseal_ca.store.statement import Transaction

_KEY_COMPROMISE: Final = 1
_RUNNING: Final = "running"


class RevocationAudit:
    """What the entries so far have revoked.

    ``ca_serials`` are the serials of the CA certificates that the entries so far tell of, each with the CA that signed it.
    """

    def __init__(self, ca_serials: Mapping[str, str]) -> None:
        self._ca_serials = ca_serials
        #: Issuer and serial of everything on the revocation list, abandoned serials included.
        self.seen: set[Revoked] = set()
        self.abandoned = 0
        #: The jobs that were started, with the state in which they ended.
        self._jobs: dict[str, str] = {}
        self._blocked: set[bytes] = set()
        self._unrecorded: list[Revoked] = []
        self._unrecorded_keys: list[bytes] = []
        self._job_rows: list[tuple[str, str]] = []

    def certificate_abandoned(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``certificate.abandoned``; its intent is somebody else's affair."""
        payload: Payload = members["payload"]
        serial, issuer = payload["serial"], payload["issuer"]
        row = find_revocation(transaction, issuer, serial)
        if row is None:
            raise wrong_about(index, Kind.ABANDONED, serial, "is not on the revocation list")
        if row.ledger_index not in {0, index}:
            raise wrong_about(index, Kind.ABANDONED, serial, "has a row that names another entry")
        if row.not_after != payload.get("not_after", row.not_after):
            raise wrong_about(index, Kind.ABANDONED, serial, "has a row whose columns differ from it")
        if find_certificate(transaction, serial) is not None:
            raise wrong_about(index, Kind.ABANDONED, serial, "has a certificate all the same")
        self._add(index, (issuer, serial))
        self.abandoned += 1

    def certificate_revoked(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``certificate.revoked``."""
        payload: Payload = members["payload"]
        serial, issuer = payload["serial"], payload["issuer"]
        certificate = find_certificate(transaction, serial)
        if certificate is None or certificate.issuer_id != issuer or certificate.ledger_index >= index:
            raise wrong_about(index, Kind.REVOKED, serial, "is for a certificate that had not been issued")
        self._add(index, (issuer, serial))
        self._check_row(transaction, index, members, shard=certificate.crl_shard)
        if payload["reason"] == _KEY_COMPROMISE:
            if blocked_key_reason(transaction, certificate.spki_sha256) is None:
                raise wrong_about(index, Kind.REVOKED, serial, "is for a compromised key that is not blocked")
            # Once there was no entry of its own for that.
            self._blocked.add(certificate.spki_sha256)

    def revocation_restored(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``revocation.restored``: what a CRL listed, of a certificate that may not be known here."""
        payload: Payload = members["payload"]
        serial, issuer = payload["serial"], payload["issuer"]
        self._add(index, (issuer, serial))
        row = find_revocation(transaction, issuer, serial)
        if row is None:
            raise wrong_about(index, Kind.REVOCATION_RESTORED, serial, "is not on the revocation list")
        said = payload["revoked_at"], payload["reason"], payload["not_after"], payload["crl_shard"], index
        if (row.revoked_at, row.reason or 0, row.not_after, row.crl_shard, row.ledger_index) != said:
            raise wrong_about(index, Kind.REVOCATION_RESTORED, serial, "has a row whose columns differ from it")

    def issuer_revoked(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``issuer.revoked``."""
        payload: Payload = members["payload"]
        serial, issuer = payload["serial"], payload["issuer"]
        if self._ca_serials.get(serial) != issuer:
            raise wrong_about(index, Kind.ISSUER_REVOKED, serial, "is for a CA that had not been certified")
        self._add(index, (issuer, serial))
        self._check_row(transaction, index, members, shard=None)

    def key_blocked(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``key.blocked``."""
        key = members["payload"]["spki_sha256"]
        if blocked_key_reason(transaction, bytes.fromhex(key)) is None:
            raise wrong(index, f"({Kind.KEY_BLOCKED}) is for the key {key}, which is not blocked")
        self._blocked.add(bytes.fromhex(key))

    def job_started(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``revocation.started``."""
        payload: Payload = members["payload"]
        job = payload["job"]
        if job in self._jobs:
            raise wrong(index, f"({Kind.REVOCATION_STARTED}) starts the job {job}, which was started before")
        self._jobs[job] = _RUNNING
        row = find_job(transaction, job)
        if row is None:
            raise wrong(index, f"({Kind.REVOCATION_STARTED}) is for the job {job}, which is not kept")
        said = payload["selection"], payload["reason"], payload["total"], members["actor"], members["correlation"]
        if (orjson.loads(row.selection), row.reason, row.total, row.actor, row.correlation) != said:
            raise wrong(index, f"({Kind.REVOCATION_STARTED}) is for the job {job}, whose row differs from it")

    def job_finished(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        """``revocation.finished``."""
        payload: Payload = members["payload"]
        job = payload["job"]
        if self._jobs.get(job) != _RUNNING:
            raise wrong(index, f"({Kind.REVOCATION_FINISHED}) ends the job {job}, which does not run")
        self._jobs[job] = payload["state"]
        row = find_job(transaction, job)
        if row is None or row.state != payload["state"]:
            raise wrong(index, f"({Kind.REVOCATION_FINISHED}) ends the job {job}, whose row says something else")

    async def look_for_unrecorded(self, store: Store) -> None:
        """Remember the rows that no entry so far explains: younger entries may."""
        last: Revoked = ("", "")
        while page := await store.read(partial(revocations_after, last=last)):
            self._unrecorded += [revoked for revoked in page if revoked not in self.seen]
            last = page[-1]
        key = b""
        while keys := await store.read(partial(blocked_keys_after, last=key)):
            self._unrecorded_keys += [blocked for blocked in keys if blocked not in self._blocked]
            key = keys[-1]
        job = ""
        while jobs := await store.read(partial(jobs_after, last=job)):
            self._job_rows += [row for row in jobs if self._jobs.get(row[0]) != row[1]]
            job = jobs[-1][0]

    def compare(self) -> None:
        """Raise for the first of those rows that is still not explained."""
        for revoked in self._unrecorded:
            if revoked not in self.seen:
                raise AuditError(f"The serial {revoked[1]} is on the revocation list without an entry.")
        for key in self._unrecorded_keys:
            if key not in self._blocked:
                raise AuditError(f"The key {key.hex()} is blocked without an entry.")
        for job, state in self._job_rows:
            if job not in self._jobs:
                raise AuditError(f"The job {job} has no {Kind.REVOCATION_STARTED} entry.")
            # One that ran when it was looked at may have ended since.
            if state not in {_RUNNING, self._jobs[job]}:
                raise AuditError(f"The job {job} is {state} without an entry.")

    def _check_row(self, transaction: Transaction, index: int, members: dict[str, Any], *, shard: int | None) -> None:
        payload: Payload = members["payload"]
        kind, serial = Kind(members["kind"]), payload["serial"]
        row = find_revocation(transaction, payload["issuer"], serial)
        if row is None:
            raise wrong_about(index, kind, serial, "is not on the revocation list")
        if not revocation_agrees(row, members):
            raise wrong_about(index, kind, serial, "has a row whose columns differ from it")
        # Rows from before there was this column have 0.
        if row.ledger_index not in {0, index}:
            raise wrong_about(index, kind, serial, "has a row that names another entry")
        if row.crl_shard != shard:
            raise wrong_about(index, kind, serial, "is on another part of the CRL than its certificate names")

    def _add(self, index: int, revoked: Revoked) -> None:
        if revoked in self.seen:
            raise wrong(index, f"revokes the serial {revoked[1]}, which was revoked before")
        self.seen.add(revoked)
