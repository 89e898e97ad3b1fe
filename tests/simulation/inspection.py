"""What must hold at every step, looked at from outside: in the database by SQL of its own, and in what processes would serve.

1. No CRL and no OCSP response is past its nextUpdate, neither in the database nor as it is served, and what it says is true.
2. Nobody's certificate ends who asked for a successor in time while the authority was there, and nobody's with whom all is well.
3. A renewal that does not come is reported as missed before the certificate ends, and no other is.
4. What leaders write is written by one leader after the other.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from cryptography.x509 import ocsp

from privyseal_ca.revocation.ocsp_response import issuer_hashes
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus
from simulation.process import Process
from simulation.troubles import Troubles
from simulation.workloads import DAY, HOUR, PROFILES, Fate, Workload

#: Answers that are asked for at each step, and how old their certificates are at least: the first response of one that was
#: issued just before an outage may have to wait.
_ASKED: Final = 3
_SETTLED: Final = 3 * DAY
#: Who asks only then that a refusal uses up what is left was too late.
_IN_TIME: Final = DAY

_STALE_RESPONSES: Final = """
    SELECT count(*) FROM ocsp_response JOIN certificate USING (serial)
    WHERE refresh_at <= :now AND next_update <= :now AND not_after > :now
"""
_MISSING_RESPONSES: Final = """
    SELECT count(*) FROM certificate WHERE ocsp = 1 AND not_before < :before AND not_after > :now
    AND NOT EXISTS (SELECT 1 FROM ocsp_response WHERE ocsp_response.serial = certificate.serial)
"""
_STALE_CRLS: Final = "SELECT count(*) FROM crl WHERE number = 0 OR next_update <= :now"
_MISSED: Final = "SELECT serial, missed_at, deadline FROM lineage WHERE missed_at > 0"
_STATE: Final = "SELECT state, missed_at FROM lineage WHERE serial = :serial"
_FENCE: Final = "SELECT fence FROM scheduler_lease"


class BrokenPromiseError(AssertionError):
    """Something that must hold does not."""


@dataclass
class Inspector:
    """Looks, counts, and raises :class:`BrokenPromiseError`."""

    path: str
    troubles: Troubles
    random: Random
    fleet: Sequence[Workload] = ()
    missed: set[str] = field(default_factory=set)
    answers: int = 0
    expired: int = 0
    _fence: int = 0
    _by_serial: dict[str, Workload] = field(default_factory=dict)
    _expired: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._database = sqlite3.connect(self.path, isolation_level=None)
        self._database.execute("PRAGMA query_only = 1")

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def look(self, processes: Iterable[Process], now: float) -> None:
        """Look at what is published, and at the lease."""
        self._must_be(0, "OCSP responses are past their nextUpdate", _STALE_RESPONSES, now=now)
        self._must_be(0, "CRLs are past their nextUpdate", _STALE_CRLS, now=now)
        for process in processes:
            for crl in process.publication.crls.published():
                if crl.next_update <= now:
                    raise BrokenPromiseError(
                        f"{process.name} serves CRL {crl.number} of part {crl.shard}, which has ended"
                    )
        fence = self._one(_FENCE)[0]
        if fence < self._fence:
            raise BrokenPromiseError(f"the fence went back from {self._fence} to {fence}")
        self._fence = fence

    async def ask(self, processes: Iterable[Process], now: float) -> None:
        """Ask for some answers about certificates, and see what they say."""
        asked = [workload for workload in self.random.choices(self.fleet, k=_ASKED) if _is_settled(workload, now)]
        for process in processes:
            issuer = next(iter(process.context.authority.issuers))
            hashes = issuer_hashes(issuer.identity.certificate, "sha256")
            for workload in asked:
                serial = workload.held.serial if workload.held else ""
                answer = await process.publication.ocsp.answer(OcspQuery("sha256", *hashes, int(serial, 16)))
                self.answers += 1
                self._check(workload, serial, answer, now)

    def _check(self, workload: Workload, serial: str, answer: OcspAnswer | OcspStatus, now: float) -> None:
        if not isinstance(answer, OcspAnswer):
            raise BrokenPromiseError(f"the answer about {workload.name} is {answer.name}: {_said(workload, now)}")
        response = ocsp.load_der_ocsp_response(answer.der)
        end = response.next_update_utc
        if end is None or end.timestamp() <= now:
            raise BrokenPromiseError(f"the answer about {workload.name} ended at {end}: {_said(workload, now)}")
        expected = "REVOKED" if self._is_revoked(serial) else "GOOD"
        if response.certificate_status.name != expected:
            raise BrokenPromiseError(
                f"{workload.name} is said to be {response.certificate_status.name}, not {expected}"
            )

    def look_at_all(self, now: float) -> None:
        """Look whether there is a response for everything, which takes longer."""
        self._must_be(0, "certificates have no OCSP response", _MISSING_RESPONSES, now=now, before=now - _SETTLED)

    def look_at_fleet(self, now: float, leap: float) -> None:
        """Look at those whose certificates end before the next step, after ``leap`` seconds, and at what is reported."""
        for workload in self.fleet:
            held = workload.held
            if held is None or held.end > now + leap or held.serial in self._expired:
                continue
            if held.end > now:
                self._must_be_reported(workload, now)
            else:
                self._expired.add(held.serial)
                self._may_expire(workload, now)
        self._must_not_be_reported(now)

    def _must_be_reported(self, workload: Workload, now: float) -> None:
        assert workload.held is not None
        row = self._database.execute(_STATE, {"serial": workload.held.serial}).fetchone()
        if row is None:
            raise BrokenPromiseError(f"{workload.name} is no workload of the fleet: {_said(workload, now)}")
        state, missed_at = row
        if not missed_at and state != "retired":
            raise BrokenPromiseError(f"{workload.name} ends and is reported as {state}: {_said(workload, now)}")
        if state == "retired" and workload.fate is not Fate.LEAVES:
            raise BrokenPromiseError(f"{workload.name} counts as retired before its end: {_said(workload, now)}")

    def _may_expire(self, workload: Workload, now: float) -> None:
        assert workload.held is not None
        self.expired += 1
        workload.expiries += 1
        serial, asked = workload.asked
        if serial == workload.held.serial and asked < workload.held.end - _IN_TIME:
            raise BrokenPromiseError(f"{workload.name} asked in time and its certificate ended: {_said(workload, now)}")
        if workload.fate is Fate.WELL:
            raise BrokenPromiseError(f"{workload.name} is well and its certificate ended: {_said(workload, now)}")

    def _must_not_be_reported(self, now: float) -> None:
        rows = self._database.execute(_MISSED).fetchall()
        if len(rows) > 0 and not self._by_serial.keys() >= {serial for serial, _, _ in rows}:
            self._by_serial = {workload.held.serial: workload for workload in self.fleet if workload.held is not None}
        for serial, _, deadline in rows:
            self.missed.add(serial)
            workload = self._by_serial.get(serial)
            if workload is None or workload.fate is not Fate.WELL:
                continue
            # Who wanted to renew and met an outage is reported as well, and rightly so.
            if not self.troubles.any_between(deadline - 3 * DAY, deadline + 12 * HOUR):
                raise BrokenPromiseError(f"{workload.name} is well and reported as missed: {_said(workload, now)}")

    def _is_revoked(self, serial: str) -> bool:
        return self._database.execute("SELECT 1 FROM revocation WHERE serial = ?", (serial,)).fetchone() is not None

    def _must_be(self, expected: int, what: str, query: str, **parameters: float) -> None:
        (found,) = self._one(query, **parameters)
        if found != expected:
            raise BrokenPromiseError(f"{found} {what}")

    def _one(self, query: str, **parameters: float) -> Sequence[int]:
        row: Sequence[int] = self._database.execute(query, parameters).fetchone()
        return row


def _is_settled(workload: Workload, now: float) -> bool:
    held = workload.held
    return workload.profile == PROFILES[1] and held is not None and held.begin < now - _SETTLED and held.end > now


def _said(workload: Workload, now: float) -> str:
    held = workload.held
    assert held is not None
    parts: Mapping[str, object] = {
        "habit": workload.habit.value,
        "fate": workload.fate.value,
        "part of its life": round((now - held.begin) / (held.end - held.begin), 3),
        "asked": workload.asked[0] == held.serial and round((now - workload.asked[1]) / DAY, 2),
        "order": workload.order,
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items())
